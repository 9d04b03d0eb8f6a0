// One mode's text, counters, tree and history; it can show any of its cycles.

import { milliseconds } from "./draw.js";
import { drawHistory } from "./history.js";
import { describe, drawTree } from "./tree.js";

export class Lane {
  // `name` of the mode; `choose` is called with the number of a cycle that was clicked.
  constructor(name, place, choose) {
    const root = document.getElementById("lane").content.cloneNode(true).firstElementChild;
    const find = (selector) => root.querySelector(selector);
    this.root = root;
    this.name = name;
    this.cycles = [];
    this.shown = -1;
    this.ended = null;
    this.heading = find("h2");
    this.heading.textContent = name;
    this.heading.id = `lane-${place}`;
    root.setAttribute("aria-labelledby", this.heading.id);
    this.text = find(".text");
    this.text.setAttribute("aria-label", `Text, ${name}`);
    this.tree = find(".tree");
    this.tree.setAttribute("aria-label", `Draft tree, ${name}`);
    this.summary = find(".summary");
    this.summary.id = `summary-${place}`;
    this.values = Object.fromEntries(
      [...root.querySelectorAll("[data-value]")].map((cell) => [cell.dataset.value, cell]),
    );
    this.bar = [...find(".bar").children];
    this.times = find(".times p");
    this.headline = find(".headline");
    this.counter = find(".counter");
    this.zoom = null; // factor of the tree's size; null fits it into the panel
    find(".zoom").setAttribute("aria-label", `Size of the tree, ${name}`);
    for (const button of find(".zoom").children) {
      button.addEventListener("click", () => this.setZoom(button.dataset.zoom));
    }
    new ResizeObserver(() => this.drawTree(false)).observe(this.tree);
    this.history = find(".history");
    this.history.addEventListener("click", (event) => {
      const group = event.target.closest("[data-cycle]");
      if (group) choose(Number(group.dataset.cycle));
    });
  }

  // The first entry is the prompt's: it has tokens, but no tree.
  add(cycle) {
    const chunk = document.createElement("span");
    for (const token of cycle.tokens) {
      const piece = document.createElement("span");
      piece.className = `from-${token.source}`;
      piece.textContent = token.text;
      chunk.append(piece);
    }
    cycle.chunk = chunk;
    this.cycles.push(cycle);
    const follows = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    this.text.append(chunk);
    if (follows) this.text.scrollTop = this.text.scrollHeight;
    return cycle.tokens.map((token) => token.text).join("");
  }

  finish(reason, rest) {
    this.text.append(rest);
    this.ended = reason;
    this.heading.textContent = `${this.name} — ended: ${
      { stop: "end of text", length: "token limit", context: "context full" }[reason] ?? reason}`;
  }

  get last() {
    return this.cycles.length - 1;
  }

  show(wanted, animated) {
    const index = Math.min(wanted, this.last);
    if (index < 0) return;
    this.cycles.forEach((cycle, place) => {
      cycle.chunk.className = place > index ? "later" : place === index ? "now" : "";
    });
    if (index !== this.shown) {
      this.shown = index;
      this.showCycle(this.cycles[index], animated);
    }
    drawHistory(this.history, this.cycles, index);
    this.counter.textContent = this.count(index);
  }

  // The lane's own cycles: with two lanes one is ahead.
  count(index) {
    const { answers, totals } = this.cycles[index];
    const cycles = `cycle ${index} of ${this.last}`;
    if (!totals) return cycles;
    const beside = answers ? ` · in turns with a batch of ${answers}` : "";
    return `${cycles} · ${totals.tokens} tokens · ${totals.decode_seconds.toFixed(2)} s${beside}`;
  }

  setZoom(step) {
    const now = this.zoom ?? this.scale;
    this.zoom = step === "fit" ? null : Math.min(3, Math.max(0.2, now * (step === "in" ? 1.25 : 0.8)));
    this.drawTree(false);
  }

  drawTree(animated) {
    const cycle = this.cycles[this.shown];
    if (cycle?.nodes) this.scale = drawTree(this.tree, cycle, this.summary.id, animated, this.zoom);
  }

  showCycle(cycle, animated) {
    this.headline.hidden = cycle.totals?.times_plain == null;
    if (!cycle.nodes) {
      this.tree.replaceChildren();
      const took = milliseconds(cycle.prefill_seconds);
      this.summary.textContent = `The prompt was read in ${took}; its first token is the root of the first tree.`;
      return;
    }
    const { seconds, totals } = cycle;
    this.values.total.textContent = cycle.total_tokens;
    this.values.depth.textContent = cycle.depth;
    this.values.width.textContent = cycle.top_k;
    this.values.rows.textContent = cycle.rows;
    this.values.length.textContent = cycle.acceptance_length;
    this.values.mean.textContent = totals.mean_acceptance_length.toFixed(2);
    this.values.speed.textContent = totals.tokens_per_second.toFixed(1);
    this.summary.textContent = describe(cycle);
    this.values.times.textContent = totals.times_plain?.toFixed(2);
    this.drawTree(animated);
    const parts = [["draft", seconds.draft], ["verify", seconds.verify], ["policy", seconds.policy]];
    const all = parts.reduce((sum, [, value]) => sum + value, 0);
    this.bar.forEach((part, place) => {
      part.style.width = `${(100 * parts[place][1]) / all}%`;
    });
    this.times.textContent = parts.map(([name, value]) => `${name} ${milliseconds(value)}`).join(" · ");
  }
}
