// Charts: the values at the step under the pointer, or under the cursor that the arrow keys move.
const tip = byId("tip");
const shortNumber = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const watchChart = (chart) => {
  const data = JSON.parse(chart.dataset.chart);
  const cursor = chart.querySelector(".cursor");
  const steps = [...new Set(data.series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const show = (number, left, top) => {
    at = Math.max(0, Math.min(steps.length - 1, number));
    const step = steps[at];
    const x = data.left + (step - data.first) / (data.last - data.first) * (data.right - data.left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.classList.add("on");
    const lines = data.series.flatMap((one) => {
      const point = one.points.find((candidate) => candidate[0] === step);
      return point ? [`${one.name}  ${shortNumber(point[1])}`] : [];
    });
    tip.textContent = [`${data.unit} ${step}`, ...lines].join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(left + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(top + 14, innerHeight - tip.offsetHeight - 8))}px`;
  };
  const hide = () => {
    cursor.classList.remove("on");
    tip.hidden = true;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const wanted = data.first + (x - data.left) / (data.right - data.left) * (data.last - data.first);
    const nearest = steps.reduce((best, step, number) => (
      Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? number : best), 0);
    show(nearest, event.clientX, event.clientY);
  });
  const showHere = (number) => {
    const box = chart.getBoundingClientRect();
    show(number, box.left + box.width / 2, box.top + box.height / 3);
  };
  chart.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) {
      showHere(at + by);
      event.preventDefault();
    }
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
};
for (const chart of document.querySelectorAll(".chart")) watchChart(chart);
