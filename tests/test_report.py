"""The report in a browser, from its file:

every figure drawn, every choice works, nothing overflows, nothing runs that came from a run,
and the live page keeps what was chosen
"""

import json
import math
import time
from pathlib import Path
import pytest
import torch
from gpt2repro.checkpoint import save_checkpoint
from gpt2repro.model import GPT2
from gpt2repro.report import report, watch
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import SentencePiece

pytestmark = pytest.mark.xdist_group('report')
evil = '<img src=x onerror=alert(1)>'


@pytest.fixture
def page(recorded):
    return recorded('file:')


def records(n=40, rate=30, bad=(), end=True, batch_tokens=8192):
    "A log of `n` training records"
    yield dict(
        kind='event',
        step=0,
        tokens=0,
        what='start',
        device='CPU',
        torch='2',
        peak_gflops=9.0,
        flops_per_token=1000,
    )
    for i in range(1, n + 1):
        at = dict(step=i, tokens=i * batch_tokens)
        bpb = None if i in bad else 1.2 + rate * at['tokens'] ** -0.3 + 0.02 * math.sin(7 * i)
        yield dict(
            kind='train', **at, bpb=bpb, loss=bpb and 2 * bpb, lr=0.01 / i, grad_norm=bpb and 3 / i,
            tokens_per_s=9000 + i, peak_share=0.5, memory=2**29, seconds=0.5 * i, left_s=0.5 * (n - i),
            groups={g: dict(update_rms=s / i) for g, s in dict(attn=1e-3, mlp=2e-3).items()},
        )  # fmt: skip
        if i in bad:
            first = dict(step=i, parameter='h.0.mlp.c_fc.weight', group='mlp', loss='finite')
            yield dict(kind='event', **at, what='skipped', updates=3, first=first, sequences=[8, 15])
        if i % 8 == 0:
            yield dict(kind='valid', **at, bpb=1.3 + rate * at['tokens'] ** -0.3, loss=3.0)
            yield dict(kind='sample', **at, text=f'step {i} </script><script>alert(2)</script>')
    if end:
        yield dict(kind='event', **at, what='end', peak_memory=2**29)


def make(folder, recs=(), lr=0.01, **kw):
    "A run's folder with a log and two checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    optim = dict(name='adafactor', lr=lr, clip=1.0)
    (folder / 'config.json').write_text(json.dumps(dict(name=folder.name, max_steps=40, optim=optim, **kw)))
    (folder / 'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in recs))
    for step in (20, 40):
        (folder / f'checkpoints/step-{step:08}').mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    "name -> (page, how many figures it has)"
    d = tmp_path_factory.mktemp('reports')
    whole = make(d / 'whole', records())
    bad = make(d / 'bad', records(30, rate=45, bad=(7, 8)), lr=0.02, keep=6)
    eight = [
        make(d / f'run-{i}-{"long" * 9}', records(5 + 5 * i, rate=30 + i), lr=(i + 1) / 100) for i in range(8)
    ]
    named = make(d / evil, records(8, end=False), start_from=evil)
    (named / 'samples.txt').write_text(f'=== {evil}\n{evil}</script><script>alert(3)</script>\n')
    (named / 'scores.json').write_text(json.dumps(dict(bpb=1.5, yardsticks={evil: 2.0}, facts={evil: evil})))
    cases = dict(
        # Both losses, norm, rate, updates, speed, share, memory and clipped steps
        whole=([whole], 9),
        skipped=([bad], 10),
        two=([whole, bad], 11),  # a figure for each of two parameter groups
        eight=(eight, 10),
        empty=([make(d / 'empty')], 0),
        one_record=([make(d / 'begun', [*records(1, end=False)])], 8),
        all_bad=([make(d / 'all_bad', records(3, bad=(1, 2, 3), end=False))], 6),
        named=([named], 9),
    )
    return {k: (report(runs, d / f'{k}.html'), n) for k, (runs, n) in cases.items()}


@pytest.mark.parametrize('width,scheme', [(1300, 'dark'), (390, 'light')])
def test_every_figure_is_drawn_and_nothing_overflows(page, reports, width, scheme):
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    for name, (file, figures) in reports.items():
        page.goto(file.as_uri())
        assert page.locator('html').get_attribute('data-drawn') == str(figures), name
        assert page.locator('.panel:visible canvas').count() == figures, name
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), (name, width)
        assert file.stat().st_size < 250_000, name
        dark = page.evaluate('getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
        assert dark == (scheme == 'dark'), name
    # Something is on a canvas
    page.goto(reports['whole'][0].as_uri())
    inked = 'c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(v => v > 0)'
    assert all(page.locator('canvas').nth(i).evaluate(inked) for i in range(9))


@pytest.mark.parametrize('width,scheme', [(1300, 'dark'), (360, 'light')])
def test_inside_the_newest_checkpoint(page, tmp_path, width, scheme):
    "Two runs looked into, one that has no checkpoint; the figures are there as before"
    torch.manual_seed(0)
    tok = SentencePiece.train(['the cat sat on the mat. the cat ran.'] * 50, vocab_size=300)
    runs = [make(tmp_path / name, records(8)) for name in ('one', 'two', 'young')]
    for r in runs:
        for f in (r / 'checkpoints').iterdir():
            f.rmdir()
    for run, H in zip(runs, (4, 5)):
        model = GPT2(GPT2Config(vocab_size=tok.vocab_size, n_ctx=128, n_embd=20, n_layer=2, n_head=H))
        save_checkpoint(run / 'checkpoints', 8, model, tok)
    plain = report(runs).stat().st_size
    file = report(runs, inspect=f'{evil} the cat </script><script>alert(5)</script>')
    assert plain < file.stat().st_size - 20_000 < plain + 100_000
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    page.goto(file.as_uri())
    assert int(page.locator('html').get_attribute('data-drawn')) >= 8
    seen = page.locator('[data-inspection]')
    assert (
        seen.count() == 2 and 'Not inspected: young, no checkpoint yet.' in page.locator('body').inner_text()
    )
    for i, heads in enumerate((8, 10)):
        one = seen.nth(i)
        assert one.locator('.heads button').count() == heads and one.locator('#lens tr').count() == 4
        assert one.get_attribute('data-scheme') == scheme
        was = one.locator('#chosen').inner_text()
        one.locator('.token').nth(3).click()
        assert one.locator('#chosen').inner_text() != was
        assert one.evaluate('e => e.scrollWidth <= e.clientWidth')
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert page.locator('img').count() == 0
    page.locator('#theme').click()
    for _ in range(2):  # once round: auto, light, dark
        theme = page.locator('html').get_attribute('data-theme')
        page.locator(f'[data-inspection="1"][data-scheme={theme}]').wait_for()
        page.locator('#theme').click()


def test_what_comes_from_a_run_is_text(page, reports):
    page.goto(reports['named'][0].as_uri())
    assert page.locator('img').count() == 0 and page.locator('script').count() == 3
    assert page.locator('h1').inner_text() == evil
    assert 'alert(3)' in page.locator('pre').last.inner_text()
    # A script that came in all the same would not run.
    page.evaluate('() => { const s = document.createElement("script"); s.textContent = "alert(4)"; '
                  'document.body.append(s) }')  # fmt: skip
    assert len(page.wrong) == 1 and 'Content Security Policy' in page.wrong.pop()


def series(page, panel):
    "Labels and visible points of a figure"
    return page.evaluate(
        'i => (globalThis.panels?.[i].lines || [])'
        '.map((l, j) => [l.label, !!l.raw, panels[i].plot.series[j + 1].show, l.y.length])',
        panel,
    )


def wait_for_points(page, n):
    "Until the learning rate has `n` points; the page's policy forbids `wait_for_function`"
    from playwright.sync_api import Error

    for _ in range(150):
        page.wait_for_timeout(100)
        try:
            if [s[3] for s in series(page, 3)] == [n]:
                return
        except Error:
            pass  # the page was reading itself again just then
    raise AssertionError(f'{series(page, 3)}, not {n} points')


def stretch(page, panel=0):
    return page.evaluate('i => { const s = panels[i].plot.scales.x; return [s.min, s.max] }', panel)


def test_choices(page, reports):
    page.goto(reports['two'][0].as_uri())
    assert series(page, 0) == [['whole', False, True, 5], ['bad', False, True, 3]]
    for axis, last in dict(step=40, seconds=20, flops=40 * 8192 * 1000, tokens=40 * 8192).items():
        page.locator('#x').select_option(axis)
        assert stretch(page)[1] == stretch(page, 1)[1] == last, axis  # one axis for all figures

    page.locator('#smooth').fill('0.9')
    assert [s[:2] for s in series(page, 1)][:4] == [
        ['whole', True], ['whole', False], ['bad', True], ['bad', False],
    ]  # fmt: skip
    raw, smooth = page.evaluate('panels[1].lines.slice(0, 2).map(l => l.y)')
    mean, weight = 0, 0
    for y, got in zip(raw, smooth):
        mean, weight = 0.9 * mean + 0.1 * y, 0.9 * weight + 0.1
        assert abs(got - mean / weight) < 1e-9
    page.locator('#smooth').fill('0')

    before = page.evaluate('panels[0].lines[0].y[0]')
    page.locator('#unit').select_option('nats')
    assert 'nats per token' in page.locator('figcaption').first.inner_text()
    assert page.evaluate('panels[0].lines[0].y[0]') != before

    page.locator('#logx').check()
    assert page.evaluate('panels.every(p => !p.plot || p.plot.scales.x.distr === 3)')
    page.locator('#logx').uncheck()

    page.locator('.chip').first.click()
    assert [s[2] for s in series(page, 0)] == [False, True]
    page.locator('.chip').first.click()
    assert [s[2] for s in series(page, 0)] == [True, True]


def test_hover_zoom_sort_and_theme(page, reports):
    page.goto(reports['two'][0].as_uri())
    plot = page.locator('.u-over').nth(1)
    plot.hover(position=dict(x=200, y=90))
    tip = page.locator('.tip:visible')
    assert tip.locator('.name').all_inner_texts() == ['bad', 'whole']  # the higher one first
    x = page.evaluate('panels.filter(p => p.plot).map(p => p.plot.cursor.left)')
    assert max(x) - min(x) < 3, x  # the cursor is in all figures

    box = plot.bounding_box()
    page.mouse.move(box['x'] + 100, box['y'] + 50)
    page.mouse.down()
    page.mouse.move(box['x'] + 300, box['y'] + 60, steps=4)
    page.mouse.up()
    a, b = stretch(page, 0)
    assert [a, b] == stretch(page, 5) and 0 < a < b < 40 * 8192
    page.locator('#all').click()
    assert stretch(page, 0)[1] == 40 * 8192

    table = page.locator('table.runs')
    names = table.locator('tbody tr td:first-child')
    assert {'optim.lr', 'keep', 'tokens/s', 'checkpoint'} <= set(table.locator('th').all_inner_texts())
    table.get_by_role('button', name='optim.lr').click()
    assert names.all_inner_texts() == ['whole', 'bad']
    table.get_by_role('button', name='optim.lr').click()
    assert names.all_inner_texts() == ['bad', 'whole']
    links = page.locator('a[href*=checkpoints]').evaluate_all('l => l.map(a => a.getAttribute("href"))')
    assert './whole/checkpoints/step-00000020' in links and len(links) == 6
    assert all((reports['two'][0].parent / l).is_dir() for l in links)

    paper = 'getComputedStyle(document.body).backgroundColor'
    light = page.evaluate(paper)
    page.locator('#theme').click()  # auto → light
    page.locator('#theme').click()  # → dark
    assert page.evaluate(paper) != light
    page.reload()
    assert page.evaluate(paper) != light  # it was kept


def test_a_live_page_keeps_what_was_chosen(page, tmp_path):
    run = make(tmp_path / 'live', records(20, end=False))
    pages = watch([run], every=1)
    page.goto(next(pages).as_uri())
    page.locator('#x').select_option('step')
    page.locator('#smooth').fill('0.5')
    page.locator('#smooth').blur()
    page.locator('summary').click()
    page.mouse.move(5, 5)
    make(run, records(30, end=False))
    next(pages)
    wait_for_points(page, 30)
    assert page.locator('#x').input_value() == 'step' and page.locator('#smooth').input_value() == '0.5'
    assert page.locator('details').get_attribute('open') is not None
    assert stretch(page)[1] == 30
    make(run, records(40))
    assert len(list(pages)) == 1  # the run has ended
    wait_for_points(page, 40)
    assert page.locator('#pause').count() == 0


def test_a_long_log_stays_small(page, tmp_path):
    run = make(tmp_path / 'long', records(20_000))
    began = time.perf_counter()
    file = report([run])
    assert time.perf_counter() - began < 30 and file.stat().st_size < 400_000
    page.goto(file.as_uri())
    assert series(page, 3)[0][3] == 1000
    assert 'long: 20,000 records' in page.content()


def test_the_library_has_its_licence():
    assets = Path(report.__code__.co_filename).parent / 'assets'
    code = (assets / 'uPlot.iife.min.js').read_text()
    version = (assets / 'README.md').read_text().split('uplot@')[1].split('`')[0]
    assert f'(v{version})' in code[:200] and 'MIT' in (assets / 'uPlot.LICENSE').read_text()
    assert sum(f.stat().st_size for f in assets.iterdir()) < 150_000
