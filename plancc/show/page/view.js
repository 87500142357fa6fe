// The range of time that all charts of a step show: one for all of them, in nanoseconds.

class View {
  constructor(end) {
    this.listeners = [];
    this.reset(end);
  }

  /** Begin again with a step that is `end` long. */
  reset(end) {
    this.end = Math.max(end, 1);
    this.set(0, this.end);
  }

  get span() {
    return this.to - this.from;
  }

  /** Show from..to, moved into the step and not narrower than 10 ns. */
  set(from, to) {
    const wide = Math.min(Math.max(to - from, 10), this.end);
    const start = Math.min(Math.max(from, 0), this.end - wide);
    this.from = start;
    this.to = start + wide;
    this.listeners.forEach((call) => call());
  }

  /** Show `factor` times as much; what is at `share` of the width stays there. */
  zoom(factor, share = 0.5) {
    const centre = this.from + this.span * share;
    const wide = Math.min(Math.max(this.span * factor, 10), this.end);
    this.set(centre - wide * share, centre + wide * (1 - share));
  }

  /** Move by a share of what is shown. */
  pan(share) {
    this.set(this.from + this.span * share, this.to + this.span * share);
  }

  /** Show a span with some room on both sides. */
  show(begin, end) {
    const room = Math.max((end - begin) * 0.6, 5);
    this.set(begin - room, end + room);
  }

  fit() {
    this.set(0, this.end);
  }

  /** Whether everything is shown. */
  get whole() {
    return this.span >= this.end * 0.999999;
  }
}

/** Ticks for a time axis of `width` pixels: [ns, text], as precise as they need to be. */
function timeTicks(view, width) {
  const step = roundStep(view.span, Math.max(2, Math.floor(width / 110)));
  const [size, unit] = view.to >= 1e9 ? [1e9, "s"] : view.to >= 1e6 ? [1e6, "ms"] : view.to >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  const places = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9)));
  const found = [];
  for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
    found.push([at, `${(at / size).toFixed(places)} ${unit}`]);
  }
  return found;
}
