"use strict";
/* The bar of a search for cells: words, and choices of operator, shape and dtype. The address keeps what is asked for. */

const plainText = (text) => text.toLowerCase().replaceAll("×", "x");
const byNumbers = new Intl.Collator("en", { numeric: true }).compare;
const FACETS = {
  operator: { name: "operator", text: (cell) => cell.label },
  shape: { name: "shape", text: (cell) => cell.shape.replaceAll("x", "×") },
  dtype: { name: "dtype", text: (cell) => cell.dtype },
};

/** Whether every word is in a cell's names; a number is matched from its first digit on, so that 8x8 is not in 28x28. */
function matcher(words) {
  const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const patterns = plainText(words).split(/\s+/).filter(Boolean).map((word) => new RegExp((/^\d/.test(word) ? "(?<!\\d)" : "") + escaped(word)));
  return (cell) => patterns.every((pattern) => pattern.test(cell.text));
}

/**
 * Fill `bar`, and call `changed` with the cells that are left, and with whether anything is asked for: now and after
 * each change.
 */
function buildSearch(bar, cells, changed) {
  for (const cell of cells) {
    cell.text ??= plainText([cell.label, cell.operator, cell.provider, cell.shape, cell.dtype, ...cell.kind, cell.settings].join(" "));
  }
  const words = el("input", { type: "search", id: "words", placeholder: "words, as dcnv4 56×56 bf16", "aria-label": "Words: operator, provider, shape, dtype, level, shape list", oninput: () => ask() });
  const selects = Object.entries(FACETS).map(([facet, { name, text }]) => {
    const choices = new Map(cells.map((cell) => [cell[facet], text(cell)]));
    const sorted = facet === "shape" ? [...choices].sort(([a], [b]) => byNumbers(a, b)) : [...choices];
    return el("select", { id: `by-${facet}`, "data-facet": facet, "aria-label": `By ${name}`, onchange: () => ask() }, el("option", { value: "" }, `any ${name}`), ...sorted.map(([choice, shown]) => el("option", { value: choice }, shown)));
  });
  const reset = el("button", { type: "button", id: "reset", onclick: () => { for (const field of [words, ...selects]) field.value = ""; ask(); words.focus(); } }, "Clear");
  bar.hidden = false;
  bar.append(words, ...selects, reset);

  function ask() {
    const asked = new URLSearchParams();
    if (words.value.trim()) asked.set("words", words.value.trim());
    for (const select of selects) if (select.value) asked.set(select.dataset.facet, select.value);
    history.replaceState(null, "", `#${asked}`);
    show();
  }

  function show() {
    const asked = [words, ...selects].some((field) => field.value.trim());
    const fits = matcher(words.value);
    reset.disabled = !asked;
    changed(cells.filter((cell) => selects.every(({ value, dataset }) => !value || cell[dataset.facet] === value) && fits(cell)), asked);
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    words.value = asked.get("words") ?? "";
    for (const select of selects) select.value = asked.get(select.dataset.facet) ?? "";
    for (const select of selects) if (select.selectedIndex < 0) select.value = "";
    show();
  }
  addEventListener("hashchange", fromAddress);
  fromAddress();
}

/** The address of a page that asks for one cell. */
function cellAddress(page, cell) {
  const { operator, shape, dtype, provider, kind } = cell;
  return `${page}#${new URLSearchParams({ words: [provider, ...kind].join(" "), operator, shape, dtype })}`;
}

const cellHead = (cell) => [cell.label, " ", el("small", { class: "hint" }, cell.provider)];
