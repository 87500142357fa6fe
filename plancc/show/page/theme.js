// Light and dark: as the system says, or as the button says. Colours for canvases, and their patterns.

const THEMES = ["auto", "light", "dark"];
const themeListeners = [];
let chosenTheme = "auto";
let darkNow = false;

/** Whether the page is dark at the moment. */
function isDark() {
  return darkNow;
}

function setTheme(name) {
  chosenTheme = name;
  darkNow = name === "dark" || name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches;
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const button = document.getElementById("theme");
  button.textContent = `Theme: ${name}`;
  themeListeners.forEach((call) => call());
}

function startTheme() {
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(chosenTheme) + 1) % 3]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(chosenTheme));
  setTheme("auto");
}

/** The colours that canvases draw with, read from the page's style. */
function palette() {
  const dark = isDark();
  return dark
    ? { dark, surface: "#161b22", soft: "#1b212a", line: "#2a313c", text: "#e6eaf0", dim: "#9aa5b5",
        accent: "#79a9ff", stripe: "rgba(0,0,0,.38)", hatch: "rgba(190,200,220,.4)", bad: "#ff8a80" }
    : { dark, surface: "#ffffff", soft: "#f4f6f9", line: "#dfe3e9", text: "#171b22", dim: "#566072",
        accent: "#1f5fd0", stripe: "rgba(255,255,255,.42)", hatch: "rgba(70,80,100,.42)", bad: "#b3261e" };
}

function kindColour(kind) {
  return isDark() ? kind.dark : kind.light;
}

/** Black or white, whichever reads better on a colour. */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const v = parseInt(colour.slice(at, at + 2), 16) / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 ? "#10141a" : "#ffffff";
}

const patternStore = new Map();

/** The pattern of a family for a context: stripes for communication, hatching for waiting, none else. */
function familyPattern(context, family) {
  if (family === "compute") return null;
  const colours = palette();
  const key = `${family} ${colours.dark}`;
  if (!patternStore.has(key)) {
    const tile = make("canvas", { width: 6, height: 6 });
    const paint = tile.getContext("2d");
    paint.strokeStyle = family === "wait" ? colours.hatch : colours.stripe;
    paint.lineWidth = family === "wait" ? 1 : 1.6;
    const way = family === "wait" ? [[-1, -1, 7, 7], [-4, 2, 4, 10], [2, -4, 10, 4]] : [[-1, 7, 7, -1], [-4, 4, 4, -4], [2, 10, 10, 2]];
    for (const [a, b, c, d] of way) {
      paint.beginPath();
      paint.moveTo(a, b);
      paint.lineTo(c, d);
      paint.stroke();
    }
    patternStore.set(key, context.createPattern(tile, "repeat"));
  }
  return patternStore.get(key);
}
