"use strict";
/* What every script builds on. Text from a run only ever becomes a text node. */

const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, setting] of Object.entries(attributes)) {
    if (/^on[a-z]+$/.test(name)) node.addEventListener(name.slice(2), setting);
    else if (name === "style") Object.assign(node.style, setting);
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

/* Of pages with charts. */
let drawCharts = () => {};
let settle = () => {}; // draw at once what waits
