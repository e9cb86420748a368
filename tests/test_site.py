"""The built site in a browser:

pages, an API heading, a figure, a formula, the search; no console error, no request that leaves the machine
"""

import functools
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
site = root / '_docs'
chromium = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.xdist_group('site')
built = pytest.mark.skipif(not (site / 'index.html').exists(), reason='the site is not built: make docs')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def browser():
    if not chromium:
        pytest.skip('no chromium here: apt-get install chromium')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(
            executable_path=chromium,
            args=[
                '--no-sandbox',
                '--disable-gpu',
                '--disable-quic',
                '--no-first-run',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-sync',
            ],
        )
        yield b
        b.close()


@pytest.fixture(scope='module')
def url():
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture
def page(browser, url):
    "A page that records what goes wrong and what is asked of whom"
    p = browser.new_page(viewport=dict(width=1280, height=1000))
    p.wrong, p.asked = [], []
    p.on('console', lambda m: p.wrong.append(m.text) if m.type == 'error' else None)
    p.on('pageerror', lambda e: p.wrong.append(str(e)))
    p.on('request', lambda r: p.asked.append(r.url))
    p.set_default_timeout(15_000)
    yield p
    away = [u for u in p.asked if not u.startswith((url, 'data:', 'blob:'))]
    p.close()
    assert not p.wrong, p.wrong
    assert not away, away


@built
def test_index(page, url):
    page.goto(f'{url}/index.html')
    assert page.locator('h1').first.inner_text().startswith('gpt2repro')
    assert page.locator('img[alt="Open in Colab"]').first.evaluate('e => e.naturalWidth') > 0
    assert page.locator('img[alt^="The report"]').evaluate('e => e.naturalWidth') > 300
    page.locator('article').get_by_role(
        'link', name='the whole reproduction on one page', exact=True
    ).first.click()
    page.wait_for_url('**/one_page.html')


@built
def test_api_heading_figure_and_formula(page, url):
    page.goto(f'{url}/adafactor.html#adafactor')
    assert page.locator('h3 code', has_text=re.compile('^Adafactor$')).count() == 1
    page.locator('.js-plotly-plot .main-svg').first.wait_for()
    page.locator('.katex').first.wait_for()
    assert page.locator('.js-plotly-plot').first.evaluate('e => e.data.length') > 0


@built
def test_search(page, url):
    page.goto(f'{url}/index.html')
    query = page.locator('input[name="query"]')
    if not query.is_visible():
        page.locator('label.md-header__button[for="__search"]').first.click()
    query.press_sequentially('perplexity', delay=20)
    # The index is read in the background.
    page.locator('.md-search-result__item a').first.wait_for(timeout=60_000)
    assert 'perplexity' in page.locator('.md-search-result__list').inner_text().lower()


@built
def test_every_page_opens(page, url):
    pages = sorted(f.relative_to(site).as_posix() for f in site.rglob('*.html') if f.name != '404.html')
    assert len(pages) > 15
    for f in pages:
        page.goto(f'{url}/{f}')
        figures = page.locator('div.fig').count()
        if figures:
            page.wait_for_function(f'document.querySelectorAll("div.fig .main-svg").length>={figures}')
        assert page.locator('h1').count() >= 1, f


@built
def test_readme_is_the_index():
    if not shutil.which('git') or not (root / '.git').exists():
        pytest.skip('not a git checkout')
    assert not subprocess.run(
        ['git', 'diff', '--stat', 'HEAD', '--', 'README.md'], cwd=root, capture_output=True, text=True
    ).stdout, 'README.md differs from nbs/index.ipynb: commit what `make docs` wrote'
