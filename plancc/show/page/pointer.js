// Mouse, pen and fingers on the timeline: drag to move, ctrl and wheel or two fingers to zoom, click to pick.

function listenToPointer(chart) {
  const { canvas, view } = chart;
  const fingers = new Map();
  let drag = null;

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const share = (x) => Math.min(1, Math.max(0, (x - chart.left) / Math.max(1, chart.width - chart.left)));

  canvas.addEventListener("wheel", (event) => {
    const [x] = place(event);
    if (event.ctrlKey || event.metaKey) view.zoom(Math.exp(event.deltaY * 0.004), share(x));
    else if (event.shiftKey) view.pan((event.deltaY || event.deltaX) / 900);
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) view.pan(event.deltaX / 900);
    else return;
    event.preventDefault();
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event.clientX);
    const [x, y] = place(event);
    drag = { x, y, from: view.from, to: view.to, moved: false, select: event.shiftKey ? x : null };
    canvas.setPointerCapture(event.pointerId);
    chart.scroller.focus({ preventScroll: true });
  });

  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    chart.share = share(x);
    if (fingers.size === 2 && fingers.has(event.pointerId)) {
      const before = Math.abs([...fingers.values()].reduce((a, b) => a - b));
      fingers.set(event.pointerId, event.clientX);
      const after = Math.abs([...fingers.values()].reduce((a, b) => a - b));
      if (before > 5 && after > 5) view.zoom(before / after, share(x));
      return;
    }
    if (drag && fingers.size) return moveBy(x, y);
    hover(event, x, y);
  });

  function moveBy(x, y) {
    if (Math.abs(x - drag.x) + Math.abs(y - drag.y) > 4) drag.moved = true;
    if (!drag.moved || drag.select !== null) return;
    canvas.classList.add("dragging");
    chart.tip.hide();
    const wide = drag.to - drag.from;
    const off = ((drag.x - x) / (chart.width - chart.left)) * wide;
    view.set(drag.from + off, drag.to + off);
  }

  function hover(event, x, y) {
    const found = chart.find(x, y);
    const changed = (found && found.at) !== (chart.hover && chart.hover.at) || (found && found.row) !== (chart.hover && chart.hover.row);
    chart.hover = found;
    if (found) {
      const { timeline } = found.row;
      chart.tip.show(event.clientX, event.clientY, spanTitle(timeline, found.at, chart.texts, chart.kinds), factList(spanFacts(timeline, found.at, chart.texts, chart.kinds)));
    } else chart.tip.hide();
    if (changed) chart.draw();
  }

  const release = (event) => {
    fingers.delete(event.pointerId);
    canvas.classList.remove("dragging");
    if (!drag || fingers.size) return;
    const [x, y] = place(event);
    const { select, moved, from, to } = drag;
    drag = null;
    if (select !== null && moved) {
      const time = (at) => from + share(at) * (to - from);
      view.set(Math.min(time(select), time(x)), Math.max(time(select), time(x)));
    } else if (!moved && event.type === "pointerup") chart.pick(chart.find(x, y));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => {
    if (chart.hover) chart.draw();
    chart.hover = null;
    chart.tip.hide();
  });
  canvas.addEventListener("dblclick", () => chart.zoomToPicked());
}
