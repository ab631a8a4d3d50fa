"use strict";
/* What every chart shares: colours of the theme, axes with limits and ticks, and texts that fit and keep apart. */

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const colourOf = (series) => DATA.series[series][isDark() ? "dark" : "light"];
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const SMALL = 11;

function base() {
  return {
    animation: false,
    textStyle: { color: css("--ink"), fontFamily: FONT },
    tooltip: { confine: true, backgroundColor: css("--raised"), borderColor: css("--line"), textStyle: { color: css("--ink") }, extraCssText: "white-space: normal; max-width: 22rem;", formatter: ({ data }) => (data?.item ? details(data.item) : "") },
  };
}

function axis(name, extra = {}) {
  return { name, nameLocation: "middle", nameGap: 26, type: "value", axisLine: { show: true, lineStyle: { color: css("--line") } }, axisTick: { show: false }, axisLabel: { color: css("--muted"), fontSize: SMALL, hideOverlap: true, formatter: plain }, nameTextStyle: { color: css("--muted"), fontSize: SMALL }, splitLine: { lineStyle: { color: css("--line"), opacity: 0.6 } }, ...extra };
}

function plain(number) {
  if (number !== 0 && (Math.abs(number) < 1e-3 || Math.abs(number) >= 1e6)) return number.toExponential(0).replace("+", "");
  return String(Number(number.toPrecision(4)));
}

/** Limits and ticks of a scale that holds the numbers: ticks at 1, 2 and 5 of each power of ten, fewer where it is long. */
function scale(numbers, log, roomy = false) {
  const least = Math.min(...numbers), most = Math.max(...numbers);
  if (!log) {
    const room = 0.08 * (most - least || most || 1);
    return { min: least - room, max: most + room, at: (number) => (number - least + room) / (most - least + 2 * room) };
  }
  const min = least / 1.25, max = most * (roomy ? 2 : 1.25);
  const steps = max / min > 1e4 ? [1] : max / min > 60 ? [1, 3] : max / min > 12 ? [1, 2, 5] : max / min > 3 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max); power += 1) {
    for (const step of steps) {
      const tick = Number(`${step}e${power}`);
      if (tick >= min && tick <= max) ticks.push(tick);
    }
  }
  return { min, max, ticks, at: (number) => Math.log(number / min) / Math.log(max / min) };
}

function scaledAxis(name, { min, max, ticks }, extra = {}) {
  if (!ticks) return axis(name, { min, max, ...extra, axisLabel: { ...axis("").axisLabel, showMinLabel: false, showMaxLabel: false, ...extra.axisLabel } });
  return axis(name, { type: "log", min, max, ...extra, axisTick: { show: false, customValues: ticks }, splitLine: { ...axis("").splitLine, customValues: ticks }, axisLabel: { ...axis("").axisLabel, customValues: ticks, ...extra.axisLabel } });
}

const ruler = document.createElement("canvas").getContext("2d");
function widthOf(text) {
  ruler.font = `${SMALL}px ${FONT}`;
  return ruler.measureText(text).width;
}

/** A text that fits; what is left out is before the provider in brackets, which tells one operator's series apart. */
function shorten(text, width) {
  if (widthOf(text) <= width) return text;
  const found = text.match(/ \[[^\]]*\]$/)?.[0] ?? "";
  const tail = widthOf(found) < 0.75 * width ? found : "";
  let kept = text.length - tail.length;
  while (kept > 1 && widthOf(`${text.slice(0, kept)}…${tail}`) > width) kept -= 1;
  return `${text.slice(0, kept)}…${tail}`;
}

const label = (text, x, y, style = {}, rest = {}) => ({ type: "text", silent: true, x, y, z: 100, ...rest, style: { text, fill: css("--ink"), font: `${SMALL}px ${FONT}`, verticalAlign: "middle", ...style } });

const paneTitle = (dtype, unit, top, x = 0) => [label(dtype, x, top - 12, { font: `600 12px ${FONT}` }), label(unit, x + 44, top - 12, { fill: css("--muted") })];

/** Places at least `gap` apart, as near to the wished ones as they can be, from `top` on and not beyond `bottom`. */
function spread(wished, gap, top, bottom) {
  const order = wished.map((_, which) => which).sort((a, b) => wished[a] - wished[b]);
  const places = [];
  let free = top;
  for (const which of order) {
    places[which] = Math.max(free, wished[which]);
    free = places[which] + gap;
  }
  let most = bottom;
  for (const which of order.reverse()) {
    places[which] = Math.min(places[which], most);
    most = places[which] - gap;
  }
  return places;
}
