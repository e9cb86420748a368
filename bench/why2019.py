"""Why the reproduction of 2019 fell short: the recipe of 2019 and this project's on small models.

Everything that differs between the two recipes is a switch. Each run leaves a curve, the size of its updates
and its settings in bench/why2019/SIZE-CORPUS.json, which the lesson nbs/43_why_2019_fell_short.ipynb draws.

A run that is there is not done again, and the most informative ones come first. So the work can be stopped at
any time and gone on with later, by any number of processes: `--workers 2` starts two of one thread each.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
import torch
from filelock import FileLock, Timeout
from bench.common import machine, versions
from gpt2repro.backend import describe, get_device, seed_all
from gpt2repro.config import GPT2Config, RunConfig, override, recipe, to_dict
from gpt2repro.corpus import documents, drop_near_copies, split_documents
from gpt2repro.experiment import add_run, cell_levels, cell_settings, runs_done
from gpt2repro.loss import bits_per_byte
from gpt2repro.shards import load_manifest, write_shards
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.loop import GradientMonitor, fit, make_model, make_optimizer, update_stats, valid_loss
from gpt2repro.optimize import optimize_model
from gpt2repro.train import train_batches, valid_batches
from gpt2repro.utils import reference_data

here = Path(__file__).parent
kept = here / 'why2019'  # the records
vocab = 2048
context = 128
batch = 4  # sequences: 2 kB of text, so that there are steps to take
steps = 1000  # of 512 tokens


# sizes


def shape(n_layer, n_embd, n_head, n_ctx=context):
    "A small GPT-2 without dropout, which is a switch"
    m = GPT2Config(vocab_size=vocab, n_ctx=n_ctx, n_layer=n_layer, n_embd=n_embd, n_head=n_head)
    return m.no_dropout()


sizes = {
    '0.1M': shape(2, 32, 2, 32),
    '1M': shape(4, 128, 4),
    '3M': shape(6, 192, 6),
    '10M': shape(8, 320, 10),
    '30M': shape(7, 576, 9),
    '85M': shape(12, 768, 12),
}


# switches: name -> level -> settings; a function is of the run's steps

# Both ends are read off the recipes. Adafactor is the paper's at both ends (`preset=paper`), so one detail of
# 2019 is left out: its code counts steps from 0 and decays weights before the update.
ours, of2019, adam2019 = (recipe(n) for n in ('1.5B', 'connor2019-1.5B', 'connor2019-117M'))


def same_share(r):
    "Warm-up that is the same share of a run as in the recipe"
    return lambda n: max(1, round(n * r.optim.warmup_steps / r.max_steps))


def rate(r, **changes):
    "A recipe's schedule, some of its settings changed"
    o = r.optim
    schedule = dict(lr=o.lr, schedule=o.schedule, final=o.final, warmup_steps=same_share(r))
    return {f'optim.{k}': v for k, v in (schedule | changes).items()}


def dropout(embd, attn, resid, tables):
    "Dropout on the sum of the embeddings, in attention, on the residual branches, on the embedding tables"
    model = {'model.embd_pdrop': embd, 'model.attn_pdrop': attn, 'model.resid_pdrop': resid}
    return model | {'table_pdrop': tables}


def adamw(lr, **changes):
    "AdamW with an absolute rate; the schedule keeps its shape"
    return {f'optim.{k}': v for k, v in (dict(name='adamw', lr=lr, beta1=0.9) | changes).items()}


def decay(on):
    return {'optim.weight_decay': of2019.optim.weight_decay, 'optim.decay': on}


tuned = 1e-3  # the best of `tuning` below at 1M parameters
other_peaks = (5e-4, 1e-3, 3e-3, 4e-3, 1e-2, 3e-2)
whole_schedule = dict(warmup_steps=of2019.optim.warmup_steps, schedule_steps=of2019.max_steps)
switches = dict(
    lr={
        'ours': rate(ours),
        '2019': rate(of2019),
        'paper': {'optim.lr': 1e-2, 'optim.schedule': 'paper'},
        '2019 cut': rate(of2019, **whole_schedule),  # its 300,000 steps, stopped where the run ends
        **{f'2019 at {x:g}': rate(of2019, lr=x) for x in other_peaks},  # its shape, another peak
    },
    optimizer={
        'adafactor': {},
        'adamw 2019': adamw(adam2019.optim.lr, beta2=adam2019.optim.beta2, eps=adam2019.optim.eps),
        **{f'adamw {x:g}': adamw(x) for x in (1e-3, 3e-3, 1e-2)},
    },
    # the scale of the 1.5B of 2019 is 1/√L, as `connor_june` has it for every depth
    init={k: {'init': v} for k, v in dict(openai='openai', june='connor_june', july='connor_july').items()},
    dropout={
        'none': dropout(0, 0, 0, 0),
        'sum': dropout(0.1, 0.1, 0.1, 0),
        'tables': dropout(0, 0.1, 0.1, 0.1),
    },
    sampler={k: {'sampler': k} for k in ('windows', 'stitch2019')},
    text={'raw': {}, 'nfkc': {}},  # which shards; 2019: ftfy with NFKC, and no document under 25 tokens
    decay={'none': {'optim.weight_decay': 0}, 'all': decay('all'), 'matrices': decay('matrices')},
    clip={'1': {'optim.clip': ours.optim.clip}, 'none': {'optim.clip': of2019.optim.clip}},
)
ends = {
    'ours': dict(
        lr='ours',
        optimizer='adafactor',
        init='openai',
        dropout='none',
        sampler='windows',
        text='raw',
        decay='none',
        clip='1',
    ),
    '2019': dict(
        lr='2019',
        optimizer='adafactor',
        init='june',
        dropout='tables',
        sampler='stitch2019',
        text='nfkc',
        decay='all',
        clip='none',
    ),
}


@dataclass(frozen=True)
class Job:
    "One run: a cell of the design at a size, on a corpus, with a seed. `KeyError` for an unknown level"

    cell: str  # '2019' or 'ours', then what is changed: '2019, lr=ours'
    size: str = '1M'
    corpus: str = 'python-docs'
    seed: int = 0
    steps: int = steps

    def __post_init__(self):
        self.levels

    @property
    def levels(self):
        return cell_levels(self.cell, ends, switches)

    @property
    def slug(self):
        return re.sub(r'[^\w.]+', '_', f'{self.size} {self.corpus} {self.cell} {self.seed} {self.steps}')

    @property
    def config(self):
        m = sizes[self.size]
        cfg = RunConfig(
            name=self.cell,
            model=m,
            batch_tokens=batch * m.n_ctx,
            micro_batch=batch,
            dtype='bfloat16',
            max_steps=self.steps,
            seed=self.seed,
        )
        return override(
            cfg, [f'{k}={v}' for k, v in cell_settings(self.levels, switches, self.steps).items()]
        )

    @property
    def flops(self):
        return self.config.model.flops_per_token() * self.config.batch_tokens * self.steps

    @property
    def key(self):
        return self.cell, self.seed, self.steps

    def file(self, folder):
        "Where the record goes"
        return Path(folder) / f'{self.size}-{self.corpus}.json'


# the design, in the order in which it is done

strong = [
    '2019',
    'ours',
    '2019, lr=ours',
    'ours, lr=2019',
    '2019, optimizer=adamw 2019',
    'ours, dropout=tables',
    'ours, init=july',
    '2019, dropout=none',
    '2019, init=openai',
    '2019, lr=ours, dropout=none',
    'ours, optimizer=adamw 2019',
    f'2019, optimizer=adamw {tuned:g}',
    f'ours, optimizer=adamw {tuned:g}',
    'ours, init=june',
]
small = ('sampler', 'text', 'decay', 'clip')
weak = [
    'ours, dropout=sum',
    *(f'ours, {s}={ends["2019"][s]}' for s in small),
    *(f'2019, {s}={ends["ours"][s]}' for s in small),
    '2019, dropout=sum',
    '2019, init=july',
]
few = strong[:5]
core = strong[:7] + ['2019, lr=ours, dropout=none']
corners = [  # with `ours` and its single switches: 2 × 2 × 2
    'ours, lr=2019, init=july',
    'ours, lr=2019, dropout=tables',
    'ours, init=july, dropout=tables',
    'ours, lr=2019, init=july, dropout=tables',
]
ladder = [f'2019, lr=2019 at {x:g}' for x in (1e-3, 3e-3, 1e-2, 3e-2)]
cut = ['2019, lr=2019 cut', '2019, lr=paper', 'ours, lr=paper', 'ours, lr=2019 cut']
# with the 1e-3 of the ladder, the sums of 2, 4 and 16 times as many steps at 2.5e-4
same_sum = [f'2019, lr=2019 at {x:g}' for x in (5e-4, 4e-3)]
tuning = [f'ours, optimizer=adamw {x:g}' for x in (1e-3, 3e-3, 1e-2)]


def jobs(cells, seeds=(0,), **place):
    "All cells with the first seed, then with the next"
    return [Job(c, seed=s, **place) for s in seeds for c in cells]


def longer(seeds=(0,)):
    "The first three cells with fewer steps and with more"
    return [
        j for s in seeds for n in (steps // 4, 2 * steps, 4 * steps) for j in jobs(few[:3], (s,), steps=n)
    ]


def whole_length():
    "As many steps as the 1.5B of 2019 had, an hour each on a model that small, and fewer"
    lengths = (1000, 4000, 16_000, of2019.max_steps)
    return [Job(c, size='0.1M', steps=n) for n in lengths for c in ('ours, lr=2019', 'ours')]


def cpu_design():
    "Runs at up to 10M parameters, the most informative first; some stand there twice"
    return [
        *jobs(strong),
        *longer()[:3],
        *jobs(core[:5], (1,)),
        *jobs(ladder[1::2]),
        *jobs(weak[:5]),
        *longer()[3:4],
        *jobs(core, (1,)),
        *jobs(core[:5], (2,)),
        *jobs(weak[:5], (1,)),
        *jobs(few[:3], size='3M'),
        *jobs(strong + weak[:5], (1, 2)),
        *jobs(tuning + cut + corners + ladder),
        *longer(),
        *jobs(weak),
        *jobs(few, (0, 1), size='3M'),
        *jobs(few, corpus='wikitext2'),
        *jobs(weak, (1, 2)),
        *jobs(few[:3], size='10M'),
        *jobs(few, (2,), size='3M'),
        *jobs(few, (1, 2), corpus='wikitext2'),
        *jobs(cut + ladder + corners, (1, 2)),
        *jobs(few[:3], (1, 2), size='10M'),
        *whole_length(),
        *jobs(strong + weak, (3, 4)),
        *jobs(strong, (0, 1, 2), size='3M'),
        *jobs(few, (0, 1, 2), size='10M'),
        *jobs(few, (0, 1, 2), size='3M', corpus='wikitext2'),
        *jobs(same_sum, (0, 1, 2)),
        *jobs(few[:3], steps=16 * steps),
        *longer((1, 2)),
        *jobs(['2019, lr=ours, dropout=none'], steps=16 * steps),
        *jobs(['2019, lr=ours, dropout=none'], steps=4 * steps),
        *jobs(core, (0, 1, 2), size='10M'),
    ]


def gpu_design():
    "Larger models, where there is a GPU"
    sets = dict(size='30M', steps=8 * steps), dict(size='85M', steps=32 * steps)
    return [j for place in sets for j in jobs(few, (0, 1, 2), **place)]


def design():
    "Every run, once, the most informative first"
    out = cpu_design()
    if torch.cuda.is_available():
        out += gpu_design()
    return list(dict.fromkeys(out))


def quick_design():
    return jobs(strong)


# data: one tokenizer for both corpora


def python_docs():
    "Training and held-out documents of Python's documentation"
    return split_documents(drop_near_copies(documents('python-docs'), 0.3))


def articles(path):
    "Articles of WikiText, each from its title on"
    text = Path(path).read_text(encoding='utf-8')
    return [a for a in re.split(r'(?m)^(?= = [^=\n]+ = $)', text) if a.strip()]


def wikitext2():
    "Training and held-out articles, or None where `GPT2REPRO_TEST_DATA` has no WikiText-2"
    folder = reference_data('wikitext2')
    if not folder.exists():
        return None
    return [articles(folder / f'wiki.{k}.tokens') for k in ('train', 'valid')]


corpora = {'python-docs': python_docs, 'wikitext2': wikitext2}


def as_2019(docs, tok):
    "The treatment of 2019: ftfy with NFKC, and no document under 25 tokens"
    import ftfy

    new = (ftfy.fix_text(d, normalization='NFKC') for d in docs)
    return [d for d in new if len(tok.encode(d)) >= 25]


def make_data(
    root,  # gets tokenizer/ and CORPUS/raw, CORPUS/nfkc
    corpora,  # name -> function that returns training and held-out documents, or None where there are none
):
    "Tokens of each corpus under `root`, made once"
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(root / '.making')):
        if (root / 'done').exists():
            return
        docs = {k: d for k, f in corpora.items() if (d := f())}
        tok = SentencePiece.train([d for train, _ in docs.values() for d in train], vocab_size=vocab)
        tok.save(root / 'tokenizer')
        for k, (train, valid) in docs.items():
            write_shards(train, tok, root / k / 'raw/shards/train', workers=0)
            write_shards(valid, tok, root / k / 'raw/shards/valid', workers=0)
            write_shards(as_2019(train, tok), tok, root / k / 'nfkc/shards/train', workers=0)
        (root / 'done').touch()


# a run and its record


def short(x, digits=4):
    "A number as a record keeps it, None if there is none"
    if x is None or not math.isfinite(x):
        return None
    return float(f'{x:.{digits}g}')


def recorded_steps(n):
    "Steps of a run of `n` at which its record has a point: some early ones, then sixteen"
    return sorted({n // 64, n // 32, n // 16, *(n * k // 16 for k in range(1, 17))} - {0})


class HeldOut:
    "Held-out text of a run, 128 batches at most, and a model's bits per byte on it"

    def __init__(self, cfg, data, device):
        self.cfg = cfg
        self.device = device
        self.manifest = load_manifest(data / 'raw/shards/valid')
        self.batches, self.n_batches = valid_batches(cfg.replace(eval_batches=128), data / 'raw')

    def bits_per_byte(self, model, n_batches):
        n = min(n_batches, self.n_batches)
        loss = float(valid_loss(model, self.batches, n, self.device, self.cfg.dtype))
        return bits_per_byte(loss * self.manifest.n_tokens, self.manifest.n_bytes)


class Observed:
    "What a run's record says of its way: curve, training loss, size of weights and updates"

    def __init__(self):
        self.curve = []  # [tokens, bits per byte]
        self.train_loss = []
        self.groups = {}  # name -> [[tokens, RMS of the weights, RMS of the update], …]
        self.skipped = 0

    def add(self, tokens, bpb, loss, stats, skipped):
        self.curve.append([tokens, short(bpb, 5)])
        self.train_loss.append(short(loss, 5))
        self.skipped += skipped
        for group, s in stats.items():
            point = [tokens, short(s.get('param_rms')), short(s.get('update_rms'))]
            self.groups.setdefault(group, []).append(point)


def train_and_observe(job, cfg, root, device):
    "Train; returns what was observed, and bits per byte at the end"
    data = Path(root) / job.corpus
    seed_all(cfg.seed, device)
    model = optimize_model(make_model(cfg, device))
    opt = make_optimizer(model, cfg.optim, cfg.max_steps, cfg.batch_tokens)
    monitor = GradientMonitor(model, opt)
    held_out = HeldOut(cfg, data, device)
    seen = Observed()
    seen.curve.append([0, short(held_out.bits_per_byte(model, 16))])
    look = recorded_steps(cfg.max_steps)
    run = fit(model, opt, train_batches(cfg, data / job.levels['text']), cfg, device, monitor=monitor)
    step = 0
    while step < cfg.max_steps:
        opt.track = step + 1 in look
        step, loss, _ = next(run)
        if step not in look:
            continue
        stats = update_stats(opt, monitor)
        bad, _, (loss,) = monitor.read(loss)
        seen.add(step * cfg.batch_tokens, held_out.bits_per_byte(model, 16), loss, stats, bad)
    return seen, held_out.bits_per_byte(model, 128)


def record_of(job, root):
    "Train, and return the record"
    cfg = job.config
    start = time.process_time()
    seen, bpb = train_and_observe(job, cfg, root, get_device('auto'))
    return dict(
        cell=job.cell,
        seed=job.seed,
        steps=job.steps,
        bpb=short(bpb, 6),
        curve=seen.curve,
        train_loss=seen.train_loss,
        groups=seen.groups,
        skipped=seen.skipped,
        cpu_seconds=round(time.process_time() - start, 1),
        levels=job.levels,
        settings={k: v for k, v in to_dict(cfg).items() if k in ('optim', 'init', 'table_pdrop')},
    )


def about(job, root):
    "What the runs of a file have in common"
    model = job.config.model
    data = {}
    for k in ('raw/shards/train', 'nfkc/shards/train', 'raw/shards/valid'):
        m = load_manifest(Path(root) / job.corpus / k)
        data[k] = dict(documents=m.n_docs, tokens=m.n_tokens, bytes=m.n_bytes, sha256=m.docs_sha256[:16])
    return dict(
        size=job.size,
        corpus=job.corpus,
        n_params=model.n_params,
        model=f'{model.n_layer} layers × {model.n_embd}',
        batch_tokens=job.config.batch_tokens,
        n_ctx=model.n_ctx,
        vocab_size=vocab,
        data=data,
        device=describe(get_device('auto')),
        machine=machine(),
        versions=versions('torch'),
    )


# work, shared among processes


def is_done(job, folder):
    return job.key in runs_done(job.file(folder))


def do(job, root, folder):
    "One run, from training to its line in the file"
    start = time.monotonic()
    record = record_of(job, root)
    file = job.file(folder)
    with FileLock(str(Path(root) / f'.{file.stem}')):
        add_run(file, about(job, root), record)
    print(
        f'{job.size} {job.corpus} {job.steps} steps, seed {job.seed}: {job.cell}: '
        f'{record["bpb"]:.3f} bits per byte, {time.monotonic() - start:.0f} s',
        flush=True,
    )


class Deadline:
    "Would a run end in time, at the speed of the last one? Before the first there is no estimate"

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes
        self.flops_per_s = math.inf

    def allows(self, job):
        return time.monotonic() + job.flops / self.flops_per_s <= self.end

    def measure(self, job, seconds):
        self.flops_per_s = job.flops / seconds


def work(todo, root, folder, minutes=math.inf):
    "Do the runs that nobody has done or is doing, until no time is left for the next one"
    deadline = Deadline(minutes)
    locks = Path(root) / 'locks'
    locks.mkdir(exist_ok=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for job in todo:
        if not (Path(root) / job.corpus).exists():
            print(f'not run: {job.corpus} is not here')
            continue
        try:
            with FileLock(str(locks / job.slug), timeout=0):
                if is_done(job, folder) or not deadline.allows(job):  # a shorter one may fit
                    continue
                start = time.monotonic()
                do(job, root, folder)
                deadline.measure(job, time.monotonic() - start)
        except Timeout:
            continue  # another process has it


def start_workers(a, minutes):
    "Processes of one thread each, which share the work; returns the worst exit status"
    argv = [sys.executable, '-m', 'bench.why2019', f'--minutes={minutes}', f'--only={a.only}']
    argv += [f'--data={a.data.resolve()}', f'--out={a.out.resolve()}', *['--quick'] * a.quick]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    procs = [subprocess.Popen(argv, env=env, cwd=here.parent) for _ in range(a.workers)]
    return max(p.wait() for p in procs)


def list_jobs(todo, folder):
    "Print each run with whether it is done"
    done = {f: runs_done(f) for f in {j.file(folder) for j in todo}}
    for j in todo:
        print('done' if j.key in done[j.file(folder)] else '    ', j)


def arguments():
    p = argparse.ArgumentParser(
        prog='python -m bench.why2019',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    quick = 'the strong switches at the smallest size, one seed: under 15 minutes on two cores'
    only = 'no others than those with this in their line of --list, such as "3M" or "seed=0"'
    p.add_argument('--quick', action='store_true', help=quick)
    p.add_argument('--minutes', type=float, default=math.inf, help='start nothing that would end later')
    p.add_argument('--workers', type=int, default=1, help='processes of one thread each')
    data = here.parent / 'runs/why2019'
    p.add_argument('--data', type=Path, default=data, help='where tokens are made and kept')
    p.add_argument('--out', type=Path, default=kept, help='where records go')
    p.add_argument('--only', default='', help=only)
    p.add_argument('--list', action='store_true', help='only say what is done and what is not')
    return p.parse_args()


def main():
    a = arguments()
    todo = [j for j in (quick_design() if a.quick else design()) if a.only in str(j)]
    if a.list:
        list_jobs(todo, a.out)
        return 0
    torch.set_num_threads(1)
    start = time.monotonic()
    make_data(a.data, corpora)
    minutes = a.minutes - (time.monotonic() - start) / 60
    if a.workers > 1:
        return start_workers(a, minutes)
    work(todo, a.data, a.out, a.minutes)
    left = sum(not is_done(j, a.out) for j in todo)
    print(
        f'{len(todo) - left} of {len(todo)} runs are done' + (f', {left} are not, or not yet' if left else '')
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
