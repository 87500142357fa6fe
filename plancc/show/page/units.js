// Numbers as people read them, and elements without any parsing of text as HTML.

function three(value) {
  const size = Math.abs(value);
  return value.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

function scaled(value, table, last) {
  for (const [size, unit] of table) {
    if (Math.abs(value) >= 0.9995 * size) return `${three(value / size)} ${unit}`;
  }
  return last(value);
}

/** Nanoseconds as text. */
function timeText(ns) {
  return scaled(ns, [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]], (v) => (v ? `${+v.toPrecision(3)} ns` : "0 s"));
}

function bytesText(count) {
  return scaled(count, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]], (v) => `${Math.round(v)} B`);
}

function countText(count) {
  return scaled(count, [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]], (v) => `${v}`);
}

/** A short number for a small field: 1.2G, 350M; `whole` without the part after the point. */
function shortBytes(count, whole) {
  const [value, unit] = bytesText(count).split(" ");
  const cut = whole || +value >= 10 ? String(Math.round(+value)) : (+value).toFixed(1).replace(".0", "");
  return cut + unit[0].replace("B", "");
}

/** Round steps of about `room` / `count`: 1, 2 or 5 times a power of ten. */
function roundStep(room, count) {
  const rough = room / Math.max(1, count);
  const ten = 10 ** Math.floor(Math.log10(rough));
  return ten * [1, 2, 5, 10].find((f) => f * ten >= rough * 0.999);
}

/** An element; what is given for children becomes text unless it is a node. */
function make(tag, facts = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(facts)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** A canvas as sharp as the screen: [context, width, height] in CSS pixels, cleared. */
function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.round(width * ratio);
  const h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Call once before the next picture, however often it is asked for. */
function oncePerFrame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}
