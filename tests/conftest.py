"The option `--slow`, what runs first, and a browser"

import os
import shutil
from pathlib import Path
import pytest

data = Path(__file__).parent.parent.parent / 'shared/data'
if data.is_dir():  # published texts for tests, where this checkout has them beside it
    os.environ.setdefault('GPT2REPRO_TEST_DATA', str(data))


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests and cells that take minutes')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes; runs with --slow')
    if hasattr(config, 'workerinput'):
        # Several workers: one thread each, before torch is loaded
        os.environ.setdefault('OMP_NUM_THREADS', '1')


# These take longest. They run first, so that no worker waits at the end for the other
longest = ('test_site.py', 'test_train.py', 'test_webtext.py', 'test_distributed.py', 'test_bench.py')


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda o: o.path.name not in longest)
    if config.getoption('--slow'):
        return
    for o in items:
        if 'slow' in o.keywords:
            o.add_marker(pytest.mark.skip(reason='slow: run with --slow (make test-slow)'))


chromium = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture(scope='module')
def browser():
    if not chromium:
        pytest.skip('no chromium here: apt-get install chromium')
    from playwright.sync_api import sync_playwright

    quiet = [
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
    ]
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu', *quiet])
        yield b
        b.close()


@pytest.fixture
def recorded(browser):
    "Function (what a page may ask for, …) -> a new page that records what else it does, and what goes wrong"
    pages = []

    def new(*allowed, width=1300, **how):
        p = browser.new_page(viewport=dict(width=width, height=900), **how)
        p.wrong = []
        p.on('console', lambda m: p.wrong.append(m.text) if m.type in ('error', 'warning') else None)
        p.on('pageerror', lambda e: p.wrong.append(str(e)))
        p.on('request', lambda r: None if r.url.startswith(allowed) else p.wrong.append(r.url))
        p.on('dialog', lambda d: (p.wrong.append(d.message), d.dismiss()))
        p.set_default_timeout(15_000)
        pages.append(p)
        return p

    yield new
    for p in pages:
        p.close()
    assert not (wrong := [w for p in pages for w in p.wrong]), wrong
