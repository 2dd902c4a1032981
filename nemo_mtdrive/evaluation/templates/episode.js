// One episode, opened: the picture with the chosen turn's trajectory, scores by turn, and the turns side by side.
const SCORES = ["NC", "DAC", "TTC", "C", "EP", "DDC", "PDMS"];
const HEADINGS = { C: "CF" };
const GATES = new Set(["NC", "DAC", "TTC"]);
const FAILURES = { parse: "no answer" };
const whole = (value) => (value === null ? "–" : value.toFixed(0));
const signed = (value) => (value > 0 ? `+${value.toFixed(1)}` : value.toFixed(1).replace("-", "−"));
const grade = (pdms) => (pdms === null ? "g-none" : `g${Math.min(5, Math.floor(pdms / 20 + 0.01))}`);
const direction = (gain) => (gain > 0.05 ? "up" : gain < -0.05 ? "down" : "same");
const failChips = (fails) => fails.map((name) => make("span", { class: `fail ${name.toLowerCase()}` }, FAILURES[name] || name));

const shape = ([name, ...rest]) => {
  if (rest.length === 1) return draw("path", { class: name, d: rest[0] });
  const [cx, cy, r, point] = rest;
  return draw("circle", { class: name, cx, cy, r, "data-point": point });
};

const birdView = (box, turn) => draw("svg", { class: "bird", viewBox: box, "aria-hidden": "true" },
  draw("use", { href: "#scene-map" }), ...turn.shapes.map(shape));

const mapOf = (scene) => draw("svg", { class: "defs", "aria-hidden": "true" },
  draw("defs", {}, draw("g", { id: "scene-map" }, ...scene.shapes.map(shape))));

const cameraView = (scene, turns) => {
  if (!scene.picture) return null;
  const { src, width, height } = scene.picture;
  return make("figure", { class: "camera" }, make("img", { src, width, height, alt: "Front camera", decoding: "async" }),
    draw("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      ...turns.map((turn, number) => draw("g", { "data-turn": number }, ...turn.camera.map(shape)))),
    make("figcaption", {}));
};

const key = () => {
  const entry = (picture, text) => make("li", {}, draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, ...picture), text);
  const disc = (name, r) => draw("circle", { class: name, cx: 13, cy: 5, r });
  return make("ul", { class: "key" },
    entry([draw("path", { class: "plan", d: "M2 5H24" }), disc("point", 2.4)], "planned"),
    entry([draw("path", { class: "human", d: "M2 5H24" })], "human"),
    entry([draw("path", { class: "dac", d: "M10 2L16 8M16 2L10 8" })], "off the drivable area, DAC"),
    entry([disc("ttc", 4)], "obstacle, TTC"), entry([disc("nc", 4)], "collision, NC"));
};

const scoreClass = (name, value) => (value >= 0.9995 ? "ok" : GATES.has(name) ? "bad" : value < 0.5 ? "low" : "part");
const scoreTable = (turns) => {
  const head = make("tr", {}, make("th", { scope: "col" }, make("span", { class: "unseen" }, "score")),
    ...turns.map((_, number) => make("th", { scope: "col", "data-turn": number }, turns.length > 3 ? `${number + 1}` : `turn ${number + 1}`)));
  const line = (name, cell) => make("tr", { class: name === "PDMS" ? "pdms" : null }, make("th", { scope: "row" }, HEADINGS[name] || name),
    ...turns.map((turn, number) => {
      const [text, look] = cell(turn);
      return make("td", { class: look, "data-turn": number }, text);
    }));
  const score = (name) => line(name, (turn) => (
    turn.scores ? [(100 * turn.scores[name]).toFixed(0), scoreClass(name, turn.scores[name])] : ["–", "none"]));
  return make("div", { class: "scores scroll", tabindex: 0, role: "region", "aria-label": "Scores by turn" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...SCORES.map(score),
      line("reward", (turn) => [turn.reward === null ? "–" : turn.reward.toFixed(3), "dim"]),
      line("tokens", (turn) => [String(turn.tokens), "dim"]))));
};

const textOf = (segments, points) => segments.map((segment) => {
  if (typeof segment === "string") return segment;
  const [text, point, metric] = segment;
  const metrics = metric ? [metric] : points[point];
  const title = `point ${point + 1}, ${((point + 1) / 2).toFixed(1)} s${metrics.length ? `: ${metrics.join(", ")}` : ""}`;
  const look = metrics.map((name) => name.toLowerCase()).join(" ");
  return make(metrics.length ? "mark" : "span", { class: `pt ${look}`.trim(), "data-point": point, title }, text);
});

const said = (who, segments, points) => (segments.length === 0 ? null
  : make("div", { class: `says ${who}` }, make("b", {}, who), make("p", {}, ...textOf(segments, points))));

const turnColumn = (row, detail, turn, number) => {
  const label = make("button", { type: "button", class: "turn-name", "aria-pressed": "false" },
    make("b", {}, `Turn ${number + 1}`), make("span", { class: `pill ${grade(row.pdms[number])}` }, whole(row.pdms[number])),
    ...failChips(row.fails[number]));
  return make("section", { class: "turn", "data-turn": number, "aria-label": `Turn ${number + 1}` }, label,
    birdView(detail.box, turn), said("model", turn.answer, turn.points),
    said("agent", turn.feedback.length || row.fails[number].length ? turn.feedback : ["No violation."], turn.points));
};

const episodeHead = (index, row, scene) => {
  const tag = (text) => (text ? make("span", { class: "tag" }, text) : null);
  return make("header", { class: "episode-head" },
    make("div", { class: "title" }, make("h3", { id: "episode-title", tabindex: -1 }, row.name),
      tag(words(index.kinds[row.kind])), tag(scene.command && scene.command.toLowerCase()),
      tag(scene.speed === null ? null : `${scene.speed.toFixed(1)} m/s`),
      row.valid ? null : make("span", { class: "tag bad" }, "not valid"),
      row.pdms.length > 1 ? make("span", { class: `gain ${direction(row.gain)}` }, signed(row.gain)) : null),
    make("p", { class: "dim" }, `${words(index.stages[row.stage])}, step ${row.step}, rollout ${row.rollout}, ended: ${words(row.ended)}`));
};

// The element of an episode, and `show(turn)` that chooses a turn.
const episodeView = (index, row, detail, scene, onTurn) => {
  const turns = detail.turns;
  const camera = cameraView(scene, turns);
  const columns = turns.map((turn, number) => turnColumn(row, detail, turn, number));
  const strip = make("div", { class: "turns" }, ...columns);
  const element = make("div", { class: "episode" }, mapOf(scene), episodeHead(index, row, scene),
    make("div", { class: "look" }, make("div", { class: "view" }, camera, turns.length ? key() : null),
      turns.length ? scoreTable(turns) : null),
    turns.length ? null : make("p", { class: "hint" }, "No turn was recorded."),
    strip,
    detail.prompt ? make("details", { class: "question" }, make("summary", {}, "Question"), make("pre", {}, detail.prompt)) : null);
  const show = (chosen) => {
    for (const part of element.querySelectorAll("[data-turn]")) part.classList.toggle("on", Number(part.dataset.turn) === chosen);
    columns.forEach((column, number) => column.firstChild.setAttribute("aria-pressed", String(number === chosen)));
    const caption = camera?.querySelector("figcaption");
    if (caption) caption.textContent = turns.length ? `turn ${chosen + 1} of ${turns.length}` : "";
    const column = columns[chosen];
    if (column) {  // sideways only: the page itself stays where the reader has it
      const left = column.offsetLeft - strip.offsetLeft;
      strip.scrollLeft = Math.max(left + column.offsetWidth - strip.clientWidth, Math.min(strip.scrollLeft, left));
    }
  };
  columns.forEach((column, number) => {
    column.firstChild.addEventListener("click", () => onTurn(number));
    column.querySelector(".bird").addEventListener("click", () => onTurn(number));
    const point = (event, on) => {
      const at = event.target.closest("[data-point]");
      if (!at) return;
      const same = `[data-point="${Number(at.dataset.point)}"]`;
      const seen = [...column.querySelectorAll(same), ...(camera ? camera.querySelectorAll(`g[data-turn="${number}"] ${same}`) : [])];
      seen.forEach((part) => part.classList.toggle("hot", on));
    };
    column.addEventListener("pointerover", (event) => point(event, true));
    column.addEventListener("pointerout", (event) => point(event, false));
  });
  return { element, show };
};
