"""One program for eight devices (SPMD, FSDPv2), which are virtual ones of the CPU.

Runs in the environment of `make test-xla`
"""

import json
import os
import subprocess
import sys
import pytest

pytest.importorskip('torch_xla', reason='torch_xla is not installed: make test-xla')

code = """
import copy, json, sys
from itertools import islice
import torch
from gpt2repro.backend import device_counts, sync, virtual_devices
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig, VariantConfig
from gpt2repro.variants import build_model
from gpt2repro.loop import GradientMonitor, fit, make_optimizer
from gpt2repro.optimize import optimize_model
from gpt2repro.parallel import shard_model
n = int(sys.argv[1])
dev = virtual_devices(n)
small = GPT2Config(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout()
optim = OptimConfig(lr=3e-2, warmup_steps=10)
if sys.argv[2] == 'muon':
    small = VariantConfig(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=6, n_kv_head=2)
    optim = OptimConfig(name='muon', lr=2e-3, warmup_steps=10)
cfg = RunConfig(model=small, batch_tokens=16*16, micro_batch=16, max_steps=40, optim=optim)
def counting(step, B=16, T=16):
    x = (torch.arange(T+1)+torch.tensor([[37*step+11*b] for b in range(B)])) % 97
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()
torch.manual_seed(0)
m = build_model(cfg.model)
eager = copy.deepcopy(m)
m = optimize_model(m.to(dev))
put = shard_model(m, n)
names = [k for k, _ in m.named_parameters()]==[k for k, _ in eager.named_parameters()]
opt = make_optimizer(m, cfg.optim, 40)
monitor = GradientMonitor(m, opt)
sync(dev)
before = device_counts(dev)
losses, compiled = [], []
for step, l, _ in islice(fit(m, opt, lambda s: tuple(map(put, counting(s))), cfg, dev, monitor=monitor), 20):
    losses.append(l)
    if step in (10, 15): monitor.read(l)
    compiled.append(device_counts(dev)['compilations']-before['compilations'])
sync(dev)
import torch_xla
spec = torch_xla._XLAC._get_xla_sharding_spec(m.h[0].mlp.c_fc.weight)
plain = fit(eager, make_optimizer(eager, cfg.optim, 40), counting, cfg, torch.device('cpu'))
want = [float(l) for _, l, _ in islice(plain, 20)]
off = float((m.wte.weight.cpu()-eager.wte.weight).abs().max())
losses = [float(l) for l in losses]
print(json.dumps(dict(losses=losses, want=want, names=names, spec=spec, compiled=compiled, weight=off)))
"""


def on_eight(name):
    "What a run on eight virtual devices says"
    p = subprocess.run(
        [sys.executable, '-c', code, '8', name],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert p.returncode == 0, p.stderr[-2000:]
    return json.loads(p.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def eight():
    return on_eight('gpt2')


def test_a_variant_with_muon():
    "The compiler gathers the matrices that Newton-Schulz needs whole; in bfloat16 sums differ"
    said = on_eight('muon')
    assert said['losses'] == pytest.approx(said['want'], abs=3e-3)
    assert said['names'] and 'devices=[8,1]' in said['spec'], said['spec']
    assert said['compiled'] == [1] * 9 + [2] * 11, said['compiled']


def test_losses_are_those_of_one_device(eight):
    assert eight['losses'] == pytest.approx(eight['want'], abs=1e-5)


def test_weights_are_divided_and_keep_their_names(eight):
    assert eight['names'] and 'devices=[8,1]' in eight['spec'], eight['spec']
    assert eight['weight'] < 1e-4


def test_one_compilation(eight):
    """The optimizer's state lies divided before the first step as a step leaves it; bringing numbers to
    the host at step 10 is a small program of its own, once"""
    assert eight['compiled'] == [1] * 9 + [2] * 11, eight['compiled']


whole_run = """
import random, sys
from pathlib import Path
from gpt2repro.config import DataConfig, GPT2Config, OptimConfig, RunConfig
from gpt2repro.shards import write_shards
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.train import train
home, run, device = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if not (home / 'tokenizer').exists():
    rng = random.Random(0)
    words = 'the cat sat on a mat and saw how one dog ran past it'.split()
    docs = [' '.join(rng.choices(words, k=30)) + '.' for _ in range(300)]
    tok = SentencePiece.train(docs, vocab_size=320)
    tok.save(home / 'tokenizer')
    for name, part in dict(train=docs[:270], valid=docs[270:]).items():
        write_shards(part, tok, home / 'shards' / name, workers=1)
model = GPT2Config(vocab_size=320, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout()
cfg = RunConfig(
    model=model, data=DataConfig(source=str(home)), batch_tokens=8*16, micro_batch=8,
    max_steps=int(sys.argv[4]),
    log_every=5, eval_every=10, eval_batches=2, sample_every=20, save_every=10,
    optim=OptimConfig(lr=1e-2, warmup_steps=5, schedule='constant'),
)
train(cfg, home / run, device, watch=[])
"""


def test_the_records_of_a_slice_are_those_of_one_device(tmp_path):
    "A whole run on eight devices; and one that eight devices begin and one CPU ends"
    from test_distributed import lasting, log, same_records

    def train(run, device, steps):
        p = subprocess.run(
            [sys.executable, '-c', whole_run, str(tmp_path), run, device, str(steps)],
            env={**os.environ, 'PJRT_DEVICE': 'CPU', 'CPU_NUM_DEVICES': '8', 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert p.returncode == 0, p.stderr[-2000:]
        return tmp_path / run

    one = log(train('one', 'cpu', 30))
    slice = train('slice', 'xla', 20)
    shorter = [r | dict(max_steps=20) if 'max_steps' in r else r for r in one if r['step'] <= 20]
    same_records(shorter, log(slice)[:-1])  # the last says that it has ended
    assert lasting(train('slice', 'cpu', 30))[-1]['step'] == 30
    same_records([r for r in one if r['kind'] != 'event'], lasting(slice))
