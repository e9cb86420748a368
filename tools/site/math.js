// Formulas: Markdown leaves \(…\) and \[…\] in elements of the class arithmatex.
for (const e of document.querySelectorAll(".arithmatex")) {
  const t = e.textContent.trim();
  if (/^\\[[(]/.test(t)) katex.render(t.slice(2, -2), e, { displayMode: t[1] === "[", throwOnError: false });
}
