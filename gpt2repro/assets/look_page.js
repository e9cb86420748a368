// The page of one inspection, light or dark.
{
  const root = document.documentElement;
  document.getElementById('theme').addEventListener('click', () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  });
  showInspection(document.getElementById('inside'), JSON.parse(document.getElementById('data').textContent));
}
