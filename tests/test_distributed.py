"""Several processes under `torchrun` (gloo on the CPU):

the same losses, an end with a clear error when one dies, going on with another number of processes
"""

import json
import os
import random
import shutil
import subprocess
import sys
import pytest

env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GPT2REPRO_QUIET': '1', 'CUDA_VISIBLE_DEVICES': ''}
for k in ('PJRT_DEVICE', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
    env.pop(k, None)

code = """
import json, os, sys, torch
from itertools import islice
from gpt2repro.backend import init_distributed, rank_and_world_size
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig
from gpt2repro.model import GPT2
from gpt2repro.parallel import apply_fsdp, latest_sharded, load_sharded, mean_over_processes, save_sharded, full_tensor
from gpt2repro.train import fit, make_optimizer
folder, name, last, die = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dev = init_distributed(torch.device('cpu'), minutes=1)
rank, n = rank_and_world_size()
o = OptimConfig(lr=3e-2, warmup_steps=5) if name=='adafactor' else OptimConfig(name='adamw', lr=1e-3, warmup_steps=5)
cfg = RunConfig(model=GPT2Config(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout(), batch_tokens=8*16, micro_batch=8//n, max_steps=40, optim=o)
def counting(step, T=16):
    B = 8//n
    x = (torch.arange(T+1)+torch.tensor([[37*step+11*(rank*B+b)] for b in range(B)])) % 97
    return x[:, :-1], x[:, 1:]
torch.manual_seed(0)
model = apply_fsdp(GPT2(cfg.model))
opt = make_optimizer(model, cfg.optim, 40)
path = latest_sharded(folder)
start = load_sharded(path, model, opt)['step'] if path else 0
for step, loss, norm in fit(model, opt, counting, cfg.replace(batch_tokens=8//n*16), dev, start):
    loss = float(mean_over_processes(loss))
    if rank==0: print(json.dumps(dict(step=step, loss=loss, norm=float(full_tensor(norm)))), flush=True)
    if step%5==0: save_sharded(folder, step, model, opt, dict(n=n))
    if step==die and rank==1: os.kill(os.getpid(), 9)
    if step>=last: break
"""


def run(n, folder, name='adamw', last=20, die=0):
    "Exit status, step -> (loss, norm), standard error"
    f = folder / 'run.py'
    folder.mkdir(exist_ok=True)
    f.write_text(code)
    how = (
        [sys.executable]
        if n == 1
        else [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc-per-node',
            str(n),
            '--master-port',
            str(29500 + os.getpid() % 2000 + n),
        ]
    )
    p = subprocess.run(
        [*how, str(f), str(folder / 'pieces'), name, str(last), str(die)],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    recs = [json.loads(l) for l in p.stdout.splitlines() if l.startswith('{')]
    return p.returncode, {r['step']: (r['loss'], r['norm']) for r in recs}, p.stderr


def same(a, b, steps):
    for s in steps:
        assert a[s][0] == pytest.approx(b[s][0], abs=2e-5), (s, a[s], b[s])
        assert a[s][1] == pytest.approx(b[s][1], rel=1e-3), (s, a[s], b[s])


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp('alone'))[1]


def test_two_processes_have_the_losses_of_one(alone, tmp_path):
    status, recs, err = run(2, tmp_path)
    assert status == 0, err[-3000:]
    same(recs, alone, range(1, 21))


@pytest.mark.slow
def test_four_processes_and_adafactor(tmp_path):
    _, want, _ = run(1, tmp_path / 'one', 'adafactor')
    status, recs, err = run(4, tmp_path / 'four', 'adafactor')
    assert status == 0, err[-3000:]
    same(recs, want, range(1, 21))


def test_one_process_dies_and_another_number_goes_on(alone, tmp_path):
    status, recs, err = run(2, tmp_path, die=12)
    assert status != 0 and 'SIGKILL' in err and max(recs) < 20  # torchrun says which process died, of what
    assert [p.name for p in sorted((tmp_path / 'pieces').glob('step-*'))] == [
        'step-00000005',
        'step-00000010',
    ]
    status, recs, err = run(1, tmp_path)
    assert status == 0 and min(recs) == 11, err[-3000:]
    same(recs, alone, range(11, 21))
    assert not [
        p for p in (tmp_path / 'pieces').rglob('*') if p.suffix not in ('.safetensors', '.json', '')
    ], 'no pickle'


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path):
    """`torchrun -m gpt2repro train`: the log, the pieces, the whole model at the end; one process goes
    on where two were killed"""
    rng = random.Random(0)
    words = ['the', 'cat', 'a', 'dog'] + [
        ''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(2, 8))) for _ in range(300)
    ]
    (tmp_path / 'docs.jsonl').write_text(
        ''.join(json.dumps(dict(text=' '.join(rng.choices(words, k=60)) + '.')) + '\n' for _ in range(300))
    )
    small = [
        'model.vocab_size=320',
        'n_ctx=32',
        'n_embd=32',
        'n_layer=2',
        'n_head=2',
        'batch_tokens=256',
        'micro_batch=4',
        'max_steps=40',
        'log_every=5',
        'eval_every=20',
        'eval_batches=2',
        'save_every=10',
    ]

    def train(n, run, *more):
        how = (
            [
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--nproc-per-node',
                str(n),
                '--master-port',
                str(31500 + os.getpid() % 2000),
                '-m',
            ]
            if n > 1
            else [sys.executable, '-m']
        )
        return subprocess.Popen(
            [*how, 'gpt2repro', 'train', str(run), *more, '--device', 'cpu'],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def log(run):
        return [json.loads(l) for l in (run / 'log.jsonl').read_text().splitlines()]

    subprocess.run(
        [
            sys.executable,
            '-m',
            'gpt2repro',
            'prepare',
            str(tmp_path / 'docs.jsonl'),
            '--out',
            str(tmp_path / 'data'),
            '--vocab-size',
            '320',
        ],
        env=env,
        check=True,
        capture_output=True,
    )
    p = train(1, tmp_path / 'one', *small, '--data', str(tmp_path / 'data'))
    assert p.communicate(timeout=900) and p.returncode == 0
    p = train(2, tmp_path / 'two', *small, '--data', str(tmp_path / 'data'))
    out, err = p.communicate(timeout=900)
    assert p.returncode == 0, err[-3000:]
    a, b = ([r['loss'] for r in log(tmp_path / r) if r['kind'] == 'train'] for r in ('one', 'two'))
    assert a == pytest.approx(b, abs=1e-4) and len(a) == 8
    assert (tmp_path / 'two/checkpoints/step-00000040/model.safetensors').is_file()
    shutil.rmtree(tmp_path / 'two/checkpoints')
    shutil.rmtree(tmp_path / 'two/pieces/step-00000040')
    p = train(1, tmp_path / 'two')
    out, err = p.communicate(timeout=900)
    assert p.returncode == 0, err[-3000:]
    assert [r['step'] for r in log(tmp_path / 'two') if r['kind'] == 'event' and r['what'] == 'resume'] == [
        30
    ]
    assert [r['loss'] for r in log(tmp_path / 'two') if r['kind'] == 'train'] == pytest.approx(a, abs=1e-4)
