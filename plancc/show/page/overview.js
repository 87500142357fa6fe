// A strip over the timeline: how many ranks compute, communicate or wait, and the range that is shown.

const FAMILY_ORDER = ["compute", "communication", "wait"];

/** Shares of all ranks by family in `count` bins of a timeline. */
function shares(timeline, kinds, end, count) {
  const { spans, actors } = timeline;
  const ranks = actors.reduce((sum, actor) => sum + actor.ranks.length, 0) || 1;
  const bins = FAMILY_ORDER.map(() => new Float64Array(count));
  const size = end / count;
  for (let at = 0; at < spans.count; at += 1) {
    const row = bins[FAMILY_ORDER.indexOf(kinds[spans.kind[at]].family)];
    const weight = actors[spans.actor[at]].ranks.length / ranks;
    const last = Math.min(count - 1, Math.floor(spans.end[at] / size));
    for (let bin = Math.floor(spans.begin[at] / size); bin <= last; bin += 1) {
      const overlap = Math.min(spans.end[at], (bin + 1) * size) - Math.max(spans.begin[at], bin * size);
      if (overlap > 0) row[bin] += (weight * overlap) / size;
    }
  }
  return bins;
}

class Overview {
  constructor(view) {
    this.view = view;
    this.canvas = make("canvas", { class: "over", "aria-hidden": "true" });
    this.timelines = [];
    this.drag = null;
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => (this.drag = null));
  }

  show(timelines, kinds) {
    this.timelines = timelines;
    this.kinds = kinds;
    this.bins = null;
  }

  get rowHeight() {
    return this.timelines.length > 1 ? 26 : 40;
  }

  time(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - this.left) / Math.max(1, box.width - this.left);
    return Math.min(1, Math.max(0, share)) * this.view.end;
  }

  press(event) {
    const at = this.time(event);
    const { view } = this;
    const inside = !view.whole && at >= view.from && at <= view.to;
    this.drag = inside ? { move: at - view.from } : { start: at };
    this.canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  move(event) {
    if (!this.drag) return;
    const at = this.time(event);
    const { view } = this;
    if ("move" in this.drag) view.set(at - this.drag.move, at - this.drag.move + view.span);
    else if (Math.abs(at - this.drag.start) > view.end / 400) {
      view.set(Math.min(at, this.drag.start), Math.max(at, this.drag.start));
    }
  }

  draw(width, left) {
    this.left = left;
    const colours = palette();
    const room = Math.max(1, Math.floor(width - left));
    const height = this.rowHeight * this.timelines.length + 4;
    const context = sharp(this.canvas, width, height);
    if (!this.bins || this.bins.room !== room) {
      this.bins = { room, rows: this.timelines.map((t) => shares(t, this.kinds, this.view.end, room)) };
    }
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.timelines.forEach((timeline, row) => {
      const bottom = (row + 1) * this.rowHeight + 1;
      context.fillStyle = colours.dim;
      const name = this.timelines.length > 1 ? (timeline.predicted ? "predicted" : "measured") : "ranks";
      context.fillText(name, 10, bottom - this.rowHeight / 2);
      this.area(context, this.bins.rows[row], left, bottom, this.rowHeight - 3);
    });
    this.frame(context, colours, left, room, height);
  }

  area(context, rows, left, bottom, height) {
    const names = ["matmul", "all_reduce", "wait"];
    for (let at = 0; at < rows[0].length; at += 1) {
      let done = 0;
      rows.forEach((row, family) => {
        const share = Math.min(row[at], 1 - done);
        if (share <= 0.001) return;
        context.fillStyle = kindColour(this.kinds.find((kind) => kind.name === names[family]));
        context.fillRect(left + at, bottom - (done + share) * height, 1, share * height);
        done += share;
      });
    }
  }

  frame(context, colours, left, room, height) {
    const { view } = this;
    if (view.whole) return;
    const x0 = left + (view.from / view.end) * room;
    const x1 = left + (view.to / view.end) * room;
    context.globalAlpha = 0.72;
    context.fillStyle = colours.surface;
    context.fillRect(left, 0, x0 - left, height);
    context.fillRect(x1, 0, left + room - x1, height);
    context.globalAlpha = 1;
    context.strokeStyle = colours.accent;
    context.lineWidth = 1.5;
    context.strokeRect(x0, 1, Math.max(2, x1 - x0), height - 2);
  }
}
