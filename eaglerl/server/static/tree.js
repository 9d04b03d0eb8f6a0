// One cycle's draft tree as SVG, the root at the left, a column for every level.

import { svg, visible } from "./draw.js";

const CHARACTER = 7.3;
const LONGEST = 14;
const GAP = 30;
const MARGIN = 8;

// Nodes with their children, column and row. A leaf takes a row of its own; a parent stands beside
// the middle of its children. The likeliest child comes first, as the draft ranked them.
function layOut(cycle) {
  const nodes = cycle.nodes.map((node) => ({ ...node, children: [] }));
  nodes.forEach((node) => node.parent >= 0 && nodes[node.parent].children.push(node));
  const last = nodes.filter((node) => node.accepted).at(-1);
  const bonus = { ...cycle.bonus, accepted: true, source: "target", children: [] };
  last.children.unshift(bonus);
  nodes.push(bonus);
  let leaves = 0;
  const levels = [];
  const place = (node, level) => {
    node.level = level;
    node.label = label(node);
    (levels[level] ??= []).push(node);
    node.children.sort((a, b) => rank(b) - rank(a));
    node.children.forEach((child) => place(child, level + 1));
    node.row = node.children.length
      ? (node.children[0].row + node.children.at(-1).row) / 2
      : leaves++;
  };
  place(nodes[0], 0);
  let x = MARGIN;
  for (const level of levels) {
    const width = Math.max(...level.map((node) => boxWidth(node)));
    for (const node of level) Object.assign(node, { x, width: boxWidth(node) });
    x += width + GAP;
  }
  return { nodes, leaves, width: x - GAP + MARGIN };
}

function rank(node) {
  if (node.source === "target") return 1;
  return node.score ?? -1000;
}

function label(node) {
  const text = visible(node.text);
  const short = text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
  if (node.source === "target") return `+ ${short}`;
  const looked = node.source === "lookup" || node.source === "both" ? "↺ " : "";
  const mark = node.accepted && node.source !== "root" ? "✓ " : "";
  return mark + looked + short;
}

function boxWidth(node) {
  return Math.max(28, node.label.length * CHARACTER + 14);
}

function kind(node) {
  const state = node.source === "root" || node.source === "target"
    ? node.source
    : node.accepted ? "accepted" : "rejected";
  return `${state} from-${node.source}`;
}

function explain(node) {
  if (node.source === "root") return "the last token of the text";
  if (node.source === "target") return "the target's own token";
  const source = { head: "drafted by the head", lookup: "looked up in the text",
    both: "drafted by the head and looked up in the text" }[node.source];
  const share = node.score === null ? "" : `, probability ${Math.exp(node.score).toPrecision(2)}`;
  return `${source}${share}, ${node.accepted ? "accepted" : "rejected"}`;
}

// Letters are still read at this share of their size.
const SMALLEST = 0.5;

// The largest factor, up to 1, at which a picture fits its container, as far as it can be read.
function fitting(container, width, height) {
  const most = Math.min((container.clientWidth - 2) / width, (container.clientHeight - 2) / height, 1);
  return Math.max(most, SMALLEST);
}

// Draws a cycle into `container`; `summaryId` names the element that says the same in words, `zoom`
// is the factor of its size, null for what fits. Returns the factor.
export function drawTree(container, cycle, summaryId, animated, zoom) {
  const { nodes, leaves, width } = layOut(cycle);
  const rowHeight = leaves > 9 ? 24 : 30;
  const boxHeight = rowHeight - 6;
  const height = leaves * rowHeight + 2 * MARGIN;
  const scale = zoom ?? fitting(container, width, height);
  const y = (node) => MARGIN + node.row * rowHeight + rowHeight / 2;
  const edges = svg("g", { class: "edges" });
  const boxes = svg("g", { class: "boxes" });
  for (const node of nodes) {
    for (const child of node.children) {
      const [x1, x2] = [node.x + node.width, child.x];
      const middle = (x1 + x2) / 2;
      edges.append(svg("path", {
        class: kind(child),
        d: `M${x1} ${y(node)}C${middle} ${y(node)} ${middle} ${y(child)} ${x2} ${y(child)}`,
      }));
    }
    const group = svg("g", { class: `node ${kind(node)}` });
    const box = { x: node.x, y: y(node) - boxHeight / 2, width: node.width, height: boxHeight };
    const round = node.source === "lookup" || node.source === "both" ? 2 : boxHeight / 3;
    group.append(svg("title", {}, `“${visible(node.text)}”: ${explain(node)}`));
    group.append(svg("rect", { ...box, rx: node.source === "target" ? boxHeight / 2 : round }));
    group.append(svg("text", { x: node.x + node.width / 2, y: y(node) }, node.label));
    boxes.append(group);
  }
  const picture = svg("svg", {
    role: "img", "aria-labelledby": summaryId, width: width * scale, height: height * scale,
    viewBox: `0 0 ${width} ${height}`, class: animated ? "animated" : "",
  });
  picture.append(edges, boxes);
  container.replaceChildren(picture);
  const end = nodes.at(-1);
  container.scrollTop = scale * y(end) - container.clientHeight / 2;
  container.scrollLeft = scale * (end.x + end.width + MARGIN) - container.clientWidth;
  return scale;
}

// As it is read aloud: without marks for spaces.
function quote(nodes) {
  const text = nodes.map((node) => node.text).join("");
  return `“${text.trim() || visible(text)}”`;
}

// The same in a sentence or two.
export function describe(cycle) {
  const drafted = cycle.nodes.length - 1;
  const accepted = cycle.nodes.filter((node) => node.accepted && node.source !== "root");
  const own = `The target's own next token is ${quote([cycle.bonus])}.`;
  if (!drafted) return `Cycle ${cycle.cycle}: nothing drafted. ${own}`;
  const looked = cycle.nodes.filter((node) => ["lookup", "both"].includes(node.source)).length;
  const from = looked ? `, ${looked} of them looked up in the text` : "";
  const head = `Cycle ${cycle.cycle}: ${drafted} ${drafted === 1 ? "token" : "tokens"} drafted${from}; `;
  const what = accepted.length ? `${accepted.length} accepted: ${quote(accepted)}.` : "none accepted.";
  return `${head}${what} ${own}`;
}
