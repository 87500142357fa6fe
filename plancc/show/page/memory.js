// Memory over time: a line for each rank, on the same range of time as the timeline.

const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

class MemoryChart {
  constructor(view, tip, budgets) {
    Object.assign(this, { view, tip, budgets });
    this.canvas = make("canvas", { role: "img" });
    this.node = make("div", { class: "chart" }, this.canvas);
    this.keys = make("ul", { class: "keys" });
    this.draw = oncePerFrame(() => this.drawNow());
    view.listeners.push(this.draw);
    this.canvas.addEventListener("pointermove", (event) => this.hoverAt(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.near = null;
      this.tip.hide();
      this.draw();
    });
  }

  show(timelines, title) {
    this.title = title;
    this.lines = timelines.flatMap((timeline) =>
      Object.entries(timeline.memory).map(([number, [times, sizes]]) => ({
        timeline, times, sizes, actor: timeline.actors[number], end: timeline.seconds * 1e9,
      })));
    this.meshes = [...new Set(this.lines.map((line) => line.actor.mesh))];
    const budgets = this.meshes.map((mesh) => this.budgets[mesh]).filter(Boolean);
    const peak = Math.max(0, ...this.lines.map((line) => line.sizes.reduce((a, b) => Math.max(a, b), 0)));
    this.top = Math.max(peak, ...budgets.filter((budget) => budget < peak * 2.5)) * 1.08 || 1;
    this.node.hidden = !this.lines.length;
    this.canvas.setAttribute("aria-label", `Memory over time, at most ${bytesText(peak)}; the table below has the peaks`);
    this.several = timelines.length > 1;
    this.draw();
  }

  colour(mesh) {
    const light = ["#2f6fde", "#d9560f", "#0b8f86", "#8e44c9"];
    const dark = ["#5b93f5", "#f0783a", "#2bb8ad", "#b57ae8"];
    return (isDark() ? dark : light)[this.meshes.indexOf(mesh) % 4];
  }

  drawNow() {
    if (!this.lines || !this.lines.length) return;
    const colours = palette();
    this.width = this.node.clientWidth - 2;
    this.height = 240;
    this.left = 74;
    const context = sharp(this.canvas, this.width, this.height);
    context.font = "11px system-ui, sans-serif";
    this.grid(context, colours);
    for (const line of this.lines) this.line(context, line, line === this.near ? 2.6 : 1.2);
    this.limits(context, colours);
    this.legend(context, colours);
  }

  x(time) {
    return this.left + ((time - this.view.from) / this.view.span) * (this.width - this.left - 8);
  }

  y(size) {
    return 24 + (this.height - 48) * (1 - size / this.top);
  }

  grid(context, colours) {
    context.textBaseline = "middle";
    context.textAlign = "right";
    const step = roundStep(this.top, 6);
    for (let at = 0; at <= this.top; at += step) {
      context.fillStyle = colours.line;
      context.fillRect(this.left, this.y(at), this.width - this.left, 1);
      context.fillStyle = colours.dim;
      context.fillText(at ? bytesText(at).replace(/\.0+ /, " ") : "0", this.left - 8, this.y(at));
    }
    context.textAlign = "center";
    for (const [at, text] of timeTicks(this.view, this.width - this.left)) {
      const wide = context.measureText(text).width / 2;
      context.fillText(text, Math.min(Math.max(this.x(at), this.left + wide), this.width - wide - 3), this.height - 11);
    }
    context.textAlign = "left";
  }

  line(context, line, wide) {
    context.save();
    context.beginPath();
    context.rect(this.left, 0, this.width - this.left, this.height - 22);
    context.clip();
    context.strokeStyle = this.colour(line.actor.mesh);
    context.lineWidth = wide;
    context.globalAlpha = this.near && this.near !== line ? 0.3 : 0.85;
    context.setLineDash(line.timeline.predicted || !this.several ? [] : [4, 3]);
    context.beginPath();
    line.times.forEach((time, at) => {
      const next = at + 1 < line.times.length ? line.times[at + 1] : line.end;
      if (!at) context.moveTo(this.x(time), this.y(line.sizes[at]));
      else context.lineTo(this.x(time), this.y(line.sizes[at]));
      context.lineTo(this.x(next), this.y(line.sizes[at]));
    });
    context.stroke();
    context.restore();
  }

  limits(context, colours) {
    for (const mesh of this.meshes) {
      const budget = this.budgets[mesh];
      if (!budget || budget > this.top) continue;
      const y = this.y(budget);
      context.strokeStyle = colours.bad;
      context.setLineDash([6, 4]);
      context.lineWidth = 1.2;
      context.beginPath();
      context.moveTo(this.left, y);
      context.lineTo(this.width, y);
      context.stroke();
      context.setLineDash([]);
      context.fillStyle = colours.bad;
      const text = `budget of ${mesh}: ${bytesText(budget)}`;
      context.fillText(text, this.width - context.measureText(text).width - 10, y - 8);
    }
  }

  legend(context, colours) {
    let x = this.left + 4;
    for (const mesh of this.meshes) {
      context.fillStyle = this.colour(mesh);
      context.fillRect(x, 9, 18, 3);
      context.fillStyle = colours.dim;
      const text = mesh || "ranks";
      context.fillText(text, x + 24, 11);
      x += 44 + context.measureText(text).width;
    }
    if (this.several) context.fillText("(dashed: measured)", x, 11);
    context.textAlign = "right";
    context.fillText(this.title, this.width - 10, 11);
    context.textAlign = "left";
  }

  hoverAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const time = this.view.from + ((x - this.left) / (this.width - this.left - 8)) * this.view.span;
    let best = null;
    for (const line of this.lines) {
      const size = sizeAt(line, time);
      if (size === null) continue;
      const off = Math.abs(this.y(size) - y);
      if (!best || off < best.off) best = { line, size, off };
    }
    const near = best && best.off < 30 && x > this.left ? best.line : null;
    if (near) {
      const how = near.timeline.predicted ? "predicted" : "measured";
      this.tip.show(event.clientX, event.clientY, make("b", {}, near.actor.name), factList([["in use", bytesText(best.size)], ["at", timeText(time)], ["", how]]));
    } else this.tip.hide();
    if (near !== this.near) {
      this.near = near;
      this.draw();
    }
  }
}

/** What a line holds at a time; null before its first point or after the end of its step. */
function sizeAt(line, time) {
  if (time > line.end) return null;
  let found = null;
  for (let at = 0; at < line.times.length && line.times[at] <= time; at += 1) found = line.sizes[at];
  return found;
}
