"use strict";
// Theme: the reader's choice if there is one, else the system's.
const root = document.documentElement;
const stored = (() => { try { return localStorage.getItem("mtdrive-theme"); } catch { return null; } })();
const system = matchMedia("(prefers-color-scheme: dark)");
const useTheme = (name) => { root.dataset.theme = name; };
useTheme(stored || (system.matches ? "dark" : "light"));
system.addEventListener("change", (event) => { if (!stored) useTheme(event.matches ? "dark" : "light"); });
document.getElementById("theme").addEventListener("click", () => {
  const next = root.dataset.theme === "dark" ? "light" : "dark";
  useTheme(next);
  try { localStorage.setItem("mtdrive-theme", next); } catch { /* a file opened without storage: the choice lasts for this view */ }
});

// Episodes: the chosen turn is the one drawn into the camera.
for (const card of document.querySelectorAll(".card")) {
  const turns = [...card.querySelectorAll(".turn")];
  const bands = [...card.querySelectorAll(".overlay g")];
  const show = (number) => {
    turns.forEach((turn, index) => turn.setAttribute("aria-pressed", String(index === number)));
    bands.forEach((band, index) => band.classList.toggle("on", index === number));
  };
  card.classList.add("live");
  turns.forEach((turn, index) => turn.addEventListener("click", () => show(index)));
  show(turns.length - 1);
}

// Filters and order.
const list = document.getElementById("cards");
if (list) {
  const cards = [...list.children];
  const chips = [...document.querySelectorAll(".chips button")];
  const kind = document.getElementById("kind");
  const violating = document.getElementById("violating");
  const order = document.getElementById("order");
  let purpose = chips[0].dataset.purpose;
  const apply = () => {
    let shown = 0;
    for (const card of cards) {
      const fits = (!purpose || card.dataset.purpose === purpose) && (!kind.value || card.dataset.kind === kind.value)
        && (!violating.checked || card.dataset.violating === "1");
      card.hidden = !fits;
      shown += fits;
    }
    const sign = { gain: -1, loss: 1 }[order.value] || 0;
    const sorted = sign ? [...cards].sort((a, b) => sign * (a.dataset.gain - b.dataset.gain)) : cards;
    list.append(...sorted);
    document.getElementById("none").hidden = shown > 0;
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      purpose = chip.dataset.purpose;
      chips.forEach((other) => other.setAttribute("aria-pressed", String(other === chip)));
      apply();
    });
  }
  for (const input of [kind, violating, order]) input.addEventListener("change", apply);
  apply();
}

// Charts: the values at the step under the pointer.
const tip = document.getElementById("tip");
const format = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
for (const chart of document.querySelectorAll(".chart")) {
  const data = JSON.parse(chart.dataset.chart);
  const cursor = chart.querySelector(".cursor");
  const steps = [...new Set(data.series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const wanted = data.first + (x - data.left) / (data.right - data.left) * (data.last - data.first);
    const step = steps.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), steps[0]);
    const at = data.left + (step - data.first) / (data.last - data.first) * (data.right - data.left);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    const lines = data.series.flatMap((one) => {
      const point = one.points.find((candidate) => candidate[0] === step);
      return point ? [`${one.name}  ${format(point[1])}`] : [];
    });
    tip.textContent = [`step ${step}`, ...lines].join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
  chart.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    tip.hidden = true;
  });
}
