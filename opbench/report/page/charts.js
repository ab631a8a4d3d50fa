"use strict";
/* Charts by ECharts. Every point keeps the rows it comes from; tooltips are built from text nodes, never from markup. */

const COLOURS = ["var(--ink)", "#E69F00", "#56B4E9", "#009E73", "#3d8fd1", "#D55E00", "#CC79A7"];
const SYMBOLS = { fp32: "circle", tf32: "rect", fp16: "triangle", bf16: "diamond" };
const OPERATORS = Object.keys(DATA.labels);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colourOf = (operator) => COLOURS[OPERATORS.indexOf(operator) % COLOURS.length].replace(/^var\((.*)\)$/, (_, name) => css(name));

const groupOf = (row) => [value(row, "shape_list"), value(row, "level"), value(row, "direction")].join(", ");
const ms = (row) => value(row, "latency_ms");
const pixels = (row) => value(row, "batch") * value(row, "height") * value(row, "width");
const PROVIDERS = new Map(OPERATORS.map((operator) => [operator, new Set()]));
DATA.rows.forEach((_, row) => PROVIDERS.get(value(row, "operator")).add(value(row, "provider")));
const seriesName = (row) => {
  const operator = DATA.labels[value(row, "operator")];
  const several = PROVIDERS.get(value(row, "operator")).size > 1 ? ` [${value(row, "provider")}]` : "";
  return (DATA.runs.length > 1 ? `${DATA.runs[DATA.owner[row]].tag}: ` : "") + operator + several;
};
const point = (x, y, ...rows) => ({ x, y, rows });

const KINDS = {
  throughput: {
    name: "Throughput against latency", draw: drawScatter, x: "median latency (ms)", y: "TFLOP/s", log: true,
    points: () => DATA.charts.throughput.map((row) => point(ms(row), value(row, "tflops"), row)),
    lines: (xs) => DATA.ceilings.flatMap((one) => flatCeiling(one, xs)),
    note: "Symbols: fp32 circle, tf32 square, fp16 triangle, bf16 diamond. Dashed: the most matrix throughput measured on the run's device.",
  },
  roofline: {
    name: "Roofline", draw: drawScatter, x: "FLOP per byte moved", y: "TFLOP/s", log: true,
    points: () => DATA.charts.roofline.map(([row, x]) => point(x, value(row, "tflops"), row)),
    lines: (xs) => DATA.ceilings.flatMap((one) => roof(one, xs)),
    note: "Dashed: the ceilings measured on the run's device; the slope is memory bandwidth, dotted where the data fit in a warm cache. Symbols: fp32 circle, tf32 square, fp16 triangle, bf16 diamond.",
  },
  split: {
    name: "Where time goes: core and projections", draw: drawBars,
    points: () => DATA.charts.split.map(([module, core]) => ({ rows: [module, core], parts: [ms(core), ms(module) - ms(core)] })),
    parts: ["core", "projections (module less core)"],
    note: "Needs both levels in a run. Below 0: the difference is smaller than the noise.",
  },
  speedup: {
    name: "Speed-up against an operator", draw: drawHeat, against: true,
    points: () => (DATA.charts.speedup[chartState.against] ?? []).map(([row, base]) => ({ rows: [row, base], z: ms(base) / ms(row) })),
    note: "Latency of the chosen operator / latency; above 1 is faster than it. Same shape, dtype, run, timer and cache.",
  },
  precision: {
    name: "Precision: speed against error", draw: drawScatter, x: "speed-up over fp32", y: "largest error against fp64", log: true,
    points: () => DATA.charts.precision.filter(([row]) => value(row, "max_rel_error") > 0).map(([row, full]) => point(ms(full) / ms(row), value(row, "max_rel_error"), row, full)),
    lines: () => [],
    note: "Right is faster, up is less exact. fp32 itself stands at 1. Symbols: fp32 circle, tf32 square, fp16 triangle, bf16 diamond.",
  },
  scaling: {
    name: "Scaling with resolution", draw: drawScatter, x: "pixels (batch × height × width)", y: "median latency (ms)", log: true, joined: true,
    points: () => DATA.charts.scaling.flatMap((fit) => fit.rows.map((row) => ({ ...point(pixels(row), ms(row), row), fit }))),
    lines: () => [],
    note: "Exponent of the fitted power in brackets; * where the channels change along with the resolution, so that the exponent holds both.",
  },
  launches: {
    name: "Launch overhead: event against graph", draw: drawScatter, x: "by CUDA graph (ms)", y: "by CUDA events (ms)", log: true,
    points: () => DATA.charts.launches.map(([event, graph]) => point(ms(graph), ms(event), event, graph)),
    lines: (xs) => [{ name: "equal", data: ends(xs).map((x) => [x, x]) }],
    note: "Above the line: the gaps between a launch's kernels show in the event time. Needs the same cells by both timers.",
  },
};

const chartState = { kind: null, group: null, against: OPERATORS[0], logX: true, logY: true, ceilings: true };
const ends = (xs) => [Math.min(...xs) / 1.5, Math.max(...xs) * 1.5];
const tagged = (one, text) => (DATA.runs.length > 1 ? `${one.run}: ` : "") + text;
const shownCeiling = (one) => !state.hidden.dtype?.has(one.dtype) && !state.hidden.run?.has(one.run);

function flatCeiling(one, xs) {
  if (!shownCeiling(one) || !one.tflops) return [];
  return [{ name: tagged(one, `${one.dtype} ceiling ${threeDigits(one.tflops)} TFLOP/s`), data: ends(xs).map((x) => [x, one.tflops]) }];
}

function roof(one, xs) {
  if (!shownCeiling(one) || !one.tflops) return [];
  const [low, high] = ends(xs);
  return ["memory", "cache"].filter((kind) => one[kind]).map((kind) => {
    const knee = (one.tflops * 1e3) / one[kind];
    const data = [low, knee, high].filter((x) => x >= low && x <= high).map((x) => [x, Math.min(one.tflops, (x * one[kind]) / 1e3)]);
    return { name: tagged(one, `${one.dtype}, ${kind} ${threeDigits(one[kind])} GB/s`), data, dotted: kind === "cache" };
  });
}

function pointsOf(kind) {
  return KINDS[kind].points().filter(({ rows }) => groupOf(rows[0]) === chartState.group && rowShown(rows[0]));
}

function groupsOf(kind) {
  return [...new Set(KINDS[kind].points().map(({ rows }) => groupOf(rows[0])))];
}

/** Tooltip content: a name and some columns of the first row. */
function details(item) {
  const { rows } = item;
  const [row] = rows;
  const lines = [`median ${threeDigits(ms(row))} ms`];
  if (value(row, "ci_low_ms") !== null) lines.push(`95 % interval ${threeDigits(value(row, "ci_low_ms"))} to ${threeDigits(value(row, "ci_high_ms"))} ms, ${value(row, "samples")} samples`);
  if (value(row, "tflops") !== null) lines.push(`${threeDigits(value(row, "tflops"))} TFLOP/s, ${threeDigits(value(row, "gbps"))} GB/s`);
  if (value(row, "limit_fraction") !== null) lines.push(`${threeDigits(100 * value(row, "limit_fraction"))} % of its limit, bound by ${value(row, "bound_by")}`);
  if (value(row, "max_rel_error") !== null) lines.push(`largest error ${value(row, "max_rel_error").toExponential(2)}`);
  if (item.parts) lines.push(...KINDS.split.parts.map((part, place) => `${part}: ${item.parts[place].toPrecision(3)} ms`));
  if (item.z) lines.push(`${threeDigits(item.z)} times as fast as ${rowName(rows[1])}`);
  else if (rows.length > 1) lines.push(`beside ${rowName(rows[1])}: ${threeDigits(ms(rows[1]))} ms`);
  if (item.fit) lines.push(`exponent ${item.fit.exponent.toFixed(2)} over ${item.fit.rows.length} shapes, R² ${item.fit.r_squared.toFixed(3)}`);
  if (value(row, "suspicious")) lines.push(`suspicious: ${value(row, "suspicious")}`);
  return el("div", { class: "tip" }, el("b", {}, rowName(row)), ...lines.map((line) => el("div", {}, line)));
}

function base() {
  return {
    animation: false,
    textStyle: { color: css("--ink"), fontFamily: getComputedStyle(document.body).fontFamily },
    tooltip: { confine: true, backgroundColor: css("--raised"), borderColor: css("--line"), textStyle: { color: css("--ink") }, extraCssText: "white-space: normal; max-width: 22rem;", formatter: ({ data }) => (data?.item ? details(data.item) : "") },
    legend: { type: "scroll", bottom: 0, textStyle: { color: css("--ink") }, pageTextStyle: { color: css("--ink") }, pageIconColor: css("--accent"), pageIconInactiveColor: css("--line"), inactiveColor: css("--muted") },
    grid: { left: 44, right: 24, top: 24, bottom: 64, containLabel: true },
  };
}

function axis(name, log, extra = {}) {
  return { name, nameLocation: "middle", nameGap: 28, type: log ? "log" : "value", logBase: 10, axisLine: { show: true, lineStyle: { color: css("--muted") } }, axisLabel: { color: css("--ink"), hideOverlap: true, showMinLabel: log ? false : null, showMaxLabel: log ? false : null, formatter: (number) => String(Number(number.toPrecision(4))) }, nameTextStyle: { color: css("--ink") }, splitLine: { lineStyle: { color: css("--line") } }, ...extra };
}

/** Limits of a logarithmic axis near its values, not at the next power of ten; in powers of two where it is short. */
function near(numbers) {
  const least = Math.min(...numbers), most = Math.max(...numbers);
  return { min: least / 1.3, max: most * 1.3, logBase: most / least < 200 ? 2 : 10 };
}

function drawScatter(kind, points) {
  const series = new Map();
  for (const item of points) {
    const [row] = item.rows;
    let name = seriesName(row);
    if (item.fit) name += ` ${value(row, "dtype")} (${item.fit.exponent.toFixed(2)}${item.fit.channels === null ? "*" : ""})`;
    if (!series.has(name)) series.set(name, { row, data: [] });
    series.get(name).data.push({ value: [item.x, item.y], symbol: SYMBOLS[value(row, "dtype")] ?? "circle", item });
  }
  const drawn = [...series].map(([name, { row, data }]) => ({
    name, data, type: kind.joined ? "line" : "scatter", symbolSize: 11,
    lineStyle: { color: colourOf(value(row, "operator")), type: value(row, "dtype") === "fp32" ? "solid" : "dashed", width: 1.5 },
    /* The first run's points are full, the others' hollow. */
    itemStyle: DATA.owner[row]
      ? { color: css("--paper"), borderColor: colourOf(value(row, "operator")), borderWidth: 2 }
      : { color: colourOf(value(row, "operator")), opacity: 0.9, borderColor: css("--paper"), borderWidth: 0.5 },
  }));
  const lines = chartState.ceilings ? kind.lines(points.map(({ x }) => x)) : [];
  for (const { name, data, dotted } of lines) {
    drawn.push({ name, data, type: "line", symbol: "none", silent: true, lineStyle: { type: dotted ? "dotted" : "dashed", color: css("--muted"), width: 1.5 }, itemStyle: { color: css("--muted") }, endLabel: { show: false } });
  }
  const { logX, logY } = chartState;
  const across = points.map(({ x }) => x);
  const up = [...points.map(({ y }) => y), ...lines.flatMap(({ data }) => data.map(([, y]) => y))];
  return { ...base(), xAxis: axis(kind.x, logX, logX ? near(across) : { scale: true }), yAxis: axis(kind.y, logY, { ...(logY ? near(up) : {}), nameGap: 60 }), series: drawn };
}

function drawBars(kind, points) {
  const several = { operator: (row) => seriesName(row), shape: (row) => value(row, "shape"), dtype: (row) => value(row, "dtype") };
  const names = points.map(({ rows: [row] }) => Object.values(several).map((part) => part(row)).join(" "));
  const order = points.map((_, place) => place).reverse();
  const series = kind.parts.map((part, which) => ({
    name: part, type: "bar", stack: "time", itemStyle: { color: which ? "#E69F00" : "#3d8fd1" },
    data: order.map((place) => ({ value: points[place].parts[which], item: points[place] })),
  }));
  const narrow = innerWidth < 640;
  const most = narrow ? 8 : 24; // labels of three lines on a phone
  const many = points.length > most;
  const zoom = many ? [{ type: "slider", yAxisIndex: 0, width: 18, right: 2, startValue: points.length - most, endValue: points.length - 1, brushSelect: false }, { type: "inside", yAxisIndex: 0, zoomOnMouseWheel: false, moveOnMouseWheel: true }] : [];
  const width = narrow ? 120 : 320;
  return { ...base(), grid: { ...base().grid, right: many ? 40 : 24 }, dataZoom: zoom, xAxis: axis("ms", false), yAxis: { type: "category", data: order.map((place) => names[place]), axisLabel: { color: css("--ink"), width, overflow: "break", lineHeight: narrow ? 11 : 13, interval: 0, fontSize: narrow ? 10 : 12 }, axisLine: { lineStyle: { color: css("--muted") } } }, series };
}

function drawHeat(kind, points) {
  const column = (row) => `${value(row, "shape")} ${value(row, "dtype")}`;
  const filled = new Set(points.map(({ rows: [row] }) => column(row)));
  const columns = [...new Set(DATA.rows.map((_, row) => row).filter((row) => groupOf(row) === chartState.group).map(column))].filter((name) => filled.has(name));
  const lines = [...new Set(points.map(({ rows: [row] }) => seriesName(row)))].reverse();
  const data = points.map((item) => {
    const [row] = item.rows;
    return { value: [columns.indexOf(column(row)), lines.indexOf(seriesName(row)), Math.log2(item.z)], item, label: { formatter: () => threeDigits(item.z) } };
  });
  const reach = Math.max(1, ...data.map(({ value: [, , z] }) => Math.abs(z)));
  for (const cell of data) cell.label.color = Math.abs(cell.value[2]) > 0.55 * reach ? "#fff" : "#111";
  const narrow = innerWidth < 640;
  return {
    ...base(), legend: { show: false }, grid: { left: 28, right: 12, top: 12, bottom: 70, containLabel: true },
    visualMap: { min: -reach, max: reach, show: true, orient: "horizontal", left: "center", bottom: 0, calculable: false, text: [`${threeDigits(2 ** reach)}×`, `${threeDigits(2 ** -reach)}×`], textStyle: { color: css("--ink") }, inRange: { color: ["#b2182b", "#f4a582", "#f7f7f7", "#92c5de", "#2166ac"] } },
    xAxis: { type: "category", data: columns, axisLabel: { color: css("--ink"), rotate: narrow || columns.length > 6 ? 60 : 0, interval: 0 } },
    yAxis: { type: "category", data: lines, axisLabel: { color: css("--ink"), width: narrow ? 90 : 240, overflow: "break", lineHeight: 14, interval: 0 } },
    series: [{ type: "heatmap", data, itemStyle: { borderColor: css("--paper"), borderWidth: 1 }, label: { show: !narrow || columns.length < 7, fontSize: narrow ? 9 : 12 } }],
  };
}

/* The chart's own figures, for the keyboard and for those who cannot see the picture. */
function drawPoints(points) {
  const most = 300;
  const body = el("tbody", {}, ...points.slice(0, most).map((item) => el("tr", {}, el("td", { class: "words" }, el("button", { type: "button", onclick: () => showCell(item.rows[0]) }, rowName(item.rows[0]))), el("td", { class: "words" }, [...details(item).children].slice(1).map((line) => line.textContent).join("; ")))));
  const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Cell"), el("th", { scope: "col" }, "Figures"))), body);
  const rest = points.length > most ? el("p", {}, `${points.length - most} more: filter, or see the CSV.`) : "";
  byId("chart-data").querySelector("div").replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The chart's figures" }, table), rest);
}

function buildControls() {
  const controls = byId("chart-controls");
  const kinds = Object.keys(KINDS).filter((kind) => groupsOf(kind).length || (kind === "speedup" && OPERATORS.some((operator) => DATA.charts.speedup[operator]?.length)));
  if (!kinds.length) {
    controls.append(el("p", {}, "No cell has a value: there is nothing to draw."));
    byId("chart").hidden = byId("chart-data").hidden = true;
    return false;
  }
  const select = (id, choices, chosen, text, change) => {
    const box = el("select", { id, onchange: (event) => { change(event.target.value); drawChart(); } }, ...choices.map(([choice, name]) => el("option", { value: choice, selected: choice === chosen }, name)));
    controls.append(el("label", {}, text, box));
    return box;
  };
  const toggle = (id, text, name) => controls.append(el("label", {}, el("input", { id, type: "checkbox", checked: chartState[name], onchange: (event) => { chartState[name] = event.target.checked; drawChart(); } }), text));
  chartState.kind = kinds[0];
  chartState.against = OPERATORS.find((operator) => operator === "dcnv3" && DATA.charts.speedup[operator]?.length) ?? OPERATORS.find((operator) => DATA.charts.speedup[operator]?.length);
  select("chart-kind", kinds.map((kind) => [kind, KINDS[kind].name]), kinds[0], "Chart", (choice) => { chartState.kind = choice; fillGroups(); });
  const groups = select("chart-group", [], null, "of", (choice) => { chartState.group = choice; });
  select("chart-against", OPERATORS.filter((operator) => DATA.charts.speedup[operator]?.length).map((operator) => [operator, DATA.labels[operator]]), chartState.against, "against", (choice) => { chartState.against = choice; fillGroups(); });
  toggle("log-x", "log x", "logX");
  toggle("log-y", "log y", "logY");
  toggle("ceilings", "ceilings", "ceilings");
  function fillGroups() {
    const found = groupsOf(chartState.kind);
    if (!found.includes(chartState.group)) [chartState.group] = found;
    groups.replaceChildren(...found.map((group) => el("option", { value: group, selected: group === chartState.group }, group)));
    const { draw, against, lines } = KINDS[chartState.kind];
    byId("chart-against").parentElement.hidden = !against;
    for (const id of ["log-x", "log-y"]) byId(id).parentElement.hidden = draw !== drawScatter;
    byId("ceilings").parentElement.hidden = !DATA.ceilings.length || !["throughput", "roofline"].includes(chartState.kind) || !lines;
  }
  fillGroups();
  return true;
}

let chart = null;
let cellChart = null;

function startCharts() {
  performance.mark("charts");
  if (!buildControls()) return;
  chart = echarts.init(byId("chart"), null, { renderer: "canvas" });
  chart.on("click", ({ data }) => data?.item && showCell(data.item.rows[0]));
  drawChart = () => {
    const kind = KINDS[chartState.kind];
    const points = pointsOf(chartState.kind);
    const nothing = points.length === 0;
    chart.setOption(nothing ? { ...base(), title: { text: "Every cell is filtered out", left: "center", top: "middle", textStyle: { color: css("--muted") } }, series: [] } : kind.draw(kind, points), true);
    byId("chart").setAttribute("aria-label", `${kind.name}, ${chartState.group}: ${points.length} points; the figures are in the table below the chart`);
    byId("chart-note").textContent = kind.note;
    drawPoints(points);
  };
  drawChart();
  new ResizeObserver(() => { chart.resize(); }).observe(byId("chart"));
}

/* The samples of one cell */

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
    ...base(), legend: { show: false }, grid: { left: 30, right: 24, top: 30, bottom: 30, containLabel: true },
    tooltip: { ...base().tooltip, formatter: ({ data }) => el("div", {}, `${data.value[1]} near ${threeDigits(data.value[0])} ms`) },
    xAxis: axis("latency (ms)", false, { scale: true }), yAxis: axis(all ? "samples" : "percentiles", false, { nameGap: 34 }),
    series: [{ type: "bar", barWidth: "95%", itemStyle: { color: "#3d8fd1" }, data: histogram(samples).map((bin) => ({ value: bin })), markLine: { silent: true, symbol: "none", precision: -1 /* not rounded */, lineStyle: { color: css("--worst") }, label: { formatter: `median ${threeDigits(ms(row))}`, color: css("--ink") }, data: [{ xAxis: ms(row) }] } }],
  }, true);
  cellChart.resize();
};

/* Theme */

byId("theme").addEventListener("change", (event) => {
  if (event.target.value) document.documentElement.dataset.theme = event.target.value;
  else delete document.documentElement.dataset.theme;
  drawChart();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawChart());
requestAnimationFrame(() => setTimeout(startCharts)); /* the tables are painted first */
