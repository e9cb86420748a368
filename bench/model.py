"""GPT-2 124M against transformers' GPT-2 in the same process: tokens/s, share of the measured matrix-product peak, peak memory of a training step.
On a CPU float32 and bfloat16 autocast, batch 2 × 512, and the memory at batch 4 × 1024; with a CUDA device bfloat16 and torch.compile, 124M and 355M, at the largest batch that fits."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from gpt2repro.backend import autocast, compile_model, get_device, retain_heap, matmul_peak, peak_memory, sync
import torch
from transformers import GPT2Config as HFConfig, GPT2LMHeadModel
from gpt2repro.config import sizes
from gpt2repro.loss import lm_loss
from gpt2repro.model import GPT2
from common import save_table


def ours(cfg, device):
    "A function (x, y) -> loss, and its parameters"
    model = GPT2(cfg).to(device)
    return compile_model(lambda x, y: lm_loss(model, x, y), device), list(model.parameters())


def theirs(cfg, device):
    hf = (
        GPT2LMHeadModel(
            HFConfig(
                n_embd=cfg.n_embd,
                n_layer=cfg.n_layer,
                n_head=cfg.n_head,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
                use_cache=False,
            )
        )
        .to(device)
        .train()
    )
    f = compile_model(lambda x: hf(x, labels=x).loss, device)
    return lambda x, y: f(x), list(hf.parameters())


makers = {'gpt2repro': ours, 'transformers': theirs}


def stepper(name, cfg, device, dtype, B, T):
    "A function that does one whole step: forward, backward, AdamW"
    torch.manual_seed(0)
    loss_fn, params = makers[name](cfg, device)
    opt = torch.optim.AdamW(params, lr=1e-5, fused=True)
    ids = torch.randint(cfg.vocab_size, (B, T + 1), device=device)
    x = ids[:, :-1].contiguous()
    y = ids[:, 1:].contiguous()

    def step():
        with autocast(device, dtype):
            loss = loss_fn(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()

    return step


def timed(step, device):
    sync(device)
    t = time.perf_counter()
    step()
    sync(device)
    return time.perf_counter() - t


def race(cfg, device, dtype, B, T, n, limit, keep=True):
    """Steps of each, taken in turns: what disturbs the one disturbs the other.

    Seconds, and the highest peak measured before, between and after. With `keep` both keep freed memory
    in the process, as `gpt2repro train` does
    """
    steps = {k: stepper(k, cfg, device, dtype, B, T) for k in makers}
    measure = lambda: matmul_peak.__wrapped__(device, getattr(torch, dtype))
    with retain_heap(device) if keep else nullcontext():
        for s in (*steps.values(), *steps.values()):
            s()
        took = {k: [] for k in steps}
        peak = measure()
        end = time.perf_counter() + limit
        for i in range(n):
            for k, s in steps.items():
                took[k].append(timed(s, device))
            peak = max(peak, measure())
            if time.perf_counter() > end:
                break
    return took, peak


def rows_of(cfg, took, peak, B, T, label=''):
    for k, s in took.items():
        yield {
            'what': k + label,
            'tokens/s': B * T / min(s),
            'ratio': statistics.median(b / a for a, b in zip(s, took['transformers'])),
            'peak GFLOP/s': peak / 1e9,
            'share of peak': cfg.flops_per_token(T) * B * T / min(s) / peak,
        }


def memory(name, device, dtype, B, T):
    """MiB that a step adds to the process or the device, weights and optimizer included; in a process
    of its own"""
    cfg = sizes['124M'].no_dropout()
    (torch.ones(2, 2) @ torch.ones(2, 2)).sum()
    before = peak_memory(device)
    step = stepper(name, cfg, device, dtype, B, T)
    for _ in range(2):
        step()
    print((peak_memory(device) - before) / 2**20)


def fits(cfg, device, T, batches):
    "The largest batch with which both train"
    for B in batches:
        try:
            for k in makers:
                stepper(k, cfg, device, 'bfloat16', B, T)()
                sync(device)
            return B
        except torch.OutOfMemoryError:
            pass
        finally:
            torch.cuda.empty_cache()  # the race is another process
    raise RuntimeError('not even the smallest batch fits')


def alone(size, dtype, B, T, a, keep):
    "A race in a process of its own: what one does to the allocator's settings the next would feel"
    out = subprocess.run(
        [
            sys.executable,
            __file__,
            '--race',
            json.dumps([size, dtype, B, T, keep]),
            '--n',
            str(a.n),
            '--seconds',
            str(a.seconds),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(out.splitlines()[-1])


def speed(label, size, dtype, B, T, device, a):
    "As they come and, on a CPU, with freed memory kept in the process"
    cpu = device.type == 'cpu'
    rows = []
    took = {}
    for keep, said in ((False, ''), (True, ', memory kept'))[: 1 + cpu]:
        took[keep], peak = alone(size, dtype, B, T, a, keep)
        rows += rows_of(sizes[size], took[keep], peak, B, T, said)
    note = (
        'Steps in turns: the best of each, and the median of the ratios; forward, backward, fused AdamW, '
        'no dropout. FLOPs per token: 6·N + 12·L·C·T, N without `wpe`, the tied head once.'
    )
    if cpu:
        as_run = statistics.median(took[False]['transformers']) / statistics.median(took[True]['gpt2repro'])
        note += (
            f' Memory kept: inside `backend.retain_heap`, as `gpt2repro train` is, both. Ours with it, '
            f'as `gpt2repro train` runs, against transformers without, as it comes: {as_run:.3g} '
            f'(medians).'
        )
    save_table(f'Model: a training step, {label}', rows, note)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--only', choices=['float32', 'bfloat16', 'memory'], help='one part')
    ap.add_argument('--n', type=int, default=8, help='timed steps of each')
    ap.add_argument('--seconds', type=float, default=60, help='at most for each race')
    ap.add_argument('--race', type=json.loads, help=argparse.SUPPRESS)
    ap.add_argument('--memory-of', nargs=2, help=argparse.SUPPRESS)
    a = ap.parse_args()
    device = get_device()
    on_cpu = device.type == 'cpu'
    if a.race:
        size, dtype, B, T, keep = a.race
        return print(json.dumps(race(sizes[size].no_dropout(), device, dtype, B, T, a.n, a.seconds, keep)))
    if a.memory_of:
        return memory(a.memory_of[0], device, a.memory_of[1], 4, 1024)
    for dtype in 'float32', 'bfloat16':
        if a.only not in (None, dtype):
            continue
        if on_cpu:
            speed(f'124M, {dtype}, 2 × 512, CPU', '124M', dtype, 2, 512, device, a)
        elif dtype == 'bfloat16':
            for size in '124M', '355M':
                B = fits(sizes[size].no_dropout(), device, 1024, (64, 48, 32, 24, 16, 8, 4))
                speed(
                    f'{size}, {dtype}, compiled, {B} × 1024, {device.type}', size, dtype, B, 1024, device, a
                )
    if a.only in (None, 'memory'):
        dtype = 'float32' if on_cpu else 'bfloat16'
        used = {
            k: float(
                subprocess.run(
                    [sys.executable, __file__, '--memory-of', k, dtype],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()[-1]
            )
            for k in makers
        }
        save_table(
            f'Model: peak memory of a training step, 124M, {dtype}, 4 × 1024, {device.type}',
            [{'what': k, 'MiB': v, 'ratio': v / used['transformers']} for k, v in used.items()],
            'Two steps in a process of its own; weights, gradients and AdamW included, what the process had '
            'before left out.',
        )


if __name__ == '__main__':
    main()
