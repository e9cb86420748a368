"The experiment on 2019: its ends are the recipes, its records are whole, its mechanism works on a toy model"

import ast
import json
from dataclasses import replace
from pathlib import Path
import pytest
from gpt2repro.config import recipe
from gpt2repro.experiment import read_experiment, read_records, records_text
from gpt2repro.experiments.design import Job, jobs, load_design
from gpt2repro.experiments.runs import Folder, make_data, work
from test_cli_values import command

root = Path(__file__).parent.parent
kept = root / 'bench/why2019'
design = load_design(str(root / 'bench/why2019.py'))


def config(cell, steps=1000):
    return design.config(design.placed(Job(cell, steps=steps)))


@pytest.mark.parametrize('end,name', [('2019', 'connor2019-1.5B'), ('ours', '1.5B')])
def test_ends_are_the_recipes(end, name):
    r = recipe(name)
    cfg = config(end, r.max_steps)
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
    adam = config('2019, optimizer=adamw 2019', 500_000).optim
    a = recipe('connor2019-117M').optim
    assert {
        k: getattr(adam, k) for k in ('name', 'lr', 'beta1', 'beta2', 'eps', 'weight_decay', 'decay', 'clip')
    } == {k: getattr(a, k) for k in ('name', 'lr', 'beta1', 'beta2', 'eps', 'weight_decay', 'decay', 'clip')}


def test_design():
    assert len((root / 'bench/why2019.py').read_text().splitlines()) <= 100
    runs = [j for j in design.runs if j.size not in ('30M', '85M')]  # those are for a GPU
    assert len(runs) == 305 and len({j.slug for j in runs}) == 305
    singles = {j.cell for j in runs if j.cell.startswith('2019, ') and j.cell.count(', ') == 1}
    turned = {s.partition(', ')[2].partition('=')[0] for s in singles}
    assert turned == set(design.switches)  # each switch is turned by itself


def test_every_run_is_done_with_these_settings():
    records = {}
    for f in read_experiment(kept):
        for r in f['runs']:
            job = Job(r['cell'], f['about']['size'], f['about']['corpus'], r['seed'], r['steps'])
            records[job] = r
    assert records.keys() == Folder(kept, root, design).done().keys()
    for j in design.runs:
        if j.size not in ('30M', '85M'):
            assert records[j]['levels'] == design.levels(j.cell), j
            optim = {
                k: v for k, v in vars(design.config(j).optim).items() if k in records[j]['settings']['optim']
            }
            assert records[j]['settings']['optim'] == optim, j


def test_list_trains_nothing():
    status, out, err = command(
        'experiment', root / 'bench/why2019.py', '--out', kept, '--list', '--only', "cell='ours', size='1M'"
    )
    assert (status, err) == (0, [])
    runs = [j for j in design.runs if (j.cell, j.size) == ('ours', '1M')]
    assert out.splitlines() == [f'done {j}' for j in runs]  # the records are in the repository


@pytest.mark.parametrize('f', sorted(kept.glob('*.json')), ids=lambda f: f.stem)
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


def test_the_mechanism_on_a_toy_model(tmp_path):
    text = [
        f'def f{i}(x):\n    "Return {i} times x, or {i + 1} if x is {i * 7} and the moon is full."\n    '
        f'return {i}*x\n' * 3
        for i in range(400)
    ]
    cells = ['2019', '2019, lr=ours', 'ours, init=july', 'ours, optimizer=adamw 2019']
    toy = replace(
        design,
        sizes={'toy': design.sizes['0.1M'].replace(vocab_size=320)},
        corpora=dict(code=lambda: (text[:360], text[360:])),
        vocab_size=320,
        steps=32,
        runs=jobs(cells),
    )
    make_data(tmp_path / 'data', toy)
    work(Folder(tmp_path / 'out', tmp_path / 'data', toy), toy.runs)
    files = read_experiment(tmp_path / 'out')
    runs = {r['cell']: r for f in files for r in f['runs']}
    assert set(runs) == set(cells) and files[0]['about']['data']['raw/shards/train']['documents'] == 360
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
