// The page's data: gzip of JSON in base64, unpacked when it is first needed; the last few packs are kept.
const KEPT_PACKS = 24;
const packs = new Map([...document.querySelectorAll("script.pack")].map((element) => [element.dataset.name, element]));
const unpacked = new Map();
const unpack = async (name) => {
  const letters = atob(packs.get(name).textContent);
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};
const pack = (name) => {
  const known = unpacked.get(name) || unpack(name);
  unpacked.delete(name);
  unpacked.set(name, known);  // the last one used is the last one to go
  if (unpacked.size > KEPT_PACKS) unpacked.delete(unpacked.keys().next().value);
  return known;
};
const itemOf = async (kind, number, size) => (await pack(`${kind}-${Math.floor(number / size)}`))[number % size];
