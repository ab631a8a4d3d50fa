"use strict";
/* The charts' places on the page, when each is drawn, and the dialog of one cell. */

const panels = [];
let moreGroup = null;

function addPanel(kindName, place, group) {
  const kind = KINDS[kindName];
  const box = el("div", { class: "chart", role: "img", "aria-label": kind.name });
  const title = el("h3", {}, kind.name);
  const figures = el("div", {});
  const table = el("details", { class: "figures", ontoggle: () => drawFigures(panel) }, el("summary", {}, "Figures"), figures);
  const node = el("div", { class: kind.wide ? "panel wide" : "panel", "data-kind": kindName }, title, el("p", { class: "hint" }, kind.note + (DATA.runs.length > 1 && kind.draw !== drawBars && kind.draw !== drawHeat ? ` Filled: run ${DATA.runs[0].tag}; hollow: the others.` : "")), box, table);
  const panel = { kindName, kind, node, box, title, table, figures, group, chart: null, width: 0 };
  if (kindName === "speedup") {
    title.append(" ", el("select", { id: "against", "aria-label": "Against", onchange: (event) => { against = event.target.value; drawCharts(); } }, ...AGAINST.map((operator) => el("option", { value: operator, selected: operator === against }, DATA.labels[operator]))));
  }
  place.append(node);
  panels.push(panel);
}

const allPoints = (panel) => panel.kind.points().filter(({ rows: [row] }) => groupOf(row) === (panel.group ?? moreGroup));
const pointsOf = (panel) => allPoints(panel).filter(({ rows: [row] }) => rowShown(row));

function buildPanels() {
  const groups = new Map(Object.entries(KINDS).map(([name, kind]) => [name, new Set(kind.points().map(({ rows: [row] }) => groupOf(row)))]));
  for (const { group, side, below } of sections) {
    for (const [name, kind] of Object.entries(KINDS)) {
      if (kind.place !== "more" && groups.get(name).has(group)) addPanel(name, kind.place === "side" || !side.childElementCount ? side : below, group);
    }
  }
  const more = Object.keys(KINDS).filter((name) => KINDS[name].place === "more" && groups.get(name).size);
  byId("more").hidden = byId("more-link").hidden = !more.length;
  const choices = sections.map(({ group }) => group).filter((group) => more.some((name) => groups.get(name).has(group)));
  [moreGroup] = choices;
  for (const choice of choices) byId("more-group").append(el("option", { value: choice }, choice));
  byId("more-group").hidden = choices.length < 2;
  byId("more-group").addEventListener("change", (event) => { moreGroup = event.target.value; drawCharts(); });
  for (const name of more) addPanel(name, byId("more-panels"), null);
  const narrow = byId("more-panels").querySelectorAll(".panel:not(.wide)");
  if (narrow.length % 2) narrow[narrow.length - 1].classList.add("wide"); /* no empty half */
}

function drawPanel(panel) {
  const { kind, node, box, table } = panel;
  const all = allPoints(panel);
  node.hidden = !all.length && panel.kindName !== "speedup";
  const width = box.clientWidth;
  if (node.hidden || !width) return;
  const points = all.filter(({ rows: [row] }) => rowShown(row));
  const { height, option } = points.length ? kind.draw(kind, points, width)
    : { height: 120, option: { ...base(), title: { text: "Every cell is filtered out", left: "center", top: "middle", textStyle: { color: css("--muted"), fontSize: 13 } }, series: [] } };
  panel.width = width;
  box.style.height = `${height}px`;
  if (panel.chart) panel.chart.resize({ width, height });
  else {
    panel.chart = echarts.init(box, null, { renderer: "canvas", width, height });
    panel.chart.on("click", ({ data }) => data?.item && showCell(data.item.rows[0]));
  }
  panel.chart.setOption(option, true);
  box.setAttribute("aria-label", `${kind.name}, ${panel.group ?? moreGroup}: ${points.length} points; the figures are in the table below the chart`);
  table.hidden = !points.length;
  drawFigures(panel);
}

/** The chart's own figures, for the keyboard and for those who cannot see the picture. */
function drawFigures(panel) {
  if (!panel.table.open) return;
  const most = 300;
  const points = pointsOf(panel);
  const body = el("tbody", {}, ...points.slice(0, most).map((item) => el("tr", {}, el("td", { class: "words" }, el("button", { type: "button", onclick: () => showCell(item.rows[0]) }, rowName(item.rows[0]))), el("td", { class: "words" }, [...details(item).children].slice(1).map((line) => line.textContent).join("; ")))));
  const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Cell"), el("th", { scope: "col" }, "Figures"))), body);
  const rest = points.length > most ? el("p", {}, `${points.length - most} more: filter, or see the CSV.`) : "";
  panel.figures.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Figures of ${panel.kind.name}, ${panel.group ?? "more"}` }, table), rest);
}

/* One chart at a time, the nearest to the window first, so that the page answers meanwhile. */
let waiting = [];
let timer = null;

function wait(some) {
  const away = ({ node }) => Math.max(0, node.getBoundingClientRect().top - innerHeight, -node.getBoundingClientRect().bottom);
  waiting = [...new Set([...waiting, ...some])].map((panel) => [away(panel), panel]).sort(([a], [b]) => a - b).map(([, panel]) => panel);
  timer ??= setTimeout(next);
}

function next() {
  timer = null;
  if (waiting.length) drawPanel(waiting.shift());
  if (waiting.length) timer = setTimeout(next);
}

settle = () => {
  while (waiting.length) drawPanel(waiting.shift());
};

function startCharts() {
  performance.mark("charts");
  buildPanels();
  drawCharts = () => wait(panels);
  drawCharts();
  const watcher = new ResizeObserver((entries) => wait(panels.filter((panel) => entries.some(({ target }) => target === panel.box) && panel.box.clientWidth !== panel.width)));
  for (const { box } of panels) watcher.observe(box);
  showLinked();
  addEventListener("hashchange", showLinked);
}

/** `page.html#row-12` opens that row's cell. */
function showLinked() {
  const row = Number(location.hash.match(/^#row-(\d+)$/)?.[1] ?? NaN);
  if (DATA.rows[row] && !byId("cell").open) showCell(row);
}

/* The samples of one cell */

let cellChart = null;

function histogram(samples) {
  const low = Math.min(...samples), high = Math.max(...samples);
  const count = high > low ? Math.min(40, Math.max(8, Math.ceil(Math.sqrt(samples.length) * 2))) : 1;
  const width = (high - low) / count || 1;
  const bins = Array.from({ length: count }, (_, bin) => [low + (bin + 0.5) * width, 0]);
  for (const sample of samples) bins[Math.min(count - 1, Math.floor((sample - low) / width))][1] += 1;
  return bins;
}

showCell = (row) => {
  const dialog = byId("cell");
  byId("cell-title").textContent = rowName(row);
  const samples = DATA.samples[row];
  const all = samples && samples.length === value(row, "samples");
  byId("cell-note").textContent = !samples ? (ok(row) ? "No samples are known for this cell." : `${value(row, "status")}: ${value(row, "reason")}`)
    : all ? `${samples.length} samples, to five digits; the line is the median. The journal has them as measured.`
      : `The percentiles 0 to 100 of ${value(row, "samples")} samples, to five digits; the line is the median. The journal has every sample.`;
  const where = `row ${row - DATA.owner.indexOf(DATA.owner[row]) + 1} of measurements.csv of run ${DATA.runs[DATA.owner[row]].tag} (${DATA.runs[DATA.owner[row]].name})`;
  const facts = [["from", where], ...DATA.columns.map((column) => [column, value(row, column)])].filter(([, fact]) => fact !== null && fact !== "");
  byId("cell-facts").replaceChildren(el("table", { class: "facts" }, el("tbody", {}, ...facts.map(([name, fact]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { "data-column": name }, String(fact)))))));
  dialog.showModal();
  byId("cell-chart").hidden = !samples;
  if (!samples || typeof echarts === "undefined") return;
  cellChart ??= echarts.init(byId("cell-chart"), null, { renderer: "canvas" });
  byId("cell-chart").setAttribute("aria-label", `Histogram of ${samples.length} latencies from ${threeDigits(Math.min(...samples))} to ${threeDigits(Math.max(...samples))} ms`);
  cellChart.setOption({
    ...base(), grid: { left: 46, right: 24, top: 30, bottom: 44 },
    tooltip: { ...base().tooltip, formatter: ({ data }) => el("div", {}, `${data.value[1]} near ${threeDigits(data.value[0])} ms`) },
    xAxis: axis("latency (ms)", { scale: true }), yAxis: axis(all ? "samples" : "percentiles", { nameGap: 34 }),
    series: [{ type: "bar", barWidth: "95%", itemStyle: { color: "#3d8fd1" }, data: histogram(samples).map((bin) => ({ value: bin })), markLine: { silent: true, symbol: "none", precision: -1 /* not rounded */, lineStyle: { color: css("--worst") }, label: { formatter: `median ${threeDigits(ms(row))}`, color: css("--ink") }, data: [{ xAxis: ms(row) }] } }],
  }, true);
  cellChart.resize();
};

requestAnimationFrame(() => setTimeout(startCharts)); /* the tables are painted first */
