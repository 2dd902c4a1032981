// Elements from data. Everything of a run comes in as text nodes or as attributes of numbers, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
};
const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const words = (name) => name.replaceAll("_", " ");

// Theme: the reader's choice if there is one, else the system's.
const store = {
  // A file opened without storage: the choice lasts for this view.
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* see above */ } },
};
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
const themeButton = byId("theme");
const isDark = () => (document.documentElement.dataset.theme || (darkSystem.matches ? "dark" : "light")) === "dark";
const useTheme = (name) => {
  if (name) document.documentElement.dataset.theme = name;
  themeButton.setAttribute("aria-pressed", String(isDark()));
};
useTheme(store.get("mtdrive-theme"));
darkSystem.addEventListener("change", () => useTheme(null));
themeButton.addEventListener("click", () => {
  useTheme(isDark() ? "light" : "dark");
  store.set("mtdrive-theme", document.documentElement.dataset.theme);
});

const help = byId("help");
byId("help-open")?.addEventListener("click", () => help.showModal());
byId("help-close")?.addEventListener("click", () => help.close());
