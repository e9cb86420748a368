document$.subscribe(() => {
  document.querySelectorAll("div.fig > script").forEach(s => {
    const f = JSON.parse(s.textContent), el = s.parentNode;
    Plotly.newPlot(el, f.data, f.layout, {responsive: true, displaylogo: false});
  });
  document.querySelectorAll(".arithmatex").forEach(e => {
    const t = e.textContent.trim();
    if (/^\\[[(]/.test(t))
      katex.render(t.slice(2, -2), e, {displayMode: t[1] == "[", throwOnError: false});
  });
});