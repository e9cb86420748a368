"""The training loop under torch_xla on the CPU:

one program, the same numbers. Runs in the environment of `make test-xla`
"""

import copy
import os
from itertools import islice
import pytest

pytest.importorskip('torch_xla', reason='torch_xla is not installed: make test-xla')
if os.environ.setdefault('PJRT_DEVICE', 'CPU') != 'CPU':
    pytest.skip('these tests want PJRT_DEVICE=CPU', allow_module_level=True)
import torch
from gpt2repro.adafactor import round_stochastic
from gpt2repro.backend import autocast, device_counts, end_step, get_device, optimization_barrier
from gpt2repro.backend import recorded_steps, sync, to_device
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig, VariantConfig
from gpt2repro.loss import lm_loss
from gpt2repro.model import GPT2
from gpt2repro.optimize import optimize_model
from gpt2repro.train import fit, make_optimizer, valid_loss
from gpt2repro.variants import build_model

small = GPT2Config(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout()
cpu = torch.device('cpu')


@pytest.fixture(scope='module')
def dev():
    return get_device('xla')


def counting(step, B=8, T=16):
    "Text that counts: 0 1 2 … 96 0 1 …"
    x = (torch.arange(T + 1) + torch.tensor([[37 * step + 11 * b] for b in range(B)])) % 97
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


def run_config(**kw):
    return RunConfig(
        **dict(
            dict(
                model=small,
                batch_tokens=8 * 16,
                micro_batch=4,
                max_steps=40,
                optim=OptimConfig(lr=3e-2, warmup_steps=10),
            ),
            **kw,
        )
    )


def twins(cfg, dev):
    "The same fresh model on the CPU and on `dev`"
    torch.manual_seed(0)
    a = build_model(cfg.model)
    b = optimize_model(copy.deepcopy(a).to(dev))
    return a, b


optims = dict(
    adafactor=OptimConfig(lr=3e-2, warmup_steps=10), adamw=OptimConfig(name='adamw', lr=1e-3, warmup_steps=10)
)


@pytest.mark.parametrize('name', list(optims))
def test_one_compilation_and_eager_losses(dev, name):
    cfg = run_config(
        optim=optims[name], model=small.replace(n_embd=dict(adafactor=24, adamw=27)[name])
    )  # another shape: another program, none that an earlier test left compiled
    a, b = twins(cfg, dev)
    want = [float(l) for _, l, _ in islice(fit(a, make_optimizer(a, cfg.optim, 40), counting, cfg, cpu), 20)]
    opt = make_optimizer(b, cfg.optim, 40)
    sync(dev)
    start = device_counts(dev)
    steps = fit(b, opt, counting, cfg, dev)
    losses = []
    for _ in range(20):
        losses.append(next(steps)[1])
    sync(dev)
    trained = device_counts(dev)
    v = valid_loss(b, counting, 3, dev)
    sync(dev)
    evaluated = device_counts(dev)
    for _ in range(20):
        losses.append(next(steps)[1])
    sync(dev)
    end = device_counts(dev)
    assert trained['compilations'] - start['compilations'] == 1, (start, trained)
    assert evaluated['compilations'] - trained['compilations'] == 1, (trained, evaluated)
    assert end['compilations'] == evaluated['compilations'], (evaluated, end)
    assert end['reads'] == start['reads'], 'a value was read back between logging boundaries'
    assert end['fallbacks'] == start['fallbacks']
    for i, (x, y) in enumerate(zip(want, losses)):
        assert abs(x - float(y)) < 1e-5, (i, x, float(y))
    assert abs(float(v) - float(valid_loss(a, counting, 3, cpu))) < 1e-5


modern = VariantConfig(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=6, n_kv_head=2, tied=False)
odd_one = VariantConfig(
    vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3, mlp='relu2', norm='layer', soft_cap=5.0
)


@pytest.mark.parametrize(
    'model, optim, remat, near',
    [
        (modern, OptimConfig(name='adamw', lr=1e-3, warmup_steps=10), 'none', 1e-5),
        (odd_one, OptimConfig(lr=3e-2, warmup_steps=10), 'none', 1e-5),
        # Newton-Schulz is in bfloat16, whose sums differ in the third digit
        (modern, OptimConfig(name='muon', lr=1e-3, adamw_lr=1e-3, warmup_steps=10), 'block', 3e-3),
    ],
    ids=['adamw', 'adafactor', 'muon, remat'],
)
def test_a_variant_is_one_program_with_eager_losses(dev, model, optim, remat, near):
    cfg = run_config(optim=optim, model=model)
    torch.manual_seed(0)
    a = build_model(model, remat)
    b = optimize_model(copy.deepcopy(a).to(dev))
    want = [float(l) for _, l, _ in islice(fit(a, make_optimizer(a, optim, 40), counting, cfg, cpu), 12)]
    opt = make_optimizer(b, optim, 40)
    sync(dev)
    start = device_counts(dev)
    losses = [l for _, l, _ in islice(fit(b, opt, counting, cfg, dev), 12)]
    sync(dev)
    end = device_counts(dev)
    assert end['compilations'] - start['compilations'] == 1, (start, end)
    assert end['reads'] == start['reads'] and end['fallbacks'] == start['fallbacks'], (start, end)
    assert [float(l) for l in losses] == pytest.approx(want, abs=near)


@pytest.mark.parametrize('shape', [(), (7,), (300, 500), (3, 4, 5)])
def test_stochastic_rounding_has_the_bits_of_the_cpu(dev, shape):
    x = torch.randn(shape) * torch.tensor(10.0) ** torch.randint(-30, 30, shape)
    seed = torch.tensor(12345, dtype=torch.int32)
    start = device_counts(dev)
    got = round_stochastic(x.to(dev), seed.to(dev), 17)
    sync(dev)
    assert device_counts(dev)['fallbacks'] == start['fallbacks']
    assert torch.equal(got.cpu().view(torch.int16), round_stochastic(x, seed, 17).view(torch.int16))


def test_what_is_opaque_keeps_its_value(dev):
    import torch_xla

    x = torch.arange(3, dtype=torch.int32).to(dev)
    parts = optimization_barrier(list((x * 5).split(1)))
    assert 'opt-barrier' in torch_xla._XLAC._get_xla_tensors_hlo(parts)
    assert torch.cat(parts).tolist() == [0, 5, 10] and x.tolist() == [0, 1, 2]


@pytest.mark.parametrize('weights', ['float32', 'bfloat16'])
def test_sums_are_in_float32(dev, weights):
    """XLA takes the precision that is written: LayerNorm's means and the gradients of biases in
    bfloat16 would have 8 bits"""
    import torch_xla

    m = optimize_model(GPT2(small, remat='block').to(dev, getattr(torch, weights)))
    x, y = (to_device(o, dev) for o in counting(0))
    sync(dev)
    with autocast(dev, 'bfloat16' if weights == 'float32' else 'float32'):
        loss = lm_loss(m, x, y)
    loss.backward()
    program = torch_xla._XLAC._get_xla_tensors_hlo([loss, *(p.grad for p in m.parameters())])
    sums = [l for l in program.splitlines() if ' reduce(' in l]
    assert len([l for l in sums if '= f32[' in l]) > 20
    assert 'batch-norm' not in program
    bodies = {b.split()[0].lstrip('%'): b for b in program.split('\n\n') if b.strip()}
    for l in sums:
        if '= bf16[' in l:
            assert 'maximum' in bodies[l.split('to_apply=')[1].split(',')[0].lstrip('%')], l


def test_bfloat16_weights_are_one_program(dev):
    cfg = run_config(model=small.replace(n_embd=30))
    _, m = twins(cfg, dev)
    opt = make_optimizer(m.bfloat16(), cfg.optim, 40)
    for g in opt.param_groups:
        g['stochastic_rounding'] = True
    sync(dev)
    start = device_counts(dev)
    losses = [l for _, l, _ in islice(fit(m, opt, counting, cfg, dev), 10)]
    sync(dev)
    end = device_counts(dev)
    assert {k: end[k] - start[k] for k in end} == dict(compilations=1, reads=0, fallbacks=0)
    assert float(losses[-1]) < float(losses[0])


def test_no_range_is_written_into_the_program(dev):
    "200 rows of 500 are 400 kB as a range, and some hundred bytes as two axes"
    x = torch.zeros(200, 500, device=dev)
    seed = torch.zeros((), dtype=torch.int32, device=dev)
    with recorded_steps() as programs:
        round_stochastic(x, seed)
        end_step(dev)
    sync(dev)
    assert len(programs[0]) < 40_000


def test_the_loop_raises_when_its_step_changes(dev):
    cfg = run_config()
    _, b = twins(cfg, dev)

    def shrinking(step):
        return tuple(o[:, : 16 if step < 5 else 12] for o in counting(step))

    with pytest.raises(RuntimeError, match=r'compiled again.*\(8, 16\).*\(8, 12\)'):
        for _ in fit(b, make_optimizer(b, cfg.optim, 40), shrinking, cfg, dev):
            pass


def test_checkpointing_computes_again_and_changes_nothing(dev):
    "Under XLA torch's own checkpointing is merged away; ours leaves the second forward pass in the program"
    size, barrier, losses = {}, {}, {}
    for remat in ('none', 'block'):
        cfg = run_config(micro_batch=8)
        torch.manual_seed(0)
        m = optimize_model(GPT2(small, remat=remat).to(dev))
        opt = make_optimizer(m, cfg.optim, 40)
        sync(dev)
        with recorded_steps() as programs:
            next(fit(m, opt, counting, cfg, dev))
        size[remat] = len(programs[-1])
        barrier[remat] = b'optimization_barrier' in programs[-1]
        torch.manual_seed(0)
        m = optimize_model(GPT2(small, remat=remat).to(dev))
        opt = make_optimizer(m, cfg.optim, 40)
        losses[remat] = [float(l) for _, l, _ in islice(fit(m, opt, counting, cfg, dev), 5)]
    assert barrier == dict(none=False, block=True), (
        'without barriers the compiler would merge the second forward pass with the first'
    )
    assert size['block'] > 1.04 * size['none'], (
        size
    )  # the second pass; most of so small a program is the optimizer's
    assert losses['none'] == pytest.approx(losses['block'], abs=1e-6)


def test_autocast_is_bfloat16(dev):
    w = torch.randn(5, 7, device=dev)
    with autocast(dev, 'bfloat16'):
        assert (w @ w.T).dtype == torch.bfloat16
    with autocast(dev, 'float32'):
        assert (w @ w.T).dtype == torch.float32


def test_attention_in_bfloat16_holds_no_float32_scores(dev):
    import torch_xla

    q = torch.randn(2, 3, 64, 8, device=dev, dtype=torch.bfloat16)
    y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    dots = [l for l in torch_xla._XLAC._get_xla_tensors_hlo([y]).splitlines() if ' dot(' in l]
    assert dots and all(l.split('=')[1].strip().startswith('bf16') for l in dots), dots
