"What every benchmark needs: timing, the machine in words, and a table kept in RESULTS.md"

import os
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

results = Path(__file__).parent / 'RESULTS.md'


def best_of(fn, n=3):
    "Fewest seconds that `fn()` took in `n` runs"
    best = float('inf')
    for _ in range(n):
        t = time.perf_counter()
        fn()
        best = min(best, time.perf_counter() - t)
    return best


def peak_mib():
    "Peak memory of this process so far, MiB"
    import torch
    from gpt2repro.backend import peak_memory

    return peak_memory(torch.device('cpu')) / 2**20


def machine():
    "CPU model, cores, memory, and the GPU if there is one"
    import torch

    cpu = next(
        (
            l.partition(':')[2].strip()
            for l in Path('/proc/cpuinfo').read_text().splitlines()
            if l.startswith('model name')
        ),
        platform.machine(),
    )
    mem = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{cpu}, {os.cpu_count()} cores, {mem:.0f} GiB{gpu}'


def versions(*packages):
    "Python and these packages (torch and transformers if none is named), with their versions"

    def v(p):
        try:
            return version(p)
        except PackageNotFoundError:
            return 'not installed'

    return ', '.join(
        [f'Python {platform.python_version()}']
        + [f'{p} {v(p)}' for p in packages or ('torch', 'transformers')]
    )


def table(rows):
    "A list of dicts as a Markdown table, floats with three figures"
    fmt = lambda v: (
        f'{v:,.0f}'
        if isinstance(v, float) and abs(v) >= 100
        else f'{v:.3g}'
        if isinstance(v, float)
        else str(v)
    )
    head = list(rows[0])
    return '\n'.join(
        [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
        + [f'| {" | ".join(fmt(r.get(k, "")) for k in head)} |' for r in rows]
    )


def save_table(title, rows, note='', packages=()):
    "Print the table and put it into RESULTS.md under `## title`, in the place of the section of that title"
    body = (
        f'## {title}\n{datetime.now(timezone.utc):%Y-%m-%d}, {machine()}; '
        f'{versions(*packages)}.\n\n{table(rows)}\n' + (f'\n{note}\n' if note else '')
    )
    print(body)
    head, *sections = results.read_text().split('\n## ')
    sections = [s.rstrip('\n') for s in sections if s.partition('\n')[0] != title] + [
        body.removeprefix('## ').rstrip('\n')
    ]
    results.write_text('\n\n## '.join([head.rstrip('\n')] + sections) + '\n')
