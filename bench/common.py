"""What every benchmark needs: arguments, processes, timing in turns, memory, and a table kept in RESULTS.md

A benchmark is a module with a `main(argv=None)`; its docstring is its help. It is run from the repository's
root with `python -m bench.NAME`."""

import argparse
import ctypes
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

folder = Path(__file__).resolve().parent
root = folder.parent
results = folder / 'RESULTS.md'


def set_environment():
    "All cores, nothing from the network, no progress bars; before torch and the peers are imported"
    os.environ.setdefault('OMP_NUM_THREADS', str(os.cpu_count()))
    for name in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'GPT2REPRO_QUIET'):
        os.environ.setdefault(name, '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')


_program = getattr(sys.modules['__main__'], '__spec__', None)
if _program and _program.name.startswith('bench.'):  # a benchmark is the program, not a test that imports it
    set_environment()


def parser(
    doc,  # the module's docstring: what is measured, against which peer, how long it takes
    prog=None,
):
    "The argument parser of a benchmark"
    if prog is None:
        spec = sys._getframe(1).f_globals.get('__spec__')
        prog = f'python -m {spec.name}' if spec else None
    return argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def reference(name):
    "Published text `name` in the folder that the variable GPT2REPRO_TEST_DATA names, or None without it"
    base = os.environ.get('GPT2REPRO_TEST_DATA')
    path = Path(base) / name if base else None
    return path if path and path.exists() else None


def need_reference(name):
    "The same, or the end of the program with a line that says what to do"
    path = reference(name)
    if path is None:
        raise SystemExit(f'{name} is needed: let GPT2REPRO_TEST_DATA name the folder that holds it')
    return path


# processes


def environment(**more):
    "The environment of a child, which finds this repository first"
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    return {**os.environ, 'PYTHONPATH': path, **more}


def module_of(fn):
    "Name under which another process imports the module of `fn`, also where it is `__main__`"
    spec = fn.__globals__.get('__spec__')
    return spec.name if spec else fn.__module__


def command_for(fn, *args):
    "The command that calls `fn(*args)` in a process of its own; function of a module, arguments for JSON"
    return [sys.executable, '-m', 'bench.common', module_of(fn), fn.__name__, json.dumps(args)]


def alone(fn, *args, env=None):
    "What `fn(*args)` returns in a process of its own: nobody shares its memory or its settings"
    p = subprocess.run(
        command_for(fn, *args), env=environment(**(env or {})), stdout=subprocess.PIPE, text=True
    )
    if p.returncode:
        raise RuntimeError(f'{fn.__name__}{args} failed: its messages stand above')
    return json.loads(p.stdout.splitlines()[-1])


def serve(module, name, args):
    "The other side of `alone`"
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(args))))


# timing


def best_of(fn, n=3):
    "Fewest seconds that `fn()` took in `n` runs"
    return min(timed(fn) for _ in range(n))


def timed(fn, device=None):
    "Seconds of one call, all work on the device included"
    _sync(device)
    t = time.perf_counter()
    fn()
    _sync(device)
    return time.perf_counter() - t


def _sync(device):
    if device is not None and device.type != 'cpu':
        from gpt2repro.backend import sync

        sync(device)


def in_turns(
    fns,  # name -> function
    n,  # rounds
    device=None,
    warmup=1,  # rounds that do not count
    seconds=float('inf'),  # no new round after so many
    between=None,  # called after each round
):  # name -> list of seconds, one for each round
    "Each function once in each round: what disturbs the one disturbs the other"
    for _ in range(warmup):
        for f in fns.values():
            timed(f, device)
    took = {k: [] for k in fns}
    end = time.perf_counter() + seconds
    for _ in range(n):
        for k, f in fns.items():
            took[k].append(timed(f, device))
        if between:
            between()
        if time.perf_counter() > end:
            break
    return took


def times_faster(took, name, peer):
    "Median over the rounds of the peer's seconds for each second of `name`"
    return statistics.median(b / a for a, b in zip(took[name], took[peer]))


# memory


def peak_mib():
    "Peak memory of this process so far, MiB"
    import torch
    from gpt2repro.backend import peak_memory

    return peak_memory(torch.device('cpu')) / 2**20


def resident():
    "Bytes of memory that this process has now (Linux)"
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def trim_heap():
    "Freed memory goes back to the system, so that what is taken next is seen (glibc)"
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def peak_of(fn, device):
    "Bytes that `fn()` takes above what is there, at its worst; on a CPU looked at every half millisecond"
    if device.type == 'cuda':
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timed(fn, device)
        return torch.cuda.max_memory_allocated(device) - before
    trim_heap()
    before = resident()
    top = before
    done = threading.Event()

    def watch():
        nonlocal top
        while not done.is_set():
            top = max(top, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fn()
    finally:
        done.set()
        watcher.join()
    return max(0, top - before)


# tables


def cpu_name():
    "The processor in words"
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [l.partition(':')[2].strip() for l in lines if l.startswith('model name')]
    return names[0] if names else platform.machine()


def machine():
    "CPU model, cores, memory, and the GPU if there is one"
    import torch

    mem = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{cpu_name()}, {os.cpu_count()} cores, {mem:.0f} GiB{gpu}'


def package_version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return 'not installed'


def versions(*packages):
    "Python and these packages (torch and transformers if none is named), with their versions"
    named = [f'{p} {package_version(p)}' for p in packages or ('torch', 'transformers')]
    return ', '.join([f'Python {platform.python_version()}', *named])


def cell(value):
    "A value as a table shows it: three figures of a float"
    if not isinstance(value, float):
        return str(value)
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def table(rows):
    "A list of dicts as a Markdown table"
    head = list(dict.fromkeys(k for r in rows for k in r))
    lines = [f'| {" | ".join(cell(r.get(k, "")) for k in head)} |' for r in rows]
    return '\n'.join([f'| {" | ".join(head)} |', '|' + '---|' * len(head), *lines])


def section(title, rows, note='', packages=()):
    "The table with its title, the date, the machine and the versions, in Markdown"
    today = f'{datetime.now(timezone.utc):%Y-%m-%d}'
    text = f'## {title}\n{today}, {machine()}; {versions(*packages)}.\n\n{table(rows)}\n'
    return f'{text}\n{note}\n' if note else text


def save_table(title, rows, note='', packages=(), file=results):
    "Print the table and put it into RESULTS.md, in the place of the section of that title"
    body = section(title, rows, note, packages)
    print(body)
    head, *sections = file.read_text(encoding='utf-8').split('\n## ')
    kept = [s.rstrip('\n') for s in sections if s.partition('\n')[0] != title]
    parts = [head.rstrip('\n'), *kept, body.removeprefix('## ').rstrip('\n')]
    file.write_text('\n\n## '.join(parts) + '\n', encoding='utf-8')


if __name__ == '__main__':
    serve(*sys.argv[1:])
