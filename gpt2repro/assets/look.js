// Draws what `gpt2repro.look.inspect` found into an element, from the template `look` of the page. The parts stand in a
// shadow root, so that the element fits into any page.
'use strict';
function showInspection(host, data) {
  const shadow = host.attachShadow({mode: 'open'});
  shadow.append(document.getElementById('look').content.cloneNode(true));
  const $ = (id) => shadow.getElementById(id);
  const {tokens, names, pieces, bits, best, lens, norms, previous, induction, change} = data;
  const T = tokens.length, L = previous.length, H = previous[0].length;
  const attention = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0));
  const triangle = T * (T + 1) / 2;
  const weight = (l, h, q, k) => attention[(l * H + h) * triangle + q * (q + 1) / 2 + k] / 255;
  const shown = (s) => s.replace(/ /g, '·').replace(/\n/g, '⏎').replace(/\t/g, '⇥');
  // a token of the text; of a character in several tokens, the whole text and which piece this is
  const label = (i) => (pieces[i] ? `${shown(pieces[i][0])} ${pieces[i][1]}/${pieces[i][2]}` : shown(names[tokens[i]]));
  const guessed = ([id, , whole]) => shown(whole ?? names[id]);
  let at = 1, head = [0, 0];

  const make = (tag, text = '', cls = '') => {  // text only ever becomes a text node
    const e = document.createElement(tag);
    e.textContent = text;
    if (cls) e.className = cls;
    return e;
  };
  const row = (cells) => {
    const tr = make('tr');
    tr.append(...cells);
    return tr;
  };
  const table = (rows, cls = '') => {
    const t = make('table', '', cls);
    t.append(...rows);
    return t;
  };
  const bar = (share, bad = false) => {
    const td = make('td'), b = make('span', '', bad ? 'bar bad' : 'bar');
    b.style.width = `calc(var(--rem) * ${(7 * Math.max(0, Math.min(1, share))).toFixed(3)})`;
    td.append(b);
    return td;
  };
  const tint = (e, share, colour) => { e.style.background = `rgba(var(--${colour}), ${(0.7 * Math.max(0, Math.min(1, share))).toFixed(3)})`; };

  // the text
  const buttons = tokens.map((id, i) => {
    const b = make('button', i ? (pieces[i]?.[0] ?? names[id]).replace(/\n/g, '⏎\n') : '', 'token');
    b.type = 'button';
    if (pieces[i]) {  // its text stands at the first piece, a small number at the others
      const [, k, n] = pieces[i];
      if (k > 1) b.replaceChildren(make('sub', k));
      b.setAttribute('aria-label', `${shown(pieces[i][0])}, piece ${k} of ${n}`);
    }
    if (i) {
      tint(b, bits[i - 1] / 16, 'hot');
      b.title = `${bits[i - 1].toFixed(1)} bits${pieces[i] ? `, piece ${pieces[i][1]} of ${pieces[i][2]} of “${shown(pieces[i][0])}”` : ''}`;
      b.addEventListener('click', () => choose(i));
      b.addEventListener('mouseenter', () => choose(i));
      b.addEventListener('focus', () => choose(i));
    }
    return b;
  });
  $('text').append(...buttons.slice(1));
  $('text').addEventListener('keydown', (e) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (!step) return;
    e.preventDefault();
    buttons[Math.max(1, Math.min(T - 1, at + step))].focus();
  });
  const mean = bits.reduce((a, b) => a + b, 0) / bits.length;
  $('facts').textContent = `${T - 1} tokens, ${mean.toFixed(2)} bits each (${(mean * Math.LN2).toFixed(3)} nats); ${L} layers of ${H} heads`;

  const drawInstead = () => {
    const b = best[at - 1], own = 2 ** -bits[at - 1];
    const line = (id, p, text) => row([make('td', text, id === tokens[at] ? 'here' : ''), make('td', `${(100 * p).toFixed(1)} %`, 'n'), bar(p)]);
    const rows = b.map((g) => line(g[0], g[1], guessed(g)));
    if (!b.some(([id]) => id === tokens[at])) rows.push(line(tokens[at], own, label(at)));
    $('chosen').textContent = `“${label(at)}”, ${bits[at - 1].toFixed(1)} bits`;
    $('instead').replaceChildren(table(rows));
  };
  const drawParts = () => {
    const here = norms.map((n) => n[at - 1]), most = Math.max(...here, 1e-9);
    $('parts').replaceChildren(table(here.map((n, i) => row([make('th', data.parts[i]), make('td', n.toFixed(2), 'n'), bar(n / most)]))));
  };

  // the lens
  const cells = [];
  {
    const rows = lens.map((layer, l) => row([make('th', l ? `after ${l - 1}` : 'embedding'), ...layer.map((g, i) => {
      const td = make('td', guessed(g));
      tint(td, g[1], 'cold');
      td.title = `${(100 * g[1]).toFixed(1)} % after “${label(i)}”`;
      td.addEventListener('click', () => i + 1 < T && choose(i + 1));
      (cells[i] ??= []).push(td);
      return td;
    })])).reverse();
    rows.push(row([make('th', 'read'), ...tokens.map((_, i) => make('th', label(i)))]));
    $('lens').append(table(rows, 'lens'));
  }

  // the heads
  const headButtons = previous.map((r, l) => r.map((_, h) => {
    const b = make('button', String(h));
    b.type = 'button';
    b.addEventListener('click', () => chooseHead(l, h));
    b.addEventListener('focus', () => chooseHead(l, h));
    return b;
  }));
  $('heads').append(table(headButtons.map((r, l) => row([make('th', `layer ${l}`), ...r.map((b) => {
    const td = make('td');
    td.append(b);
    return td;
  })])).reverse()));
  $('heads').addEventListener('keydown', (e) => {
    const way = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0]}[e.key];
    if (!way) return;
    e.preventDefault();
    const l = Math.max(0, Math.min(L - 1, head[0] + way[0])), h = Math.max(0, Math.min(H - 1, head[1] + way[1]));
    headButtons[l][h].focus();
  });
  const most = Math.max(...change.map((r) => Math.max(...r.slice(0, H).map(Math.abs))), 1e-9);
  const colourHeads = () => {
    const by = $('by').value;
    headButtons.forEach((r, l) => r.forEach((b, h) => {
      const v = {previous: previous[l][h], induction: induction[l][h], loss: change[l][h] / most}[by];
      tint(b, Math.abs(v), v < 0 ? 'hot' : 'cold');
      b.setAttribute('aria-label', `layer ${l} head ${h}: previous token ${previous[l][h].toFixed(2)}, induction ${induction[l][h].toFixed(2)}, loss ${change[l][h].toFixed(3)}`);
    }));
  };
  $('by').addEventListener('change', colourHeads);
  if (data.by) $('by').value = data.by;

  const drawMatrix = () => {
    const canvas = $('matrix'), [l, h] = head;
    canvas.width = canvas.height = T;
    const style = getComputedStyle(host);
    const rgb = style.getPropertyValue('--cold').split(',').map(Number);
    const hot = style.getPropertyValue('--hot').split(',').map(Number);
    const c = canvas.getContext('2d'), image = c.createImageData(T, T);
    for (let q = 0; q < T; q++) for (let k = 0; k < T; k++) {
      const a = k <= q ? weight(l, h, q, k) : 0, marked = q === at - 1;
      image.data.set([...(marked ? hot : rgb), 255 * Math.max(a, marked ? 0.12 : 0)], 4 * (q * T + k));
    }
    c.putImageData(image, 0, 0);
    canvas.setAttribute('aria-label', `attention of layer ${l} head ${h}, ${T} by ${T}`);
  };
  const svg = (tag, attributes, text = '') => {
    const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    e.textContent = text;
    return e;
  };
  const drawLines = () => {
    const [l, h] = head, y = (i) => 14 + 15 * i, short = (s) => (s.length > 14 ? `${s.slice(0, 13)}…` : s);
    const root = svg('svg', {viewBox: `0 0 360 ${15 * T + 8}`, role: 'img', 'aria-label': 'from each token to those it looks at'});
    root.style.maxWidth = 'calc(32 * var(--rem))';
    for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) {
      const a = weight(l, h, q, k);
      if (a < 0.05) continue;
      const strong = q === at - 1;
      root.append(svg('line', {x1: 110, y1: y(q) - 4, x2: 250, y2: y(k) - 4, 'stroke-width': strong ? 2.5 : 1, 'stroke-opacity': (strong ? a : a * 0.45).toFixed(3)}));
    }
    tokens.forEach((_, i) => {
      const s = short(label(i));
      root.append(svg('text', {x: 105, y: y(i), 'text-anchor': 'end', class: i === at - 1 ? 'here' : ''}, s), svg('text', {x: 255, y: y(i)}, s));
    });
    $('lines').replaceChildren(root);
  };
  {
    const all = change.flatMap((r) => r.slice(H)), top = Math.max(...all.map(Math.abs), 1e-9);
    const rows = [row(['', 'attention', '', 'MLP', '', 'both', ''].map((s) => make('th', s)))];
    change.forEach((r, l) => rows.push(row([make('th', `layer ${l}`), ...r.slice(H).flatMap((v) => [make('td', (v < 0 ? '−' : '+') + Math.abs(v).toFixed(3), 'n'), bar(Math.abs(v) / top, v < 0)])])));
    $('removed').append(table(rows));
  }

  const choose = (i) => {
    at = i;
    buttons.forEach((b, j) => {
      b.setAttribute('aria-pressed', j === i);
      b.tabIndex = j === i ? 0 : -1;
    });
    cells.forEach((column, j) => column.forEach((td) => { td.style.boxShadow = j === i - 1 ? 'inset 0 0 0 1px currentColor' : ''; }));
    drawInstead();
    drawParts();
    drawMatrix();
    drawLines();
  };
  const chooseHead = (l, h) => {
    head = [l, h];
    headButtons.forEach((r, i) => r.forEach((b, j) => {
      const on = i === l && j === h;
      b.setAttribute('aria-pressed', on);
      b.tabIndex = on ? 0 : -1;
    }));
    $('head').textContent = `Layer ${l}, head ${h}: previous token ${previous[l][h].toFixed(2)}, induction ${induction[l][h].toFixed(2)}; without it the loss changes by ${change[l][h].toFixed(4)}.`;
    drawMatrix();
    drawLines();
  };
  // Light or dark, as the page around
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const paint = () => {
    const scheme = getComputedStyle(host).colorScheme;
    const isDark = scheme.includes('dark') && (dark.matches || !scheme.includes('light'));
    host.dataset.scheme = isDark ? 'dark' : 'light';
    drawMatrix();
  };
  dark.addEventListener('change', paint);
  const themes = new MutationObserver(paint);
  for (const e of [document.documentElement, document.body]) {
    themes.observe(e, {attributeFilter: ['data-theme', 'data-md-color-scheme']});
  }
  colourHeads();
  chooseHead(...data.head);
  choose(1);
  paint();
}
