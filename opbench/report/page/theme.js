"use strict";
/* Theme; paper is white. The pages of a site share what is chosen. */

const kept = (() => {
  try { return document.querySelector("nav.site") ? localStorage : null; } catch { return null; }
})();

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  drawCharts();
}

byId("theme").addEventListener("change", ({ target }) => { kept?.setItem("opbench-theme", target.value); setTheme(target.value); });
if (kept?.getItem("opbench-theme")) {
  byId("theme").value = kept.getItem("opbench-theme");
  setTheme(byId("theme").value);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawCharts());
addEventListener("beforeprint", () => { setTheme("light"); settle(); });
addEventListener("afterprint", () => setTheme(byId("theme").value));
