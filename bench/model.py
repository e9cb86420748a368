"""A training step of GPT-2 124M against transformers' GPT-2 in the same process: speed and peak memory

Steps in turns: forward, backward, fused AdamW, no dropout. Tokens a second, share of the measured speed of
matrix products, peak memory of a step. On a CPU: float32 and bfloat16 autocast with batch 2 × 512, memory
with batch 4 × 1024; some six minutes on two cores, a part of it with `--only`. On a CUDA device: bfloat16
and torch.compile, 124M and 355M, the largest batch with which both fit (not run on a GPU yet; bench.gpu is
shorter)."""

import statistics
from contextlib import nullcontext
from bench.common import alone, in_turns, parser, save_table, times_faster
import torch
from bench.peers import losses, training_step
from gpt2repro.backend import get_device, matmul_peak, peak_memory, retain_heap, sync
from gpt2repro.config import sizes


def race(size, dtype, B, T, n, limit, keep):
    """Steps of each, taken in turns, in at most `limit` seconds.

    Seconds, and the highest speed of matrix products measured before and between. With `keep` both keep
    freed memory in the process, as `gpt2repro train` does
    """
    device = get_device()
    cfg = sizes[size].no_dropout()
    steps = {k: training_step(k, cfg, device, dtype, B, T) for k in losses}
    peaks = []
    measure = lambda: peaks.append(matmul_peak.__wrapped__(device, getattr(torch, dtype)))
    with retain_heap(device) if keep else nullcontext():
        measure()
        took = in_turns(steps, n, device, warmup=2, seconds=limit, between=measure)
    return took, max(peaks)


def memory(name, dtype):
    "MiB that steps of 4 × 1024 add to the process or the device, weights and optimizer included"
    device = get_device()
    (torch.ones(2, 2) @ torch.ones(2, 2)).sum()
    before = peak_memory(device)
    step = training_step(name, sizes['124M'].no_dropout(), device, dtype, 4, 1024)
    for _ in range(2):
        step()
    return (peak_memory(device) - before) / 2**20


def fits(size, T, batches):
    "The largest batch with which both train; in a process of its own"
    device = get_device()
    for B in batches:
        try:
            for k in losses:
                training_step(k, sizes[size].no_dropout(), device, 'bfloat16', B, T)()
                sync(device)
            return B
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise RuntimeError(f'not even a batch of {batches[-1]} fits')


def rows_of(cfg, took, peak, B, T, label=''):
    for k, s in took.items():
        yield {
            'what': k + label,
            'tokens/s': B * T / min(s),
            'ratio': times_faster(took, k, 'transformers'),
            'peak GFLOP/s': peak / 1e9,
            'share of peak': cfg.flops_per_token(T) * B * T / min(s) / peak,
        }


def speed(label, size, dtype, B, T, a):
    "As they come and, on a CPU, with freed memory kept in the process; each race in a process of its own"
    cpu = get_device().type == 'cpu'
    rows = []
    took = {}
    for keep, said in ((False, ''), (True, ', memory kept'))[: 1 + cpu]:
        took[keep], peak = alone(race, size, dtype, B, T, a.n, a.seconds, keep)
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


def memory_table(device):
    dtype = 'float32' if device.type == 'cpu' else 'bfloat16'
    used = {k: alone(memory, k, dtype) for k in losses}
    save_table(
        f'Model: peak memory of a training step, 124M, {dtype}, 4 × 1024, {device.type}',
        [{'what': k, 'MiB': v, 'ratio': v / used['transformers']} for k, v in used.items()],
        'Two steps in a process of its own; weights, gradients and AdamW included, what the process had '
        'before left out.',
    )


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--only', choices=['float32', 'bfloat16', 'memory'], help='one part')
    p.add_argument('--n', type=int, default=8, help='timed steps of each')
    p.add_argument('--seconds', type=float, default=60, help='at most for each race')
    a = p.parse_args(argv)
    device = get_device()
    on_cpu = device.type == 'cpu'
    for dtype in ('float32', 'bfloat16') if on_cpu else ('bfloat16',):
        if a.only not in (None, dtype):
            continue
        if on_cpu:
            speed(f'124M, {dtype}, 2 × 512, CPU', '124M', dtype, 2, 512, a)
            continue
        for size in '124M', '355M':
            B = alone(fits, size, 1024, (64, 48, 32, 24, 16, 8, 4))
            speed(f'{size}, {dtype}, compiled, {B} × 1024, {device.type}', size, dtype, B, 1024, a)
    if a.only in (None, 'memory'):
        memory_table(device)


if __name__ == '__main__':
    main()
