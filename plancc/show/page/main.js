// Puts the page together: data, charts, tools and what they do to each other.

const HELP = [["+ −", "zoom"], ["← →", "move"], ["0", "show all"], ["n p", "next, previous span"], ["↑ ↓", "other rank"], ["Enter", "zoom to it"]];

function button(text, label, act) {
  return make("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
}

function start() {
  startTheme();
  document.querySelectorAll("table.sortable").forEach(sortable);
  const data = JSON.parse(document.getElementById("data").textContent);
  const groups = data.groups.map((group) => ({
    ...group,
    timelines: group.timelines.map(unpack).map((t) => ({ ...t, batches: t.spans.batch.some((batch) => batch) })),
  }));
  if (!groups.length) return;
  const view = new View(1);
  const tip = new Tip();
  const charts = makeCharts(view, tip, data);
  const [timeline] = charts;
  const show = (number) => {
    charts.forEach((chart) => chart.show(groups[number].timelines, groups.length > 1 ? groups[number].title : ""));
    const order = document.getElementById("by-rank");
    if (order) order.hidden = groups[number].timelines.length < 2;
  };
  const place = document.getElementById("timeline-view");
  if (place) place.replaceChildren(...timelineTools(timeline, view, groups, show), timeline.node, help());
  show(0);
  const draw = () => charts.forEach((chart) => chart.draw());
  themeListeners.push(draw);
  new ResizeObserver(draw).observe(document.getElementById("main"));
}

function makeCharts(view, tip, data) {
  const charts = [new TimelineChart(view, tip, data)];
  const memory = document.getElementById("memory-view");
  if (memory) {
    charts.push(new MemoryChart(view, tip, data.budgets));
    memory.append(charts.at(-1).node);
  }
  const traffic = document.getElementById("traffic-view");
  if (traffic) {
    charts.push(new TrafficChart(tip));
    traffic.append(charts.at(-1).node);
  }
  return charts;
}

function timelineTools(timeline, view, groups, show) {
  const range = make("output", { class: "range", id: "timeline-range" });
  view.listeners.push(() => {
    range.textContent = view.whole
      ? `${timeText(view.end)}, all of it`
      : `${timeText(view.from)} to ${timeText(view.to)} (${timeText(view.span)} of ${timeText(view.end)})`;
  });
  const found = make("span", { class: "range", "aria-live": "polite" });
  const search = make("input", { type: "search", placeholder: "module, plan line, kind…", "aria-label": "Mark spans with these words", oninput: () => {
    const count = timeline.search(search.value);
    found.textContent = count === null ? "" : `${countText(count)} spans`;
  } });
  const steps = make("select", { id: "step", onchange: () => {
    search.value = found.textContent = "";
    show(+steps.value);
  } }, ...groups.map((group, at) => make("option", { value: at }, group.title)));
  const zoom = make("span", { class: "joined" },
    button("−", "Zoom out", () => view.zoom(1 / 0.6)), button("+", "Zoom in", () => view.zoom(0.6)),
    button("All", "Show all of the step", () => view.fit()));
  const order = make("button", { type: "button", id: "by-rank", "aria-pressed": "false", onclick: () => {
    timeline.arrange(!timeline.byRank);
    order.setAttribute("aria-pressed", String(timeline.byRank));
  } }, "Rank by rank");
  const parts = [zoom, order, range, make("span", { class: "gap" }), found, search];
  if (groups.length > 1) parts.unshift(make("label", {}, "step ", steps));
  return [make("div", { class: "tools" }, ...parts)];
}

function help() {
  const keys = HELP.flatMap(([key, text]) => [make("kbd", {}, key), ` ${text}  `]);
  return make("p", { class: "hint", id: "timeline-help" }, "Drag to move, ctrl and wheel to zoom, shift and drag to zoom to a range, click to pick. ", ...keys);
}

start();
