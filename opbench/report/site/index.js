"use strict";
/* The search over the cells of every run: a line a cell, with its figure in each run, newest first. */

const AT_ONCE = 50;
const RUNS_AT_ONCE = 6;

function figureIn([run, row, text]) {
  const { name, page, date } = SEARCH.runs[run];
  return el("li", {}, el("a", { href: `${page}#row-${row}`, title: `${name}, ${date}` }, text), " ", el("span", { class: "hint" }, name));
}

function resultLine(cell) {
  const rest = cell.found.length - RUNS_AT_ONCE;
  const figures = el("ul", { class: "figures-in" }, ...cell.found.slice(0, RUNS_AT_ONCE).map(figureIn));
  if (rest > 0) figures.append(el("li", { class: "hint" }, `and ${rest} older`));
  if (cell.history) figures.append(el("li", {}, el("a", { href: cellAddress("history.html", cell) }, "history")));
  return el("tr", {}, el("th", { scope: "row" }, ...cellHead(cell)), el("td", {}, cell.shape.replaceAll("x", "×")), el("td", {}, cell.dtype), el("td", { class: "kind" }, [...cell.kind, cell.shown].filter(Boolean).join(", ")), el("td", { class: "words" }, figures));
}

function showResults(cells, asked, most = AT_ONCE) {
  const count = `${cells.length} ${cells.length === 1 ? "cell" : "cells"}`;
  byId("hits").textContent = !asked ? `${count} in ${SEARCH.runs.length} ${SEARCH.runs.length === 1 ? "run" : "runs"}.`
    : cells.length ? `${count}; median latency in ms, the newest run first. ~ uncertain by more than 5 %; ! suspicious.` : "No cell has all of this.";
  const results = byId("results");
  results.replaceChildren();
  if (!asked || !cells.length) return;
  const head = el("tr", {}, ...["Operator", "Shape", "Dtype", "Kind", "Median latency (ms)"].map((name) => el("th", { scope: "col" }, name)));
  results.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cells found" }, el("table", { class: "plain cards", id: "found" }, el("thead", {}, head), el("tbody", {}, ...cells.slice(0, most).map(resultLine)))));
  if (cells.length > most) {
    results.append(el("button", { type: "button", id: "more", onclick: () => showResults(cells, asked, most + 4 * AT_ONCE) }, `Show more: ${cells.length - most} are left`));
  }
}

buildSearch(byId("search"), SEARCH.cells, showResults);
