// Spans in typed arrays, and lanes: the spans of one stream of one actor, by begin.

const SPAN_COLUMNS = ["actor", "stream", "name", "kind", "path", "line", "batch", "flops", "bytes", "begin", "end"];

/** The columns of a timeline as arrays of numbers, with its lanes. */
function unpack(timeline) {
  const spans = {};
  for (const key of SPAN_COLUMNS) spans[key] = Float64Array.from(timeline.spans[key]);
  spans.count = spans.begin.length;
  const lanes = [];
  for (let at = 0; at < spans.count; ) {
    const actor = spans.actor[at];
    const stream = spans.stream[at];
    let stop = at;
    while (stop < spans.count && spans.actor[stop] === actor && spans.stream[stop] === stream) stop += 1;
    lanes.push({ actor, stream, first: at, stop });
    at = stop;
  }
  return { ...timeline, spans, lanes };
}

/** The first span of a lane that ends after `at` (they do not overlap, so ends are in order too). */
function firstAfter(spans, lane, at) {
  let low = lane.first;
  let high = lane.stop;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans.end[middle] > at) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The span of a lane at a time, or the nearest within `slack`; -1 if there is none. */
function spanAt(spans, lane, at, slack) {
  const next = firstAfter(spans, lane, at);
  let best = -1;
  let least = slack;
  for (const index of [next - 1, next]) {
    if (index < lane.first || index >= lane.stop) continue;
    const off = Math.max(spans.begin[index] - at, at - spans.end[index], 0);
    if (off <= least) {
      least = off;
      best = index;
    }
  }
  return best;
}

/** Which spans have every word of a search in their name, module, plan line or kind; null for all. */
function matching(timeline, texts, kinds, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return null;
  const { spans } = timeline;
  const found = new Uint8Array(spans.count);
  for (let at = 0; at < spans.count; at += 1) {
    const kind = kinds[spans.kind[at]];
    const text = `${texts[spans.name[at]]} ${texts[spans.path[at]]} ${texts[spans.line[at]]} ${kind.label} ${kind.name} mb${spans.batch[at]}`;
    found[at] = wanted.every((word) => text.toLowerCase().includes(word)) ? 1 : 0;
  }
  return found;
}

/** Gathers spans narrower than a pixel: the kind that fills most of a pixel wins, like pixels are one field. */
class Crowd {
  constructor(context, how) {
    Object.assign(this, { context, how });
    this.sums = new Float64Array(how.kinds.length);
    this.column = -1;
    this.field = null;
  }

  add(column, kind, share) {
    if (column !== this.column) this.endColumn();
    this.column = column;
    this.sums[kind] += share;
  }

  endColumn() {
    if (this.column < 0) return;
    let kind = 0;
    let whole = 0;
    for (let other = 0; other < this.sums.length; other += 1) {
      whole += this.sums[other];
      if (this.sums[other] > this.sums[kind]) kind = other;
    }
    const level = Math.min(8, Math.max(3, Math.ceil(whole * 8)));
    const { field, column } = this;
    if (field && field.kind === kind && field.level === level && field.stop === column) field.stop += 1;
    else {
      this.flush();
      this.field = { kind, level, first: column, stop: column + 1 };
    }
    this.sums.fill(0);
    this.column = -1;
  }

  flush() {
    const { field, context, how } = this;
    if (!field) return;
    context.globalAlpha = field.level / 8;
    context.fillStyle = kindColour(how.kinds[field.kind]);
    context.fillRect(how.left + field.first, how.top, field.stop - field.first, how.height);
    context.globalAlpha = 1;
    this.field = null;
  }
}

/** Draw the spans of a lane that are in view. */
function paintLane(context, timeline, lane, how) {
  const { spans } = timeline;
  const { view, left, width, matches } = how;
  const scale = width / view.span;
  const crowd = new Crowd(context, how);
  for (let at = firstAfter(spans, lane, view.from); at < lane.stop && spans.begin[at] < view.to; at += 1) {
    const x0 = Math.max(0, (spans.begin[at] - view.from) * scale);
    const x1 = Math.min(width, (spans.end[at] - view.from) * scale);
    if (x1 - x0 >= 1.2) {
      crowd.endColumn();
      crowd.flush();
      paintSpan(context, timeline, at, { ...how, x: left + x0, wide: x1 - x0 });
    } else if (!matches || matches[at]) {
      crowd.add(Math.min(Math.floor(x0), width - 1), spans.kind[at], Math.max(x1 - x0, 0.05));
    }
  }
  crowd.endColumn();
  crowd.flush();
}

function paintSpan(context, timeline, at, how) {
  const { kinds, matches, top, height, x, wide, texts } = how;
  const kind = kinds[timeline.spans.kind[at]];
  const colour = kindColour(kind);
  const gap = wide > 4 ? 0.5 : 0;
  context.globalAlpha = matches && !matches[at] ? 0.12 : 1;
  context.fillStyle = colour;
  context.fillRect(x, top, wide - gap, height);
  const pattern = wide > 3 ? familyPattern(context, kind.family) : null;
  if (pattern) {
    context.fillStyle = pattern;
    context.fillRect(x, top, wide - gap, height);
  }
  if (height >= 10 && wide > 20) writeOn(context, kind, spanLabel(timeline, at, kind, texts), how, colour);
  context.globalAlpha = 1;
}

/** What is written on a span where there is room: the end of its module's path, else its own name. */
function spanLabel(timeline, at, kind, texts) {
  const { spans } = timeline;
  if (kind.family === "wait") return texts[spans.name[at]];
  const path = texts[spans.path[at]];
  if (!path) return texts[spans.name[at]];
  const parts = path.split(".");
  return parts.slice(/^\d+$/.test(parts.at(-2)) ? -3 : -2).join(".");
}

function writeOn(context, kind, label, how, colour) {
  const { x, wide, top, height } = how;
  const size = height >= 16 ? 11 : 9;
  const letter = size * 0.62;
  const long = `${kind.code} ${label}`.trim();
  const text = wide - 8 > long.length * letter ? long : wide - 6 > kind.code.length * letter ? kind.code : "";
  if (!text) return;
  context.font = `${size}px system-ui, sans-serif`;
  const room = context.measureText(text).width;
  if (room > wide - 5) return;
  if (kind.family !== "compute") {
    context.fillStyle = colour;
    context.fillRect(x + 2, top, room + 4, height);
  }
  context.fillStyle = inkOn(colour);
  context.textBaseline = "middle";
  context.fillText(text, x + 4, top + height / 2 + 0.5);
}
