// A list that holds only the rows in sight: a thousand episodes cost as much as twenty.
const ROW_HEIGHT = 58;
const SPARE_ROWS = 6;

const PILLS = 6;

const pills = (values) => {
  const shown = values.length > PILLS ? [values[0], "…", ...values.slice(-PILLS + 2)] : values;
  return shown.map((pdms) => (pdms === "…" ? pdms : make("span", { class: `pill ${grade(pdms)}` }, whole(pdms))));
};
const rowView = (index, row) => make("div", { class: "row", role: "option" },
  make("span", { class: "row-title" }, words(index.kinds[row.kind])),
  make("span", { class: "row-end" }, ...failChips(row.fails.length ? row.fails[row.fails.length - 1] : []),
    make("span", { class: `gain ${direction(row.gain)}` }, row.valid ? (row.pdms.length > 1 ? signed(row.gain) : "") : "not valid")),
  make("span", { class: "row-pills" }, ...pills(row.pdms)),
  make("span", { class: "row-id dim" }, `${row.name} · ${words(index.stages[row.stage])}${row.step ? ` ${row.step}` : ""}`));

// `onOpen(position, enter)` is told of the row that was chosen: by an arrow key, or entered by Enter or a click.
const episodeList = (index, list, rows, onOpen) => {
  let shown = [];
  let active = -1;
  const drawn = new Map();

  const render = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
    const last = Math.min(shown.length - 1, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + SPARE_ROWS);
    for (const [position, element] of drawn) {
      if (position < first || position > last) {
        element.remove();
        drawn.delete(position);
      }
    }
    for (let position = first; position <= last; position += 1) {
      if (!drawn.has(position)) {
        const element = rowView(index, index.episodes[shown[position]]);
        element.id = `row-${position}`;
        element.style.transform = `translateY(${position * ROW_HEIGHT}px)`;
        element.setAttribute("aria-setsize", shown.length);
        element.setAttribute("aria-posinset", position + 1);
        drawn.set(position, element);
        rows.append(element);
      }
      drawn.get(position).setAttribute("aria-selected", String(position === active));
    }
    if (drawn.has(active)) list.setAttribute("aria-activedescendant", `row-${active}`);
    else list.removeAttribute("aria-activedescendant");
  };

  const moveTo = (position) => {
    active = position;
    if (position >= 0) {
      const top = position * ROW_HEIGHT;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
    }
    render();
  };

  const choose = (position, enter) => {
    if (shown.length === 0) return;
    moveTo(Math.max(0, Math.min(shown.length - 1, position)));
    onOpen(shown[active], enter);
  };

  list.addEventListener("scroll", render, { passive: true });
  new ResizeObserver(render).observe(list);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
    const target = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0,
      End: shown.length - 1, Enter: active }[event.key];
    if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    choose(target, event.key === "Enter");
    event.preventDefault();
    event.stopPropagation();
  });
  rows.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.id.slice(4)), true);
  });

  return {
    step: (by) => choose(active + by, false),
    // Show these episodes (numbers of the index) from the top; `episode` is the opened one, marked where it is among them.
    fill(episodes, episode) {
      shown = episodes;
      for (const element of drawn.values()) element.remove();
      drawn.clear();
      rows.style.height = `${shown.length * ROW_HEIGHT}px`;
      active = shown.indexOf(episode);
      list.scrollTop = 0;
      render();
    },
    reveal: () => moveTo(active),
  };
};
