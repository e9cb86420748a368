"The benchmarks: each says what it does, tables are kept, and what a GPU will be asked is rehearsed on a CPU"

import json
import os
import subprocess
import sys
from pathlib import Path
import pytest
import torch

root = Path(__file__).parent.parent
sys.path.insert(0, str(root))
from bench import common, gpu
from bench.__main__ import scripts

names = list(scripts())
env = common.environment(GPT2REPRO_QUIET='1')

every_help = """
import contextlib, io, json, runpy, sys, traceback
said = {}
for name in sys.argv[1:]:
    sys.argv = [name, '--help']
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(f'bench.{name}', run_name='__main__', alter_sys=True)
            status = 'no help'
        except SystemExit as e:
            status = e.code
        except Exception:
            status = traceback.format_exc()
    said[name] = status, out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope='module')
def helps():
    "(status, text) of `python -m bench.NAME --help` for all, in one process because PyTorch loads slowly"
    p = subprocess.run(
        [sys.executable, '-c', every_help, *names], cwd=root, env=env, capture_output=True, text=True
    )
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout.splitlines()[-1])


@pytest.mark.parametrize('name', names)
def test_help(helps, name):
    status, text = helps[name]
    assert status == 0, status
    assert text.startswith('usage: ')
    assert scripts()[name] in ' '.join(text.split())


def test_list_names_every_benchmark_in_a_line():
    p = subprocess.run([sys.executable, '-m', 'bench'], cwd=root, env=env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    for name in ('adafactor', 'data', 'evaluate', 'gpu', 'model', 'plan', 'sample', 'train', 'webtext'):
        assert any(l.split()[:1] == [name] for l in p.stdout.splitlines()), name


def test_results_keep_other_sections_and_replace_their_own(tmp_path, capsys):
    f = tmp_path / 'RESULTS.md'
    f.write_text('# Results\nAbout.\n\n## One\nold\n\n## Two\nstays\n', encoding='utf-8')
    common.save_table('One', [dict(what='ours', s=0.123456), dict(what='peer', s=1234.5)], file=f)
    text = f.read_text(encoding='utf-8')
    assert text.startswith('# Results\nAbout.\n\n## Two\nstays\n\n## One\n')
    assert 'old' not in text and text.count('## One') == 1
    assert '| ours | 0.123 |\n| peer | 1,234 |\n' in text and text.endswith('|\n')
    common.save_table('One', [dict(what='ours', s=1.0)], file=f)
    assert f.read_text(encoding='utf-8').count('## One') == 1


def test_turns():
    order = []
    fns = {k: (lambda k=k: order.append(k)) for k in 'ab'}
    took = common.in_turns(fns, 3, warmup=1)
    assert order == list('abababab') and {k: len(v) for k, v in took.items()} == dict(a=3, b=3)
    assert common.times_faster(dict(a=[1, 1, 1], b=[2, 9, 3]), 'a', 'b') == 3
    assert len(common.in_turns(fns, 100, seconds=0)['a']) == 1


def test_a_process_of_its_own():
    assert common.alone(common.cell, 0.12345) == '0.123'
    with pytest.raises(RuntimeError, match='cell'):
        common.alone(common.cell, 1, 2)


def test_peak_sees_a_temporary():
    device = torch.device('cpu')
    n = 64 << 20
    some = common.peak_of(lambda: torch.ones(n // 4).max(), device)
    assert 0.9 * n < some < 2 * n


def test_published_texts_come_from_one_variable(tmp_path, monkeypatch):
    monkeypatch.delenv('GPT2REPRO_TEST_DATA', raising=False)
    assert common.reference('wikitext2') is None
    monkeypatch.setenv('GPT2REPRO_TEST_DATA', str(tmp_path))
    assert common.reference('wikitext2') is None
    (tmp_path / 'wikitext2').mkdir()
    assert common.reference('wikitext2') == tmp_path / 'wikitext2'


def rehearse(out, *argv):
    "`python -m bench.gpu --toy` on the CPU: status, output"
    p = subprocess.run(
        [sys.executable, '-m', 'bench.gpu', '--toy', '--device', 'cpu', '--out', str(out), *argv],
        cwd=root,
        env={**env, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    return p.returncode, p.stdout + p.stderr


def check(out, parts):
    "What the parts left, all done and with numbers"
    results = (out / 'results.md').read_text(encoding='utf-8')
    found = {}
    for name in parts:
        found[name] = json.loads((out / f'{name}.json').read_text(encoding='utf-8'))
        assert found[name]['status'] == 'done', found[name].get('traceback')
        assert f'## {name}' in results and (out / f'{name}.log').exists()
        assert found[name]['rows'] or found[name]['notes']
        for row in found[name]['rows']:
            assert all(v == v and v is not None for v in row.values())  # no NaN
    return found


def test_gpu_rehearsal_and_a_part_that_fails(tmp_path):
    "Three parts; the last fails, which costs the others nothing, and the status says so"
    status, said = rehearse(
        tmp_path, '--only', 'device', 'evaluate', 'cells', '--notebooks', 'no_such_notebook'
    )
    assert status == 1, said
    found = check(tmp_path, ['device', 'evaluate'])
    ours, theirs = found['evaluate']['rows'][:2]
    assert ours['tokens/s'] > 0 and theirs['times transformers'] == 1
    failed = json.loads((tmp_path / 'cells.json').read_text(encoding='utf-8'))
    assert failed['status'] == 'failed' and 'no_such_notebook' in failed['error']
    assert 'AssertionError' in failed['traceback']
    assert failed['error'] in (tmp_path / 'results.md').read_text(encoding='utf-8')


def test_gpu_part_out_of_time(tmp_path):
    "A part is stopped with what it has; PyTorch alone takes longer than this one may"
    opts = dict(out=str(tmp_path), toy=True, device='cpu', notebooks=[])
    found = gpu.run_part('model-124M', opts, 0.5)
    assert found['status'] == 'failed' and found['error'].startswith('out of time')
    assert json.loads((tmp_path / 'model-124M.json').read_text(encoding='utf-8')) == found
    assert 'out of time' in gpu.report([found], opts)


def test_gpu_measurement_that_fails_costs_no_other(tmp_path, monkeypatch):
    def rows(part, cfg, precision, *args):
        if precision == 'tf32':
            raise ValueError('broken here')
        part.row(precision=precision)

    monkeypatch.setattr(gpu, 'model_rows', rows)
    opts = dict(out=str(tmp_path), toy=True, device='cpu', notebooks=[], seconds=60)
    assert gpu.work('model-124M', opts) == 'failed'
    found = json.loads((tmp_path / 'model-124M.json').read_text(encoding='utf-8'))
    assert [r['precision'] for r in found['rows']] == ['bfloat16', 'float32', 'bfloat16 compiled']
    assert found['error'] == 'tf32: ValueError: broken here' and 'in rows' in found['traceback']


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is here')
def test_gpu_without_one_says_how_to_rehearse():
    p = subprocess.run(
        [sys.executable, '-m', 'bench.gpu', '--device', 'cpu'],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert p.returncode == 2 and '--toy --device cpu' in p.stderr


@pytest.mark.slow
def test_gpu_rehearsal_of_every_part(tmp_path):
    status, said = rehearse(tmp_path)
    assert status == 0, said
    found = check(tmp_path, gpu.parts)
    whats = {r['what'] for r in found['model-124M']['rows']}
    assert whats == {'gpt2repro', 'transformers'}
    assert all(r['holds'] for r in found['agree']['rows'])
    assert sorted(os.listdir(tmp_path)) == sorted(
        ['results.md', *(f'{p}.{e}' for p in gpu.parts for e in ('json', 'log'))]
    )
