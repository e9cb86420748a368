// What a reader would stumble over on the page that is open
() => {
  const wide = innerWidth, out = [];
  const scrolls = (e) => {
    for (let p = e; p && p.tagName !== 'ARTICLE'; p = p.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return true;
    return e.closest('svg, .js-plotly-plot, .katex-mathml, .headerlink') !== null;
  };
  for (const e of document.querySelectorAll('article *')) {
    const r = e.getBoundingClientRect();
    const blank = !e.children.length && !e.textContent.trim() && e.tagName === 'SPAN'; // at the end of a line
    if (r.width && (r.right > wide + 1 || r.left < -1) && !blank && !scrolls(e))
      out.push(e.tagName + ' ' + e.className);
  }
  for (const e of document.querySelectorAll('article pre, article pre > code'))
    if (e.scrollWidth > e.clientWidth + 1) out.push('code: ' + e.textContent.slice(0, 60));
  const all = (s) => [...document.querySelectorAll(s)];
  const root = document.documentElement;
  const spills = (e) => e.querySelector('.main-svg')?.clientWidth > e.clientWidth + 1;
  return {
    outside: out.slice(0, 5),
    body: Math.max(0, root.scrollWidth - root.clientWidth),
    h1: all('h1').length,
    undrawn: all('div.fig').filter((e) => !e.querySelector('.main-svg') || !e.data.length).length,
    spilling: all('div.fig').filter(spills).length,
    unset: all('.arithmatex').filter((e) => !e.querySelector('.katex')).length + all('.katex-error').length,
    images: all('article img').filter((e) => !e.naturalWidth).map((e) => e.src),
  };
}
