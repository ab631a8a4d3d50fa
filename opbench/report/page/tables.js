"use strict";
/* Reads the data, filters, and draws the tables. Text from a run only ever becomes a text node. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const AT = Object.fromEntries(DATA.columns.map((name, place) => [name, place]));
const value = (row, column) => DATA.rows[row][AT[column]];
const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, setting] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange") node.addEventListener(name.slice(2), setting);
    else if (setting === true) node.setAttribute(name, "");
    else if (setting !== false && setting !== null && setting !== undefined) node.setAttribute(name, setting);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A positive number to three significant digits without an exponent, as the tables of `opbench report`. */
function threeDigits(number) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "—";
  if (number === 0) return "0";
  const exponent = Number(number.toExponential(2).split("e")[1]);
  return Number(number.toPrecision(3)).toFixed(Math.max(0, 2 - exponent));
}

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

/* Filters */

const FACET_NAMES = { operator: "Operator", dtype: "Dtype", level: "Level", direction: "Direction", provider: "Provider", shape_list: "Shape list", timer: "Timer", run: "Run" };

function buildFilters() {
  const facets = { ...DATA.facets, run: DATA.runs.map((run) => run.tag) };
  const fields = byId("filter-fields");
  const metric = el("select", { id: "metric", onchange: (event) => { state.metric = event.target.value; update(); } });
  for (const [name, { name: text, of }] of Object.entries(METRICS)) {
    if (name === "ratio" && DATA.runs.length < 2) continue;
    if (name !== "ratio" && !DATA.rows.some((_, row) => of(row) !== null)) continue;
    metric.append(el("option", { value: name }, text));
  }
  fields.append(el("fieldset", {}, el("legend", {}, "Figures"), el("label", {}, "Show ", metric)));
  for (const [facet, choices] of Object.entries(facets)) {
    if (choices.length < 2) continue;
    state.hidden[facet] = new Set();
    const set = el("fieldset", { "data-facet": facet }, el("legend", {}, FACET_NAMES[facet]));
    for (const choice of choices) {
      const box = el("input", { type: "checkbox", checked: true, value: choice, onchange: (event) => {
        event.target.checked ? state.hidden[facet].delete(choice) : state.hidden[facet].add(choice);
        update();
      } });
      const text = facet === "operator" ? DATA.labels[choice] : choice;
      set.append(el("label", {}, box, text));
    }
    fields.append(set);
  }
  fields.append(el("button", { type: "button", id: "reset", onclick: () => {
    for (const hidden of Object.values(state.hidden)) hidden.clear();
    for (const box of fields.querySelectorAll("input")) box.checked = true;
    update();
  } }, "Show all"));
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

/** Best and worst figure of a column, per run; none where fewer than two lines have one. */
function extremes(lines, place, which) {
  const found = new Map();
  for (const line of lines) {
    const row = line.cells[place][which];
    const number = row === null || !ok(row) || !rowShown(row) ? null : METRICS[state.metric].of(row);
    if (number !== null) found.set(line.run, [...(found.get(line.run) ?? []), number]);
  }
  const { low } = METRICS[state.metric];
  return new Map([...found].filter(([, numbers]) => numbers.length > 1).map(([run, numbers]) => {
    const least = Math.min(...numbers), most = Math.max(...numbers);
    return [run, low ? [least, most] : [most, least]];
  }));
}

function figure(row, ends) {
  if (row === null || !rowShown(row)) return el("td", { class: "number" }, "—");
  const number = ok(row) ? METRICS[state.metric].of(row) : null;
  const kind = state.metric === "ratio" || !ends || number === null || ends[0] === ends[1] ? "" : number === ends[0] ? " best" : number === ends[1] ? " worst" : "";
  const title = ok(row) ? rowName(row) : `${rowName(row)}: ${value(row, "reason")}`;
  return el("td", { class: "number" }, el("button", { type: "button", class: `figure${kind}`, "data-row": row, title, tabindex: "-1", onclick: () => showCell(row) }, figureText(row)));
}

function drawTable(table, number) {
  const { columns, lines } = visiblePart(table);
  if (!columns.length || !lines.length) return null;
  const sort = state.sort[number];
  const dtypes = new Set(columns.map(([, which]) => which)).size;
  const shapeRow = el("tr", {}, el("th", { scope: "col", rowspan: 2 }, "Operator"));
  const dtypeRow = el("tr", {});
  let last = null;
  const ends = new Map();
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
    ends.set(`${place}-${which}`, extremes(lines, place, which));
  }
  const body = el("tbody");
  for (const line of sortLines(lines, sort)) {
    const small = [line.provider, DATA.runs.length > 1 ? `run ${DATA.runs[line.run].tag}` : ""].filter(Boolean).join(", ");
    const tr = el("tr", {}, el("th", { scope: "row" }, line.label, el("small", {}, small)));
    let before = null;
    for (const [place, which] of columns) {
      const cell = figure(line.cells[place][which], ends.get(`${place}-${which}`).get(line.run));
      if (place !== before) cell.classList.add("first");
      before = place;
      tr.append(cell);
    }
    body.append(tr);
  }
  const grid = el("table", { class: "paper", "data-table": number }, el("caption", { class: "hint" }, METRICS[state.metric].name), el("thead", {}, shapeRow, dtypeRow), body);
  grid.querySelector(".figure")?.setAttribute("tabindex", "0");
  grid.addEventListener("keydown", moveBetweenFigures);
  return el("div", {}, el("h3", {}, table.title), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.title }, grid));
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

function drawTables() {
  const drawn = DATA.tables.map(drawTable).filter(Boolean);
  byId("table-list").replaceChildren(...drawn);
  byId("nothing").hidden = drawn.length > 0;
}

/* Lists of rows with words */

function rowList(rows, column) {
  if (!rows.length) return el("p", {}, "None.");
  const most = 500;
  const body = el("tbody", {}, ...rows.slice(0, most).map((row) => el("tr", {}, el("td", { class: "words" }, rowName(row)), el("td", {}, value(row, "status")), el("td", { class: "words" }, value(row, column) ?? ""))));
  const head = el("thead", {}, el("tr", {}, ...["Cell", "Status", column === "reason" ? "Reason" : "Figures"].map((text) => el("th", { scope: "col" }, text))));
  const rest = rows.length > most ? el("p", {}, `${rows.length - most} more are in the CSV.`) : "";
  return el("div", {}, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": column }, el("table", {}, head, body)), rest);
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

let drawChart = () => {};
let showCell = () => {};

function update() {
  drawTables();
  drawChart();
}

buildFilters();
if (matchMedia("(max-width: 40rem)").matches) byId("filters").querySelector("details").open = false;
drawTables();
byId("failed").append(rowList(DATA.failed, "reason"));
byId("suspicious").append(rowList(DATA.suspicious, "suspicious"));
for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => download(Number(button.dataset.run)));
