// What the pages of this project share: parts of a page, and light or dark.
"use strict";
const page = (() => {
const root = document.documentElement;
const $ = id => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

const css = name => getComputedStyle(root).getPropertyValue(name).trim();

// The sample of a line before its name
function swatch(l) {
  const s = element("i", {class: l.dash ? "swatch dash" : "swatch"});
  s.style.borderTopColor = l.color;
  return s;
}

// The button `theme` goes round. Gives a function that applies the choice; `changed` is called after each.
const themes = ["auto", "light", "dark"];
function theming(changed = () => {}) {
  let theme = "auto";
  try { theme = localStorage.getItem("gpt2repro theme") || "auto"; } catch {}
  function set(t) {
    theme = themes.includes(t) ? t : "auto";
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    $("theme").textContent = {auto: "◐ auto", light: "☀ light", dark: "☾ dark"}[theme];
    try { localStorage.setItem("gpt2repro theme", theme); } catch {}
    changed();
  }
  $("theme").addEventListener("click", () => set(themes[(themes.indexOf(theme) + 1) % themes.length]));
  return () => set(theme);
}
return {$, css, element, root, swatch, theming};
})();
