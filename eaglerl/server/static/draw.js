// Small helpers for SVG and for showing tokens.

export function svg(name, attributes = {}, text = undefined) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A token's text with its white space made visible; parts of a character show as a box.
export function visible(text) {
  const shown = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·").replaceAll(" ", "·");
  return shown === "" ? "∅" : shown.replaceAll("\uFFFD", "▯");
}

export function milliseconds(seconds) {
  const value = seconds * 1000;
  return `${value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)} ms`;
}
