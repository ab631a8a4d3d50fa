"use strict";
/* The bar of filters: one line that stays in view; each facet's choices open below its button. */

const FACET_NAMES = { operator: "Operator", dtype: "Dtype", level: "Level", direction: "Direction", provider: "Provider", shape_list: "Shapes", timer: "Timer", run: "Run" };
const chartOptions = { "log-x": ["logarithmic x", true], "log-y": ["logarithmic y", true], ceilings: ["ceilings", true] };

function checkbox(attributes, text, change) {
  return el("label", {}, el("input", { type: "checkbox", checked: true, ...attributes, onchange: (event) => change(event.target.checked) }), text);
}

/** A button and what opens below it; the browser closes it on Escape or a click elsewhere. */
function opener(name, text, attributes, ...children) {
  const box = el("div", { id: `pick-${name}`, popover: "auto", class: "pick", role: "group", "aria-label": text, ...attributes }, ...children);
  const button = el("button", { type: "button", popovertarget: box.id, class: "opener" }, text);
  box.addEventListener("toggle", ({ newState }) => {
    if (newState !== "open") return;
    const under = button.getBoundingClientRect();
    box.style.top = `${under.bottom + 4}px`;
    box.style.left = `${Math.max(4, Math.min(under.left, document.documentElement.clientWidth - box.offsetWidth - 4))}px`;
  });
  return [button, box];
}

function buildFilters() {
  const bar = byId("filters");
  const metric = el("select", { id: "metric", "aria-label": "Figures in the tables", onchange: (event) => { state.metric = event.target.value; update(); } });
  for (const [name, { name: text, of }] of Object.entries(METRICS)) {
    if (name === "ratio" && DATA.runs.length < 2) continue;
    if (name !== "ratio" && !DATA.rows.some((_, row) => of(row) !== null)) continue;
    metric.append(el("option", { value: name }, text));
  }
  bar.append(metric);
  const reset = el("button", { type: "button", id: "reset", disabled: true, onclick: () => {
    for (const hidden of Object.values(state.hidden)) hidden.clear();
    for (const box of bar.querySelectorAll("[data-facet] input")) box.checked = true;
    count();
    update();
    metric.focus(); // a disabled button cannot keep it
  } }, "Show all");
  const counts = [];
  const count = () => {
    for (const show of counts) show();
    reset.disabled = Object.values(state.hidden).every((hidden) => !hidden.size);
  };
  for (const [facet, choices] of Object.entries({ ...DATA.facets, run: DATA.runs.map((run) => run.tag) })) {
    if (choices.length < 2) continue;
    state.hidden[facet] = new Set();
    const boxes = choices.map((choice) => checkbox({ value: choice }, facet === "operator" ? DATA.labels[choice] : choice || "none", (checked) => {
      checked ? state.hidden[facet].delete(choice) : state.hidden[facet].add(choice);
      count();
      update();
    }));
    const [button, box] = opener(facet, FACET_NAMES[facet], { "data-facet": facet }, ...boxes);
    counts.push(() => {
      const { size } = state.hidden[facet];
      button.textContent = size ? `${FACET_NAMES[facet]} ${choices.length - size}/${choices.length}` : FACET_NAMES[facet];
      button.classList.toggle("active", size > 0);
    });
    bar.append(button, box);
  }
  bar.append(...opener("charts", "Charts", {}, ...Object.entries(chartOptions).filter(([name]) => name !== "ceilings" || DATA.ceilings.length).map(([name, option]) => checkbox({ id: name }, option[0], (checked) => { option[1] = checked; drawCharts(); }))));
  if (counts.length) bar.append(reset);
}

buildFilters();
