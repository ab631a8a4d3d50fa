"use strict";
/* What each chart shows, as an ECharts option. Every point keeps the rows it comes from; tooltips are built from text
   nodes, never from markup. Charts are small multiples by dtype, one above the other, with names at the lines. */

const groupOf = (row) => [value(row, "shape_list"), value(row, "level"), value(row, "direction")].join(", ");
const ms = (row) => value(row, "latency_ms");
const pixels = (row) => value(row, "batch") * value(row, "height") * value(row, "width");
const tagOf = (row) => (DATA.runs.length > 1 ? `${DATA.runs[DATA.owner[row]].tag}: ` : "");
const seriesName = (row) => tagOf(row) + DATA.series[DATA.series_of[row]].name;
const point = (x, y, ...rows) => ({ x, y, rows });
const tagged = (one, text) => (DATA.runs.length > 1 ? `${one.run}: ` : "") + text;

/* In the groups: the first beside the table, the others below it. In `more`: one group at a time. */
const KINDS = {
  throughput: {
    name: "Throughput against latency", place: "side", draw: drawScatter, x: "median latency (ms)", y: "TFLOP/s",
    note: "A point is a shape; up and left is better. Dashed: the highest throughput measured on the device.",
    points: () => DATA.charts.throughput.map((row) => point(ms(row), value(row, "tflops"), row)),
    lines: (one, xs) => (one.tflops ? [{ text: peakText(one), data: xs.map((x) => [x, one.tflops]) }] : []),
  },
  roofline: {
    name: "Roofline", place: "below", draw: drawScatter, x: "FLOP per byte moved", y: "TFLOP/s",
    note: "Dashed: ceilings measured on the device; dotted: the slope where the data fit in a warm cache.",
    points: () => DATA.charts.roofline.map(([row, x]) => point(x, value(row, "tflops"), row)),
    lines: roof,
  },
  precision: {
    name: "Speed-up over fp32", place: "below", draw: drawStrips, x: "times as fast as fp32",
    note: "A point is a shape; right of 1 is faster than strict fp32.",
    points: () => DATA.charts.precision.filter(([row, full]) => row !== full).map(([row, full]) => point(ms(full) / ms(row), null, row, full)),
  },
  scaling: {
    name: "Scaling with resolution", place: "more", draw: drawScatter, x: "pixels (batch × height × width)", y: "median latency (ms)", joined: true,
    note: "After the name, the exponent of the fitted power; * the channels change along, so that it holds both.",
    points: () => DATA.charts.scaling.flatMap((fit) => fit.rows.map((row) => ({ ...point(pixels(row), ms(row), row), fit }))),
  },
  offsets: {
    name: "Latency against the spread of offsets", place: "more", draw: drawScatter, x: "standard deviation of the offsets (px)", y: "median latency (ms)", joined: true,
    note: "How far the points of the operators that gather lie from their grid. A logarithmic axis has 0 at its left end.",
    zero: () => (chartOptions["log-x"][1] ? 0.5 * Math.min(...DATA.charts.offsets.flatMap(({ points }) => points.map(([x]) => x || Infinity))) : 0),
    points() { return DATA.charts.offsets.flatMap((line) => line.points.map(([x, row]) => ({ ...point(x || this.zero(), ms(row), row), line }))); },
  },
  error: {
    name: "Speed against error", place: "more", draw: drawScatter, x: "times as fast as fp32", y: "largest error against fp64",
    note: "Right is faster than strict fp32, up is less exact.",
    points: () => DATA.charts.precision.filter(([row, full]) => row !== full && value(row, "max_rel_error") > 0).map(([row, full]) => point(ms(full) / ms(row), value(row, "max_rel_error"), row, full)),
  },
  launches: {
    name: "Launch overhead: event against graph", place: "more", draw: drawScatter, x: "by CUDA graph (ms)", y: "by CUDA events (ms)",
    note: "Above the line: the gaps between a launch's kernels show in the event time.",
    points: () => DATA.charts.launches.map(([event, graph]) => point(ms(graph), ms(event), event, graph)),
    lines: (one, xs) => [{ text: "equal", data: xs.map((x) => [x, x]) }],
  },
  split: {
    name: "Where time goes: core and projections", place: "more", draw: drawBars, wide: true,
    note: "Below 0: the difference of module and core is smaller than the noise.",
    points: () => DATA.charts.split.map(([module, core]) => ({ rows: [module, core], parts: [ms(core), ms(module) - ms(core)] })),
    parts: ["core", "projections (module less core)"],
  },
  speedup: {
    name: "Speed-up against", place: "more", draw: drawHeat, wide: true,
    note: "Its latency / latency; above 1 is faster than it. Same shape, dtype, run, timer and cache.",
    points: () => (DATA.charts.speedup[against] ?? []).map(([row, base]) => ({ rows: [row, base], z: ms(base) / ms(row) })),
  },
};
const AGAINST = Object.keys(DATA.labels).filter((operator) => DATA.charts.speedup[operator]?.length);
let against = AGAINST.includes("dcnv3") ? "dcnv3" : AGAINST[0];

function flops(tflops) {
  return tflops >= 1 ? `${threeDigits(tflops)} TFLOP/s` : `${threeDigits(1e3 * tflops)} GFLOP/s`;
}

function peakText(one) {
  return tagged(one, `${one.dtype} peak ${flops(one.tflops)}`);
}

function roof(one, [low, high]) {
  if (!one.tflops) return [];
  const slopes = ["memory", "cache"].filter((kind) => one[kind]).map((kind) => {
    const knee = (one.tflops * 1e3) / one[kind];
    const data = [low, Math.min(knee, high)].map((x) => [x, (x * one[kind]) / 1e3]);
    return { text: tagged(one, `${kind} ${threeDigits(one[kind])} GB/s`), data, knee, dotted: kind === "cache" };
  });
  const flat = Math.max(low, Math.min(...slopes.map(({ knee }) => knee)));
  const visible = slopes.filter(({ knee }) => knee > 1.3 * low);
  return flat < high ? [...visible, { text: peakText(one), data: [flat, high].map((x) => [x, one.tflops]) }] : visible;
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

const dtypesOf = (points) => DATA.facets.dtype.filter((dtype) => points.some(({ rows: [row] }) => value(row, "dtype") === dtype));

function look(row, size = 10) {
  const series = DATA.series[DATA.series_of[row]];
  const colour = colourOf(DATA.series_of[row]);
  /* The first run's points are full, the others' hollow. */
  const full = series.filled && DATA.owner[row] === 0;
  return { symbol: series.symbol, symbolSize: size, itemStyle: full ? { color: colour, borderColor: css("--paper"), borderWidth: 0.5 } : { color: css("--paper"), borderColor: colour, borderWidth: 1.8 } };
}

function drawScatter(kind, points, width) {
  const [logX, logY, ceilings] = ["log-x", "log-y", "ceilings"].map((name) => chartOptions[name][1]);
  const dtypes = dtypesOf(points);
  const across = scale(points.map(({ x }) => x), logX);
  const zero = kind.zero?.() || null;
  if (points.some(({ x }) => x === zero)) across.ticks = [zero, ...across.ticks.filter((tick) => tick >= 2 * zero)];
  const reach = [across.min, across.max].map((x) => Math.max(x, Number.MIN_VALUE));
  const ceilingsOf = (dtype) => (!kind.lines ? [] : kind === KINDS.launches ? kind.lines(null, reach) : !ceilings ? [] : DATA.ceilings.filter((one) => one.dtype === dtype && !state.hidden.run?.has(one.run)).flatMap((one) => kind.lines(one, reach)));
  const lines = dtypes.map(ceilingsOf);
  const least = Math.min(...points.map(({ y }) => y));
  const up = scale([...points.map(({ y }) => y), ...lines.flat().flatMap(({ data }) => data.map(([, y]) => y)).filter((y) => y >= least)], logY, lines.flat().length > 0);
  const unit = kind.y === "TFLOP/s" && Math.max(...points.map(({ y }) => y)) < 1 ? { name: "GFLOP/s", factor: 1e3 } : { name: kind.y, factor: 1 };

  const panes = dtypes.map((dtype) => {
    const named = new Map();
    for (const item of points) {
      const [row] = item.rows;
      if (value(row, "dtype") !== dtype) continue;
      const line = item.fit ?? item.line;
      const key = line ? `${[...DATA.charts.scaling, ...DATA.charts.offsets].indexOf(line)}` : `${DATA.owner[row]} ${DATA.series_of[row]}`;
      if (!named.has(key)) named.set(key, []);
      named.get(key).push(item);
    }
    return [...named.values()];
  });
  /* A name stands once: at the first run that has the series. */
  const seriesOf = ([{ rows: [row], line }]) => line?.name ?? DATA.series[DATA.series_of[row]].name;
  const faceOf = ([{ rows: [row], line }]) => line?.look ?? row;
  const fitted = ([{ fit }]) => (fit ? ` ${fit.exponent.toFixed(2)}${fit.channels === null ? "*" : ""}` : "");
  const nameOf = (items) => seriesOf(items) + fitted(items);
  const titled = panes.map((pane) => pane.filter((items, place) => pane.findIndex((other) => nameOf(other) === nameOf(items)) === place));
  const room = Math.min(0.32 * width, 190, Math.max(...titled.flat().map((items) => widthOf(nameOf(items)))) + 4);
  const left = Math.max(34, ...(up.ticks ?? [up.max]).map((tick) => widthOf(plain(tick * unit.factor)) + 10));
  const inner = width - left - room - 22;
  const high = Math.max(135, ...titled.map((pane) => 14 * pane.length + 8));
  const tops = dtypes.map((_, place) => 22 + place * (high + 34));
  const at = (place, x, y) => [left + inner * across.at(x), tops[place] + high * (1 - up.at(y))];

  const graphic = [], series = [];
  dtypes.forEach((dtype, place) => {
    const [top, bottom, right] = [tops[place], tops[place] + high, left + inner];
    graphic.push(...paneTitle(dtype, place ? "" : unit.name, top));
    const axes = { xAxisIndex: place, yAxisIndex: place };
    for (const items of panes[place]) {
      const face = faceOf(items);
      const dash = items[0].line?.dash ?? DATA.series[DATA.series_of[face]].dash;
      const ordered = kind.joined ? [...items].sort((a, b) => a.x - b.x) : items;
      series.push({ ...axes, ...look(face), name: nameOf(items), type: kind.joined ? "line" : "scatter", z: 3, data: ordered.map((item) => ({ value: [item.x, item.y], item })), lineStyle: { color: colourOf(DATA.series_of[face]), type: dash.length ? dash.map((part) => 1.5 * part) : "solid", width: 1.5 } });
    }
    const ends = titled[place].map((items) => items.reduce((a, b) => (b.x > a.x ? b : a)));
    const taken = panes[place].flat().map(({ x, y }) => at(place, x, y));
    const wished = ends.map((end) => at(place, end.x, end.y)[1]);
    const places = spread(wished, 14, top + 6, bottom - 4);
    titled[place].forEach((items, which) => {
      const [x, y] = at(place, ends[which].x, ends[which].y);
      const colour = colourOf(DATA.series_of[faceOf(items)]);
      for (let along = x + 15; along < right; along += 15) taken.push([along, y]);
      graphic.push({ type: "polyline", silent: true, z: 1, shape: { points: [[x + 6, y], [Math.max(x + 6, right + 2), y], [right + 14, places[which]]] }, style: { stroke: colour, opacity: 0.45, lineWidth: 1, fill: "none" } });
      graphic.push(label(shorten(seriesOf(items), room - widthOf(fitted(items))) + fitted(items), right + 18, places[which]));
    });
    for (const { text, data, dotted } of lines[place]) {
      series.push({ ...axes, name: text, data, type: "line", symbol: "none", silent: true, clip: true, z: 2, lineStyle: { type: dotted ? "dotted" : "dashed", color: css("--muted"), width: 1.2 } });
      graphic.push(...lineLabel(text, data.map(([x, y]) => at(place, x, y)), { left, right, top, bottom }, taken));
    }
  });
  const grid = dtypes.map((_, place) => ({ left, top: tops[place], width: inner, height: high }));
  const last = dtypes.length - 1;
  return {
    height: tops[last] + high + 42,
    option: {
      ...base(), grid, series, graphic,
      xAxis: dtypes.map((_, place) => scaledAxis(place === last ? kind.x : "", across, { gridIndex: place, axisLabel: { show: place === last, formatter: (number) => plain(zero && number < 1.01 * zero ? 0 : number) } })),
      yAxis: dtypes.map((_, place) => scaledAxis("", up, { gridIndex: place, axisLabel: { formatter: (number) => plain(number * unit.factor) } })),
    },
  };
}

/** The name of a straight line, along it and above it; where fewest points are. */
function lineLabel(text, [from, to], { left, right, top, bottom }, points) {
  const style = { fill: css("--muted") };
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const long = widthOf(text);
  const clearest = (places) => {
    const covered = places.map(([x, y]) => points.filter(([a, b]) => a > x - 6 && a < x + long + 6 && Math.abs(b - y) < 13).length);
    return places[covered.indexOf(Math.min(...covered))];
  };
  if (Math.abs(dy) < 1) {
    const [begin, end] = [Math.max(from[0], left) + 4, Math.min(to[0], right) - 4 - long];
    const [x, y] = clearest([end, begin, (begin + end) / 2].filter((place) => place >= left).flatMap((place) => [[place, to[1] - 9], [place, to[1] + 9]]));
    return [label(text, x, y, style, { z: 2 })];
  }
  /* The part of the slope that is within the pane. */
  const x = (y) => from[0] + (dx * (y - from[1])) / dy;
  const begin = Math.max(left, from[0], from[1] > bottom ? x(bottom) : left), end = Math.min(right, to[0], to[1] < top ? x(top) : right);
  if (end - begin < 20) return [];
  const height = (x) => from[1] + (dy * (x - from[0])) / dx;
  if (Math.hypot(end - begin, height(end) - height(begin)) > long + 12) {
    const middle = (begin + end) / 2;
    return [label(text, middle, height(middle) - 9, { ...style, align: "center" }, { z: 2, rotation: -Math.atan2(dy, dx) })];
  }
  const [x0, y0] = clearest([[begin + 4, Math.min(bottom - 8, height(begin) + 12)], [end + 6, height((begin + end) / 2) + 4], [begin + 4, Math.max(top + 8, height(end) - 9)]]);
  return [label(text, x0, y0, style, { z: 2 })];
}

/** One line a series with its points along it. */
function drawStrips(kind, points, width) {
  const dtypes = dtypesOf(points);
  const across = scale([1, ...points.map(({ x }) => x)], chartOptions["log-x"][1]);
  const names = [...new Set(points.map(({ rows: [row] }) => DATA.series[DATA.series_of[row]].name))];
  const room = Math.min(0.32 * width, 190, Math.max(...names.map(widthOf)) + 4);
  const left = room + 10, inner = width - left - 16;
  const shown = dtypes.map((dtype) => names.filter((name) => points.some(({ rows: [row] }) => value(row, "dtype") === dtype && DATA.series[DATA.series_of[row]].name === name)));
  const tops = [], heights = shown.map((some) => Math.max(90, Math.min(36, Math.max(21, 330 / dtypes.length / some.length)) * some.length + 8));
  heights.reduce((top, high) => (tops.push(top), top + high + 34), 22);
  const graphic = [], series = [];
  dtypes.forEach((dtype, place) => {
    const axes = { xAxisIndex: place, yAxisIndex: place };
    graphic.push(...paneTitle(dtype, "", tops[place]));
    const one = left + inner * across.at(1);
    graphic.push({ type: "line", silent: true, z: 2, shape: { x1: one, x2: one, y1: tops[place], y2: tops[place] + heights[place] }, style: { stroke: css("--muted"), lineDash: [5, 3] } });
    graphic.push(label("as fast as fp32", one, tops[place] - 8, { align: one > left + inner / 2 ? "right" : "left", fill: css("--muted") }));
    for (const name of shown[place]) {
      const items = points.filter(({ rows: [row] }) => value(row, "dtype") === dtype && DATA.series[DATA.series_of[row]].name === name);
      for (const run of new Set(items.map(({ rows: [row] }) => DATA.owner[row]))) {
        const mine = items.filter(({ rows: [row] }) => DATA.owner[row] === run);
        const xs = mine.map(({ x }) => x);
        const [row] = mine[0].rows;
        if (DATA.runs.length === 1) series.push({ ...axes, type: "line", name, silent: true, symbol: "none", z: 2, lineStyle: { color: colourOf(DATA.series_of[row]), width: 2, opacity: 0.4 }, data: [[Math.min(...xs), name], [Math.max(...xs), name]] });
        series.push({ ...axes, type: "scatter", name, z: 3, ...look(row), symbolOffset: [0, DATA.runs.length > 1 ? (run ? 6 : -6) : 0], data: mine.map((item) => ({ value: [item.x, name], item })) });
      }
    }
  });
  const last = dtypes.length - 1;
  return {
    height: tops[last] + heights[last] + 42,
    option: {
      ...base(), series, graphic,
      grid: dtypes.map((_, place) => ({ left, top: tops[place], width: inner, height: heights[place] })),
      xAxis: dtypes.map((_, place) => scaledAxis(place === last ? kind.x : "", across, { gridIndex: place, axisLabel: { show: place === last } })),
      yAxis: dtypes.map((_, place) => ({ type: "category", gridIndex: place, inverse: true, data: shown[place], axisTick: { show: false }, axisLine: { show: false }, axisLabel: { color: css("--ink"), fontSize: SMALL, interval: 0, formatter: (name) => shorten(name, room) }, splitLine: { show: true, lineStyle: { color: css("--line"), opacity: 0.6 } } })),
    },
  };
}

/** Bars of every series and shape; the dtypes side by side. */
function drawBars(kind, points, width) {
  const dtypes = dtypesOf(points);
  const nameOf = ({ rows: [row] }) => `${seriesName(row)} ${value(row, "shape")}`;
  const names = [...new Set(points.map(nameOf))];
  const room = Math.min(0.35 * width, 260, Math.max(...names.map(widthOf)) + 4);
  const left = room + 10, step = (width - left) / dtypes.length, inner = step - 18;
  const high = Math.max(60, 17 * names.length);
  const all = points.flatMap(({ parts: [core, rest] }) => [Math.min(0, rest), core, core + rest]);
  const range = scale(all, false);
  const series = dtypes.flatMap((dtype, place) => kind.parts.map((part, which) => ({
    name: part, type: "bar", stack: `time ${place}`, xAxisIndex: place, yAxisIndex: place, itemStyle: { color: which ? "#E69F00" : "#3d8fd1" },
    data: points.filter(({ rows: [row] }) => value(row, "dtype") === dtype).map((item) => ({ value: [item.parts[which], nameOf(item)], item })),
  })));
  return {
    height: 48 + high + 42,
    option: {
      ...base(), series, legend: { top: 0, left: 0, itemHeight: 10, itemWidth: 14, selectedMode: false, textStyle: { color: css("--ink"), fontSize: SMALL } },
      graphic: dtypes.flatMap((dtype, place) => paneTitle(dtype, "", 48, left + place * step)),
      grid: dtypes.map((_, place) => ({ left: left + place * step, top: 48, width: inner, height: high })),
      xAxis: dtypes.map((_, place) => axis("ms", { gridIndex: place, min: Math.min(0, range.min), max: range.max, axisLabel: { ...axis("").axisLabel, showMinLabel: false, showMaxLabel: false } })),
      yAxis: dtypes.map((_, place) => ({ type: "category", gridIndex: place, inverse: true, data: names, axisTick: { show: false }, axisLabel: { show: place === 0, color: css("--ink"), interval: 0, fontSize: SMALL, formatter: (name) => shorten(name, room) }, axisLine: { lineStyle: { color: css("--line") } } })),
    },
  };
}

function drawHeat(kind, points, width) {
  const column = (row) => `${value(row, "shape")} ${value(row, "dtype")}`;
  const filled = new Set(points.map(({ rows: [row] }) => column(row)));
  const columns = [...new Set(DATA.rows.map((_, row) => column(row)))].filter((name) => filled.has(name));
  const lines = [...new Set(points.map(({ rows: [row] }) => seriesName(row)))].reverse();
  const data = points.map((item) => {
    const [row] = item.rows;
    return { value: [columns.indexOf(column(row)), lines.indexOf(seriesName(row)), Math.log2(item.z)], item, label: { formatter: () => threeDigits(item.z) } };
  });
  const reach = Math.max(1, ...data.map(({ value: [, , z] }) => Math.abs(z)));
  for (const cell of data) cell.label.color = Math.abs(cell.value[2]) > 0.55 * reach ? "#fff" : "#111";
  const room = Math.min(0.32 * width, 240, Math.max(...lines.map(widthOf)) + 4);
  const left = room + 10, inner = width - left - 12;
  const long = Math.max(...columns.map(widthOf));
  const upright = long + 8 > inner / columns.length;
  const high = 24 * lines.length, foot = upright ? 0.87 * long + 16 : 24;
  return {
    height: 8 + high + foot + 44,
    option: {
      ...base(), grid: { left, top: 8, width: inner, height: high },
      visualMap: { min: -reach, max: reach, show: true, orient: "horizontal", left: "center", bottom: 0, itemHeight: 120, itemWidth: 12, calculable: false, text: [`${threeDigits(2 ** reach)}× as fast`, `${threeDigits(2 ** -reach)}×`], textStyle: { color: css("--ink"), fontSize: SMALL }, inRange: { color: ["#b2182b", "#f4a582", "#f7f7f7", "#92c5de", "#2166ac"] } },
      xAxis: { type: "category", data: columns, axisTick: { show: false }, axisLabel: { color: css("--ink"), fontSize: SMALL, rotate: upright ? 60 : 0, interval: 0 } },
      yAxis: { type: "category", data: lines, axisTick: { show: false }, axisLabel: { color: css("--ink"), fontSize: SMALL, interval: 0, formatter: (name) => shorten(name, room) } },
      series: [{ type: "heatmap", data, itemStyle: { borderColor: css("--paper"), borderWidth: 1 }, label: { show: inner / columns.length > 30, fontSize: SMALL } }],
    },
  };
}
