// Who sends how much to whom: a matrix of ranks, or of meshes, with numbers where cells have room.

const RAMP = {
  light: ["#d3e3fa", "#8fb8ee", "#3f7fd8", "#123f86"],
  dark: ["#1c3d68", "#2a65ad", "#5f9ee8", "#c4deff"],
};

/** The colour at a share of a ramp. */
function between(ramp, share) {
  const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(at));
  const mixed = [1, 3, 5].map((digit) => {
    const [a, b] = [ramp[low], ramp[low + 1]].map((colour) => parseInt(colour.slice(digit, digit + 2), 16));
    return Math.round(a + (b - a) * (at - low)).toString(16).padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}

class TrafficChart {
  constructor(tip) {
    this.tip = tip;
    this.canvas = make("canvas", { tabindex: "0", role: "img" });
    this.by = make("select", { onchange: () => this.load() });
    this.which = make("select", { onchange: () => this.load() });
    this.whichLabel = make("label", {}, "step ", this.which);
    this.byLabel = make("label", {}, "between ", this.by);
    this.note = make("span", { class: "range", "aria-live": "polite" });
    this.node = make("div", {}, make("div", { class: "tools" }, this.whichLabel, this.byLabel, this.note), make("div", { class: "heat" }, this.canvas));
    this.canvas.addEventListener("pointermove", (event) => this.hoverAt(event));
    this.canvas.addEventListener("pointerleave", () => this.leave());
    this.canvas.addEventListener("blur", () => this.leave());
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.draw = oncePerFrame(() => this.drawNow());
  }

  show(timelines, title) {
    this.title = title ? `${title}: ` : "";
    this.timelines = timelines.filter((timeline) => timeline.traffic.length);
    this.node.hidden = !this.timelines.length;
    if (this.node.hidden) return;
    this.which.replaceChildren(...this.timelines.map((t, at) => make("option", { value: at }, t.predicted ? "predicted" : "measured")));
    this.whichLabel.hidden = this.timelines.length < 2;
    const [first] = this.timelines;
    const ranks = first.actors.reduce((sum, actor) => sum + actor.ranks.length, 0);
    const meshes = new Set(first.actors.map((actor) => actor.mesh)).size;
    const modes = [["ranks", ranks <= 256], ["meshes", meshes > 1 || ranks > 256]].filter(([, fits]) => fits);
    this.by.replaceChildren(...modes.map(([name]) => make("option", { value: name }, name)));
    this.byLabel.hidden = modes.length < 2;
    this.load();
  }

  /** Build the matrix that is chosen. */
  load() {
    const timeline = this.timelines[+this.which.value || 0];
    const mesh = new Map(timeline.actors.flatMap((actor) => actor.ranks.map((rank) => [rank, actor.mesh])));
    const byRank = this.by.value === "ranks";
    const ranks = [...mesh.keys()].sort((a, b) => a - b);
    this.names = byRank ? ranks.map(String) : [...new Set(ranks.map((rank) => mesh.get(rank)))];
    this.groups = byRank ? ranks.map((rank) => mesh.get(rank)) : this.names;
    const place = new Map(this.names.map((name, at) => [name, at]));
    this.cells = new Float64Array(this.names.length ** 2);
    for (const [source, target, size] of timeline.traffic) {
      const [a, b] = [source, target].map((rank) => place.get(byRank ? String(rank) : mesh.get(rank)));
      if (a !== undefined && b !== undefined) this.cells[a * this.names.length + b] += size;
    }
    this.most = this.cells.reduce((a, b) => Math.max(a, b), 0);
    this.least = this.cells.reduce((a, b) => (b ? Math.min(a, b) : a), Infinity);
    this.spot = null;
    this.canvas.setAttribute("aria-label", `Bytes from ${this.by.value} (rows) to ${this.by.value} (columns), at most ${bytesText(this.most)}; arrow keys read cells`);
    this.note.textContent = `${this.title}rows send, columns receive; at most ${bytesText(this.most)}`;
    this.draw();
  }

  /** The colour of a size: by its logarithm, or in one tone if all are nearly the same. */
  colour(size) {
    const ramp = RAMP[isDark() ? "dark" : "light"];
    if (!size) return null;
    const wide = Math.log(this.most / this.least);
    return between(ramp, wide < 0.02 ? 0.5 : Math.log(size / this.least) / wide);
  }

  drawNow() {
    if (!this.names || this.node.hidden) return;
    const count = this.names.length;
    const longest = Math.max(...this.names.map((name) => name.length));
    this.left = Math.max(34, longest * 7 + 20);
    this.head = 40;
    const whole = document.getElementById("traffic").clientWidth;
    const room = Math.min(whole > 1000 ? whole - 480 - this.left : whole - this.left - 50, 940);
    this.cell = Math.max(11, Math.min(count <= 4 ? 84 : 56, Math.floor(room / count)));
    const height = this.head + this.cell * count + 6;
    const width = this.left + this.cell * count + 6;
    this.canvas.style.width = `${width}px`;
    const context = sharp(this.canvas, width, height);
    const colours = palette();
    this.drawNames(context, colours, count);
    for (let at = 0; at < this.cells.length; at += 1) this.drawCell(context, colours, at, count);
    this.drawGroups(context, colours, count);
  }

  drawNames(context, colours, count) {
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillStyle = colours.dim;
    const every = this.cell >= 18 ? 1 : this.cell >= 12 ? 2 : 4;
    this.names.forEach((name, at) => {
      if (at % every) return;
      const middle = at * this.cell + this.cell / 2;
      context.textAlign = "right";
      context.fillText(name || "–", this.left - 8, this.head + middle);
      context.textAlign = "center";
      context.fillText(name || "–", this.left + middle, this.head - 10);
    });
    context.textAlign = "left";
  }

  drawCell(context, colours, at, count) {
    const x = this.left + (at % count) * this.cell;
    const y = this.head + Math.floor(at / count) * this.cell;
    const fill = this.colour(this.cells[at]);
    const own = at % count === Math.floor(at / count);
    context.fillStyle = fill || colours.soft;
    context.fillRect(x + 0.5, y + 0.5, this.cell - 1, this.cell - 1);
    if (!fill && own && this.names.length > 1) {
      context.strokeStyle = colours.line;
      context.beginPath();
      context.moveTo(x + 3, y + 3);
      context.lineTo(x + this.cell - 3, y + this.cell - 3);
      context.stroke();
    }
    if (fill && this.cell >= 20) this.writeSize(context, fill, this.cells[at], x, y);
    if (this.spot === at) {
      context.strokeStyle = colours.text;
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, this.cell - 2, this.cell - 2);
      context.lineWidth = 1;
    }
  }

  writeSize(context, fill, size, x, y) {
    context.font = `${this.cell >= 44 ? 11 : this.cell >= 28 ? 10 : 8.5}px system-ui, sans-serif`;
    const text = this.cell >= 64 ? bytesText(size) : shortBytes(size, this.cell < 30);
    if (context.measureText(text).width > this.cell - 2) return;
    context.fillStyle = inkOn(fill);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, x + this.cell / 2, y + this.cell / 2);
    context.textAlign = "left";
  }

  /** Lines between meshes, and their names above. */
  drawGroups(context, colours, count) {
    if (this.by.value !== "ranks") return;
    context.strokeStyle = colours.dim;
    context.fillStyle = colours.text;
    context.font = "600 11px system-ui, sans-serif";
    let first = 0;
    for (let at = 1; at <= count; at += 1) {
      if (at < count && this.groups[at] === this.groups[first]) continue;
      if (this.groups[first]) context.fillText(this.groups[first], this.left + first * this.cell + 2, 10);
      if (at < count) {
        const off = at * this.cell;
        context.beginPath();
        context.moveTo(this.left + off, this.head - 16);
        context.lineTo(this.left + off, this.head + count * this.cell);
        context.moveTo(this.left - 22, this.head + off);
        context.lineTo(this.left + count * this.cell, this.head + off);
        context.stroke();
      }
      first = at;
    }
  }

  words(at) {
    const count = this.names.length;
    const word = this.by.value === "ranks" ? "rank" : "mesh";
    return [`${word} ${this.names[Math.floor(at / count)]} → ${word} ${this.names[at % count]}`, this.cells[at] ? bytesText(this.cells[at]) : "nothing"];
  }

  hoverAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.left) / this.cell);
    const row = Math.floor((event.clientY - box.top - this.head) / this.cell);
    const count = this.names.length;
    const inside = column >= 0 && row >= 0 && column < count && row < count;
    this.mark(inside ? row * count + column : null, event.clientX, event.clientY);
  }

  mark(at, x, y) {
    if (at === null) this.tip.hide();
    else {
      const [who, size] = this.words(at);
      this.tip.show(x, y, make("b", {}, who), make("div", {}, size));
    }
    if (at !== this.spot) {
      this.spot = at;
      this.draw();
    }
  }

  leave() {
    this.mark(null);
  }

  press(event) {
    const count = this.names.length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: count, ArrowUp: -count }[event.key];
    if (!step) return;
    const at = this.spot === null ? 0 : this.spot + step;
    if (at < 0 || at >= this.cells.length) return;
    const box = this.canvas.getBoundingClientRect();
    this.mark(at, box.left + this.left + ((at % count) + 1) * this.cell, box.top + this.head + (Math.floor(at / count) + 1) * this.cell);
    this.note.textContent = this.words(at).join(": ");
    event.preventDefault();
  }
}
