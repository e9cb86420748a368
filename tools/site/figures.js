// Figures: each `div.fig` holds one as JSON. They are drawn in the theme's colours and for the width there is, and
// drawn anew when either changes. `figureTemplates` holds plotly's own templates, light and dark.
(() => {
  const narrow = 560; // px: below this, subplots stand under each other and the legend under the figure
  const figures = [...document.querySelectorAll("div.fig")].map((el) => {
    const spec = JSON.parse(el.querySelector("script").textContent);
    el.replaceChildren();
    return { el, spec };
  });
  const copy = (o) => JSON.parse(JSON.stringify(o));
  const isDark = () => document.body.getAttribute("data-md-color-scheme") === "slate";
  const axisNames = (layout, letter) => Object.keys(layout).filter((k) => new RegExp(`^${letter}axis\\d*$`).test(k));

  // Subplots that stand beside each other in `layout` are put under each other; their titles go with them.
  function stack(layout) {
    const xs = axisNames(layout, "x").filter((k) => layout[k].domain && layout[k].anchor);
    const pairs = xs.map((k) => ({ x: layout[k], y: layout[`yaxis${layout[k].anchor.slice(1)}`] }));
    if (pairs.length < 2 || pairs.some((p) => !p.y || !p.y.domain)) return;
    const columns = new Set(pairs.map((p) => p.x.domain[0].toFixed(3)));
    if (columns.size < 2) return;
    const titles = (layout.annotations || []).filter((a) => a.xref === "paper" && a.yref === "paper" && !a.showarrow);
    const titled = pairs.map(({ x, y }) => titles.find((a) =>
      Math.abs(a.x - (x.domain[0] + x.domain[1]) / 2) < 0.02 && Math.abs(a.y - y.domain[1]) < 0.06));
    const n = pairs.length, rows = n / columns.size, gap = 0.3 / n;
    const plot = Math.max(150, ((layout.height || 450) - 70) / rows); // px
    pairs.forEach(({ x, y }, i) => {
      const top = 1 - (i * (1 + gap)) / (n + gap * (n - 1));
      const bottom = top - 1 / (n + gap * (n - 1));
      x.domain = [0, 1];
      y.domain = [Math.max(0, bottom), top];
      if (titled[i]) Object.assign(titled[i], { x: 0.5, y: top });
      delete x.matches;
      x.showticklabels = y.showticklabels = true;
    });
    layout.height = 70 + plot * (n + gap * (n - 1));
  }

  function fit(data, layout, width) {
    delete layout.width;
    if (width >= narrow) return;
    stack(layout);
    const named = new Set(data.filter((o) => o.name && o.showlegend !== false).map((o) => o.legendgroup || o.name)).size;
    if (layout.showlegend !== false && (named > 1 || layout.showlegend)) {
      const extra = 24 * Math.ceil(named / 2); // px: the legend's rows, below the axis' title
      layout.height = (layout.height || 450) + extra;
      layout.margin = { ...layout.margin, b: Math.max(layout.margin?.b ?? 60, 50) + extra };
      layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom" };
      delete layout.legend.xref;
    }
    layout.margin = { ...layout.margin, l: Math.min(layout.margin?.l ?? 50, 50), r: Math.min(layout.margin?.r ?? 16, 16) };
    for (const k of [...axisNames(layout, "x"), ...axisNames(layout, "y")]) layout[k].automargin = true;
    layout.font = { ...layout.font, size: 11 };
    if (layout.title?.text) layout.title = { ...layout.title, font: { ...layout.title.font, size: 13 } };
    for (const a of layout.annotations || []) a.font = { ...a.font, size: Math.min(a.font?.size ?? 11, 11) };
  }

  // Black on white becomes white on black.
  function recolour(o) {
    for (const k of Object.keys(o || {})) {
      if (typeof o[k] === "object") recolour(o[k]);
      else if (/color$/.test(k) && /^(black|#000|#000000|#222|#333|#444|#2a3f5f)$/.test(o[k])) o[k] = "#ddd";
    }
  }

  function draw({ el, spec }) {
    const { data, layout } = copy(spec);
    layout.template = figureTemplates[isDark() ? "dark" : "light"];
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    if (isDark()) [data, layout].forEach(recolour);
    fit(data, layout, el.clientWidth);
    el.style.minHeight = `${layout.height || 450}px`;
    Plotly.react(el, data, layout, { responsive: true, displaylogo: false, displayModeBar: el.clientWidth >= narrow ? "hover" : false });
  }

  // A figure in a folded part has no width until the part is opened.
  const drawn = new WeakMap();
  const seen = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const f = figures.find((o) => o.el === target), kind = `${isDark()} ${target.clientWidth < narrow}`;
      if (target.clientWidth && drawn.get(target) !== kind) {
        drawn.set(target, kind);
        draw(f);
      }
    }
  });
  figures.forEach((f) => seen.observe(f.el));
  new MutationObserver(() => figures.filter((f) => drawn.has(f.el)).forEach((f) => {
    drawn.set(f.el, `${isDark()} ${f.el.clientWidth < narrow}`);
    draw(f);
  })).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
})();
