"use strict";
/* A chart of each cell over the runs of its series, drawn when it comes into view. */

const DATA = JSON.parse(byId("data").textContent);
const AT_ONCE = 12;
const places = [...document.querySelectorAll("[data-series]")].map((place) => {
  const cells = DATA.series[place.dataset.series].cells.map((cell) => ({ ...cell, series: place.dataset.series }));
  return { place, cells, section: place.closest("section") };
});
let panels = [];

const runOf = (cell, x) => DATA.runs[DATA.series[cell.series].runs[x]];
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function summary({ points, noise, steps }) {
  const [first, last] = [points[0], points.at(-1)].map((point) => threeDigits(point[1]));
  const parts = [`${first} → ${last} ms`, `${points.length} ${points.length === 1 ? "run" : "runs"}`];
  if (noise !== null) parts.push(`noise ${percent(noise)}`);
  return [...parts, ...steps.map(([, , text]) => text)].join("; ");
}

function tip(cell, [x, latency, low, high, warnings]) {
  const { name, date, revision } = runOf(cell, x);
  const lines = [`${name}${date && `, ${date}`}${revision && `, ${revision}`}`, `${threeDigits(latency)} ms, ${threeDigits(low)} to ${threeDigits(high)}`, warnings];
  return el("div", {}, ...lines.filter(Boolean).map((line) => el("div", {}, line)));
}

/** Limits around the medians, at least a tenth of them apart: noise of 1 % then looks like noise. */
function limits(points) {
  const all = points.map((point) => point[1]);
  const low = Math.min(...all), high = Math.max(...all);
  const pad = Math.max(0.15 * (high - low), (0.1 * high - (high - low)) / 2);
  return { min: Math.max(0, low - pad), max: high + 1.4 * pad };
}

/** Runs to label: where levels begin, the last, the first, and others in between, none too near to another. */
function labelled(count, steps, width) {
  const gap = Math.max(1, Math.ceil(count / Math.max(2, Math.floor(width / 80))));
  const chosen = [];
  const between = Array.from({ length: Math.ceil(count / gap) }, (_, number) => number * gap);
  for (const x of [...steps, count - 1, 0, ...between]) if (chosen.every((other) => Math.abs(other - x) >= gap)) chosen.push(x);
  return chosen.sort((a, b) => a - b);
}

function option(cell, width) {
  const { points, levels, steps } = cell;
  const count = DATA.series[cell.series].runs.length;
  const ticks = labelled(count, steps.map(([x]) => x), width);
  const label = (x) => { const { date, revision, name } = runOf(cell, Math.round(x)) ?? {}; return `${(date ?? "").slice(2)}\n${(revision || name || "").slice(0, 9)}`; };
  const range = limits(points);
  const bar = (_, api) => {
    const [[x, low], [, high]] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), api.value(2)])];
    return { type: "line", shape: { x1: x, x2: x, y1: low, y2: high }, style: { stroke: css("--muted"), lineWidth: 1 } };
  };
  return {
    ...base(), grid: { left: 54, right: 14, top: 18, bottom: 40 },
    tooltip: { ...base().tooltip, formatter: ({ data }) => (data?.point ? tip(cell, data.point) : "") },
    xAxis: axis("", { axisLine: { onZero: false, lineStyle: { color: css("--line") } }, min: -0.6, max: count - 0.4, splitLine: { show: false }, axisLabel: { ...axis("").axisLabel, customValues: ticks, formatter: label, lineHeight: 13, showMinLabel: true, showMaxLabel: true, hideOverlap: true } }),
    yAxis: axis("median latency (ms)", { axisLine: { show: false }, ...range, nameGap: 40, splitNumber: 4, axisLabel: { ...axis("").axisLabel, showMinLabel: false, showMaxLabel: false } }),
    series: [
      { type: "custom", silent: true, clip: true, renderItem: bar, data: points.map(([x, , low, high]) => [x, low, high]), encode: { x: 0, y: [1, 2] } },
      { type: "line", silent: true, showSymbol: false, lineStyle: { color: css("--ink"), width: 1.5 }, data: levels.flatMap(([from, to, level]) => [[from - 0.4, level], [to + 0.4, level], [to + 0.4, null]]) },
      {
        type: "scatter", symbolSize: 8, cursor: "pointer",
        data: points.map((point) => ({ value: [point[0], point[1]], point, itemStyle: { color: point[4] ? css("--paper") : css("--accent"), borderColor: css("--accent"), borderWidth: 1.5 } })),
        markLine: { silent: true, symbol: "none", animation: false, data: steps.map(([x, change, text]) => ({ xAxis: x - 0.5, lineStyle: { type: "dashed", color: css(change > 0 ? "--worst" : "--best") }, label: { formatter: text.split(":")[0], color: css(change > 0 ? "--worst" : "--best"), fontSize: 11 } })) },
      },
    ],
  };
}

function drawPanel(panel) {
  const { box, cell } = panel;
  panel.due = false;
  panel.width = box.clientWidth;
  if (!panel.width) return;
  if (panel.chart) panel.chart.resize();
  else {
    panel.chart = echarts.init(box, null, { renderer: "canvas" });
    panel.chart.on("click", ({ data }) => { if (data?.point) location.href = `${runOf(cell, data.point[0]).page}#row-${data.point[5]}`; });
  }
  panel.chart.setOption(option(cell, panel.width), true);
}

const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const panel = panels.find(({ box }) => box === target);
    if (!panel) continue;
    panel.seen = isIntersecting;
    if (isIntersecting && panel.due) drawPanel(panel);
  }
}, { rootMargin: "300px" });
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const panel = panels.find(({ box }) => box === target);
    if (panel?.chart && panel.width !== target.clientWidth) drawPanel(panel);
  }
});

function addPanel(place, cell) {
  const box = el("div", { class: "chart", role: "img", "aria-label": `${cell.name}: ${summary(cell)}` });
  place.append(el("div", { class: "panel" }, el("h3", {}, cell.name), el("p", { class: "hint" }, summary(cell)), box));
  const panel = { box, cell, chart: null, width: 0, due: true, seen: false };
  panels.push(panel);
  inView.observe(box);
  resized.observe(box);
}

function fill({ place, section }, cells, asked, most = AT_ONCE) {
  for (const panel of panels.filter(({ box }) => place.contains(box))) {
    panel.chart?.dispose();
    inView.unobserve(panel.box);
    resized.unobserve(panel.box);
  }
  panels = panels.filter(({ box }) => !place.contains(box));
  place.replaceChildren();
  section.hidden = asked && !cells.length;
  for (const cell of cells.slice(0, most)) addPanel(place, cell);
  if (cells.length > most) {
    place.append(el("button", { type: "button", class: "more", onclick: () => fill({ place, section }, cells, asked, most + 4 * AT_ONCE) }, `Show more: ${cells.length - most} cells are left`));
  }
}

drawCharts = () => {
  for (const panel of panels) {
    panel.due = true;
    if (panel.seen) drawPanel(panel);
  }
};
settle = () => panels.filter(({ due }) => due).forEach(drawPanel);

if (places.length) {
  buildSearch(byId("search"), places.flatMap(({ cells }) => cells), (cells, asked) => {
    for (const entry of places) fill(entry, cells.filter((cell) => cell.series === entry.place.dataset.series), asked);
    byId("nothing").hidden = !asked || cells.length > 0;
  });
}
performance.mark("charts");
