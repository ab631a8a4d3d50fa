"use strict";
/* Reads the data and draws the tables and lists. Text from a run only ever becomes a text node. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const AT = Object.fromEntries(DATA.columns.map((name, place) => [name, place]));
const value = (row, column) => DATA.rows[row][AT[column]];

const STATUS_TEXT = { not_applicable: "N/A", out_of_memory: "OOM", not_run: "—" };
const WIDE = 0.05;
const METRICS = {
  latency: { name: "median latency (ms)", of: (row) => value(row, "latency_ms"), low: true },
  ratio: {
    name: `latency / latency in run ${DATA.runs[0].tag}`,
    of: (row) => (DATA.base[row] === null ? null : quotient(row, DATA.base[row])),
    low: true,
  },
  limit: { name: "share of the device's limit (%)", of: (row) => scaled(value(row, "limit_fraction"), 100), low: false },
  tflops: { name: "TFLOP/s", of: (row) => value(row, "tflops"), low: false },
  gbps: { name: "GB/s", of: (row) => value(row, "gbps"), low: false },
  error: { name: "largest error against fp64 (1e-6)", of: (row) => scaled(value(row, "max_rel_error"), 1e6), low: true },
  images: { name: "images per second", of: (row) => value(row, "images_per_second"), low: false },
  energy: { name: "energy of a launch (mJ)", of: (row) => value(row, "energy_mj"), low: true },
  perjoule: { name: "GFLOP per joule", of: (row) => value(row, "gflop_per_joule"), low: false },
  memory: { name: "peak memory (MiB)", of: (row) => scaled(value(row, "peak_memory_bytes"), 1 / 1048576), low: true },
};
const scaled = (number, factor) => (number === null ? null : number * factor);
const ok = (row) => value(row, "status") === "ok";
const quotient = (row, base) => (ok(row) && ok(base) ? value(row, "latency_ms") / value(base, "latency_ms") : null);

const state = { hidden: {}, metric: "latency", sort: {} };

function rowShown(row) {
  if (state.hidden.run?.has(DATA.runs[DATA.owner[row]].tag)) return false;
  return Object.keys(DATA.facets).every((facet) => !state.hidden[facet]?.has(String(value(row, facet))));
}

function isWide(row) {
  const middle = value(row, "latency_ms"), low = value(row, "ci_low_ms"), high = value(row, "ci_high_ms");
  return low !== null && Math.max(high - middle, middle - low) > WIDE * middle;
}

function figureText(row) {
  if (row === null) return "—";
  const status = value(row, "status");
  if (status !== "ok") return STATUS_TEXT[status] ?? status;
  const number = METRICS[state.metric].of(row);
  const marks = number === null ? "" : (isWide(row) ? "~" : "") + (value(row, "suspicious") ? "!" : "");
  return marks + threeDigits(number);
}

function rowName(row) {
  const operator = DATA.labels[value(row, "operator")];
  const run = DATA.runs.length > 1 ? `${DATA.runs[DATA.owner[row]].tag}: ` : "";
  return `${run}${operator} (${value(row, "provider")}) ${value(row, "level")} ${value(row, "direction")} ${value(row, "shape")} ${value(row, "dtype")}`;
}

/* Tables in the paper's layout */

function visiblePart(table) {
  const columns = [];
  table.shapes.forEach((_, place) => table.dtypes.forEach((dtype, which) => {
    if (!state.hidden.dtype?.has(dtype)) columns.push([place, which]);
  }));
  const lines = table.lines.filter((line) => line.cells.flat().some((row) => row !== null && rowShown(row)));
  return { columns, lines };
}

function sortLines(lines, sort) {
  if (!sort) return lines;
  const number = (line) => {
    const row = line.cells[sort.place][sort.which];
    return row === null || !ok(row) ? null : METRICS[state.metric].of(row);
  };
  return [...lines].sort((a, b) => {
    const first = number(a), second = number(b);
    if (first === null || second === null) return (first === null) - (second === null);
    return sort.down ? second - first : first - second;
  });
}

/** Best figure of a column, per run; none where fewer than two lines have one. */
function bestOf(lines, place, which) {
  const found = new Map();
  for (const line of lines) {
    const row = line.cells[place][which];
    const number = row === null || !ok(row) || !rowShown(row) ? null : METRICS[state.metric].of(row);
    if (number !== null) found.set(line.run, [...(found.get(line.run) ?? []), number]);
  }
  const { low } = METRICS[state.metric];
  return new Map([...found].filter(([, numbers]) => numbers.length > 1).map(([run, numbers]) => [run, low ? Math.min(...numbers) : Math.max(...numbers)]));
}

/** A cell; the bar behind its figure is as long as the figure is good: full for the column's best, half for half as good. */
function figure(row, best) {
  if (row === null || !rowShown(row)) return el("td", { class: "number" }, el("span", { class: "absent" }, "—"));
  const number = ok(row) ? METRICS[state.metric].of(row) : null;
  const compared = state.metric !== "ratio" && best > 0 && number > 0;
  const share = !compared ? null : METRICS[state.metric].low ? best / number : number / best;
  const kind = !ok(row) ? " absent" : share === 1 ? " best" : "";
  const against = share === null || share === 1 ? "" : `; ${threeDigits(METRICS[state.metric].low ? 1 / share : share)} × the column's best`;
  const title = ok(row) ? rowName(row) + against : `${rowName(row)}: ${value(row, "reason")}`;
  return el("td", { class: "number" }, el("button", { type: "button", class: `figure${kind}`, "data-row": row, title, tabindex: "-1", style: share === null ? {} : { backgroundSize: `${(100 * share).toFixed(1)}% 100%` }, onclick: () => showCell(row) }, figureText(row)));
}

/** The marker of a series, as in the charts: hollow in every run but the first. */
function swatch(series, run) {
  const { symbol, filled, light, dark } = DATA.series[series];
  const path = symbol.startsWith("path://") ? `path("${symbol.slice(7)}")` : null;
  const node = el("span", { class: `swatch ${path ? "" : symbol}${filled && run === 0 ? "" : " hollow"}`, "aria-hidden": "true", style: { clipPath: path ?? "" } });
  node.style.setProperty("--light", light);
  node.style.setProperty("--dark", dark);
  return node;
}

function lineHead(line) {
  const some = line.cells.flat().find((row) => row !== null);
  const small = [line.label.endsWith(`[${line.provider}]`) ? "" : line.provider, DATA.runs.length > 1 ? `run ${DATA.runs[line.run].tag}` : ""].filter(Boolean).join(", ");
  return el("th", { scope: "row" }, el("div", { class: "series" }, swatch(DATA.series_of[some], line.run), el("span", {}, line.label, " ", el("small", {}, small))));
}

function drawTable(table, number) {
  const { columns, lines } = visiblePart(table);
  if (!columns.length || !lines.length) return null;
  const sort = state.sort[number];
  const dtypes = new Set(columns.map(([, which]) => which)).size;
  const shapeRow = el("tr", {}, el("th", { scope: "col", rowspan: 2 }, "Operator"));
  const dtypeRow = el("tr", {});
  let last = null;
  const best = new Map();
  for (const [place, which] of columns) {
    if (place !== last) shapeRow.append(el("th", { scope: "colgroup", colspan: dtypes, class: "shape" }, table.shapes[place]));
    const here = sort && sort.place === place && sort.which === which;
    const direction = here ? (sort.down ? "descending" : "ascending") : null;
    const arrow = here ? (sort.down ? " ▼" : " ▲") : "";
    dtypeRow.append(el("th", { scope: "col", "aria-sort": direction, class: place !== last ? "first" : "" },
      el("button", { type: "button", class: "sort", "data-column": `${place}-${which}`, "aria-label": `Sort by ${table.shapes[place]} ${table.dtypes[which]}`, onclick: () => {
        state.sort[number] = !here ? { place, which, down: false } : sort.down ? undefined : { place, which, down: true };
        update();
        document.querySelector(`[data-table="${number}"] [data-column="${place}-${which}"]`)?.focus();
      } }, table.dtypes[which] + arrow)));
    last = place;
    best.set(`${place}-${which}`, bestOf(lines, place, which));
  }
  const body = el("tbody");
  for (const line of sortLines(lines, sort)) {
    const tr = el("tr", {}, lineHead(line));
    let before = null;
    for (const [place, which] of columns) {
      const cell = figure(line.cells[place][which], best.get(`${place}-${which}`).get(line.run));
      if (place !== before) cell.classList.add("first");
      before = place;
      tr.append(cell);
    }
    body.append(tr);
  }
  const grid = el("table", { class: "paper", "data-table": number }, el("caption", {}, METRICS[state.metric].name), el("thead", {}, shapeRow, dtypeRow), body);
  grid.querySelector(".figure")?.setAttribute("tabindex", "0");
  grid.addEventListener("keydown", moveBetweenFigures);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table of ${table.title}` }, grid);
}

/** Arrow keys move between the figures of a table: one stop of the Tab key each, however large it is. */
function moveBetweenFigures(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest(".figure");
  if (!step || !from) return;
  event.preventDefault();
  const rows = [...event.currentTarget.tBodies[0].rows];
  let down = rows.indexOf(from.closest("tr")), across = from.closest("td").cellIndex;
  while (rows[down + step[0]]?.cells[across + step[1]]) {
    down += step[0];
    across += step[1];
    const to = rows[down].cells[across].querySelector(".figure");
    if (to) {
      from.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
      return;
    }
  }
}

/** One section a table: the table, and places for its charts. Sections stay; tables are drawn anew. */
const sections = DATA.tables.map((table, number) => {
  const slot = el("div", { class: "slot" });
  const title = el("h2", { id: `table-${number}` }, table.title);
  const side = el("div", { class: "panels side" }), below = el("div", { class: "panels below" });
  const wide = table.dtypes.length > 2 || table.dtypes.length * table.shapes.length > 12; // no room for a chart beside it
  const section = el("section", { class: wide ? "group wide-table" : "group", "aria-labelledby": title.id }, title, el("div", { class: "first-row" }, el("div", {}, slot), side), below);
  byId("table-list").append(section);
  return { section, slot, side: wide ? below : side, below, group: [table.list, table.level, table.direction].join(", ") };
});

function drawTables() {
  let drawn = 0;
  sections.forEach(({ section, slot }, number) => {
    const table = drawTable(DATA.tables[number], number);
    section.hidden = table === null;
    slot.replaceChildren(table ?? "");
    if (table && !drawn++) slot.append(byId("legend").content.cloneNode(true));
  });
  byId("nothing").hidden = drawn > 0;
}

/* Lists of rows with words: equal ones are one line with a count */

function rowList(title, rows, column) {
  const alike = new Map();
  for (const row of rows) {
    const key = JSON.stringify([value(row, "status"), value(row, column)]);
    alike.set(key, [...(alike.get(key) ?? []), row]);
  }
  const most = 500;
  const lines = [...alike.values()].slice(0, most).map((same) => {
    const names = same.slice(0, most).map((row) => el("li", {}, rowName(row)));
    const more = same.length > most ? el("li", {}, `${same.length - most} more are in the CSV`) : null;
    const cells = same.length === 1 ? rowName(same[0]) : el("details", {}, el("summary", {}, `${same.length} cells, the first: ${rowName(same[0])}`), el("ul", {}, ...names, more));
    return el("tr", {}, el("td", { class: "words" }, value(same[0], column) ?? ""), el("td", {}, value(same[0], "status")), el("td", { class: "words" }, cells));
  });
  const head = el("thead", {}, el("tr", {}, ...[column === "reason" ? "Reason" : "Figures", "Status", "Cells"].map((text) => el("th", { scope: "col" }, text))));
  const rest = alike.size > most ? el("p", {}, `${alike.size - most} more are in the CSV.`) : "";
  return [el("h3", {}, `${title}: ${rows.length} ${rows.length === 1 ? "cell" : "cells"}`), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {}, head, el("tbody", {}, ...lines))), rest];
}

function csvField(field) {
  const text = field === null ? "" : String(field);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvOf(run) {
  const rows = DATA.rows.filter((_, row) => DATA.owner[row] === run);
  return [DATA.columns, ...rows].map((fields) => fields.map(csvField).join(",")).join("\r\n") + "\r\n";
}

function download(run) {
  const address = URL.createObjectURL(new Blob([csvOf(run)], { type: "text/csv" }));
  const link = el("a", { href: address, download: "measurements.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

let showCell = () => {};

function update() {
  drawTables();
  drawCharts();
}

drawTables();
if (DATA.failed.length) byId("failed").append(...rowList("Failed", DATA.failed, "reason"));
if (DATA.suspicious.length) byId("suspicious").append(...rowList("Suspicious", DATA.suspicious, "suspicious"));
for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => download(Number(button.dataset.run)));
