"""The page of an experiment in a browser, from its file:

figures drawn, choices and keys work, nothing overflows, nothing runs that came from a record
"""

import json
import math
import shutil
from pathlib import Path
import pytest
from gpt2repro.experiments.page import write_experiment_page

root = Path(__file__).parent.parent
evil = '<img src=x onerror=alert(1)>\u202e</script><script>alert(2)</script>'


@pytest.fixture
def page(recorded):
    return recorded('file:')


def records(folder, size, n_params, cells, seeds=3, seconds=True, **about):
    "One file of made-up records: cell -> gain"
    runs = []
    for i, (cell, gain) in enumerate(cells.items()):
        for seed in range(seeds):
            end = 3 - gain + 0.004 * math.sin(9 * seed + i)
            curve = [[64 * k, round(end + 2 / (1 + k), 4)] for k in range(20)]
            run = dict(cell=cell, seed=seed, steps=100, bpb=round(end, 5), curve=curve, cpu_seconds=9.0)
            runs.append(run | (dict(seconds=10.0 * (1 + gain)) if seconds else {}))
    folder.mkdir(exist_ok=True)
    about = dict(size=size, corpus='docs', n_params=n_params) | about
    (folder / f'{size[:3]}.json').write_text(json.dumps(dict(about=about, runs=runs)))
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "name -> (page, how many figures it has)"
    d = tmp_path_factory.mktemp('experiments')
    cells = {'old': 0, 'old, lr=high': 0.5, f'old, norm={"long" * 20}': 0.1, 'new': 0.7}
    switches = d / 'switches'
    for i in (1, 3, 10):
        records(switches, f'{i}M', i * 1_000_000, cells, seeds=5)
    bad = {'old': 0, f'old, {evil}={evil}': 0.1}
    named = records(d / 'named', '1M', 7, bad, corpus=evil, machine=evil, device=[evil])
    records(named, '9M', 9, bad, corpus=evil)
    cases = dict(
        switches=(switches, 3),  # curves, and gains for two questions
        named=(named, 2),
        one_seed=(records(d / 'one', '1M', 7, cells, seeds=1, seconds=False), 1),
        one_cell=(records(d / 'cell', '1M', 7, dict(old=0), seeds=1), 1),
        of_2019=(shutil.copytree(root / 'bench/why2019', d / '2019'), 7),
    )
    return {k: (write_experiment_page(folder), n) for k, (folder, n) in cases.items()}


@pytest.mark.parametrize('width,scheme', [(1300, 'light'), (360, 'dark')])
def test_every_figure_is_drawn_and_nothing_overflows(page, made, width, scheme):
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    for name, (file, figures) in made.items():
        page.goto(file.as_uri())
        assert page.locator('html').get_attribute('data-drawn') == str(figures), name
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), (name, width)
        assert file.stat().st_size < 350_000, name
        dark = page.evaluate('getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
        assert dark == (scheme == 'dark'), name
        inked = 'c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(v => v > 0)'
        assert page.locator('canvas').first.evaluate(inked), name


def test_what_comes_from_a_record_is_text(page, made):
    page.goto(made['named'][0].as_uri())
    assert page.locator('img').count() == 0 and page.locator('script').count() == 3
    assert '<img src=x onerror=alert(1)>' in page.locator('.verdicts td').first.inner_text()
    assert page.locator('.chip').nth(1).inner_text().startswith('old, <img')


def lines(page):
    return page.evaluate(
        'panels[0].lines.map((l, i) => [l.name, panels[0].plot.series[3 * i + 1].show, l.x.at(-1)])'
    )


def test_choices_and_keys(page, made):
    page.goto(made['switches'][0].as_uri())
    verdict = page.locator('.verdict').inner_text()
    assert 'better: lr=high (50 % more time)' in verdict
    assert page.locator('tr.settled').first.locator('.said').inner_text() == 'better, 50 % more time'
    shown = {name: (on, x) for name, on, x in lines(page)}
    assert shown['old'] == shown['old, lr=high'] == (True, 19 * 64)
    page.locator('#x').select_option('cost')
    assert page.locator('#x option:checked').inner_text() == 'seconds of training'
    ends = {name: x for name, _, x in lines(page)}
    assert abs(ends['old, lr=high'] / ends['old'] - 1.5) < 1e-3
    page.locator('#place').select_option('1')
    assert '3M' in page.locator('figcaption').first.inner_text()
    page.locator('.chip').first.focus()
    page.keyboard.press('Enter')
    assert [on for _, on, _ in lines(page)].count(False) == 1
    page.reload()  # what was chosen lasts
    assert page.locator('#x').input_value() == 'cost' and page.locator('#place').input_value() == '1'
    assert [on for _, on, _ in lines(page)].count(False) == 1
    page.locator('.panel').first.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')
    tip = page.locator('.tip:visible')
    assert 'seconds of training: ' in tip.inner_text() and tip.locator('.value').count() == len(ends) - 1
    page.keyboard.press('Tab')
    assert page.locator('.tip:visible').count() == 0
    page.locator('summary').last.click()
    assert page.locator('table.runs tbody tr').count() == 3 * 4 * 5


def test_the_records_of_2019(page, made):
    "What the lesson on 2019 says stands on the page"
    page.goto(made['of_2019'][0].as_uri())
    assert (
        'Switches turned in 2019, 1M, python-docs, 1,000 steps. better: '
        in page.locator('.verdict').inner_text()
    )
    falls = page.locator('.bars').first.inner_text()
    assert 'From 2019 to ours (5 seeds)' in falls and '-1.259 ± 0.010' in falls
    assert page.locator('#x option').nth(1).inner_text() == 'seconds of CPU time, with evaluation'


odd = [
    dict(bpb=None),
    dict(bpb='x'),
    dict(curve=[]),
    dict(curve=[[0, 4.0]]),
    dict(curve=[[0, None], [64, None]]),
    dict(seconds='fast'),
    dict(flops_per_token=[1]),
    dict(levels=[1]),
    dict(cell='old, high'),
    dict(cell=''),
]


@pytest.mark.parametrize('changes', odd, ids=str)
def test_one_odd_run_does_not_stop_the_page(tmp_path, changes):
    cells = {'old': 0, 'old, lr=high': 0.5}
    f = records(tmp_path / 'odd', '1M', 7, cells, flops_per_token='many') / '1M.json'
    d = json.loads(f.read_text())
    d['runs'][-1] |= changes
    f.write_text(json.dumps(d))
    assert 'lr=high' in write_experiment_page(f.parent).read_text()
