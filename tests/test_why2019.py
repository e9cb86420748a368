"""The experiment on 2019:

its ends are the recipes, and a design of two switches runs from text to records on a toy model
"""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import why2019 as w
from gpt2repro.config import recipe
from gpt2repro.experiment import read_records, records_text

root = Path(__file__).parent.parent


@pytest.mark.parametrize('end,name', [('2019', 'connor2019-1.5B'), ('ours', '1.5B')])
def test_ends_are_the_recipes(end, name):
    cfg = w.Job(end, steps=recipe(name).max_steps).config
    r = recipe(name)
    assert cfg.optim == r.optim.replace(
        preset='paper'
    )  # the records were made with the paper's Adafactor at both ends
    assert cfg.data.sampler == r.data.sampler
    assert (cfg.init, cfg.table_pdrop, cfg.model.embd_pdrop, cfg.model.attn_pdrop, cfg.model.resid_pdrop) == (
        r.init,
        r.table_pdrop,
        r.model.embd_pdrop,
        r.model.attn_pdrop,
        r.model.resid_pdrop,
    )
    assert r.init_scale in (0, r.model.n_layer**-0.5)  # what `connor_june` does by itself
    adam = w.Job('2019, optimizer=adamw 2019', steps=500_000).config.optim
    a = recipe('connor2019-117M').optim
    assert {
        k: getattr(adam, k) for k in ('name', 'lr', 'beta1', 'beta2', 'eps', 'weight_decay', 'decay', 'clip')
    } == {k: getattr(a, k) for k in ('name', 'lr', 'beta1', 'beta2', 'eps', 'weight_decay', 'decay', 'clip')}


def test_design():
    jobs = w.design()
    assert len(set(jobs)) == len(jobs) and len({j.slug for j in jobs}) == len(jobs)
    assert set(w.quick_design()) <= set(jobs)
    for j in jobs:
        j.config  # every cell is a run that fits together
    singles = {
        s
        for j in jobs
        for s in j.cell.split(', ')[1:]
        if len(j.cell.split(', ')) == 2 and j.cell.startswith('2019')
    }
    assert {s.split('=')[0] for s in singles} == set(w.switches)  # each switch is turned by itself
    with pytest.raises(KeyError):
        w.Job('2019, lr=mine')


def test_list_trains_nothing():
    argv = [sys.executable, '-m', 'bench.why2019', '--list', '--only', "cell='ours', size='1M'"]
    said = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    jobs = [j for j in w.design() if (j.cell, j.size) == ('ours', '1M')]
    assert [line[5:] for line in said] == [str(j) for j in jobs]
    assert all(line.startswith('done') for line in said)  # the records are in the repository


@pytest.mark.parametrize('f', sorted(w.kept.glob('*.json')), ids=lambda f: f.stem)
def test_records_written_again_are_the_same_bytes(f):
    assert records_text(**read_records(f)) == f.read_text(encoding='utf-8')


def test_sentences_that_are_checked_stand_on_the_page():
    nb = json.loads((root / 'nbs/43_why_2019_fell_short.ipynb').read_text(encoding='utf-8'))
    text = {'code': [], 'markdown': []}
    for c in nb['cells']:
        text[c['cell_type']].append(''.join(c['source']))
    page = '\n'.join(text['markdown'])
    trees = [ast.parse(s) for s in text['code'] if 'check_sentence(' in s]
    calls = [
        o for t in trees for o in ast.walk(t) if getattr(getattr(o, 'func', 0), 'id', '') == 'check_sentence'
    ]
    assert len(calls) > 40
    for o in calls:
        assert o.args[0].value in page, f'checked, but not on the page: {o.args[0].value}'


def test_two_switches_from_text_to_records(tmp_path, monkeypatch):
    text = [
        f'def f{i}(x):\n    "Return {i} times x, or {i + 1} if x is {i * 7} and the moon is full."\n    '
        f'return {i}*x\n' * 3
        for i in range(400)
    ]
    monkeypatch.setattr(w, 'vocab', 320)
    monkeypatch.setattr(w, 'sizes', {'toy': w.sizes['0.1M'].replace(vocab_size=320)})
    w.make_data(tmp_path / 'data', dict(code=lambda: (text[:360], text[360:]), absent=lambda: None))
    todo = [
        w.Job(c, size='toy', corpus='code', steps=32)
        for c in ('2019', '2019, lr=ours', 'ours, init=july', 'ours, optimizer=adamw 2019')
    ]
    w.work(todo[:2] + [replace(todo[0], corpus='absent')], tmp_path / 'data', tmp_path / 'out')
    f = tmp_path / 'out/toy-code.json'
    first = f.read_text()
    w.work(todo[:2], tmp_path / 'data', tmp_path / 'out')
    assert f.read_text() == first and len(json.loads(first)['runs']) == 2  # what is there is not done again
    w.work(todo, tmp_path / 'data', tmp_path / 'out', minutes=0)
    assert f.read_text() == first  # no time, no run
    w.work(todo, tmp_path / 'data', tmp_path / 'out')
    d = json.loads(f.read_text())
    runs = {r['cell']: r for r in d['runs']}
    assert set(runs) == {j.cell for j in todo} and d['about']['data']['raw/shards/train']['documents'] == 360
    assert runs['2019, lr=ours']['bpb'] < runs['2019']['bpb'] - 0.1
    for r in runs.values():
        assert (
            r['skipped'] == 0
            and set(r['groups']) == {'embed', 'attn', 'mlp', 'norm_bias'}
            and r['curve'][-1][0] == 32 * 4 * 32
        )
    rms = {c: dict((t, u / x) for t, x, u in r['groups']['mlp']) for c, r in runs.items()}
    at = 16 * 4 * 32
    assert (
        rms['2019'][at] <= 2.5e-4 * 1.01 and rms['2019, lr=ours'][at] > 20 * rms['2019'][at]
    )  # the mechanism: a relative rate bounds the relative step
