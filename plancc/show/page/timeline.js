// The timeline: a row for each rank, drawn on a canvas that is as large as what is seen of it.

const SIZES = [
  { most: 24, compute: 20, beside: 9, gap: 5, font: 12 },
  { most: 72, compute: 14, beside: 6, gap: 3, font: 11 },
  { most: Infinity, compute: 9, beside: 4, gap: 2, font: 9 },
];
const KEYS = {
  "+": (t) => t.view.zoom(0.6), "=": (t) => t.view.zoom(0.6), w: (t) => t.view.zoom(0.6, t.share),
  "-": (t) => t.view.zoom(1 / 0.6), s: (t) => t.view.zoom(1 / 0.6, t.share), 0: (t) => t.view.fit(),
  ArrowLeft: (t) => t.view.pan(-0.15), a: (t) => t.view.pan(-0.15),
  ArrowRight: (t) => t.view.pan(0.15), d: (t) => t.view.pan(0.15),
  ArrowDown: (t) => t.step(0, 1), ArrowUp: (t) => t.step(0, -1), n: (t) => t.step(1, 0), p: (t) => t.step(-1, 0),
  Home: (t) => t.view.set(0, t.view.span), End: (t) => t.view.set(t.view.end - t.view.span, t.view.end),
  Enter: (t) => t.zoomToPicked(), Escape: (t) => t.pick(null),
};

class TimelineChart {
  constructor(view, tip, data) {
    Object.assign(this, { view, tip, texts: data.texts, kinds: data.kinds });
    this.share = 0.5;
    this.overview = new Overview(view);
    this.axis = make("canvas", { class: "axis", "aria-hidden": "true" });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.room = make("div", { class: "room" }, this.canvas);
    this.scroller = make("div", { class: "scroller", tabindex: "0", role: "application", "aria-label": "Timeline of all ranks", "aria-describedby": "timeline-help" }, this.room);
    this.picked = new Picked();
    this.node = make("div", {}, make("div", { class: "stage" }, this.overview.canvas, this.axis, this.scroller), this.picked.node);
    this.draw = oncePerFrame(() => this.drawNow());
    view.listeners.push(this.draw);
    this.scroller.addEventListener("scroll", this.draw, { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.press(event));
    listenToPointer(this);
  }

  /** Show the timelines of one title. */
  show(timelines) {
    this.timelines = timelines;
    this.view.reset(Math.max(...timelines.map((t) => t.seconds * 1e9)));
    this.search("");
    this.overview.show(timelines, this.kinds);
    this.place();
    this.pick(null);
    this.scroller.scrollTop = 0;
  }

  /** Give every row its place: a heading for each timeline, then its actors. */
  place() {
    const count = this.timelines.reduce((sum, t) => sum + t.actors.length, 0);
    this.size = SIZES.find((size) => count <= size.most);
    const { compute, beside, gap } = this.size;
    const lanesOf = new Map(this.timelines.map((t) => [t, t.actors.map((_, number) => t.lanes.filter((lane) => lane.actor === number))]));
    this.rows = [];
    let top = 0;
    for (const block of this.blocks()) {
      this.rows.push({ heading: block.heading, top, height: 24 });
      top += 24;
      for (const { timeline, number, label, shade } of block.rows) {
        const lanes = lanesOf.get(timeline)[number];
        const height = compute + (lanes.some((lane) => lane.stream) ? beside + 1 : 0) + gap;
        const parts = lanes.map((lane) => ({ lane, top: lane.stream ? compute + 1 : 0, height: lane.stream ? beside : compute }));
        this.rows.push({ timeline, label, parts, shade, top, height });
        top += height;
      }
    }
    this.height = top + 6;
  }

  /** Headings and the rows below them: each timeline by itself, or all of them rank by rank. */
  blocks() {
    const heading = (t) => `${t.predicted ? "predicted" : "measured"}  ${timeText(t.seconds * 1e9)}`;
    if (!this.byRank) {
      return this.timelines.map((timeline) => ({
        heading: heading(timeline),
        rows: timeline.actors.map((actor, number) => ({ timeline, number, label: actor.name, shade: number % 2 === 0 })),
      }));
    }
    const rows = this.timelines.flatMap((timeline, at) => timeline.actors.map((actor, number) => ({
      timeline, number, order: Math.min(...actor.ranks), at, label: at ? (timeline.predicted ? "predicted" : "measured") : actor.name,
    })));
    rows.sort((a, b) => a.order - b.order || a.at - b.at);
    const orders = [...new Set(rows.map((row) => row.order))];
    rows.forEach((row) => (row.shade = orders.indexOf(row.order) % 2 === 0));
    return [{ heading: this.timelines.map(heading).join(",  "), rows }];
  }

  /** Rank by rank, or each timeline by itself. */
  arrange(byRank) {
    this.byRank = byRank;
    this.place();
    this.pick(null);
  }

  search(words) {
    this.matches = new Map(this.timelines.map((t) => [t, matching(t, this.texts, this.kinds, words)]));
    let count = 0;
    for (const marks of this.matches.values()) if (marks) marks.forEach((mark) => (count += mark));
    this.draw();
    return [...this.matches.values()].some(Boolean) ? count : null;
  }

  drawNow() {
    if (!this.timelines) return;
    this.width = Math.floor(this.node.clientWidth - 2);
    const names = Math.max(9, ...this.rows.map((row) => (row.label || "").length));
    this.left = Math.round(Math.min(this.width * 0.3, Math.max(70, names * this.size.font * 0.58 + 24)));
    this.overview.draw(this.width, this.left);
    this.drawAxis();
    const limit = parseFloat(getComputedStyle(this.scroller).maxHeight) || 600;
    const height = Math.min(this.height, limit);
    this.room.style.height = `${this.height}px`;
    this.drawRows(sharp(this.canvas, this.width, height), height);
  }

  x(time) {
    return this.left + ((time - this.view.from) / this.view.span) * (this.width - this.left);
  }

  drawAxis() {
    const colours = palette();
    const context = sharp(this.axis, this.width, 24);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colours.dim;
    context.textBaseline = "middle";
    this.ticks = timeTicks(this.view, this.width - this.left);
    for (const [at, text] of this.ticks) {
      const x = this.x(at);
      const wide = context.measureText(text).width;
      context.fillRect(x, 19, 1, 5);
      context.fillText(text, Math.min(Math.max(x - wide / 2, this.left), this.width - wide - 3), 10);
    }
  }

  drawRows(context, height) {
    const colours = palette();
    const scroll = this.scroller.scrollTop;
    context.fillStyle = colours.line;
    for (const [at] of this.ticks) context.fillRect(Math.round(this.x(at)), 0, 0.5, height);
    for (const row of this.rows) {
      const top = row.top - scroll;
      if (top > height || top + row.height < 0) continue;
      if (row.heading) this.drawHeading(context, colours, row, top);
      else this.drawRow(context, colours, row, top);
    }
  }

  drawHeading(context, colours, row, top) {
    context.fillStyle = colours.soft;
    context.fillRect(0, top, this.width, row.height);
    context.fillStyle = colours.text;
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillText(row.heading, 10, top + 12.5);
  }

  drawRow(context, colours, row, top) {
    if (row.shade) {
      context.globalAlpha = 0.5;
      context.fillStyle = colours.soft;
      context.fillRect(0, top, this.width, row.height);
      context.globalAlpha = 1;
    }
    context.fillStyle = colours.line;
    context.fillRect(this.left - 1, top, 1, row.height);
    const how = { view: this.view, left: this.left, width: this.width - this.left, kinds: this.kinds, texts: this.texts, matches: this.matches.get(row.timeline) };
    const pad = this.size.gap / 2;
    for (const part of row.parts) {
      paintLane(context, row.timeline, part.lane, { ...how, top: top + pad + part.top, height: part.height });
    }
    const end = this.x(row.timeline.seconds * 1e9);
    if (end > this.left && end < this.width) {
      context.fillStyle = colours.accent;
      context.fillRect(end - 1, top, 1.5, row.height);
    }
    context.fillStyle = colours.dim;
    context.font = `${this.size.font}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const letters = Math.floor((this.left - 16) / (this.size.font * 0.52));
    const name = row.label.length > letters ? `${row.label.slice(0, letters - 1)}…` : row.label;
    context.fillText(name, 10, top + pad + this.size.compute / 2 + 0.5);
    this.outline(context, colours, row, top + pad);
  }

  /** Frames around the span that is picked or under the pointer, and thin ones around those alike. */
  outline(context, colours, row, top) {
    const frame = (at, wide) => {
      const part = row.parts.find((p) => at >= p.lane.first && at < p.lane.stop);
      const x0 = Math.max(this.left, this.x(row.timeline.spans.begin[at]));
      const x1 = Math.min(this.width, this.x(row.timeline.spans.end[at]));
      if (!part || x1 < this.left || x0 > this.width) return;
      context.strokeStyle = colours.text;
      context.lineWidth = wide;
      context.strokeRect(x0, top + part.top, Math.max(1, x1 - x0 - 0.5), part.height);
    };
    if (this.choice && this.choice.timeline === row.timeline) {
      for (const part of row.parts) {
        const { spans } = row.timeline;
        for (let at = firstAfter(spans, part.lane, this.view.from); at < part.lane.stop && spans.begin[at] < this.view.to; at += 1) {
          if (this.choice.alike.marks[at]) frame(at, at === this.choice.at ? 2.5 : 1);
        }
      }
    }
    if (this.hover && this.hover.row === row) frame(this.hover.at, 1.5);
  }

  /** What stands at a place of the canvas: its row and span. */
  find(x, y) {
    const inside = y + this.scroller.scrollTop;
    const row = this.rows.find((one) => inside >= one.top && inside < one.top + one.height);
    if (!row || row.heading || x < this.left) return null;
    const time = this.view.from + ((x - this.left) / (this.width - this.left)) * this.view.span;
    const slack = (2.5 * this.view.span) / (this.width - this.left);
    const off = inside - row.top - this.size.gap / 2;
    const near = [...row.parts].sort((a, b) => distance(off, a) - distance(off, b));
    for (const part of near) {
      const at = spanAt(row.timeline.spans, part.lane, time, slack);
      if (at >= 0) return { row, at, lane: part.lane };
    }
    return null;
  }

  pick(found) {
    this.choice = found && { timeline: found.row.timeline, at: found.at, lane: found.lane, row: found.row, alike: alikeSpans(found.row.timeline, found.at) };
    if (found) this.picked.show(found.row.timeline, found.at, this.texts, this.kinds, this.choice.alike);
    else this.picked.clear();
    this.draw();
  }

  zoomToPicked() {
    if (!this.choice) return;
    const { spans } = this.choice.timeline;
    this.view.show(spans.begin[this.choice.at], spans.end[this.choice.at]);
  }

  /** Pick the next span of the lane, or the one at the same time on the next row. */
  step(along, down) {
    const rows = this.rows.filter((row) => !row.heading && row.parts.length);
    if (!rows.length) return;
    if (!this.choice) {
      const lane = rows[0].parts[0].lane;
      const at = Math.min(firstAfter(rows[0].timeline.spans, lane, this.view.from), lane.stop - 1);
      this.pick({ row: rows[0], at, lane });
    } else if (along) {
      const at = this.choice.at + along;
      if (at >= this.choice.lane.first && at < this.choice.lane.stop) this.pick({ ...this.choice, at });
    } else {
      const row = rows[rows.indexOf(this.choice.row) + down];
      if (!row) return;
      const lane = row.parts[0].lane;
      const time = this.choice.timeline.spans.begin[this.choice.at];
      this.pick({ row, lane, at: Math.min(firstAfter(row.timeline.spans, lane, time), lane.stop - 1) });
    }
    this.reveal();
  }

  /** Scroll and pan until the picked span is in sight. */
  reveal() {
    const { row, timeline, at } = this.choice;
    const [begin, end] = [timeline.spans.begin[at], timeline.spans.end[at]];
    if (end < this.view.from || begin > this.view.to) this.view.set(begin - this.view.span * 0.2, begin + this.view.span * 0.8);
    const box = this.scroller;
    if (row.top < box.scrollTop) box.scrollTop = row.top - 24;
    else if (row.top + row.height > box.scrollTop + box.clientHeight) box.scrollTop = row.top + row.height - box.clientHeight;
  }

  press(event) {
    const act = !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key];
    if (!act) return;
    act(this);
    event.preventDefault();
  }
}

function distance(y, part) {
  return Math.max(part.top - y, y - part.top - part.height, 0);
}
