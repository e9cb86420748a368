"Adafactor at 124M: seconds a step, memory and state beside AdamW, torch's and transformers' Adafactor. (The three-seed comparison of losses is bench/adafactor_runs.py.)"

import argparse
import ctypes
import os
import statistics
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', str(os.cpu_count()))
sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from transformers.optimization import Adafactor as HFAdafactor
from bench.common import save_table
from gpt2repro.adafactor import Adafactor, param_groups
from gpt2repro.backend import get_device, sync
from gpt2repro.config import sizes
from gpt2repro.model import GPT2


def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak_of(f, device):
    "Bytes that `f()` takes above what is there, at its worst; on a CPU looked at every half millisecond"
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        sync(device)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    top = [0]
    done = threading.Event()

    def watch():
        while not done.is_set():
            top[0] = max(top[0], resident())
            time.sleep(0.0005)

    w = threading.Thread(target=watch)
    w.start()
    f()
    done.set()
    w.join()
    return max(0, top[0] - before)


def state_bytes(size):
    with torch.device('meta'):
        opt = Adafactor(GPT2(sizes[size]).parameters())
    return sum(v.numel() * v.element_size() for s in opt.state.values() for v in s.values())


def steps(size, n, device):
    "Every optimizer in turns, n rounds, on the same weights and gradients"
    m = GPT2(sizes[size]).to(device)
    ps = list(m.parameters())
    for p in ps:
        p.grad = torch.randn_like(p) * 1e-3
    largest = max(p.numel() * p.element_size() for p in ps)
    makers = {
        'Adafactor, ours': lambda: Adafactor(param_groups(m)),
        'the same, with statistics': lambda: Adafactor(param_groups(m), track=True),
        'AdamW, fused': lambda: torch.optim.AdamW(ps, lr=1e-4, fused=True),
        'torch.optim.Adafactor': lambda: torch.optim.Adafactor(ps),
        "transformers' Adafactor": lambda: HFAdafactor(ps),
    }
    opts, memory, times = {}, {}, {}

    def timed(name):
        t = time.perf_counter()
        opts[name].step()
        sync(device)
        times.setdefault(name, []).append(time.perf_counter() - t)

    for name, make in makers.items():
        opts[name] = make()
        opts[name].step()
        sync(device)
        memory[name] = peak_of(opts[name].step, device)
    for _ in range(n):
        for name in makers:
            timed(name)
    rows = [
        {
            'optimizer': k,
            'ms': min(times[k]) * 1e3,
            'median ms': statistics.median(times[k]) * 1e3,
            'temporary memory, × the largest parameter': memory[k] / largest,
        }
        for k in opts
    ]
    for r in rows:
        for k in ('AdamW, fused', 'torch.optim.Adafactor', "transformers' Adafactor"):
            r[f'time / {k}'] = statistics.median(a / b for a, b in zip(times[r['optimizer']], times[k]))
    return rows


if __name__ == '__main__':
    arg = argparse.ArgumentParser(description=__doc__)
    arg.add_argument('--size', default='124M')
    arg.add_argument('--n', type=int, default=10, help='steps of each optimizer, in turns; the median counts')
    arg.add_argument('--device', default='auto')
    a = arg.parse_args()
    small = state_bytes('124M') / 1e6
    large = state_bytes('1.5B') / 1e6
    device = get_device(a.device)
    save_table(
        f'Adafactor: one step at {a.size}',
        steps(a.size, a.n, device),
        f'{torch.get_num_threads()} threads. Steps of all optimizers in turns; the ratios are medians over '
        f'the rounds of ratios within a round. State: {small:.2f} MB at 124M, {large:.2f} MB at 1.5B '
        f'(counted on meta tensors). ' + ('' if device.type == 'cuda' else 'Not run on a GPU yet.'),
    )
