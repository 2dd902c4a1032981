// The episode browser: filters, the list beside the opened episode, keys, and the address of the episode in the page's hash.
const FIELDS = ["stage", "kind", "outcome", "where", "order", "gain-low", "gain-high"];
const BINS = 21;

const failing = (row, where) => {
  if (where === "first") return row.fails[0] || [];
  if (where === "last") return row.fails[row.fails.length - 1] || [];
  return row.fails.flat();
};
const OUTCOMES = {
  repaired: (row) => failing(row, "first").length > 0 && failing(row, "last").length === 0,
  broken: (row) => row.fails.length > 0 && failing(row, "first").length === 0 && failing(row, "last").length > 0,
  clean: (row) => row.valid && row.fails.length > 0 && failing(row, "last").length === 0,
  failing: (row) => failing(row, "last").length > 0,
  invalid: (row) => !row.valid,
};
const last = (row) => row.pdms[row.pdms.length - 1] ?? 0;
const ORDERS = {
  gain: (a, b) => b.gain - a.gain, loss: (a, b) => a.gain - b.gain, worst: (a, b) => last(a) - last(b),
  turns: (a, b) => b.pdms.length - a.pdms.length,
};

const drawHistogram = (svg, gains, low, high) => {
  const counts = new Array(BINS).fill(0);
  for (const gain of gains) counts[Math.min(BINS - 1, Math.floor((gain + 100) / 200 * BINS))] += 1;
  const most = Math.log1p(Math.max(1, ...counts));  // most episodes have no gain: the others would not be seen
  svg.replaceChildren(...counts.map((count, bin) => {
    const height = 34 * Math.log1p(count) / most;
    const middle = (bin + 0.5) / BINS * 200 - 100;
    return draw("rect", { x: bin * 10 + 0.5, y: 36 - height, width: 9, height, class: middle < low || middle > high ? "out" : direction(Math.abs(middle) < 5 ? 0 : middle) },
      draw("title", {}, `${count} episodes, gain about ${middle.toFixed(0)}`));
  }));
};

const startBrowser = async () => {
  const browser = byId("browser");
  const index = await pack("index");
  const episodes = index.episodes;
  const detail = byId("detail");
  const list = byId("list");
  const query = byId("query");
  const field = Object.fromEntries(FIELDS.map((name) => [name, byId(name)]));
  const chips = [...document.querySelectorAll("[data-fail]")];
  const haystack = episodes.map((row) => `${row.id} ${row.name} ${words(index.kinds[row.kind])} ${index.kinds[row.kind]}`.toLowerCase());
  const starting = Object.fromEntries(FIELDS.map((name) => [name, field[name].value]));
  let opened = -1;
  let view = null;
  let turn = 0;

  const options = (select, names, count) => names.forEach((name, number) => (
    select.append(make("option", { value: number }, `${words(name)} (${count(number)})`))));
  options(field.stage, index.stages, (number) => episodes.filter((row) => row.stage === number).length);
  options(field.kind, index.kinds, (number) => episodes.filter((row) => row.kind === number).length);

  const showTurn = (number) => {
    if (!view) return;
    turn = Math.max(0, Math.min(episodes[opened].pdms.length - 1, number));
    view.show(turn);
  };

  const open = async (number, enter) => {
    opened = number;
    const row = episodes[number];
    const [item, scene] = await Promise.all([itemOf("episodes", number, index.episodesAPack), itemOf("scenes", row.scene, index.scenesAPack)]);
    if (opened !== number) return;  // another was opened while this one was unpacked
    view = episodeView(index, row, item, scene, showTurn);
    const back = make("button", { type: "button", class: "back plain" }, "← Episodes");
    back.addEventListener("click", leave);
    const step = (by, sign, name) => {
      const button = make("button", { type: "button", class: "plain", "aria-label": `${name} episode`, title: `${name} episode (${by < 0 ? "k" : "j"})` }, sign);
      button.addEventListener("click", () => entries.step(by));
      return button;
    };
    view.element.querySelector(".episode-head").append(make("div", { class: "steps" }, back, step(-1, "↑", "Previous"), step(1, "↓", "Next")));
    const reading = enter || detail.contains(document.activeElement);
    detail.replaceChildren(view.element);
    detail.dataset.episode = row.id;
    showTurn(row.pdms.length - 1);
    history.replaceState(null, "", `#episode=${encodeURIComponent(row.id)}`);
    if (enter) browser.classList.add("entered");
    if (reading) byId("episode-title").focus({ preventScroll: true });
    if (detail.getBoundingClientRect().top < 0 || (enter && getComputedStyle(list.parentElement).display === "none")) detail.scrollIntoView();
  };
  const leave = () => {
    browser.classList.remove("entered");
    list.focus({ preventScroll: true });
  };
  const entries = episodeList(index, list, byId("rows"), open);

  const apply = () => {
    const wanted = query.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const pressed = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.fail);
    const [low, high] = [field["gain-low"], field["gain-high"]].map((input) => (input.value === "" ? Number(input.getAttribute("value")) : Number(input.value)));
    const fits = (row, number) => (field.stage.value === "" || row.stage === Number(field.stage.value))
      && (field.kind.value === "" || row.kind === Number(field.kind.value))
      && (field.outcome.value === "" || OUTCOMES[field.outcome.value](row))
      && (pressed.length === 0 || pressed.some((name) => failing(row, field.where.value).includes(name)))
      && wanted.every((word) => haystack[number].includes(word));
    const all = episodes.map((_, number) => number).filter((number) => fits(episodes[number], number));
    drawHistogram(byId("histogram"), all.map((number) => episodes[number].gain), low, high);
    const shown = all.filter((number) => episodes[number].gain >= low && episodes[number].gain <= high);
    const order = ORDERS[field.order.value];
    if (order) shown.sort((a, b) => order(episodes[a], episodes[b]) || a - b);
    entries.fill(shown, opened);
    byId("count").textContent = shown.length === episodes.length ? `${shown.length} episodes` : `${shown.length} of ${episodes.length} episodes`;
    byId("none").hidden = shown.length > 0;
    list.hidden = shown.length === 0;
    const changed = FIELDS.filter((name) => name !== "where" && field[name].value !== starting[name]).length + (pressed.length > 0);
    byId("filters-on").textContent = changed;
    byId("filters-on").hidden = changed === 0;
    return shown;
  };
  query.addEventListener("input", apply);
  Object.values(field).forEach((input) => input.addEventListener("input", apply));
  chips.forEach((chip) => chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    apply();
  }));
  byId("reset").addEventListener("click", () => {
    query.value = "";
    FIELDS.forEach((name) => { field[name].value = starting[name]; });
    chips.forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    apply();
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (event.target === query && query.value) {
        query.value = "";
        apply();
      } else if (typing || browser.contains(event.target)) leave();
      else return;
    } else if (typing) {
      if (event.target !== query || event.key !== "ArrowDown") return;
      list.focus();
    } else if (event.key === "/") query.focus();
    else if (event.key === "?") help.showModal();
    else if (event.key === "j" || event.key === "k") entries.step(event.key === "j" ? 1 : -1);
    else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && browser.contains(event.target)) showTurn(turn + (event.key === "ArrowRight" ? 1 : -1));
    else return;
    event.preventDefault();
  });

  if (matchMedia("(max-width: 760px)").matches) byId("filters").open = false;
  browser.hidden = false;
  const linked = episodes.findIndex((row) => `#episode=${encodeURIComponent(row.id)}` === location.hash);
  await open(linked >= 0 ? linked : apply()[0], linked >= 0);
  apply();  // once more: the opened one is marked now, and a filter may have been set meanwhile
  entries.reveal();
  browser.dataset.ready = "true";
};
if (packs.has("index")) {
  startBrowser().catch((error) => {
    byId("unopened").hidden = false;
    throw error;
  });
}
