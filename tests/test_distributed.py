"""Several processes under `torchrun` (gloo on the CPU): the records of one process, an end with a clear error
when one dies, and going on with another number of processes"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
import time
import pytest

env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GPT2REPRO_QUIET': '1', 'CUDA_VISIBLE_DEVICES': ''}
for k in ('PJRT_DEVICE', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
    env.pop(k, None)


def python(n, port=29500):
    "The command that runs Python in `n` processes"
    if n == 1:
        return [sys.executable]
    port = str(port + os.getpid() % 2000 + n)
    return [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(n), '--master-port', port]


# the loop by itself: a model that is divided, saved and loaded by hand

code = """
import json, os, sys, torch
from gpt2repro.backend import get_device
from gpt2repro.checkpoint import Saver, latest_checkpoint, load_checkpoint
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig, VariantConfig
from gpt2repro.loop import fit, make_optimizer
from gpt2repro.parallel import divide, full_tensor
from gpt2repro.variants import build_model
folder, name, last, die = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
split = divide(get_device('cpu'))
rank, n = split.rank, split.world
o = OptimConfig(lr=3e-2, warmup_steps=5)
if name == 'adamw':
    o = OptimConfig(name='adamw', lr=1e-3, warmup_steps=5)
model = GPT2Config(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout()
if name == 'muon':  # matrices of 10 rows: two processes have 5 each, four 3, 3, 3 and 1
    o = OptimConfig(name='muon', lr=2e-3, warmup_steps=5)
    model = VariantConfig(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=6, n_kv_head=1, head_dim=10)
cfg = RunConfig(model=model, batch_tokens=8*16, micro_batch=8//n, max_steps=40, optim=o)
def counting(step, rank=0, world=1, T=16):
    B = 8//world
    x = (torch.arange(T+1)+torch.tensor([[37*step+11*(rank*B+b)] for b in range(B)])) % 97
    return x[:, :-1], x[:, 1:]
torch.manual_seed(0)
model = split.shard(build_model(cfg.model))
opt = make_optimizer(model, cfg.optim, 40)
path = split.first(lambda: latest_checkpoint(folder))
start = load_checkpoint(path, model, opt)['step'] if path else 0
with Saver(folder) as save:
    for step, loss, norm in fit(model, opt, split.batches(counting, 8), cfg, split.device, start):
        if rank == 0:
            print(json.dumps(dict(step=step, loss=float(loss), norm=float(full_tensor(norm)))), flush=True)
        if step%5 == 0:
            save(step, model, opt, dict(n=n))
            split.first(save.wait)
        if step == die and rank == 1: os.kill(os.getpid(), 9)
        if step >= last: break
"""


def run(n, folder, name='adamw', last=20, die=0):
    "Exit status, step -> (loss, norm), standard error"
    f = folder / 'run.py'
    folder.mkdir(exist_ok=True)
    f.write_text(code)
    p = subprocess.run(
        [*python(n), str(f), str(folder / 'checkpoints'), name, str(last), str(die)],
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


def test_a_variant_with_muon_in_two_processes(tmp_path):
    "Newton-Schulz needs whole matrices: they are gathered. In bfloat16 the sums differ in the third digit"
    _, want, _ = run(1, tmp_path / 'one', 'muon', last=10)
    status, recs, err = run(2, tmp_path / 'two', 'muon', last=5)
    assert status == 0, err[-3000:]
    status, more, err = run(1, tmp_path / 'two', 'muon', last=10)  # goes on from what two have saved
    assert status == 0 and min(more) == 6, err[-3000:]
    recs |= more
    for step in range(1, 11):
        assert recs[step] == pytest.approx(want[step], rel=2e-3), step


def test_one_process_dies_and_another_number_goes_on(alone, tmp_path):
    status, recs, err = run(2, tmp_path, die=12)
    assert status != 0 and 'SIGKILL' in err and max(recs) < 20  # torchrun says which process died, of what
    checkpoints = tmp_path / 'checkpoints'
    assert [p.name for p in sorted(checkpoints.glob('step-*'))] == ['step-00000005', 'step-00000010']
    status, recs, err = run(1, tmp_path)
    assert status == 0 and min(recs) == 11, err[-3000:]
    same(recs, alone, range(11, 21))
    kinds = {p.suffix for p in checkpoints.rglob('*')}
    assert kinds <= {'.safetensors', '.json', ''}, 'no pickle'


# the command: one process and several write the same records and the same checkpoints

settings = (
    'vocab_size=320 n_ctx=32 n_embd=32 n_layer=2 n_head=2 embd_pdrop=0 attn_pdrop=0 resid_pdrop=0 '
    'batch_tokens=256 micro_batch=4 max_steps=40 log_every=5 eval_every=20 eval_batches=2 sample_every=40 '
    'save_every=10 optim.warmup_steps=4 dtype=float32'
).split()
# what a clock or a machine says, and what is not the same on two devices
measured = {
    'arithmetic',  # says how many processes
    'tokens_per_s',
    'peak_share',
    'peak_gflops',
    'seconds',
    'left_s',
    'memory',
    'peak_memory',
    'device',
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A prepared folder, with held-out text that has other bytes per token than the text to train on"
    from gpt2repro.shards import write_shards
    from gpt2repro.tokenizer import SentencePiece

    home = tmp_path_factory.mktemp('data')
    rng = random.Random(0)
    letters = 'abcdefghijklmnopqrstuvwxyz'
    words = ['the', 'cat', 'a', 'dog'] + [
        ''.join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(300)
    ]
    docs = [' '.join(rng.choices(words, k=60)) + '.' for _ in range(300)]
    tok = SentencePiece.train(docs, vocab_size=320)
    tok.save(home / 'tokenizer')
    valid = [' '.join(rng.choices(words[:4], k=60)) for _ in range(30)]
    for name, part in dict(train=docs, valid=valid).items():
        write_shards(part, tok, home / 'shards' / name, workers=1)
    return home


def train(n, run, *more):
    "The process, or the agent of the processes, that trains"
    args = [*python(n, 31500), '-m', 'gpt2repro', 'train', str(run), *more, '--device', 'cpu']
    return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(p):
    out, err = p.communicate(timeout=900)
    assert p.returncode == 0, err[-3000:]
    return out


def log(run):
    return [json.loads(l) for l in (run / 'log.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "A run of one process that nothing interrupted"
    run = tmp_path_factory.mktemp('runs') / 'whole'
    finished(train(1, run, *settings, '--data', str(data)))
    return run


def close(a, b):
    "Two values of records: the same keys, the same words, numbers to 1e-5"
    if isinstance(a, dict):
        return list(a) == list(b) and all(close(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return a == pytest.approx(b, abs=1e-5, rel=1e-4)
    return a == b


def same_records(a, b):
    "Record by record: kinds, steps, fields in their order, and what was computed"
    assert [(r['kind'], r['step'], r.get('what')) for r in a] == [
        (r['kind'], r['step'], r.get('what')) for r in b
    ]
    for x, y in zip(a, b):
        assert list(x) == list(y), (x, y)
        for k in x.keys() - measured:
            assert close(x[k], y[k]), (x['kind'], x['step'], k, x[k], y[k])
            if k in ('loss', 'bpb'):
                assert x[k] == pytest.approx(y[k], abs=1e-5), (x['step'], k)


def test_the_records_of_two_processes_are_those_of_one(whole, data, tmp_path):
    track = ['--track', 'tensorboard'] if find_spec('tensorboard') else []  # not on Colab's TPU image
    out = finished(train(2, tmp_path / 'two', *settings, '--data', str(data), *track))
    a, b = log(whole), log(tmp_path / 'two')
    assert {r['kind'] for r in a} == {'event', 'train', 'valid', 'sample'}
    same_records(a, b)
    assert out.count('held-out loss') == 1  # one process speaks
    assert (tmp_path / 'two/report.html').is_file()
    assert not track or list((tmp_path / 'two/tensorboard').iterdir())
    files = [
        sorted(str(f.relative_to(r)) for f in (r / 'checkpoints').rglob('*'))
        for r in (whole, tmp_path / 'two')
    ]
    assert files[0] == files[1]  # a checkpoint does not tell who wrote it
    last = 'checkpoints/step-00000040'
    states = [json.loads((r / last / 'state.json').read_text()) for r in (whole, tmp_path / 'two')]
    assert states[0].keys() == states[1].keys()
    assert states[0]['score'] == pytest.approx(states[1]['score'], abs=1e-5)


def lasting(run):
    "Records without events, which tell of interruptions"
    return [r for r in log(run) if r['kind'] != 'event']


def interrupt(p, run):
    "SIGTERM once the run has got on; what it said of its end"
    end = time.time() + 300
    while time.time() < end and p.poll() is None:
        if (run / 'log.jsonl').exists() and '"train"' in (run / 'log.jsonl').read_text():
            break
        time.sleep(0.01)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=300)
    assert p.returncode != 0, err[-3000:]
    [stop] = [r for r in log(run) if r.get('what') == 'stop']
    assert stop['why'] == 'SIGTERM' and 0 < stop['step'] < 40, stop
    assert (run / f'checkpoints/step-{stop["step"]:08}/state.json').is_file()
    return stop['step']


@pytest.mark.parametrize('first,then', [(2, 1), (1, 2)])
def test_a_signal_ends_a_run_and_another_number_goes_on(first, then, whole, data, tmp_path):
    run = tmp_path / 'run'
    step = interrupt(train(first, run, *settings, '--data', str(data)), run)
    finished(train(then, run))
    assert [r['step'] for r in log(run) if r.get('what') == 'resume'] == [step]
    same_records(lasting(whole), lasting(run))


@pytest.mark.slow
def test_the_command_under_torchrun(whole, data, tmp_path):
    "One process goes on where two were killed, and three from there: 8 sequences are not for three"
    two = tmp_path / 'two'
    finished(train(2, two, *settings, '--data', str(data)))
    shutil.rmtree(two / 'checkpoints/step-00000040')
    kept = (two / 'log.jsonl').read_bytes()
    p = train(3, two)
    out, err = p.communicate(timeout=900)
    assert p.returncode != 0 and '8 sequences, which 3 processes can not share' in err, err[-3000:]
    assert (two / 'log.jsonl').read_bytes() == kept
    finished(train(1, two))
    assert [r['step'] for r in log(two) if r.get('what') == 'resume'] == [30]
    same_records(lasting(whole), lasting(two))
    shutil.rmtree(two / 'checkpoints')
    kept = (two / 'log.jsonl').read_bytes()
    for n in 1, 2:  # a fresh start would throw the log away
        p = train(n, two)
        out, err = p.communicate(timeout=900)
        assert p.returncode != 0 and 'there is no checkpoint to go on from' in err, err[-3000:]
        assert (two / 'log.jsonl').read_bytes() == kept


@pytest.mark.slow
def test_raw_text_is_prepared_by_one_process(tmp_path):
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(2, 8))) for _ in range(300)]
    docs = [' '.join(rng.choices(words, k=60)) for _ in range(300)]
    (tmp_path / 'docs.jsonl').write_text(''.join(json.dumps(dict(text=d)) + '\n' for d in docs))
    short = [s for s in settings if not s.startswith('max_steps')] + ['max_steps=4']
    finished(train(2, tmp_path / 'run', *short, '--data', str(tmp_path / 'docs.jsonl')))
    assert (tmp_path / 'run/shards/train/manifest.json').is_file() and log(tmp_path / 'run')[-1][
        'what'
    ] == 'end'
