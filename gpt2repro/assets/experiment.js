// The figures of an experiment's page, drawn by uPlot from the page's own data. No request leaves the page.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const {$, css, element, root, swatch, theming} = page;
const panels = [];
const applyTheme = theming(() => { for (const p of panels) p.plot?.redraw(); });

// What the reader chose lasts over a reload, where the browser allows it.
const key = "gpt2repro " + location.pathname;
const state = {place: 0, x: "tokens", logx: false, hidden: {}};
try { Object.assign(state, JSON.parse(sessionStorage.getItem(key) || "{}")); } catch {}
const save = () => { try { sessionStorage.setItem(key, JSON.stringify(state)); } catch {} };

function short(v) {
  if (v == null) return "";
  const a = Math.abs(v);
  for (const [p, s] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (a >= p) return +(v / p).toPrecision(3) + s;
  }
  return String(+v.toPrecision(4));
}
const sign = v => (v > 0 ? "+" : "") + v.toFixed(4);

// Lines: {name, seeds, x, y, low, high, color, dash}, lists of one length; null where there is no number

function dressed(lines) {
  const n = data.palette.length;
  return lines.map((l, i) => ({...l, color: data.palette[i % n], dash: i < n ? undefined : [8, 4]}));
}
const shown = p => p.lines.filter(l => !p.hidden.includes(l.name) && l.x.length);

// The axis of scores has room for what is drawn, and for 0 where that matters
function range(p, low, high) {
  if (low == null) return [0, 1];
  if (p.spec.zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  return uPlot.rangeNum(low, high === low ? low + 1e-3 : high, .06, false);
}

// The lowest and the highest seed as a band, or intervals as whiskers
function drawSpread(p, u) {
  const c = u.ctx, {left, top, width, height} = u.bbox;
  const at = (l, i, v) => [u.valToPos(l.x[i], "x", true), u.valToPos(v, "y", true)];
  c.save();
  c.beginPath();
  c.rect(left, top, width, height);
  c.clip();
  if (p.spec.zero) {
    const y = u.valToPos(0, "y", true);
    c.strokeStyle = css("--faint");
    c.strokeRect(left, y, width, 0);
  }
  for (const l of shown(p)) {
    const known = [...l.x.keys()].filter(i => l.low[i] != null && l.high[i] != null);
    if (!known.length) continue;
    c.beginPath();
    if (p.spec.zero) {
      c.strokeStyle = l.color;
      c.lineWidth = 2 * devicePixelRatio;
      for (const i of known) { c.moveTo(...at(l, i, l.low[i])); c.lineTo(...at(l, i, l.high[i])); }
      c.stroke();
    } else {
      c.fillStyle = l.color + "33";
      for (const i of known) c.lineTo(...at(l, i, l.high[i]));
      for (const i of known.reverse()) c.lineTo(...at(l, i, l.low[i]));
      c.fill();
    }
  }
  c.restore();
}

// The point of each line that is nearest to the pointer, unless the line has ended
function showTip(p, u) {
  const tip = p.tip, left = u.cursor.left;
  if (left == null || left < 0) { tip.hidden = true; return; }
  const here = u.posToVal(left, "x"), rows = [];
  for (const l of shown(p)) {
    const away = l.x.map((x, i) => l.y[i] == null ? Infinity : Math.abs(u.valToPos(x, "x") - left));
    const i = away.indexOf(Math.min(...away));
    if (away[i] === Infinity || u.valToPos(l.x.at(-1), "x") < left - 15) continue;
    rows.push([l, l.y[i]]);
  }
  rows.sort((a, b) => b[1] - a[1]);
  tip.replaceChildren(element("div", {}, `${p.axis.label}: ${short(here)}`));
  for (const [l, v] of rows) {
    const name = element("span", {class: "name"}, l.name);
    tip.append(element("div", {}, swatch(l), name, element("span", {class: "value"}, p.spec.show(v))));
  }
  tip.hidden = false;
  const x = u.root.offsetLeft + u.over.offsetLeft + left;
  const over = x + 16 + tip.offsetWidth > p.box.clientWidth;
  tip.style.left = `${Math.max(0, over ? x - 16 - tip.offsetWidth : x + 16)}px`;
  tip.style.top = `${u.root.offsetTop + 12}px`;
}

function whole(p) {
  const x = p.plot.data[0];
  if (!x.length) return;
  const room = p.spec.zero || x.length === 1 ? 1.15 : 1;  // for a point at the edge
  p.plot.setScale("x", {min: x[0] / room, max: x.at(-1) * room || 1});
}

function draw(p) {
  const spec = p.spec;
  Object.assign(p, {axis: spec.axis(), lines: dressed(spec.lines())});
  const log = p.axis.log;
  const id = spec.key();
  state.hidden[id] ??= p.lines.filter(l => l.hidden).map(l => l.name);
  p.hidden = state.hidden[id];
  for (const l of p.lines) {
    const keep = [...l.x.keys()].filter(i => l.x[i] != null && (!log || l.x[i] > 0));
    for (const k of ["x", "y", "low", "high"]) l[k] = keep.map(i => l[k][i]);
  }
  chips(p);
  p.caption.replaceChildren(spec.title());
  p.box.setAttribute("aria-label", `${spec.title()}, against ${p.axis.label}: arrow keys move along it`);
  p.plot?.destroy();
  const axis = {stroke: () => css("--faint"), grid: {stroke: () => css("--line"), width: 1},
                ticks: {stroke: () => css("--line")}, font: "12px system-ui, sans-serif"};
  const numbers = (u, v) => v.map(o => o == null ? "" : short(o));
  const options = {
    width: Math.max(200, p.plotbox.clientWidth), height: 320, legend: {show: false},
    cursor: {y: false, drag: {x: true, y: false}, bind: {dblclick: () => () => { whole(p); return null; }}},
    scales: {x: {time: false, distr: log ? 3 : 1, range: (u, low, high) => [low, high]},
             y: {range: (u, low, high) => range(p, low, high)}},
    axes: [{...axis, values: numbers, space: 70, size: 34}, {...axis, size: 62, values: numbers}],
    series: [{}, ...p.lines.flatMap(l => {
      const show = !p.hidden.includes(l.name);
      const end = {show, paths: () => null, points: {show: false}};  // counts for the axis, drawn by `drawSpread`
      const points = {show: !!spec.zero, size: 6, fill: l.color};
      return [{show, label: l.name, stroke: l.color, dash: l.dash, width: 2, spanGaps: true, points}, end, end];
    })],
    hooks: {draw: [u => drawSpread(p, u)], setCursor: [u => showTip(p, u)]},
  };
  const tables = p.lines.map(l => [l.x, l.y, l.low, l.high]);
  p.plot = new uPlot(options, tables.length ? uPlot.join(tables) : [[]], p.plotbox);
  whole(p);
  p.at = -1;
  root.dataset.drawn = panels.filter(o => o.lines?.some(l => l.x.length)).length;
}

function chips(p) {
  p.chips.replaceChildren(...p.lines.map(l => {
    const chip = element("button", {class: "chip", type: "button", "aria-pressed": !p.hidden.includes(l.name),
                                    title: `${l.name}: click hides or shows, double click shows it alone`});
    const label = l.seeds ? `${l.name} (${l.seeds})` : l.name;
    chip.append(swatch(l), element("span", {}, label));
    chip.addEventListener("click", () => {
      const off = p.hidden.includes(l.name);
      hide(p, off ? p.hidden.filter(n => n !== l.name) : [...p.hidden, l.name]);
    });
    chip.addEventListener("dblclick", () => hide(p, p.lines.map(o => o.name).filter(n => n !== l.name)));
    return chip;
  }));
}
function hide(p, names) {
  p.hidden = state.hidden[p.spec.key()] = names;
  save();
  [...p.chips.children].forEach((chip, i) => {
    const on = !names.includes(p.lines[i].name);
    chip.setAttribute("aria-pressed", on);
    for (const k of [1, 2, 3]) p.plot.setSeries(3 * i + k, {show: on});
  });
  p.plot.redraw(false, true);
}

function add(where, spec) {
  const caption = element("figcaption"), plotbox = element("div"), line = element("div", {class: "chips"});
  const tip = element("div", {class: "tip", hidden: ""});
  const box = element("figure", {class: "panel", role: "img", tabindex: "0"}, caption, plotbox, tip);
  where.append(line, box);
  const p = {spec, box, caption, plotbox, tip, chips: line, lines: [], hidden: [], at: -1};
  panels.push(p);
  box.addEventListener("keydown", e => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key], x = p.plot.data[0];
    if (!step || !x.length) return;
    e.preventDefault();
    p.at = Math.max(0, Math.min(x.length - 1, p.at + step));
    p.plot.setCursor({left: p.plot.valToPos(x[p.at], "x"), top: 10});
  });
  box.addEventListener("blur", () => { tip.hidden = true; p.at = -1; });
  return p;
}

// Curves of one place

applyTheme();  // before a figure is drawn: a redraw takes back what uPlot has not committed yet
if (!(state.place in data.places)) state.place = 0;
const place = () => data.places[state.place];
const by_cost = () => state.x === "cost" && place().measure;
if (data.places.length) {
  const curves = add($("curves"), {
    key: () => `curves ${place().name}`,
    title: () => `${data.unit}, ${place().name}`,
    axis: () => ({label: by_cost() ? place().measure : "tokens", log: state.logx}),
    lines: () => place().lines.map(l => ({...l, x: by_cost() ? l.tokens.map(t => t * l.per_token) : l.tokens})),
    show: v => v.toFixed(4),
  });
  function choices() {
    const cost = $("x").options[1];
    cost.hidden = cost.disabled = !place().measure;
    cost.textContent = place().measure || "cost";
    $("x").value = by_cost() ? "cost" : "tokens";
    save();
    draw(curves);
  }
  data.places.forEach((o, i) => $("place").append(element("option", {value: i}, o.name)));
  $("place").value = state.place;
  $("logx").checked = state.logx;
  $("place").addEventListener("input", () => { state.place = +$("place").value; choices(); });
  $("x").addEventListener("input", () => { state.x = $("x").value; choices(); });
  $("logx").addEventListener("input", () => { state.logx = $("logx").checked; choices(); });
  choices();
}

// Gain by size

data.gains.forEach((g, i) => draw(add($(`gain-${i}`), {
  key: () => `gain ${g.title}`, title: () => g.title, axis: () => ({label: "parameters", log: true}),
  lines: () => g.lines, show: sign, zero: true,
})));

new ResizeObserver(() => {
  for (const p of panels) {
    const width = p.plotbox.clientWidth;
    if (p.plot && width && width !== p.plot.width) p.plot.setSize({width, height: 320});
  }
}).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
root.dataset.drawn ??= 0;
globalThis.panels = panels;  // for the curious, in the browser's console
})();
