// The figures of a report, drawn by uPlot from the page's own data. No request leaves the page.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const {$, css, element, root, swatch, theming} = page;
const applyTheme = theming(() => { for (const p of panels) p.plot?.redraw(); });

// What the reader chose lasts over a reload, where the browser allows it.
const key = "gpt2repro " + location.pathname;
const state = {x: "tokens", smooth: 0, logx: false, logy: false, unit: "bpb", hidden: [], zoom: null,
               open: [], sort: null, scroll: 0};
try { Object.assign(state, JSON.parse(sessionStorage.getItem(key) || "{}")); } catch {}
const save = () => { try { sessionStorage.setItem(key, JSON.stringify(state)); } catch {} };

// Numbers as people write them

const powers = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
function short(v) {
  if (v == null) return "";
  const a = Math.abs(v);
  for (const [p, s] of powers) if (a >= p) return +(v / p).toPrecision(4) + s;
  return a && a < 1e-3 ? v.toExponential(1).replace(".0e", "e") : String(+v.toPrecision(4));
}
function clock(s) {
  if (s == null) return "";
  if (s >= 3600) return `${Math.floor(s / 3600)}h${String(Math.floor(s % 3600 / 60)).padStart(2, "0")}`;
  if (s >= 60) return `${Math.floor(s / 60)}m${String(Math.floor(s % 60)).padStart(2, "0")}s`;
  return `${+s.toPrecision(3)}s`;
}
const axes = {
  tokens: {label: "tokens seen", show: short},
  step: {label: "steps", show: short},
  seconds: {label: "time of training", show: clock},
  flops: {label: "FLOPs", show: short},
};

// Curves

// x of the rows of `o`: a column of its own, or FLOPs, which are in proportion to tokens
function xs(run, o) {
  if (state.x !== "flops") return o[state.x] || [];
  return run.flops_per_token ? o.tokens.map(t => t * run.flops_per_token) : [];
}
// Points with both coordinates; on a logarithmic axis only those above 0
function points(x, y, logy) {
  const px = [], py = [];
  x.forEach((v, i) => {
    if (v == null || y[i] == null || (state.logx && v <= 0) || (logy && y[i] <= 0)) return;
    if (px.length && v <= px.at(-1)) return;
    px.push(v);
    py.push(y[i]);
  });
  return [px, py];
}
// Exponential moving average without a bias towards 0 (as Adam's, and TensorBoard's)
function smoothed(y) {
  const a = state.smooth;
  let mean = 0, weight = 0;
  return y.map(v => (mean = a * mean + (1 - a) * v, weight = a * weight + (1 - a), mean / weight));
}

const group_colors = data.palette;
const color = i => data.palette[i % data.palette.length];
const dash = i => i < data.palette.length ? undefined : [8, 4];
const groups = [...new Set(data.runs.flatMap(r => Object.keys(r.updates)))];
const several = data.runs.length > 1;
const nats = name => (r, y) => state.unit === "nats" && r[name] ? y.map(v => v == null ? v : v * r[name]) : y;
const whole = v => v == null ? "" : String(v);
const fixed = n => v => v == null ? "" : v.toFixed(n);

// One curve for each run: `from` names rows, `y` the column
function curve(from, y, more = {}) {
  return () => data.runs.map((r, i) => ({
    run: r, label: r.name, x: xs(r, r[from]), y: (more.map || ((_, v) => v))(r, r[from][y] || []),
    color: color(i), dash: dash(i), ...more,
  }));
}
function updates(only) {
  return () => data.runs.flatMap((r, i) => groups.filter(g => !only || g === only).map(g => ({
    run: r, label: several ? r.name : g, x: xs(r, r.train), y: r.updates[g] || [], smooth: true,
    color: several ? color(i) : color(groups.indexOf(g)), dash: several ? dash(i) : undefined,
  })));
}
function marks() {
  return data.runs.flatMap((r, i) => [
    {run: r, label: `${r.name}: spike`, x: xs(r, r.spikes), y: nats("train_nats")(r, r.spikes.bpb),
     mark: "▲", color: color(i)},
    {run: r, label: `${r.name}: skipped`, x: xs(r, r.skipped), y: nats("train_nats")(r, r.skipped.bpb),
     mark: "✕", color: color(i)},
  ]);
}
const yardsticks = () => state.unit === "bpb" ? data.yardsticks : [];
const unit = () => state.unit === "bpb" ? "bits per byte" : "nats per token";

const specs = [
  {title: () => `Held-out loss, ${unit()}`, lines: curve("valid", "bpb", {map: nats("valid_nats")}),
   levels: yardsticks, show: fixed(4), points: true},
  {title: () => `Training loss, ${unit()}`,
   lines: () => [...curve("train", "bpb", {map: nats("train_nats"), smooth: true})(), ...marks()],
   show: fixed(4)},
  {title: () => "Gradient norm, before clipping", lines: curve("train", "grad_norm", {smooth: true}),
   levels: () => data.clips, log: true},
  {title: () => "Learning rate", lines: curve("train", "lr")},
  ...(several
    ? groups.map(g => ({title: () => `RMS of the update: ${g}`, lines: updates(g), log: true}))
    : [{title: () => "RMS of the update, by parameter group", lines: updates(), log: true, keys: true}]),
  {title: () => "Tokens per second", lines: curve("train", "tokens_per_s", {smooth: true}), zero: true},
  {title: () => "Share of the machine's peak", lines: curve("train", "peak_share", {smooth: true}),
   zero: true, show: v => v == null ? "" : `${(100 * v).toFixed(1)}%`},
  {title: () => "Peak memory, GiB", lines: curve("train", "gib"), zero: true},
  {title: () => "Updates skipped", lines: curve("bins", "skipped", {bars: true}), zero: true, show: whole},
  {title: () => "Logged steps with a clipped gradient", lines: curve("bins", "clipped", {bars: true}),
   zero: true, show: whole},
];

// Panels

let hovered = null;  // the plot under the pointer
const panels = [];
let zooming = false;
let extent = [0, 1];  // of x, over all runs and figures, so that they share an axis

// The nearest point of this series, or none where its curve has ended
function nearest(u, series, at) {
  const y = u.data[series], x = u.data[0];
  if (series === 0 || at == null || y[at] != null) return at;
  let a = at, b = at;
  while (a >= 0 && y[a] == null) a--;
  while (b < y.length && y[b] == null) b++;
  const far = i => i < 0 || i >= y.length ? Infinity : Math.abs(u.valToPos(x[i], "x") - u.cursor.left);
  const best = far(a) <= far(b) ? a : b;
  if (far(best) === Infinity) return null;
  return (a < 0 || b >= y.length) && far(best) > 15 ? null : best;
}

function showTip(panel, u) {
  const tip = panel.tip;
  if (u !== hovered || u.cursor.left < 0 || u.cursor.idx == null) { tip.hidden = true; return; }
  const rows = [];
  panel.lines.forEach((l, i) => {
    const at = u.cursor.idxs[i + 1];
    if (l.raw || at == null || !u.series[i + 1].show) return;
    if (l.mark && Math.abs(u.valToPos(u.data[0][at], "x") - u.cursor.left) > 8) return;
    rows.push([l, u.data[i + 1][at]]);
  });
  const here = axes[state.x].show(u.posToVal(u.cursor.left, "x"));
  tip.replaceChildren(element("div", {}, `${axes[state.x].label}: ${here}`));
  rows.sort((a, b) => b[1] - a[1]);
  for (const [l, v] of rows) {
    const name = element("span", {class: "name"}, l.label);
    tip.append(element("div", {}, swatch(l), name, element("span", {class: "value"}, panel.show(v))));
  }
  tip.hidden = false;
  const {offsetLeft, offsetTop} = u.root, left = offsetLeft + u.over.offsetLeft + u.cursor.left;
  const right = left + 16 + tip.offsetWidth > panel.box.clientWidth;
  tip.style.left = `${Math.max(0, right ? left - 16 - tip.offsetWidth : left + 16)}px`;
  tip.style.top = `${offsetTop + 12}px`;
}

// Level lines over a plot, with their names
function drawLevels(u, levels) {
  const c = u.ctx, r = devicePixelRatio, {left, top, width, height} = u.bbox;
  c.save();
  c.font = `${12 * r}px system-ui, sans-serif`;
  c.fillStyle = c.strokeStyle = css("--faint");
  c.textAlign = "right";
  c.setLineDash([2 * r, 4 * r]);
  for (const [name, v] of levels) {
    const y = u.valToPos(v, "y", true);
    if (y < top || y > top + height) continue;
    c.beginPath();
    c.moveTo(left, y);
    c.lineTo(left + width, y);
    c.stroke();
    c.fillText(`${name} ${short(v)}`, left + width - 4 * r, y - 4 * r);
  }
  c.restore();
}
function drawMark(sign) {
  return (u, i, i0, i1) => {
    const c = u.ctx, r = devicePixelRatio;
    c.save();
    c.font = `${13 * r}px system-ui, sans-serif`;
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillStyle = "#d55e00";
    for (let k = i0; k <= i1; k++) {
      const v = u.data[i][k];
      if (v != null) c.fillText(sign, u.valToPos(u.data[0][k], "x", true), u.valToPos(v, "y", true));
    }
    c.restore();
    return false;
  };
}

function series(l, spec) {
  const o = {label: l.label, stroke: l.color, dash: l.dash, width: l.raw ? 1 : 2, alpha: l.raw ? .3 : 1,
             spanGaps: true, show: !state.hidden.includes(l.run.name)};
  if (l.mark) return {...o, paths: () => null, points: {show: drawMark(l.mark)}};
  const bars = uPlot.paths.stepped({align: -1});
  if (l.bars) return {...o, paths: bars, points: {show: false}, fill: l.color + "33"};
  return {...o, points: {show: !!spec.points || l.y.length < 3, size: 5, fill: l.color}};
}

// The lines of a panel, and the points of each
function gather(panel) {
  const spec = panel.spec;
  const logy = spec.log || (state.logy && !spec.zero);
  const lines = [], tables = [];
  for (const l of spec.lines()) {
    const [x, y] = points(l.x, l.y, logy);
    if (!x.length) continue;
    if (l.smooth && state.smooth) {
      const mean = smoothed(y);
      lines.push({...l, y, raw: true}, {...l, y: mean});
      tables.push([x, y], [x, mean]);
    } else {
      lines.push({...l, y});
      tables.push([x, y]);
    }
  }
  Object.assign(panel, {lines, tables, logy, show: spec.show || short});
}
function draw(panel) {
  const {spec, tables, logy} = panel;
  panel.plot?.destroy();
  panel.plot = null;
  panel.box.hidden = !tables.length;
  if (!tables.length) return;
  panel.caption.replaceChildren(spec.title());
  const keys = spec.keys ? panel.lines.filter(l => !l.raw) : [];
  for (const l of keys) panel.caption.append(element("span", {class: "key"}, swatch(l), l.label));
  for (const [sign, what] of [["▲", "spike"], ["✕", "skipped updates"]]) {
    if (panel.lines.some(l => l.mark === sign)) {
      panel.caption.append(element("span", {class: "key"}, `${sign} ${what}`));
    }
  }
  panel.box.setAttribute("aria-label", spec.title());
  const axis = {stroke: () => css("--faint"), grid: {stroke: () => css("--line"), width: 1},
                ticks: {stroke: () => css("--line")}, font: "12px system-ui, sans-serif"};
  const levels = (spec.levels || (() => []))();
  // A level is within the plot where the curves come near it.
  function range(u, low, high) {
    if (low == null) return [0, 1];
    const span = high - low;
    const near = levels.map(l => l[1]).filter(v => v > low - 2 * span && v < high + span / 2);
    const bottom = spec.zero ? 0 : Math.min(low, ...near);
    return uPlot.rangeNum(bottom, Math.max(high, ...near) || 1, .08, !!spec.zero);
  }
  const options = {
    width: Math.max(200, panel.plotbox.clientWidth), height: 280,
    legend: {show: false},
    cursor: {
      sync: {key: "report"}, dataIdx: nearest, y: false, drag: {x: true, y: false},
      bind: {dblclick: () => () => { zoom(null); return null; }},
    },
    scales: {
      x: {time: false, distr: state.logx ? 3 : 1, range: (u, low, high) => [low, high]},
      y: logy ? {distr: 3} : {range},
    },
    axes: [
      {...axis, values: (u, v) => v.map(o => o == null ? "" : axes[state.x].show(o)), space: 70, size: 34},
      {...axis, size: 62, values: (u, v) => v.map(short)},
    ],
    series: [{}, ...panel.lines.map(l => series(l, spec))],
    hooks: {
      draw: [u => drawLevels(u, levels)],
      setCursor: [u => showTip(panel, u)],
      setSelect: [u => {
        if (zooming || u.select.width < 5) return;
        zoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
      }],
      ready: [u => {
        u.over.addEventListener("mouseenter", () => { hovered = u; });
        u.over.addEventListener("mouseleave", () => { hovered = null; panel.tip.hidden = true; });
      }],
    },
  };
  options.cursor.drag.setScale = false;
  panel.plot = new uPlot(options, uPlot.join(tables), panel.plotbox);
  const [min, max] = state.zoom || extent;
  panel.plot.setScale("x", {min, max});
}

// All plots show the same stretch of x; null shows all of it.
function zoom(stretch) {
  state.zoom = stretch;
  save();
  zooming = true;
  for (const p of panels) if (p.plot) {
    p.plot.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
    const [min, max] = stretch || extent;
    p.plot.setScale("x", {min, max});
  }
  zooming = false;
  $("all").hidden = !stretch;
}
function redraw() {
  panels.forEach(gather);
  const ends = panels.flatMap(p => p.tables.flatMap(([x]) => [x[0], x.at(-1)]));
  extent = [Math.min(...ends), Math.max(...ends)];
  if (extent[0] === extent[1]) extent = [extent[0] * .9, extent[1] * 1.1 || 1];
  for (const p of panels) draw(p);
  $("all").hidden = !state.zoom;
  save();
}

for (const spec of specs) {
  const caption = element("figcaption"), plotbox = element("div");
  const tip = element("div", {class: "tip", hidden: ""});
  const box = element("figure", {class: "panel", role: "img"}, caption, plotbox, tip);
  $("panels").append(box);
  panels.push({spec, box, caption, plotbox, tip});
}
new ResizeObserver(() => {
  for (const p of panels) {
    const width = p.plotbox.clientWidth;
    if (p.plot && width && width !== p.plot.width) p.plot.setSize({width, height: 280});
  }
}).observe($("panels"));

// Choices

function choice(id, name, read = e => e.value) {
  const e = $(id);
  if (e.type === "checkbox") e.checked = state[name]; else e.value = state[name];
  e.addEventListener("input", () => {
    state[name] = read(e);
    if (name === "x" || name === "logx") state.zoom = null;
    $("smooth-value").value = state.smooth ? state.smooth.toFixed(2) : "none";
    redraw();
  });
  e.addEventListener("change", () => e.blur());  // a page in use is not read again
}
choice("x", "x");
choice("unit", "unit");
choice("smooth", "smooth", e => +e.value);
choice("logx", "logx", e => e.checked);
choice("logy", "logy", e => e.checked);
$("smooth-value").value = state.smooth ? state.smooth.toFixed(2) : "none";
$("all").addEventListener("click", () => zoom(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);

function showRuns() {
  for (const chip of $("chips").children) {
    chip.setAttribute("aria-pressed", !state.hidden.includes(chip.dataset.run));
  }
  redraw();
}
if (several) data.runs.forEach((r, i) => {
  const chip = element("button", {class: "chip", "data-run": r.name, type: "button",
                                  title: `${r.name}: click hides or shows, double click shows it alone`});
  chip.append(swatch({color: color(i), dash: dash(i)}), element("span", {}, r.name));
  chip.addEventListener("click", () => {
    const off = state.hidden.includes(r.name);
    state.hidden = off ? state.hidden.filter(n => n !== r.name) : [...state.hidden, r.name];
    showRuns();
  });
  chip.addEventListener("dblclick", () => {
    state.hidden = data.runs.map(o => o.name).filter(n => n !== r.name);
    showRuns();
  });
  $("chips").append(chip);
});

// Tables that sort

function value(text) {
  const t = text.replaceAll(",", "").trim();
  const m = t.match(/^(?:(\d+) h )?(?:(\d+) min)?(?: ?(\d+) s)?$/);
  if (t && m) return 3600 * (m[1] || 0) + 60 * (m[2] || 0) + +(m[3] || 0);
  const n = parseFloat(t);
  return t === "" ? null : Number.isNaN(n) ? t : n;
}
function sortBy(table, column, down) {
  const body = table.tBodies[0], cell = r => value(r.cells[column].textContent);
  const sign = down ? -1 : 1;
  const rows = [...body.rows].sort((a, b) => {
    const x = cell(a), y = cell(b);
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x === "number" && typeof y === "number") return sign * (x - y);
    return sign * String(x).localeCompare(String(y));
  });
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((h, i) => {
    h.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending");
  });
}
const sorting = document.querySelector("table.runs");
if (sorting) {
  [...sorting.tHead.rows[0].cells].forEach((h, i) => {
    const button = element("button", {type: "button"}, h.textContent);
    h.replaceChildren(button);
    h.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      state.sort = [h.textContent, h.getAttribute("aria-sort") === "ascending"];
      sortBy(sorting, i, state.sort[1]);
      save();
    });
  });
  const names = [...sorting.tHead.rows[0].cells].map(h => h.textContent);
  const at = names.indexOf(state.sort?.[0]);
  if (at >= 0) sortBy(sorting, at, state.sort[1]);
}

// A run that goes on: the file is written again and again, and the page reads it again.

const details = [...document.querySelectorAll("details")];
details.forEach((d, i) => {
  if (state.open.includes(i)) d.open = true;
  d.addEventListener("toggle", () => {
    state.open = details.flatMap((o, j) => o.open ? [j] : []);
    save();
  });
});
let held = false, paused = false;
addEventListener("pointerdown", () => { held = true; });
addEventListener("pointerup", () => { held = false; });
addEventListener("pointercancel", () => { held = false; });
function again() {
  const busy = held || hovered || document.hidden || !getSelection().isCollapsed
    || ["SELECT", "INPUT"].includes(document.activeElement?.tagName);
  if (paused || busy) return setTimeout(again, 500);
  state.scroll = scrollY;
  save();
  location.reload();
}
if (data.refresh) {
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").textContent = paused ? "go on" : "pause";
  });
  setTimeout(again, 1000 * data.refresh);
}

// What a checkpoint makes of a text: there is an element for each inspection that was asked for.
for (const e of document.querySelectorAll("[data-inspection]")) {
  showInspection(e, data.inspections[e.dataset.inspection]);
}

applyTheme();
redraw();
showRuns();
if (state.scroll) { scrollTo(0, state.scroll); state.scroll = 0; save(); }
globalThis.panels = panels;  // for the curious, in the browser's console
root.dataset.drawn = panels.filter(p => p.plot).length;
})();
