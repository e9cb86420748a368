"""The site: what its builder refuses, what the built pages hold, and how they look in a browser

at a desk's and at a phone's width: no console error, no request that leaves the machine, nothing cut off,
every figure drawn, every formula set, every link alive, and a search that finds
"""

import ast
import asyncio
import functools
import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest
import torch
from gpt2repro.checkpoint import load_model
from gpt2repro.decode import fake_quantize
from gpt2repro.generation import samples
from gpt2repro.model import GPT2
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import SentencePiece

root = Path(__file__).parent.parent
sys.path.insert(0, str(root / 'tools'))
import alive
import docs
import pages

site = root / '_docs'
chromium = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.xdist_group('site')


def stale():
    "Whether a notebook was changed after the site was built"
    index = site / 'index.html'
    notebooks = (root / 'nbs').rglob('*.ipynb')
    return not index.exists() or any(f.stat().st_mtime > index.stat().st_mtime for f in notebooks)


built = pytest.mark.skipif(stale(), reason='the site is not built, or older than nbs/: make docs')
widths = {1300: 1000, 390: 844}  # width -> height, px


# What the builder refuses


def test_two_sources_with_one_target():
    with pytest.raises(
        SystemExit, match='02a_webtext.ipynb and nbs/25_webtext.ipynb both become webtext.html'
    ):
        docs.targets(['02a_webtext.ipynb', '25_webtext.ipynb'])
    with pytest.raises(SystemExit, match='both become'):  # one file on a disk that ignores case
        docs.targets(['webtext/01_Links.ipynb', 'webtext/02_links.ipynb'])
    for name in ('40_search.ipynb', '41_404.ipynb', 'assets/01_page.ipynb'):
        with pytest.raises(SystemExit, match='the site needs itself'):
            docs.targets([name])
    two = ['webtext/01_links.ipynb', '02_links.ipynb']
    assert docs.targets(two) == {'webtext/links': two[0], 'links': two[1]}


def notebook(*cells):
    "A notebook's JSON, from (type, source)"
    made = []
    for i, (kind, source) in enumerate(cells):
        cell = dict(cell_type=kind, id=f'c{i}', metadata={}, source=source)
        made.append(cell | (dict(outputs=[], execution_count=None) if kind == 'code' else {}))
    return json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5))


def test_a_made_collision_stops_the_build(tmp_path, monkeypatch):
    (tmp_path / 'menu.yml').write_text('menu: [index, page]\nopen: {}\n')
    for name in ('index', '01_page', '07b_page'):
        (tmp_path / f'{name}.ipynb').write_text(notebook(('markdown', f'# {name}\n> A made page')))
    monkeypatch.setattr(docs, 'nbs', tmp_path)
    with pytest.raises(SystemExit, match='nbs/01_page.ipynb and nbs/07b_page.ipynb both become page.html'):
        docs.read_site()
    (tmp_path / '07b_page.ipynb').rename(tmp_path / '07b_other.ipynb')
    with pytest.raises(SystemExit, match='no menu reaches other'):
        docs.read_site()
    (tmp_path / 'menu.yml').write_text('menu: [index, page, {More: [other]}]\nopen: {}\n')
    with pytest.raises(SystemExit, match='no page documents'):  # none of these exports the package's modules
        docs.read_site()


def test_the_menu_and_the_modules():
    menu = ['index', {'Learn': ['a', {'Deeper': ['b/c']}]}]
    docs.check_menu(menu, ['index', 'a', 'b/c'])
    with pytest.raises(SystemExit, match='no menu reaches d: add it to nbs/menu.yml'):
        docs.check_menu(menu, ['index', 'a', 'b/c', 'd'])
    with pytest.raises(SystemExit, match='lists a more than once'):
        docs.check_menu([*menu, 'a'], ['index', 'a', 'b/c'])
    with pytest.raises(SystemExit, match='no such notebook'):
        docs.check_menu(menu, ['index', 'a'])
    with pytest.raises(SystemExit, match='no page documents webtext.run'):
        docs.check_modules(['model', 'webtext.run'], ['model', ''])
    assert {'model', 'webtext.run', 'tasks.lambada'} <= set(docs.modules(root / 'gpt2repro'))


def test_today_s_sources_pass():
    menu, found = docs.read_site()
    assert (
        len(found) > 50 and found['model'].module == 'model' and found['webtext/run'].module == 'webtext.run'
    )


# What becomes of a notebook

long_function = '\n'.join(
    [
        'def long(',
        '    a: int,  # the first',
        '    # said above: a|b',
        '    b: str = "x",',
        '    *rest,',
        '    c=None,  # the last',
        ') -> bool:  # was it long?',
        '    "A long one"',
        *['    a += 1'] * 40,
        '    return a > 1',
    ]
)


@pytest.fixture
def made_page(tmp_path):
    "The page of a notebook that exports `demo`"
    short = 'def _helper():\n    return 1', 'class Plan:\n    x = 1', 'def plan(model):\n    "Short"'
    code = '\n\n\n'.join([*short, long_function])
    (tmp_path / 'lib').mkdir()
    (tmp_path / 'lib/demo.py').write_text(code)
    cells = [
        ('markdown', '# Demo\n> Made'),
        ('code', '#| default_exp demo'),
        ('code', '#| export\nimport math\nfrom gpt2repro.model import GPT2'),
        ('code', f'#| export\n{code}'),
        (
            'markdown',
            '<details>\n<summary>Answer</summary>\n\nIt is **1**:\n\n```python\n1\n```\n\n</details>',
        ),
        ('code', '#| hide\nsecret = 1'),
        ('code', '1 + 1'),
    ]
    (tmp_path / '01_demo.ipynb').write_text(notebook(*cells))
    read = functools.partial(
        pages.read_page, tmp_path / '01_demo.ipynb', '01_demo.ipynb', tmp_path, 'lib', 'GIT'
    )
    return read


def test_a_page_shows_its_code(made_page):
    page = made_page()
    md = '\n'.join(page.site)
    assert (page.title, page.description, page.module) == ('Demo', 'Made', 'demo')
    assert page.symbols == {'Plan': 'plan', 'plan': 'plan-2', 'long': 'long'}  # no anchor twice
    assert '[source](GIT/lib/demo.py#L9)' in md and '```python\ndef plan(model):\n    "Short"\n```' in md
    assert '### `_helper`' not in md and '```python\ndef _helper():' in md
    assert '??? quote "Imports"' in md and 'secret' not in md and '1 + 1' in md
    assert page.imported == {'GPT2': 'model'}


def test_a_long_definition_is_folded_behind_its_table(made_page):
    md = '\n'.join(made_page().site)
    assert "```python\ndef long(a, b='x', *rest, c=None)\n```" in md
    assert '??? quote "Code: 49 lines"\n\n    ```python\n    def long(' in md
    assert '| `a` | `int` |  | the first |' in md
    assert "| `b` | `str` | `'x'` | said above: a\\|b |" in md
    assert '| `c` |  | `None` | the last |' in md and '| *returns* | `bool` |  | was it long? |' in md
    assert md.count('the first') == 2  # once in the table, once in the folded code
    central = '\n'.join(made_page(central=['long']).site)
    assert '\n```python\ndef long(' in central and '| `a` |' not in central
    with pytest.raises(SystemExit, match='does not define nowhere'):
        made_page(central=['nowhere'])
    assert '??? ' not in '\n'.join(made_page().twin)


def test_a_folded_answer(made_page):
    page = made_page()
    assert '??? question "Answer"\n\n    It is **1**:\n\n    ```python\n    1\n    ```' in '\n'.join(
        page.site
    )
    assert '<summary>Answer</summary>' in '\n'.join(page.twin)
    one_line = pages.details('<details open><summary>What is "x"?</summary>It is 1.</details>')
    assert one_line == '??? question "What is &quot;x&quot;?"\n\n    It is 1.\n\n'


def test_names_link_to_definitions(made_page):
    page = made_page()
    model = pages.Page('model', '10_model.ipynb', module='model', symbols={'GPT2': 'gpt2', 'size': 'size'})
    where = docs.known([page, model])
    by_name = {'GPT2': [(model, 'gpt2')], 'size': [(model, 'size')]}
    link = functools.partial(docs.link_names, page=page, where=where, by_name=by_name)
    assert link('a `plan` and a `Plan`') == 'a [`plan`](#plan-2) and a [`Plan`](#plan)'
    assert link('`GPT2.forward` of `GPT2`') == '[`GPT2.forward`](model.md#gpt2) of [`GPT2`](model.md#gpt2)'
    for same in ('chunks of `size`', '# `plan`', '[`plan`](x)', '```python\n# `plan`\n```'):
        assert link(same) == same


# What the built pages hold


class Html(HTMLParser):
    "Ids, links, code (open and folded) and meta data of a page"

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.meta, self.rels, self.scripts = set(), [], {}, [], []
        self.code = {True: [], False: []}  # folded? -> blocks
        self.folds, self.in_code, self.doubles = 0, False, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'):
            if a['id'] in self.ids:
                self.doubles.append(a['id'])
            self.ids.add(a['id'])
        for k in ('href', 'src'):
            if a.get(k) and not (tag == 'link' and a.get('rel') == 'canonical'):
                self.links.append(a[k])
        if tag == 'meta':
            self.meta[a.get('property') or a.get('name')] = a.get('content')
        if tag == 'link':
            self.rels.append(a)
        if tag == 'script' and a.get('src'):
            self.scripts.append(Path(a['src']).name)
        self.folds += tag == 'details'
        if tag == 'pre':
            self.in_code = True
            self.code[self.folds > 0].append('')

    def handle_endtag(self, tag):
        self.folds -= tag == 'details'
        if tag == 'pre':
            self.in_code = False

    def handle_data(self, data):
        if self.in_code:
            self.code[self.folds > 0][-1] += data


def all_pages():
    "The renderer's pages; what lies in assets/ belongs to one of them"
    names = (f.relative_to(site).as_posix() for f in site.rglob('*.html') if f.name != '404.html')
    return sorted(n for n in names if not n.startswith('assets/'))


@functools.cache
def html(name):
    return Html((site / name).read_text(encoding='utf-8'))


central = {
    'model': ['MLP', 'Attention', 'Block', 'GPT2'],
    'loss': ['lm_loss', '_ChunkedCE'],
    'adafactor': ['rank1', 'clip_rms', 'Adafactor', 'Adafactor.step', 'Bundle.update', 'take_step'],
    'loop': ['accumulate', 'fit'],
    'train': ['Run', 'Run.steps', 'Run.loop', 'train'],
    'rules': ['top_k', 'top_p'],
    'generation': ['choose', 'grow', 'samples', 'generate'],
    'decode': ['Decoder'],
    'sample': ['sample'],
}


def bodies(module):
    "name -> code of all definitions of a module"
    text = (root / f'gpt2repro/{module.replace(".", "/")}.py').read_text(encoding='utf-8')
    tree = ast.parse(text)
    return {
        pages.name_of(o): ast.get_source_segment(text, o)
        for o in tree.body
        if isinstance(o, pages.definitions)
    }


@built
@pytest.mark.parametrize('page', central)
def test_central_code_is_open(page):
    shown = '\n'.join(html(f'{page}.html').code[False])
    own = bodies(page)
    for name in central[page]:
        assert own[name] in shown, f'{page}.html does not show {name}'
    assert 'def forward(' in own.get('GPT2', 'def forward(')


@built
@pytest.mark.parametrize('module', list(docs.modules(root / 'gpt2repro')))
def test_every_definition_shows_its_code_and_its_source(module):
    page = html(f'{module.replace(".", "/")}.html')
    shown = '\n'.join([*page.code[False], *page.code[True]])
    lines = (root / f'gpt2repro/{module.replace(".", "/")}.py').read_text(encoding='utf-8').splitlines()
    sources = [
        int(m[1]) for o in page.links if (m := re.search(rf'/{module.replace(".", "/")}\.py#L(\d+)$', o))
    ]
    address = re.search(r'^Docs: (\S+?)"*$', '\n'.join(lines[:12]), re.M)[1]
    assert (site / address.removeprefix(f'{docs.site}/')).is_file(), address  # in the module's docstring
    for name, body in bodies(module).items():
        assert body in shown, f'{module} does not show {name}'
        if pages.is_public(name):
            short = name.rpartition('.')[2]
            linked = [n for n in sources if re.match(rf'\s*(async )?(def|class) {short}\b', lines[n - 1])]
            assert linked, f'{module}: no link to the lines of {name}'


@built
def test_types_have_short_names():
    for name in all_pages():
        text = (site / name).read_text(encoding='utf-8')
        assert '__main__.' not in text, name
        assert not re.search(r'<td><code>[^<]*gpt2repro\.', text), name


def target(name, link):
    "File and anchor that a link of a page leads to; None if it leads away"
    url, anchor = urldefrag(link)
    if re.match(r'[a-z]+:|//', url):
        return None
    f = (site / name).parent / unquote(url) if url else site / name
    return f.resolve(), unquote(anchor)


@built
def test_every_internal_link_and_anchor():
    dead = []
    for name in all_pages():
        page = html(name)
        assert not page.doubles, f'{name}: ids twice: {page.doubles}'
        for link in page.links:
            if not (found := target(name, link)):
                continue
            f, anchor = found
            if f.is_dir():
                f = f / 'index.html'
            if not f.is_file():
                dead.append(f'{name}: {link}')
            elif anchor and f.suffix == '.html' and not anchor.startswith('__'):
                ids = html(f.relative_to(site.resolve()).as_posix()).ids
                if anchor not in ids:
                    dead.append(f'{name}: {link}')
    assert not dead, '\n'.join(dead)


@built
def test_links_of_the_twins():
    dead = []
    for f in sorted(site.rglob('*.md')):
        text = re.sub(r'^ *(`{3,}).*?^ *\1 *$', '', f.read_text(encoding='utf-8'), flags=re.S | re.M)
        for link in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', text)):
            found = target(f.relative_to(site).as_posix(), link)
            if found and not found[0].is_file():
                dead.append(f'{f.relative_to(site)}: {link}')
    assert not dead, '\n'.join(dead)


@built
def test_sitemap_twins_and_tags():
    base = f'{docs.site}/'
    locations = re.findall(r'<loc>(.*?)</loc>', (site / 'sitemap.xml').read_text(encoding='utf-8'))
    assert sorted(locations) == sorted({f'{base}{name}' for name in all_pages()})  # all, none of them twice
    listed = re.findall(r'\]\((\S+?)\)', (site / 'llms.txt').read_text(encoding='utf-8'))
    assert sorted(listed) == sorted(f'{base}{name[:-5]}.md' for name in all_pages() if name != 'index.html')
    for name in all_pages():
        page = html(name)
        twin = [
            o['href'] for o in page.rels if o.get('rel') == 'alternate' and o.get('type') == 'text/markdown'
        ]
        assert twin == [Path(name).with_suffix('.md').name], name
        text = (site / name).with_suffix('.md').read_text(encoding='utf-8')
        assert (site / f'{name}.md').read_text(encoding='utf-8') == text, name
        assert text.startswith('# ') and '<script type="application/json">{"data"' not in text, name
        assert page.meta['og:url'] == base + name and page.meta['og:title'], name
        assert page.meta['og:image'].startswith(base) and page.meta['og:description'], name
        assert (site / page.meta['og:image'].removeprefix(base)).is_file()


@built
def test_scripts_are_loaded_where_they_are_needed():
    for name in all_pages():
        text = (site / name).read_text(encoding='utf-8')
        plotly = [s for s in html(name).scripts if s.startswith('plotly')]
        assert len(plotly) == ('<div class="fig"' in text), name
        assert ('katex.min.js' in html(name).scripts) == ('class="arithmatex"' in text), name
        assert 'plotly.min.js' not in plotly, (
            f'{name} loads all of plotly, 5 MB: is there a part of it that serves?'
        )


@built
def test_readme_is_the_index():
    if not shutil.which('git') or not (root / '.git').exists():
        pytest.skip('not a git checkout')
    assert not subprocess.run(
        ['git', 'diff', '--stat', 'HEAD', '--', 'README.md'], cwd=root, capture_output=True, text=True
    ).stdout, 'README.md differs from nbs/index.ipynb: commit what `make docs` wrote'


# In a browser


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture(scope='module')
def url():
    if not chromium:
        pytest.skip('no chromium here: apt-get install chromium')
    with serving(site) as address:
        yield address


flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking'
flags = [*flags.split(), '--disable-component-update', '--disable-sync']

look = (root / 'tests/assets/look.js').read_text(encoding='utf-8')


drawn = """() => [...document.querySelectorAll('div.fig')].every(
  (e) => e.querySelector('.main-svg') && Math.abs(e._fullLayout.width - e.clientWidth) < 2)"""
good = dict(outside=[], body=0, h1=1, undrawn=0, spilling=0, unset=0, images=[])


async def visit(browser, url, name, sizes):
    "What is wrong with a page, opened at the first width and then turned to the others"
    page = await browser.new_page(viewport=dict(width=sizes[0], height=widths[sizes[0]]))
    wrong = []
    page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('request', lambda r: None if r.url.startswith((url, 'data:', 'blob:')) else wrong.append(r.url))
    try:
        await page.goto(f'{url}/{name}')
        await page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        for width in sizes:
            await page.set_viewport_size(dict(width=width, height=widths[width]))
            await page.wait_for_function(drawn, timeout=30_000)
            seen = await page.evaluate(look)
            wrong += [f'{width}: {k}: {v}' for k, v in seen.items() if v != good[k]]
    except Exception as e:
        wrong.append(repr(e))
    finally:
        await page.close()
    return wrong


async def visits(url, names, sizes, at_once):
    from playwright.async_api import async_playwright

    turn = asyncio.Semaphore(at_once)

    async def one(name):
        async with turn:
            return await visit(browser, url, name, sizes)

    async with async_playwright() as p:
        browser = await p.chromium.launch(executable_path=chromium, args=flags)
        found = await asyncio.gather(*map(one, names))
        await browser.close()
    return {name: wrong for name, wrong in zip(names, found) if wrong}


def visit_all(url, names, sizes, at_once=4):
    "What is wrong with pages; in a thread, since playwright's other interface holds this one's event loop"
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, visits(url, names, sizes, at_once)).result()


def said(wrong):
    return '\n'.join(f'{name}: {o}' for name, all_of in wrong.items() for o in all_of)


@built
def test_every_page_at_both_widths(url):
    assert len(all_pages()) > 50
    wrong = visit_all(url, all_pages(), list(widths))
    assert not wrong, said(wrong)


@built
def test_pages_opened_on_a_phone(url):
    wrong = visit_all(url, ['index.html', 'adafactor.html', 'plan.html', 'cli.html'], [390])
    assert not wrong, said(wrong)


@pytest.fixture(scope='module')
def browser(url):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=flags)
        yield b
        b.close()


@pytest.fixture
def page(browser):
    p = browser.new_page(viewport=dict(width=1300, height=1000), color_scheme='light')
    p.set_default_timeout(30_000)
    yield p
    p.close()


@built
def test_index(page, url):
    page.goto(f'{url}/index.html')
    assert page.locator('h1').first.inner_text().startswith('gpt2repro')
    way = page.locator('img[alt^="The way"]')
    assert way.bounding_box()['y'] + way.bounding_box()['height'] < 2000  # on the second screen at the latest
    assert page.locator('img[alt^="The report"]').evaluate('e => e.naturalWidth') > 300
    for route in ('Learn', 'Use the library', 'On TPUs'):
        assert page.locator('.md-nav--primary').get_by_text(route, exact=True).count()
    link = page.locator('article').get_by_role('link', name='the whole reproduction on one page', exact=True)
    link.first.click()
    page.wait_for_url('**/one_page.html')


@built
def test_figures_follow_the_theme_and_the_width(page, url):
    page.goto(f'{url}/adafactor.html')
    figure = page.locator('.js-plotly-plot').first
    figure.locator('.main-svg').first.wait_for()
    ink = "() => getComputedStyle(document.querySelector('.js-plotly-plot .xtick text')).fill"
    light = page.evaluate(ink)
    page.locator('.md-header [data-md-component="palette"] label:not([hidden])').first.click()
    page.wait_for_function(f'({ink})() !== "{light}"')
    assert page.evaluate("document.body.getAttribute('data-md-color-scheme')") == 'slate'
    axes = "Object.values(document.querySelector('.js-plotly-plot')._fullLayout._plots)"
    rows = f'new Set({axes}.map(o => o.yaxis.domain[1])).size'
    assert page.evaluate(rows) == 1  # subplots beside each other
    page.set_viewport_size(dict(width=390, height=844))
    page.wait_for_function(f'{rows} === 2')  # under each other


@built
def test_search(page, url):
    page.goto(f'{url}/index.html')
    page.locator('.md-search__button').first.click()
    for term in ('perplexity', 'Adafactor', 'tokenizer', 'byte-pair', 'bfloat16'):
        page.keyboard.press('Control+a')
        page.keyboard.type(term)
        page.locator('a:visible', has_text=re.compile(term, re.I)).first.wait_for(timeout=60_000)
        page.get_by_text(re.compile(r'^\d+ results?$')).wait_for()


# What is alive on the index

slow = 5  # times longer than on a machine that does nothing else: the tests run side by side on two cores
written = """async ([text, temperature, seed, most]) => {
  const spec = await (await fetch('assets/alive/model.json')).json();
  const file = await (await fetch('assets/alive/model.safetensors')).arrayBuffer();
  return [...writerModel(spec, file).write(text, temperature, seed, most)];
}"""


def test_the_model_in_a_browser_is_that_of_python(tmp_path):
    "Tokens, bits and greedy texts of random weights, also beyond the context; with spread logits"
    if not chromium:
        pytest.skip('no chromium here: apt-get install chromium')
    torch.manual_seed(0)
    said = ['the cat sat on the mat. a dog ran: 12 + 34 = 46.'] * 50
    tok = SentencePiece.train(said, vocab_size=300)
    model = GPT2(GPT2Config(vocab_size=tok.vocab_size, n_ctx=16, n_embd=24, n_layer=3, n_head=4))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    alive.write_browser_files(model, tok, tmp_path)
    model = fake_quantize(model, 'int8').eval()
    texts = ['', 'the cat', 'a  dog\n\tran é 🙂 שלום \u2581 \U0010fffd b', 'zzz', ' the mat' * 9]
    script = (root / 'tools/site/alive/model.js').read_text(encoding='utf-8')
    (tmp_path / 'page.html').write_text(f'<script src="weights.js"></script><script>{script}</script>')
    js = """texts => {
      const file = Uint8Array.from(atob(aliveWeights.file), c => c.charCodeAt(0)).buffer;
      const m = writerModel(aliveWeights.spec, file);
      return texts.map(t => [m.encode(t), [...m.write(t, 0, 0, 40)]]);
    }"""
    found = asyncio_page(lambda page: evaluated(page, (tmp_path / 'page.html').as_uri(), js, texts))
    for text, (ids, got), want in zip(texts, found, samples(model, tok, texts, 40, temperature=0)):
        assert ids == tok.encode(text), text
        *tokens, end = got
        new = [o for o in tokens if not o.get('given')]
        assert [o['id'] for o in new] == want.ids, text
        assert ''.join(o['text'] for o in [*new, end]) == want.text
        assert ''.join(o['text'] for o in tokens if o.get('given')) == text
        bits = [-p / math.log(2) for p in want.logprobs]
        assert [o['bits'] for o in new] == pytest.approx(bits, abs=1e-3)
        assert end['ended'] == want.ended
        for o in new:
            chances = [p for _, p in o['best']]
            assert len(chances) == 5 and chances == sorted(chances, reverse=True)


async def evaluated(page, url, js, argument):
    await page.goto(url)
    return await page.evaluate(js, argument)


def asyncio_page(visit):
    "What `visit` gives for a new page; in a thread, as above"

    async def run():
        from playwright.async_api import async_playwright

        async with async_playwright() as p:
            browser = await p.chromium.launch(executable_path=chromium, args=flags)
            found = await visit(await browser.new_page())
            await browser.close()
        return found

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result()


def test_what_the_browser_s_model_cannot_compute_is_refused():
    said = ['the cat sat on the mat. a dog ran: 12 + 34 = 46.'] * 50
    tok = SentencePiece.train(said, vocab_size=300)
    cfg = GPT2Config(vocab_size=tok.vocab_size, n_ctx=16, n_embd=24, n_layer=1, n_head=2)
    assert alive.browser_spec(cfg, tok)['tokens'][tok.eot] is None
    for odd in (dict(n_embd=18), dict(activation_function='gelu')):
        with pytest.raises(ValueError, match='takes n_embd in fours and gelu_new only'):
            alive.browser_spec(cfg.replace(**odd), tok)
    unigram = SentencePiece.train(said, vocab_size=300, model_type='unigram', adapt=True)
    with pytest.raises(ValueError, match='give a BPE of SentencePiece'):
        alive.browser_spec(cfg, unigram)


def test_other_settings_are_another_model():
    cfg = alive.run_config()
    assert alive.key(cfg) == alive.key(alive.run_config()) != alive.key(cfg.replace(seed=cfg.seed + 1))


@built
def test_the_model_of_the_site_writes_what_python_writes(page, url):
    folder = alive.kept / alive.key(alive.run_config())
    if not folder.exists():
        pytest.skip('the model that the site was built with is gone: make docs')
    page.goto(f'{url}/index.html')
    model, tok = load_model(folder / 'model', 'cpu')
    long = 'If the file does not exist, an exception is raised. ' * 12
    for text, most in (('Return the', 64), ('', 64), (long, 64)):
        got = page.evaluate(written, [text, 0, 0, most])
        new = [o['id'] for o in got if 'id' in o and not o.get('given')]
        [want] = samples(model, tok, text, most, temperature=0)
        assert new == want.ids, text
    one, same, other = (page.evaluate(written, ['Return the', 0.8, seed, 30]) for seed in (1, 1, 2))
    assert one == same != other


def moved(page):
    "Names and bytes of all that the page loads, from now on"
    loaded = {}
    page.on('response', lambda r: loaded.update({r.url: r}))
    return lambda: {u: len(r.body()) for u, r in loaded.items() if r.status == 200}


@built
def test_the_index_begins_with_something_to_touch(page, url):
    loaded = moved(page)
    page.on('request', lambda r: asked.append(r.url))
    asked = []
    began = time.perf_counter()
    page.goto(f'{url}/index.html')
    tokens = page.locator('#alive-inside .token')
    tokens.first.wait_for()
    assert time.perf_counter() - began < 2 * slow
    assert page.locator('#alive-inside').bounding_box()['y'] < 500  # px: on the first screen
    assert not any('safetensors' in u for u in asked)  # the weights wait until they are wanted
    facts = page.locator('#alive-inside #chosen')
    before = facts.inner_text()
    tokens.nth(5).click()
    assert facts.inner_text() != before
    page.keyboard.press('ArrowRight')
    assert tokens.nth(6).get_attribute('aria-pressed') == 'true'
    assert page.locator('#alive-inside .heads button').count() == 16
    heat = 'e => +(getComputedStyle(e).backgroundColor.match(/[\\d.]+/g)[3] ?? 1)'
    texts = tokens.all_inner_texts()
    heats = [t.evaluate(heat) for t in tokens.all()]
    from_banana = next(i for i in range(len(texts)) if ''.join(texts[i:]).strip() == 'banana.')
    assert max(heats[from_banana:]) > sum(heats) / len(heats)  # the odd word is redder than most

    began = time.perf_counter()
    page.locator('#writer-go').click()
    page.locator('#writer-written span:not(.given)').first.wait_for()
    assert time.perf_counter() - began < 2 * slow
    page.locator('#writer[data-state=done]').wait_for()
    assert 'tokens in' in page.locator('#writer-status').inner_text()
    sizes = loaded()
    assert sum(sizes.values()) < 6_000_000, sizes
    assert all(u.startswith((url, 'blob:')) for u in asked), asked
    page.locator('#writer-written').press('ArrowRight')
    page.locator('#writer-written').press('ArrowRight')
    assert 'The likeliest here' in page.locator('#writer-facts').inner_text()
    one = page.locator('#writer-written').inner_text()
    page.locator('#writer-another').click()
    page.wait_for_function(
        't => document.getElementById("writer-stop").disabled && '
        'document.getElementById("writer-written").innerText !== t',
        arg=one,
    )
    assert page.locator('#writer-seed').input_value() == '1'


@built
def test_a_text_can_be_stopped(page, url):
    page.goto(f'{url}/index.html')
    page.locator('#writer-text').fill('Raised when ' * 100)
    page.locator('#writer-text').press('Control+Enter')
    page.locator('#writer-written span').first.wait_for()
    page.locator('#writer-text').press('Escape')
    assert 'Stopped' in page.locator('#writer-status').inner_text()
    assert page.locator('#writer-stop').is_disabled()
    count = page.locator('#writer-written span').count()
    page.wait_for_timeout(300)
    assert page.locator('#writer-written span').count() == count


@built
def test_the_index_from_a_file(page):
    "No server: a script brings the weights"
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    page.goto((site / 'index.html').as_uri())
    page.locator('#alive-inside .token').first.wait_for()
    page.locator('#writer-go').click()
    page.locator('#writer[data-state=done]').wait_for()
    assert page.locator('#writer-written span').count() > 3
    assert all(u.startswith(('file:', 'blob:', 'data:')) for u in asked), asked


@built
def test_a_browser_that_cannot_write_says_so(page, url):
    page.route('**/model.safetensors', lambda r: r.abort())
    page.goto(f'{url}/index.html')
    page.locator('#writer-go').click()
    page.get_by_text('The model cannot run in this browser').wait_for()
    page.unroute('**/model.safetensors')
    page.locator('#writer-go').click()  # it can be tried again
    page.locator('#writer[data-state=done]').wait_for()
    page.add_init_script('delete window.Worker')
    page.goto(f'{url}/index.html')
    assert 'it has no workers' in page.locator('#writer-status').inner_text()
    assert page.locator('#alive-inside .token').count() > 20


@built
@pytest.mark.parametrize('width,scheme', [(360, 'dark'), (1300, 'light')])
def test_what_is_alive_fits_and_follows_the_theme(browser, url, width, scheme):
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    page.goto(f'{url}/index.html')
    page.locator('#alive-inside .token').first.wait_for()
    assert page.locator('#alive-inside').get_attribute('data-scheme') == scheme
    page.locator('#writer-go').click()
    page.locator('#writer[data-state=done]').wait_for()
    for e in ('#alive-inside', '#writer'):
        assert page.locator(e).evaluate('e => e.scrollWidth <= e.clientWidth'), e
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    page.locator('.md-header [data-md-component="palette"] label:not([hidden])').first.click()
    other = dict(light='dark', dark='light')[scheme]
    page.locator(f'#alive-inside[data-scheme={other}]').wait_for()
    page.close()


def test_the_checks_find_what_they_are_for(tmp_path):
    if not chromium:
        pytest.skip('no chromium here: apt-get install chromium')
    cut = '<pre style="width:900px">cut off</pre><img src="none.png">'
    (tmp_path / 'bad.html').write_text(f'<h1>x</h1><article>{cut}</article><script>oops()</script>')
    with serving(tmp_path) as url:
        wrong = visit_all(url, ['bad.html'], [390])['bad.html']
    for what in ('oops', 'outside', 'body', 'images'):
        assert any(what in o for o in wrong), (what, wrong)
