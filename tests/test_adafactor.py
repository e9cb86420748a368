"""Adafactor against float64 NumPy, TensorFlow's two versions written out, another device, and shards in
two processes"""

import math
import os
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from gpt2repro.adafactor import Adafactor
from gpt2repro.schedule import warmup_cosine

root = Path(__file__).parent.parent


def second_moment(g, s, beta, e1):
    "Adafactor's V in float64; factored over the last two axes"
    g2 = g**2 + e1
    if g.ndim < 2:
        s['v'] = beta * s.get('v', 0.0) + (1 - beta) * g2
        return s['v']
    s['r'], s['c'] = (beta * s.get(k, 0.0) + (1 - beta) * g2.mean(a) for k, a in (('r', -1), ('c', -2)))
    return s['r'][..., None] * s['c'][..., None, :] / s['r'].mean(-1)[..., None, None]


def rms(x):
    return np.sqrt((x**2).mean())


def oracle(
    x,
    grads,
    rate=lambda t: min(1e-2, t**-0.5),
    scale=True,
    beta1=0.0,
    d=1.0,
    shrink=lambda t: 0.0,
    e1=1e-30,
    e2=1e-3,
    rounded=lambda x: x,
):
    """The paper, and tensor2tensor's additions: momentum of the scaled update; weight decay before
    everything else, as TensorFlow's decoupled decay"""
    x = np.float64(x)
    s = {}
    m = 0.0
    out = []
    for t, g in enumerate(map(np.float64, grads), 1):
        x = x - shrink(t) * x
        u = g / np.sqrt(second_moment(g, s, 1 - t**-0.8, e1))
        u = u / max(1, rms(u) / d) * rate(t) * (max(e2, rms(x)) if scale else 1.0)
        m = beta1 * m + (1 - beta1) * u
        x = rounded(x - m)
        out.append(x)
    return out


def gradients(shape, scale=1.0, n=100, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=g) * scale * (1 + i % 7 if scale < 1e18 else 1)).to(dtype)
        for i in range(n)
    ]


def steps(make, x0, grads):
    p = nn.Parameter(x0.clone())
    opt = make([p])
    out = []
    for g in grads:
        p.grad = g.clone()
        opt.step()
        out.append(p.detach().clone())
    return opt, out


def far(got, want):
    return np.linalg.norm(got.double().numpy() - want) / np.linalg.norm(want)


@pytest.mark.parametrize(
    'shape',
    [(), (1,), (13,), (1, 9), (9, 1), (50, 70), (2, 3, 5), (700, 900), (3, 400, 500), (70_001,)],
    ids=str,
)
def test_oracle(shape):
    big = math.prod(shape) > 10_000
    for scale in (1.0, 1e-18, 1e18, 0.0) if not big else (1e18,):
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        grads = gradients(shape, scale, 20 if big else 100)
        opt, got = steps(Adafactor, x0, grads)
        assert not opt.nonfinite
        assert far(got[-1], oracle(x0.numpy(), [g.numpy() for g in grads])[-1]) < 1e-6, scale


def test_rows_without_gradient():
    "Rows of zeros beside rows of ordinary size: an embedding's unseen tokens"
    x0 = torch.randn(40, 8)
    grads = gradients((40, 8), 1e9)
    for g in grads:
        g[5:] = 0.0
    _, got = steps(Adafactor, x0, grads)
    assert torch.equal(got[-1][5:], x0[5:])
    assert far(got[-1], oracle(x0.numpy(), [g.numpy() for g in grads])[-1]) < 1e-6


@pytest.mark.parametrize(
    'kw', [dict(), dict(scale_parameter=False), dict(lr=3e-3, beta1=0.9), dict(clip_threshold=0.5)], ids=str
)
def test_tensor2tensor(kw):
    scale = kw.get('scale_parameter', True)
    rate = lambda t: kw.get('lr') or min(t**-0.5, 0.01) * (1.0 if scale else 0.05)
    for shape in (12, 17), (9,):
        x0 = torch.randn(shape) * 0.02
        grads = gradients(shape, 1e-3)
        _, got = steps(lambda ps: Adafactor.preset('tensor2tensor', ps, **kw), x0, grads)
        assert (
            far(
                got[-1],
                oracle(
                    x0.numpy(),
                    [g.numpy() for g in grads],
                    rate,
                    scale,
                    kw.get('beta1', 0.0),
                    kw.get('clip_threshold', 1.0),
                )[-1],
            )
            < 1e-6
        )


def test_connor2019():
    "The schedule of 2019 counts from 0: the first step only fills the second moment"

    def rate(t, peak=2.5e-2, warmup=20, total=90):
        s = t - 1
        if s < warmup:
            return peak * s / warmup
        share = min(1.0, (s - warmup) / (total - warmup))
        return 0.5 * peak * (1 + math.cos(math.pi * share))

    for shape in (12, 17), (9,):
        x0 = torch.randn(shape) * 0.02
        grads = gradients(shape, 1e-3)
        _, got = steps(
            lambda ps: Adafactor.preset(
                'connor2019', ps, lr=2.5e-2, warmup_steps=20, max_steps=90, weight_decay=0.5
            ),
            x0,
            grads,
        )
        assert torch.equal(got[0], x0)
        assert (
            far(
                got[-1],
                oracle(x0.numpy(), [g.numpy() for g in grads], rate, shrink=lambda t: 0.5 * rate(t))[-1],
            )
            < 1e-6
        )


def bf16(x):
    return torch.tensor(x).bfloat16().double().numpy()


def ulp(x):
    return 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 1e-30))) - 7)


def test_bfloat16_is_the_rounded_oracle():
    """State in float32: at every step within one bf16 ulp of the oracle that is rounded at each step,
    on 99.9 % of the weights"""
    x0 = torch.randn(60, 80).bfloat16()
    grads = gradients((60, 80), dtype=torch.bfloat16)
    opt, got = steps(Adafactor, x0, grads)
    want = oracle(x0.double().numpy(), [g.double().numpy() for g in grads], rounded=bf16)
    assert {v.dtype for s in opt.state.values() for v in s.values()} == {torch.float32}
    for a, b in zip(got, want):
        assert (np.abs(a.double().numpy() - b) <= ulp(b) * 1.001).mean() >= 0.999


def test_stochastic_rounding():
    """Keeps small steps that rounding to the nearest loses; each step is one of the two neighbours; the
    same again"""
    x0 = torch.ones(64, 64).bfloat16()
    grads = [torch.ones(64, 64).bfloat16() for _ in range(40)]
    make = lambda ps: Adafactor(ps, lr=2e-4, stochastic_rounding=True)
    _, got = steps(make, x0, grads)
    _, nearest = steps(lambda ps: Adafactor(ps, lr=2e-4), x0, grads)
    assert torch.equal(nearest[-1], x0)
    assert abs(float(got[-1].float().mean()) - (1 - 2e-4) ** 40) < 5e-4
    assert set(got[0].float().unique().tolist()) <= {1.0, 1 - 2**-8}
    assert torch.equal(got[-1], steps(make, x0, grads)[1][-1])
    small = nn.Parameter(torch.ones(7).bfloat16()), nn.Parameter(torch.ones(7).bfloat16())
    opt = Adafactor(small, lr=2e-4, stochastic_rounding=True)
    for p in small:
        p.grad = torch.ones(7).bfloat16()
    opt.step()
    assert all(p.isfinite().all() for p in small)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e20, -2e19])
def test_a_single_bad_number_changes_nothing(bad):
    ps = [nn.Parameter(torch.randn(s)) for s in ((600, 1000), (1000,), (9,), (9,), ())]
    opt = Adafactor(ps, beta1=0.9, weight_decay=0.1)

    def go():
        opt.step()
        return [p.detach().clone() for p in ps] + [v.clone() for s in opt.state.values() for v in s.values()]

    for p in ps:
        p.grad = torch.randn_like(p)
    before = go()
    for i, p in enumerate(ps):
        good = p.grad.clone()
        p.grad.view(-1)[-1] = bad
        assert all(map(torch.equal, go(), before)), i
        assert opt.nonfinite
        p.grad.copy_(good)
    go()
    assert not opt.nonfinite


class Largest(TorchDispatchMode):
    "Remembers the most numbers that any operation returned in memory of its own"

    def __init__(self, known):
        super().__init__()
        self.known = {p.untyped_storage().data_ptr() for p in known}
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for o in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(o, torch.Tensor) and o.untyped_storage().data_ptr() not in self.known:
                self.n = max(self.n, o.untyped_storage().nbytes() // 4)
        return out


def test_memory():
    "A step makes nothing as large as a large parameter: blocks of at most 2^20 numbers"
    p = nn.Parameter(torch.randn(4000, 1000))
    p.grad = torch.randn_like(p)
    opt = Adafactor([p])
    with Largest([p, p.grad]) as seen:
        opt.step()
    assert 0 < seen.n <= 2**20


@pytest.mark.parametrize(
    'preset,kw',
    [
        ('paper', dict()),
        ('paper', dict(weight_decay=0.3)),
        ('tensor2tensor', dict(scale_parameter=False)),
        ('connor2019', dict()),
        ('transformers', dict(weight_decay=0.1)),
    ],
    ids=str,
)
def test_whatever_the_blocks(monkeypatch, preset, kw):
    """Large matrices in blocks and small ones in stacks do as each tensor whole and alone: several
    presets, a gradient that is not finite in between"""
    shapes = (321, 515), (515, 130), (130, 515), (130, 515), (9,), (9,), (3, 40, 50)

    def run(block_size):
        monkeypatch.setattr('gpt2repro.adafactor.block_size', block_size)
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.randn(s) * 0.02) for s in shapes]
        opt = Adafactor.preset(preset, ps, track=True, **kw)
        for i in range(20):
            for p in ps:
                p.grad = torch.randn_like(p) * (1 + i % 7)
            if i == 9:
                ps[1].grad[3, 4] = math.nan
            opt.step()
            assert bool(opt.nonfinite) == (i == 9)
        return torch.cat([p.detach().flatten() for p in ps]).double(), torch.stack(
            list(opt.stats()['0'].values())
        ).double()

    want, told = run(2**20)  # stacked
    for size in 2**12, 1:  # blocks of some rows; of one row
        a, seen = run(size)
        assert far(a, want.numpy()) < 1e-6 and far(seen, told.numpy()) < 1e-5


def test_another_device():
    "State follows the parameter, and state of a CPU loads elsewhere (`meta` stands for another device)"
    p = nn.Parameter(torch.randn(4, 3))
    opt = Adafactor([p], beta1=0.5)
    p.grad = torch.randn(4, 3)
    opt.step()
    q = nn.Parameter(torch.randn(4, 3, device='meta', dtype=torch.bfloat16))
    other = Adafactor([q], beta1=0.5)
    other.load_state_dict(opt.state_dict())
    assert {(v.device.type, v.dtype) for v in other.state[q].values()} == {('meta', torch.float32)}
    q.grad = torch.randn(4, 3, device='meta', dtype=torch.bfloat16)
    other.step()
    with pytest.raises(ValueError, match='does not fit'):
        Adafactor([nn.Parameter(torch.randn(5, 3))], beta1=0.5).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match='does not fit'):
        Adafactor([p]).load_state_dict(opt.state_dict())


def test_float64_parameters():
    "are updated in float64"
    for shape in (40, 30), (30,):
        x0 = torch.randn(shape).double()
        grads = gradients(shape, dtype=torch.float64)
        _, got = steps(Adafactor, x0, grads)
        assert far(got[-1], oracle(x0.numpy(), [g.numpy() for g in grads])[-1]) < 1e-7


def test_options_by_group_and_minimum_size():
    ps = [nn.Parameter(torch.randn(s)) for s in ((4, 200), (130, 200), (130, 200))]
    opt = Adafactor(
        [
            dict(params=ps[:2], min_factored=128, lr=1e-3),
            dict(params=ps[2:], lr=warmup_cosine(0.1, 1, 10), scale_parameter=False),
        ]
    )
    assert ['row' in opt.state[p] for p in ps] == [False, True, True]
    assert (
        repr(opt).splitlines()[0]
        == 'Adafactor, relative learning rate 0.001 or absolute learning rate warmup_cosine(0.1, 1, 10)'
    )
    for p in ps:
        p.grad = torch.ones_like(p)
    before = ps[2].detach().clone()
    opt.step()
    assert torch.allclose(before - ps[2], torch.full_like(before, 0.1), atol=1e-6)
    ps[1].grad = None  # a parameter without a gradient keeps its own count
    opt.step()
    assert [float(opt.state[p]['step']) for p in ps] == [2.0, 1.0, 2.0]


def test_closure_and_torch_scheduler():
    p = nn.Parameter(torch.ones(3, 2))
    opt = Adafactor([p], lr=1e-2)
    sched = torch.optim.lr_scheduler.StepLR(opt, 1, 0.1)

    def closure():
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).detach() == 6.0
    a = p.detach().clone()
    sched.step()
    opt.step(closure)
    assert (
        abs(
            float((a - p).detach().mean())
            - 1e-3 * 0.99 * 1.98 / math.sqrt((1 - 2**-0.8) * 4 + 2**-0.8 * 1.98**2)
        )
        < 1e-6
    )


sharded = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from gpt2repro.adafactor import Adafactor
dist.init_process_group('gloo')
rank,kw = dist.get_rank(),dict(beta1=.9, weight_decay=.1, track=True)
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 3))
def go(m, n, opt=None):
    opt = opt or Adafactor(m.parameters(), **kw)
    for i in range(n):
        torch.manual_seed(i)
        x = torch.randint(0, 11, (8,))
        opt.zero_grad()
        m(x).square().mean().backward()
        opt.step()
    return opt
plain,parts = build(),build()
for l in parts: fully_shard(l, mesh=init_device_mesh('cpu', (2,)))
fully_shard(parts, mesh=init_device_mesh('cpu', (2,)))
a,b = go(plain, 5),go(parts, 5)
assert any(isinstance(v, DTensor) for s in b.state.values() for v in s.values())
for (n,p),q in zip(plain.named_parameters(), parts.parameters()):
    w = q.full_tensor()
    assert (w-p).norm()<=1e-6*p.norm(), (n, (w-p).norm()/p.norm())
    for k,v in a.state[p].items():
        w = b.state[q][k]
        whole = w.full_tensor() if isinstance(w, DTensor) else w
        assert torch.allclose(whole, v, rtol=1e-4, atol=1e-12), (n, k)
for k,v in a.stats()['0'].items(): assert torch.allclose(v, b.stats()['0'][k], rtol=1e-4), k
st = b.state_dict()
c = Adafactor(parts.parameters(), **kw); c.load_state_dict(st); go(plain, 2, a); go(parts, 2, c)
for p,q in zip(plain.parameters(), parts.parameters()): assert (q.full_tensor()-p).norm()<=1e-6*p.norm()
q = next(parts.parameters())
if rank==1: q.grad.to_local().fill_(float('nan'))          # on one rank only: both must see it
before = q.full_tensor().clone(); c.step()
assert c.nonfinite and torch.equal(q.full_tensor(), before)
half = build().bfloat16()
for l in half: fully_shard(l, mesh=init_device_mesh('cpu', (2,)))
fully_shard(half, mesh=init_device_mesh('cpu', (2,)))
w = [p.full_tensor().clone() for p in half.parameters()]
go(half, 2, Adafactor(half.parameters(), stochastic_rounding=True))
for p, o in zip(half.parameters(), w):
    assert p.full_tensor().isfinite().all() and not torch.equal(p.full_tensor(), o)
dist.barrier()  # nobody leaves while the other still talks: gloo would abort
dist.destroy_process_group()
print('same')
"""


def test_fsdp2(tmp_path):
    "Two processes, every parameter sharded: weights, state and statistics are those of one process"
    (tmp_path / 'sharded.py').write_text(sharded)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(root))
    out = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=2',
            str(tmp_path / 'sharded.py'),
        ],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
    )
    assert out.returncode == 0 and out.stdout.count('same') == 2, out.stderr[-3000:]
