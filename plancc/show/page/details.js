// What is said of one span: in a tooltip where the pointer is, and in full below the timeline.

class Tip {
  constructor() {
    this.node = make("div", { class: "tip", role: "tooltip", hidden: true });
    document.body.append(this.node);
  }

  show(x, y, ...children) {
    this.node.replaceChildren(...children);
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    const top = y + 18 + box.height > innerHeight ? y - 12 - box.height : y + 18;
    this.node.style.left = `${Math.max(4, left)}px`;
    this.node.style.top = `${Math.max(4, top)}px`;
  }

  hide() {
    this.node.hidden = true;
  }
}

/** Everything that is known of a span: [word, text]. */
function spanFacts(timeline, at, texts, kinds) {
  const { spans, actors } = timeline;
  const seconds = (spans.end[at] - spans.begin[at]) / 1e9;
  const ranks = actors[spans.actor[at]].ranks.length;
  const found = [
    ["rank", actors[spans.actor[at]].name + (timeline.predicted ? " (predicted)" : " (measured)")],
    ["stream", spans.stream[at] ? "communication" : "compute"],
    ["takes", `${timeText(spans.end[at] - spans.begin[at])}, from ${timeText(spans.begin[at])} to ${timeText(spans.end[at])}`],
    ["module", texts[spans.path[at]]],
    ["plan", texts[spans.line[at]]],
    ["micro-batch", timeline.batches ? String(spans.batch[at]) : ""],
  ];
  if (spans.flops[at]) {
    found.push(["FLOPs", `${countText(spans.flops[at])} (${countText(spans.flops[at] / Math.max(seconds, 1e-12))}FLOP/s)`]);
  }
  if (spans.bytes[at]) {
    found.push(["bytes", `${bytesText(spans.bytes[at])} (${bytesText(spans.bytes[at] / Math.max(seconds, 1e-12))}/s)`]);
  }
  if (ranks > 1) found.push(["stands for", `${ranks} ranks`]);
  return found.filter(([, text]) => text);
}

/** The heading of a span: a field of its colour, its name, what kind it is. */
function spanTitle(timeline, at, texts, kinds) {
  const kind = kinds[timeline.spans.kind[at]];
  const chip = make("span", { class: "chip" });
  chip.style.background = kindColour(kind);
  const name = texts[timeline.spans.name[at]];
  return make("b", { class: "what" }, chip, kind.family === "wait" ? name : `${name} · ${kind.label}`);
}

function factList(facts) {
  return make("dl", { class: "facts" }, ...facts.flatMap(([word, text]) => [make("dt", {}, word), make("dd", {}, text)]));
}

/** The panel below the timeline, which also speaks to who cannot see the canvas. */
class Picked {
  constructor() {
    this.node = make("div", { class: "picked", "aria-live": "polite", hidden: true });
  }

  show(timeline, at, texts, kinds, alike) {
    const facts = spanFacts(timeline, at, texts, kinds);
    if (alike.count > 1) {
      facts.push(["same instruction", `${alike.count} spans, mean ${timeText(alike.sum / alike.count)}, longest ${timeText(alike.longest)}`]);
    }
    const rows = facts.map(([word, text]) => make("div", {}, make("dt", {}, word), make("dd", {}, text)));
    this.node.replaceChildren(spanTitle(timeline, at, texts, kinds), make("dl", { class: "facts" }, ...rows));
    this.node.hidden = false;
  }

  clear() {
    this.node.hidden = true;
    this.node.replaceChildren();
  }
}

/** How often an instruction was done by all ranks and micro-batches, and how long that took. */
function alikeSpans(timeline, at) {
  const { spans } = timeline;
  const found = { count: 0, sum: 0, longest: 0, marks: new Uint8Array(spans.count) };
  for (let other = 0; other < spans.count; other += 1) {
    if (["name", "kind", "path", "line"].some((key) => spans[key][other] !== spans[key][at])) continue;
    const wide = spans.end[other] - spans.begin[other];
    found.count += 1;
    found.sum += wide;
    found.longest = Math.max(found.longest, wide);
    found.marks[other] = 1;
  }
  return found;
}
