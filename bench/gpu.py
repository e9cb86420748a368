"""Everything that wants a GPU, in one call of under ten minutes, results in a folder

Parts, each in a process of its own with a time of its own, so that one that fails does not end the rest:
  device       the machine, and its measured speed of matrix products in each precision
  agree        model, gradients, Adafactor and greedy text give on the device what they give on the CPU
  model-124M   a training step against transformers' GPT-2: float32, TF32, bfloat16, bfloat16 compiled
  train        the training loop: tokens/s, share of peak, memory, against transformers' Trainer
  sample       greedy text through `generate` against transformers' generate: one sequence, and a batch
  adafactor    one step of Adafactor against torch's, transformers' and fused AdamW: 124M and 355M
  evaluate     held-out loss, tokens/s against a plain transformers loop
  model-355M   as model-124M
  cells        the notebooks' cells flagged `cuda`, and the notebooks named with --notebooks

The folder gets PART.json and PART.log for each, and results.md with all tables. A part that fails or runs out
of time keeps the rows that it had; the call then ends with status 1. On a bare machine:
  pip install -e '.[dev]' && python -m bench.gpu --out results

Rehearsed on a CPU with `--toy --device cpu` (a minute). Nothing of it has been run on a GPU yet."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from bench.common import alone, command_for, environment, in_turns, machine, parser, peak_of, root
from bench.common import table, times_faster, versions

whole = 570  # seconds for all parts together
# notebooks whose cells take the best device that is there; matched by a part of the name
on_device = ('_backend', '_model', '_loss', '_adafactor', '_decode', '_generation')
packages = ('torch', 'transformers', 'accelerate', 'triton', 'numpy')


class Part:
    "What a part has found so far: written after each row, so that nothing is lost when it is stopped"

    def __init__(self, name, opts):
        self.name = name
        self.toy = opts['toy']
        self.device_name = opts['device']
        self.notebooks = opts['notebooks']
        self.end = time.time() + opts['seconds']
        self.file = Path(opts['out']) / f'{name}.json'
        self.found = dict(part=name, status='stopped', rows=[], notes=[])
        self.errors = []

    @property
    def device(self):
        from gpt2repro.backend import get_device

        return get_device(self.device_name)

    def write(self):
        self.file.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

    def row(self, **kw):
        self.found['rows'].append(kw)
        self.write()
        print(kw, flush=True)

    def note(self, text):
        self.found['notes'].append(text)
        self.write()
        print(text, flush=True)

    def attempt(self, what, fn, *args):
        "`fn(part, …)`; a measurement that fails is reported, and the next ones are still made"
        try:
            fn(self, *args)
        except Exception as e:
            traceback.print_exc()
            self.errors.append(f'{what}: {type(e).__name__}: {e}')
            self.found.setdefault('traceback', traceback.format_exc())
            self.write()
        empty_cache(self.device)

    def time_for(self, seconds, what):
        "Are so many seconds left? If not, a note says what was left out"
        if self.toy or time.time() + seconds < self.end:
            return True
        self.note(f'left out for want of time: {what}')
        return False


# the parts


def nvidia_smi():
    "GPU, driver, clocks, memory and power as nvidia-smi says them"
    fields = (
        'name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,memory.total,power.limit,'
        'temperature.gpu'
    )
    if not shutil.which('nvidia-smi'):
        return {}
    p = subprocess.run(
        ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader'], capture_output=True, text=True
    )
    if p.returncode:
        return dict(error=(p.stderr or p.stdout).strip())
    return dict(zip(fields.split(','), map(str.strip, p.stdout.splitlines()[0].split(','))))


def set_precision(name):
    "float32 as it is written, or TF32 in matrix products; -> the dtype of autocast"
    import torch

    torch.set_float32_matmul_precision('high' if name == 'tf32' else 'highest')
    return 'bfloat16' if name.startswith('bfloat16') else 'float32'


def speed_of_products(part, precision):
    "Floating-point operations a second of matrix products in this precision"
    import torch
    from gpt2repro.backend import matmul_peak

    dtype = set_precision(precision)
    n = 256 if part.toy else None
    return matmul_peak.__wrapped__(part.device, getattr(torch, dtype), n, 0.1 if part.toy else 0.5)


def device_part(part):
    from gpt2repro.backend import describe

    part.row(what='device', value=describe(part.device))
    part.row(what='machine', value=machine())
    part.row(what='system', value=platform.platform())
    part.row(what='versions', value=versions(*packages))
    for k, v in nvidia_smi().items():
        part.row(what=f'nvidia-smi {k}', value=v)
    for precision in 'float32', 'tf32', 'bfloat16':
        tflops = speed_of_products(part, precision) / 1e12
        part.row(what=f'matrix products, {precision}, TFLOP/s', value=f'{tflops:.4g}')


def worst(pairs):
    "Largest difference of pairs of tensors, as a share of the largest value of the first of each"
    off = 0.0
    for a, b in pairs:
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        off = max(off, ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item())
    return off


def one_step(size, device):
    "A model after one step of Adafactor: loss, gradients, weights"
    import torch
    from gpt2repro.optimize import optimize_model
    from gpt2repro.adafactor import Adafactor
    from gpt2repro.config import sizes
    from gpt2repro.loss import lm_loss
    from gpt2repro.model import GPT2

    torch.manual_seed(0)
    model = GPT2(sizes[size].no_dropout())
    ids = torch.randint(model.cfg.vocab_size, (2, 65))
    model = optimize_model(model.to(device))
    ids = ids.to(device)
    opt = Adafactor(model.parameters())
    loss = lm_loss(model, ids[:, :-1], ids[:, 1:])
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    opt.step()
    return model, [loss], grads, list(model.parameters())


def agree_part(part):
    import torch
    from bench.peers import our_text

    set_precision('float32')
    size = 'tiny' if part.toy else '124M'
    model, *here = one_step(size, torch.device('cpu'))
    other, *there = one_step(size, part.device)
    failed = []

    def say(what, off, most):
        part.row(what=what, value=f'{off:.1e}', **{'at most': f'{most:.0e}', 'holds': off <= most})
        if not off <= most:
            failed.append(f'{what}: {off:.1e}')

    for what, a, b, most in zip(
        ('loss', 'gradients', 'weights after a step'), here, there, (1e-5, 1e-3, 1e-3)
    ):
        say(f'{what} against the CPU, float32, {size}', worst(zip(a, b)), most)
    other.load_state_dict(model.state_dict())
    rows = torch.randint(300, (3, 9), generator=torch.Generator().manual_seed(1)).tolist()
    a, b = (our_text(m.eval(), rows, 24) for m in (model, other))
    differ = sum(x != y for p, q in zip(a, b) for x, y in zip(p, q)) / 72
    say('share of greedy tokens that differ from the CPU', differ, 0.1)  # a near-tie may fall otherwise
    if failed:
        raise AssertionError('; '.join(failed))


def batch_that_fits(part, cfg, B, T):
    "The largest of B, B/2, … with which float32 steps of both fit side by side"
    import torch
    from bench.peers import losses, training_step

    while True:
        steps = []
        try:
            for k in losses:
                steps.append(training_step(k, cfg, part.device, 'float32', B, T, compile=False))
                steps[-1]()
            return B
        except torch.OutOfMemoryError:
            if B == 1:
                raise
            B //= 2
        finally:
            steps.clear()
            empty_cache(part.device)


def empty_cache(device):
    import torch

    if device.type == 'cuda':
        torch.cuda.empty_cache()


def race(part, cfg, precision, B, T, rounds):
    "Seconds of steps in turns, and MiB that each contestant takes, weights and optimizer included"
    from bench.peers import losses, training_step

    dtype = set_precision(precision)
    compiled = precision.endswith('compiled')
    steps, mib = {}, {}

    def begin(k):
        steps[k] = training_step(k, cfg, part.device, dtype, B, T, compile=compiled)
        for _ in range(2):
            steps[k]()

    for k in losses:
        mib[k] = peak_of(lambda: begin(k), part.device) / 2**20
    return in_turns(steps, rounds, part.device, seconds=15), mib


def model_rows(part, cfg, precision, B, T, rounds):
    took, mib = race(part, cfg, precision, B, T, rounds)
    peak = speed_of_products(part, precision)
    for k, s in took.items():
        part.row(
            what=k,
            precision=precision,
            batch=f'{B} × {T}',
            **{
                'tokens/s': B * T / min(s),
                'times transformers': times_faster(took, k, 'transformers'),
                'share of measured peak': cfg.flops_per_token(T) * B * T / min(s) / peak,
                'MiB': mib[k],
                'memory / transformers': mib[k] / mib['transformers'],
            },
        )


def model_part(part, size):
    from gpt2repro.config import sizes

    cfg = sizes['tiny' if part.toy else size].no_dropout()
    B, T, rounds = (2, 64, 2) if part.toy else ({'124M': 16, '355M': 8}[size], 1024, 8)
    B = batch_that_fits(part, cfg, B, T)
    for precision in ('bfloat16', 'tf32', 'float32', 'bfloat16 compiled'):
        if part.time_for(60 if precision.endswith('compiled') else 12, precision):
            part.attempt(precision, model_rows, cfg, precision, B, T, rounds)


def loop_row(part, size, B, steps, data):
    "What `gpt2repro train` says of its last steps"
    import gpt2repro.train
    from bench.train import setting

    every = dict(max_steps=steps, log_every=steps // 2, save_every=10 * steps)
    cfg, _ = setting(size, data, B, part.device_name, **every)
    records = []
    gpt2repro.train.train(cfg, Path(data) / 'run', part.device_name, watch=[records.append])
    [*_, last] = [r for r in records if r['kind'] == 'train']
    part.row(
        what='gpt2repro train, Adafactor, bfloat16',
        batch=f'{B} × {cfg.model.n_ctx}',
        **{
            'tokens/s': float(last['tokens_per_s']),
            'share of measured peak': float(last['peak_share']),
            'peak GiB': last['memory'] / 2**30,
        },
    )


def trainer_row(part, size, B, steps, data):
    from bench.train import setting, trainer

    cfg, _ = setting(size, data, B, part.device_name)
    got = alone(trainer, size, data, 0, steps, B, part.device_name)
    part.row(
        what="transformers' Trainer, its Adafactor, bfloat16",
        batch=f'{B} × {cfg.model.n_ctx}',
        **{'tokens/s': got['tokens_per_s'], 'peak GiB': got['peak_gib']},
    )


def train_part(part):
    from bench.train import make_data

    size, B = ('tiny', 2) if part.toy else ('124M', 16)
    with tempfile.TemporaryDirectory() as d:
        make_data(Path(d))
        part.attempt('loop', loop_row, size, B, 6 if part.toy else 40, d)
        if part.time_for(20, "transformers' Trainer"):
            part.attempt('Trainer', trainer_row, size, B, 2 if part.toy else 20, d)


def sample_race(part, size, kind, n_rows, n_new, rounds):
    "Tokens a second of both, one prompt length"
    import torch
    from bench.peers import hf_copy, hf_text, our_text, random_model
    from gpt2repro.decode import Decoder
    from gpt2repro.weights import save_pretrained

    model = random_model(size, part.device)
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = hf_copy(d, kind, part.device)
    dec = Decoder(model, kind)
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(model.cfg.vocab_size - 1, (n_rows, 16), generator=g).tolist()
    fns = {
        'gpt2repro': lambda: our_text(dec, rows, n_new),
        'transformers': lambda: hf_text(hf, rows, n_new),
    }
    took = in_turns(fns, rounds, part.device, seconds=12)
    for k, s in took.items():
        part.row(
            what=k,
            model=size,
            weights=kind,
            sequences=n_rows,
            **{
                'tokens/s': n_rows * n_new / min(s),
                'times transformers': times_faster(took, k, 'transformers'),
            },
        )


def sample_part(part):
    set_precision('float32')
    if part.toy:
        plan = [('tiny', 'float32', 1), ('tiny', 'bfloat16', 3)]
    else:
        kinds = [(kind, n) for kind in ('bfloat16', 'float32') for n in (1, 16)]
        plan = [(size, *o) for size in ('124M', '355M') for o in kinds]
    for size, kind, n in plan:
        if part.time_for(15, f'{size}, {kind}, {n}'):
            n_new, rounds = (8, 2) if part.toy else (128, 4)
            part.attempt(f'{size}, {kind}, {n}', sample_race, size, kind, n, n_new, rounds)


def adafactor_rows(part, size):
    from bench.adafactor import steps

    for row in steps(size, 2 if part.toy else 20, part.device_name):
        part.row(model=size, **row)


def adafactor_part(part):
    for size in ['tiny'] if part.toy else ['124M', '355M']:
        if part.time_for(10, size):
            part.attempt(size, adafactor_rows, size)


def heldout_loss(hf, ids, batch, dtype):
    "Summed loss of whole windows, as a plain loop over transformers' model takes it"
    import torch
    from torch.nn import functional as F
    from gpt2repro.backend import autocast

    total = 0.0
    with torch.no_grad(), autocast(hf.device, dtype):
        for x in ids.split(batch):
            logits = hf(x[:, :-1]).logits.float()
            total += F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction='sum').item()
    return total


def heldout_rows(part, model, hf, ws, ids, batch, dtype):
    "Both on the same windows, and whether their sums agree"
    from gpt2repro.evaluate import score_windows

    sums = {}
    fns = {
        'gpt2repro': lambda: sums.update(ours=-sum(s.sum for s in score_windows(model, ws, dtype=dtype))),
        'transformers, plain loop': lambda: sums.update(theirs=heldout_loss(hf, ids, batch, dtype)),
    }
    took = in_turns(fns, 1 if part.toy else 3, part.device, seconds=15)
    off = abs(sums['ours'] / sums['theirs'] - 1)
    for k, s in took.items():
        part.row(
            what=k,
            precision=dtype,
            **{
                'tokens/s': ids[:, 1:].numel() / min(s),
                'times transformers': times_faster(took, k, 'transformers, plain loop'),
                'sums differ by': f'{off:.0e}',
            },
        )
    assert off < (1e-4 if dtype == 'float32' else 1e-2), f'the sums differ by {off:.1e}'


def evaluate_part(part):
    "The 124M on whole windows of random ids"
    import torch
    from bench.peers import hf_copy, random_model
    from gpt2repro.evaluate import windows
    from gpt2repro.weights import save_pretrained

    set_precision('float32')
    size, n, batch = ('tiny', 3, 2) if part.toy else ('124M', 128, 8)
    model = random_model(size, part.device)
    T = model.cfg.n_ctx
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = hf_copy(d, 'float32', part.device)
    stream = torch.randint(model.cfg.vocab_size, (n * T + 1,), generator=torch.Generator().manual_seed(2))
    ws = windows(stream.numpy(), T, T)
    ids = torch.stack([stream[i * T : (i + 1) * T + 1] for i in range(n)]).to(part.device)
    for dtype in 'float32', 'bfloat16':
        part.attempt(dtype, heldout_rows, model, hf, ws, ids, batch, dtype)


def flagged(flag):
    "Stems of the notebooks that have a code cell with this flag"
    for f in sorted((root / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in f.parts:
            continue
        cells = json.loads(f.read_text(encoding='utf-8'))['cells']
        code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
        firsts = [l for s in code for l in s.splitlines() if l.startswith('#|')]
        if any(flag in l.removeprefix('#|').split() for l in firsts):
            yield f.stem


def pytest_of(stem, seconds):
    "Did the notebook's cells pass (None: not done in time), and what pytest printed"
    command = [sys.executable, '-m', 'pytest', '-x', 'tests/test_notebooks.py', '-k', stem]
    try:
        p = subprocess.run(
            command,
            cwd=root,
            env=environment(NB_FLAGS='cuda'),
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired as e:
        return None, str(e.stdout or '')
    return p.returncode == 0, p.stdout


def cells_part(part):
    stems = [*dict.fromkeys([*flagged('cuda'), *part.notebooks])]
    if not stems:
        return part.note('no cell of a notebook has the flag `cuda`')
    for stem in stems:
        left = part.end - time.time()
        if left < 5:
            part.note(f'left out for want of time: {stem}')
            continue
        t = time.time()
        passed, output = pytest_of(stem, left)
        print(output, flush=True)
        said = (output.strip().splitlines() or [''])[-1]
        if passed is None:
            part.note(f'stopped for want of time, nothing had failed in it: {stem}')
        else:
            part.row(notebook=stem, passed=passed, seconds=round(time.time() - t), pytest=said)
    if failed := [r['notebook'] for r in part.found['rows'] if not r['passed']]:
        raise AssertionError(f'cells failed in {", ".join(failed)}: see cells.log')


parts = {  # name -> (function, seconds that it may take), the most telling first
    'device': (device_part, 25),
    'agree': (agree_part, 50),
    'model-124M': (lambda part: model_part(part, '124M'), 150),
    'train': (train_part, 90),
    'sample': (sample_part, 90),
    'adafactor': (adafactor_part, 50),
    'evaluate': (evaluate_part, 50),
    'model-355M': (lambda part: model_part(part, '355M'), 120),
    'cells': (cells_part, 90),
}


# running them


def work(name, opts):
    "One part, in a process of its own"
    part = Part(name, opts)
    part.write()
    try:
        parts[name][0](part)
    except Exception as e:
        traceback.print_exc()
        part.errors.append(f'{type(e).__name__}: {e}')
        part.found.setdefault('traceback', traceback.format_exc())
    part.found['status'] = 'failed' if part.errors else 'done'
    if part.errors:
        part.found['error'] = '; '.join(part.errors)
    part.write()
    return part.found['status']


def run_part(name, opts, seconds):
    "What the part left in its file; it is stopped after so many seconds"
    out = Path(opts['out'])
    begun = time.time()
    with open(out / f'{name}.log', 'w', encoding='utf-8') as log:
        p = subprocess.Popen(
            command_for(work, name, dict(opts, seconds=seconds)),
            cwd=root,
            env=environment(CUDA_VISIBLE_DEVICES=os.environ.get('CUDA_VISIBLE_DEVICES', '0')),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            p.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(p)
    file = out / f'{name}.json'
    found = (
        json.loads(file.read_text(encoding='utf-8')) if file.exists() else dict(part=name, rows=[], notes=[])
    )
    if p.returncode and found.get('status') in (None, 'stopped'):
        why = f'out of time after {seconds:.0f} s' if time.time() - begun >= seconds else 'the process ended'
        found.update(status='failed', error=f'{why} (status {p.returncode}): see {name}.log')
    found['seconds'] = round(time.time() - begun, 1)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    return found


def stop(p):
    "End a part with all processes that it started: it is the leader of their group"
    import signal

    if os.name == 'posix':
        os.killpg(p.pid, signal.SIGKILL)
    else:
        p.kill()
    p.wait()


def report(found, opts):
    "All tables in one text, for people"
    named = [r['value'] for o in found for r in o['rows'] if r.get('what') == 'machine']
    head = ', '.join([*named, *['a rehearsal at toy size'] * opts['toy']])
    lines = [f'# bench.gpu: {head}', f'{time.strftime("%Y-%m-%d")}; {versions(*packages)}.', '']
    lines.append(table([{k: o.get(k, '') for k in ('part', 'status', 'seconds', 'error')} for o in found]))
    for o in found:
        lines += ['', f'## {o["part"]}']
        if o['rows']:
            lines += ['', table(o['rows'])]
        lines += ['', *(f'{n}\n' for n in o['notes'])]
        if 'traceback' in o:
            lines += ['```', o['traceback'].rstrip(), '```']
    return '\n'.join(lines).rstrip() + '\n'


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--out', type=Path, default=Path('gpu-results'), help='folder for the results')
    p.add_argument('--toy', action='store_true', help='tiny models and few steps: a rehearsal')
    p.add_argument('--device', default='auto', help='auto, cuda, cpu; as `gpt2repro train` takes it')
    p.add_argument(
        '--only', nargs='+', choices=parts, metavar='PART', help='these parts: ' + ', '.join(parts)
    )
    p.add_argument('--seconds', type=float, default=whole, help='for all parts together (%(default)g)')
    p.add_argument(
        '--notebooks',
        nargs='*',
        metavar='NAME',
        help=f'notebooks for the part cells, flagged or not ({" ".join(on_device)}; none with --toy)',
    )
    a = p.parse_args(argv)
    from gpt2repro.backend import get_device

    device = get_device(a.device)
    if device.type == 'cpu' and not a.toy:
        p.error('no GPU is here: `--toy --device cpu` rehearses it on a CPU')
    a.out.mkdir(parents=True, exist_ok=True)
    notebooks = a.notebooks
    if notebooks is None:
        notebooks = [] if a.toy else list(on_device)
    opts = dict(out=str(a.out.resolve()), toy=a.toy, device=a.device, notebooks=notebooks)
    end = time.time() + a.seconds
    found = []
    for name, (_, budget) in parts.items():
        if a.only and name not in a.only:
            continue
        left = end - time.time()
        if left < 5:
            found.append(dict(part=name, status='failed', error='no time left', rows=[], notes=[]))
        else:
            found.append(run_part(name, opts, min(budget, left)))
        (a.out / 'results.md').write_text(report(found, opts), encoding='utf-8')
        last = found[-1]
        print(
            f'{name:12} {last["status"]:8} {last.get("seconds", 0):6} s  {last.get("error", "")}', flush=True
        )
    print(f'results in {a.out / "results.md"}')
    sys.exit(any(o['status'] != 'done' for o in found))


if __name__ == '__main__':
    main()
