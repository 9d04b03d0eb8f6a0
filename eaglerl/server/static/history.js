// T and D of the last cycles as two rows of bars. The filled part of T is what the cycle yielded; what
// stands out above T are rows that were looked up.

import { svg } from "./draw.js";

const SHOWN = 80;
const STEP = 7;
const ROWS = { T: { top: 2, height: 40 }, D: { top: 50, height: 20 } };
const LEFT = 16;

export function drawHistory(container, cycles, index) {
  const first = Math.max(1, Math.min(index - SHOWN / 2, cycles.length - SHOWN));
  const shown = cycles.slice(first, first + SHOWN);
  if (!shown.length) {
    container.replaceChildren();
    return;
  }
  const most = {
    T: Math.max(...shown.map((cycle) => cycle.rows), 2),
    D: Math.max(...shown.map((cycle) => cycle.depth), 1),
  };
  const width = LEFT + SHOWN * STEP;
  const picture = svg("svg", { role: "img", viewBox: `0 0 ${width} 74`, preserveAspectRatio: "xMinYMid" });
  picture.setAttribute("aria-label", say(shown));
  for (const [name, { top, height }] of Object.entries(ROWS)) {
    picture.append(svg("text", { x: 0, y: top + height, class: "axis" }, name));
    const bottom = top + height + 0.5;
    picture.append(svg("line", { x1: LEFT, x2: width, y1: bottom, y2: bottom, class: "axis" }));
  }
  shown.forEach((cycle, place) => {
    const x = LEFT + place * STEP;
    const group = svg("g", { "data-cycle": first + place });
    if (first + place === index) {
      group.append(svg("rect", { x: x - 1, y: 0, width: STEP, height: 74, class: "here" }));
    }
    if (cycle.rows > cycle.total_tokens) group.append(bar(x, cycle.rows / most.T, ROWS.T, "rows"));
    group.append(bar(x, cycle.total_tokens / most.T, ROWS.T, "total"));
    group.append(bar(x, cycle.acceptance_length / most.T, ROWS.T, "length"));
    group.append(bar(x, cycle.depth / most.D, ROWS.D, "depth"));
    group.append(svg("rect", { x: x - 1, y: 0, width: STEP, height: 74, class: "target" }));
    group.append(svg("title", {}, `cycle ${cycle.cycle}: T ${cycle.total_tokens}, D ${cycle.depth}, `
      + `${cycle.rows} rows, ${cycle.acceptance_length} tokens`));
    picture.append(group);
  });
  container.replaceChildren(picture);
}

function bar(x, share, row, name) {
  const height = share * row.height;
  return svg("rect", { x, y: row.top + row.height - height, width: STEP - 2, height, class: name });
}

function say(cycles) {
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low === high ? `${low}` : `${low} to ${high}`;
  };
  return `Cycles ${cycles[0].cycle} to ${cycles.at(-1).cycle}: T ${range(cycles.map((c) => c.total_tokens))}, `
    + `D ${range(cycles.map((c) => c.depth))}, tokens per cycle ${range(cycles.map((c) => c.acceptance_length))}.`;
}
