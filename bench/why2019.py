"""Why the reproduction of 2019 fell short: its recipe and this project's, with everything that differs between them as a switch, on small models.

python bench/why2019.py [--quick] [--only TEXT] [--minutes M] [--workers N] [--list]

Each run leaves a curve, the size of its updates and its settings in bench/why2019/SIZE-CORPUS.json, which the lesson nbs/43_why_2019_fell_short.ipynb draws. A run that is there is not done again,
and the most informative ones come first, so the work can be stopped at any time and gone on with later, by any number of processes: `python bench/why2019.py --workers 2` starts two of one thread each.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from filelock import FileLock, Timeout
from bench.common import machine, versions
from gpt2repro.backend import describe, get_device, seed_all
from gpt2repro.config import GPT2Config, RunConfig, override, recipe, to_dict
from gpt2repro.utils import write_atomic
from gpt2repro.corpus import documents, drop_near_copies, split_documents
from gpt2repro.loss import bits_per_byte
from gpt2repro.shards import load_manifest, write_shards
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.loop import GradientMonitor, fit, make_model, make_optimizer, update_stats, valid_loss
from gpt2repro.train import train_batches, valid_batches

here = Path(__file__).parent
kept = here / 'why2019'
vocab, context, batch, steps = (
    2048,
    128,
    4,
    1000,
)  # 512,000 tokens; a batch of 2 kB of text, so that there are steps to take


def shape(n_layer, n_embd, n_head, n_ctx=context):
    return GPT2Config(
        vocab_size=vocab, n_ctx=n_ctx, n_layer=n_layer, n_embd=n_embd, n_head=n_head
    ).no_dropout()


sizes = {
    '0.1M': shape(2, 32, 2, 32),
    '1M': shape(4, 128, 4),
    '3M': shape(6, 192, 6),
    '10M': shape(8, 320, 10),
    '30M': shape(7, 576, 9),
    '85M': shape(12, 768, 12),
}

# the switches: name -> level -> settings; a function is of the run's steps. Both ends are read off the
# recipes
# Adafactor is the paper's at both ends (`preset=paper`), the settings his: that his counts its steps from 0
# and lets the weights shrink before the update is left out

ours, his, adam = (recipe(n) for n in ('1.5B', 'connor2019-1.5B', 'connor2019-117M'))


def warm(r):
    return lambda n: max(1, round(n * r.optim.warmup_steps / r.max_steps))  # the same share of the run


def rate(r, **kw):
    return {
        'optim.lr': r.optim.lr,
        'optim.schedule': r.optim.schedule,
        'optim.final': r.optim.final,
        'optim.warmup_steps': warm(r),
    } | {f'optim.{k}': v for k, v in kw.items()}


def dropout(embd, attn, resid, tables):
    return {
        'model.embd_pdrop': embd,
        'model.attn_pdrop': attn,
        'model.resid_pdrop': resid,
        'table_pdrop': tables,
    }


def adamw(lr, **kw):
    return {'optim.name': 'adamw', 'optim.lr': lr, 'optim.beta1': 0.9} | {
        f'optim.{k}': v for k, v in kw.items()
    }


tuned = 1e-3  # the best of `tuning` below at 1M parameters
switches = dict(
    lr={
        'ours': rate(ours),
        '2019': rate(his),
        'paper': {'optim.lr': 1e-2, 'optim.schedule': 'paper'},
        '2019 cut': rate(
            his, warmup_steps=his.optim.warmup_steps, schedule_steps=his.max_steps
        ),  # its 300,000 steps, stopped where the run ends
        **{f'2019 at {x:g}': rate(his, lr=x) for x in (5e-4, 1e-3, 3e-3, 4e-3, 1e-2, 3e-2)},
    },  # its shape, another peak
    optimizer={
        'adafactor': {},
        'adamw 2019': adamw(adam.optim.lr, beta2=adam.optim.beta2, eps=adam.optim.eps),
        **{f'adamw {x:g}': adamw(x) for x in (1e-3, 3e-3, 1e-2)},
    },
    init={
        'openai': {'init': 'openai'},
        'june': {'init': 'connor_june'},
        'july': {'init': 'connor_july'},
    },  # the scale of his 1.5B is 1/√L, as `connor_june` has it for every depth
    dropout={
        'none': dropout(0, 0, 0, 0),
        'sum': dropout(0.1, 0.1, 0.1, 0),
        'tables': dropout(0, 0.1, 0.1, 0.1),
    },
    sampler={'windows': {'sampler': 'windows'}, 'stitch2019': {'sampler': 'stitch2019'}},
    text={'raw': {}, 'nfkc': {}},  # which shards; 2019: ftfy with NFKC, and no document under 25 tokens
    decay={
        'none': {'optim.weight_decay': 0},
        'all': {'optim.weight_decay': his.optim.weight_decay, 'optim.decay': 'all'},
        'matrices': {'optim.weight_decay': his.optim.weight_decay, 'optim.decay': 'matrices'},
    },
    clip={'1': {'optim.clip': ours.optim.clip}, 'none': {'optim.clip': his.optim.clip}},
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
    "One run: a cell of the design at a size, on a corpus, with a seed"

    cell: str  # '2019' or 'ours', then what is changed: '2019, lr=ours'
    size: str = '1M'
    corpus: str = 'python-docs'
    seed: int = 0
    steps: int = steps

    def __post_init__(self):
        self.levels

    @property
    def levels(self):
        end, *changes = self.cell.split(', ')
        new = dict(c.split('=') for c in changes)
        for k, v in new.items():
            switches[k][v]  # a KeyError names what is not there
        return ends[end] | new

    @property
    def slug(self):
        return re.sub(r'[^\w.]+', '_', f'{self.size} {self.corpus} {self.cell} {self.seed} {self.steps}')

    @property
    def config(self):
        def value(v):
            return v(self.steps) if callable(v) else v

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
            cfg, [f'{k}={value(v)}' for s, l in self.levels.items() for k, v in switches[s][l].items()]
        )

    @property
    def flops(self):
        return self.config.model.flops_per_token() * self.config.batch_tokens * self.steps


# the design, in the order in which it is done


def others(end):
    return ends['2019' if end == 'ours' else 'ours']


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
weak = [
    'ours, dropout=sum',
    *[f'{e}, {s}={others(e)[s]}' for e in ('ours', '2019') for s in ('sampler', 'text', 'decay', 'clip')],
    '2019, dropout=sum',
    '2019, init=july',
]
few = strong[:5]
core = strong[:7] + strong[9:10]
corners = [
    'ours, lr=2019, init=july',
    'ours, lr=2019, dropout=tables',
    'ours, init=july, dropout=tables',
    'ours, lr=2019, init=july, dropout=tables',
]  # with `ours` and its single switches: 2 × 2 × 2
ladder = [f'2019, lr=2019 at {x:g}' for x in (1e-3, 3e-3, 1e-2, 3e-2)]
cut = ['2019, lr=2019 cut', '2019, lr=paper', 'ours, lr=paper', 'ours, lr=2019 cut']
same_sum = [
    f'2019, lr=2019 at {x:g}' for x in (5e-4, 4e-3)
]  # with the 1e-3 of the ladder, the sums of 2, 4 and 16 times as many steps at 2.5e-4
whole = [
    Job(c, size='0.1M', steps=n)
    for n in (1000, 4000, 16_000, his.max_steps)
    for c in ('ours, lr=2019', 'ours')
]  # as many steps as 2019's 1.5B, an hour each on a model that small
tuning = [f'ours, optimizer=adamw {x:g}' for x in (1e-3, 3e-3, 1e-2)]


def jobs(cells, seeds=(0,), **kw):
    return [Job(c, seed=s, **kw) for s in seeds for c in cells]


def design():
    "Every run, once, the most informative first"

    def long(seeds):
        return [
            Job(c, seed=s, steps=n)
            for s in seeds
            for n in (steps // 4, 2 * steps, 4 * steps)
            for c in few[:3]
        ]

    out = [
        *jobs(strong),
        *long((0,))[:3],
        *jobs(core[:5], (1,)),
        *jobs(ladder[1::2]),
        *jobs(weak[:5]),
        *long((0,))[3:4],
        *jobs(core, (1,)),
        *jobs(core[:5], (2,)),
        *jobs(weak[:5], (1,)),
        *jobs(few[:3], size='3M'),
        *jobs(strong + weak[:5], (1, 2)),
        *jobs(tuning + cut + corners + ladder),
        *long((0,)),
        *jobs(weak),
        *jobs(few, (0, 1), size='3M'),
        *jobs(few, corpus='wikitext2'),
        *jobs(weak, (1, 2)),
        *jobs(few[:3], size='10M'),
        *jobs(few, (2,), size='3M'),
        *jobs(few, (1, 2), corpus='wikitext2'),
        *jobs(cut + ladder + corners, (1, 2)),
        *jobs(few[:3], (1, 2), size='10M'),
        *whole,
        *jobs(strong + weak, (3, 4)),
        *jobs(strong, (0, 1, 2), size='3M'),
        *jobs(few, (0, 1, 2), size='10M'),
        *jobs(few, (0, 1, 2), size='3M', corpus='wikitext2'),
        *jobs(same_sum, (0, 1, 2)),
        *jobs(few[:3], steps=16 * steps),
        *long((1, 2)),
        *[Job('2019, lr=ours, dropout=none', steps=n) for n in (16 * steps, 4 * steps)],
        *jobs(core, (0, 1, 2), size='10M'),
    ]
    if torch.cuda.is_available():
        out += [
            *jobs(few, (0, 1, 2), size='30M', steps=8 * steps),
            *jobs(few, (0, 1, 2), size='85M', steps=32 * steps),
        ]
    return list(dict.fromkeys(out))


def quick_design():
    return jobs(strong)


# data: one tokenizer for both corpora


def articles(path):
    return [
        a for a in re.split(r'(?m)^(?= = [^=\n]+ = $)', Path(path).read_text(encoding='utf-8')) if a.strip()
    ]


def python_docs():
    return split_documents(drop_near_copies(documents('python-docs'), 0.3))


def wikitext2():
    folder = here.parent.parent / 'shared/data/wikitext2'
    return [articles(folder / f'wiki.{k}.tokens') for k in ('train', 'valid')] if folder.exists() else None


corpora = {'python-docs': python_docs, 'wikitext2': wikitext2}


def as_2019(docs, tok):
    "His treatment: ftfy with NFKC, and no document under 25 tokens"
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


def short(x, n=4):
    return None if x is None or not math.isfinite(x) else float(f'{x:.{n}g}')


def one(job, root, some=16, many=128):
    """Train; returns the record: `curve` [tokens, bits per byte], `groups` name -> [tokens, RMS of the
    weights, RMS of the update], `bpb` at the end"""
    cfg = job.config
    dev = get_device('auto')
    data = Path(root) / job.corpus
    held = load_manifest(data / 'raw/shards/valid')

    def bpb(n, batches):
        v, most = batches
        return bits_per_byte(
            float(valid_loss(model, v, min(n, most), dev, cfg.dtype)) * held.n_tokens, held.n_bytes
        )

    seed_all(cfg.seed, dev)
    model = make_model(cfg, dev)
    opt = make_optimizer(model, cfg.optim, cfg.max_steps, cfg.batch_tokens)
    health = GradientMonitor(model, opt)
    start = time.process_time()
    n = cfg.max_steps
    v = valid_batches(cfg.replace(eval_batches=many), data / 'raw')
    look = sorted({n // 64, n // 32, n // 16, *(n * k // 16 for k in range(1, 17))} - {0})
    curve = [[0, short(bpb(some, v))]]
    groups = {}
    losses = []
    skipped = 0
    run = fit(model, opt, train_batches(cfg, data / job.levels['text']), cfg, dev, monitor=health)
    step = 0
    while step < n:
        opt.track = step + 1 in look
        step, loss, _ = next(run)
        if step not in look:
            continue
        stats = update_stats(opt, health)
        (bad, _, (loss,)) = health.read(loss)
        skipped += bad
        for g, s in stats.items():
            groups.setdefault(g, []).append(
                [step * cfg.batch_tokens, short(s.get('param_rms')), short(s.get('update_rms'))]
            )
        curve.append([step * cfg.batch_tokens, short(bpb(some, v), 5)])
        losses.append(short(loss, 5))
    return dict(
        cell=job.cell,
        seed=job.seed,
        steps=n,
        bpb=short(bpb(many, v), 6),
        curve=curve,
        train_loss=losses,
        groups=groups,
        skipped=skipped,
        cpu_seconds=round(time.process_time() - start, 1),
        levels=job.levels,
        settings={k: v for k, v in to_dict(cfg).items() if k in ('optim', 'init', 'table_pdrop')},
    )


def file_of(job, folder):
    return Path(folder) / f'{job.size}-{job.corpus}.json'


def read(f):
    return json.loads(Path(f).read_text()) if Path(f).exists() else dict(about={}, runs=[])


def done(job, folder):
    return any(
        (r['cell'], r['seed'], r['steps']) == (job.cell, job.seed, job.steps)
        for r in read(file_of(job, folder))['runs']
    )


def keep(job, record, root, folder):
    "Put the record into its file, one run a line"
    f = file_of(job, folder)
    data = Path(root) / job.corpus
    with FileLock(str(Path(root) / f'.{f.stem}')):
        d = read(f)
        runs = sorted([*d['runs'], record], key=lambda r: (r['steps'], r['cell'], r['seed']))
        tokens = {
            k: load_manifest(data / k) for k in ('raw/shards/train', 'nfkc/shards/train', 'raw/shards/valid')
        }
        about = dict(
            size=job.size,
            corpus=job.corpus,
            n_params=job.config.model.n_params,
            model=f'{job.config.model.n_layer} layers × {job.config.model.n_embd}',
            batch_tokens=job.config.batch_tokens,
            n_ctx=job.config.model.n_ctx,
            vocab_size=vocab,
            data={
                k: dict(documents=m.n_docs, tokens=m.n_tokens, bytes=m.n_bytes, sha256=m.docs_sha256[:16])
                for k, m in tokens.items()
            },
            device=describe(get_device('auto')),
            machine=machine(),
            versions=versions('torch'),
        )
        lines = ',\n'.join(json.dumps(r, separators=(',', ':'), ensure_ascii=False) for r in runs)
        write_atomic(f, f'{{"about":{json.dumps(about, ensure_ascii=False)},\n"runs":[\n{lines}\n]}}\n')


def work(todo, root, folder, minutes=math.inf):
    "Do the runs that nobody has done or is doing, until no time is left for the next one"
    start = time.monotonic()
    speed = 0
    (locks := Path(root) / 'locks').mkdir(exist_ok=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for job in todo:
        if not (Path(root) / job.corpus).exists():
            print(f'not run: {job.corpus} is not here')
            continue
        lock = FileLock(str(locks / job.slug), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue  # another process has it
        try:
            if done(job, folder):
                continue
            t = time.monotonic()
            if (t - start + (job.flops / speed if speed else 0)) / 60 > minutes:
                continue  # a shorter one may fit
            record = one(job, root)
            keep(job, record, root, folder)
            speed = job.flops / (time.monotonic() - t)
            print(
                f'{job.size} {job.corpus} {job.steps} steps, seed {job.seed}: {job.cell}: '
                f'{record["bpb"]:.3f} bits per byte, {time.monotonic() - t:.0f} s',
                flush=True,
            )
        finally:
            lock.release()


if __name__ == '__main__':
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument(
        '--quick',
        action='store_true',
        help='the strong switches at the smallest size, one seed: under 15 minutes on two cores',
    )
    arg.add_argument('--minutes', type=float, default=math.inf, help='start nothing that would end later')
    arg.add_argument('--workers', type=int, default=1, help='processes of one thread each')
    arg.add_argument(
        '--data', type=Path, default=here.parent / 'runs/why2019', help='where tokens are made and kept'
    )
    arg.add_argument('--out', type=Path, default=kept, help='where records go')
    arg.add_argument(
        '--only',
        default='',
        help='no others than those with this in their line of --list, such as "3M" or "seed=0"',
    )
    arg.add_argument('--list', action='store_true', help='only say what is done and what is not')
    a = arg.parse_args()
    todo = [j for j in (quick_design() if a.quick else design()) if a.only in str(j)]
    if a.list:
        for j in todo:
            print('done' if done(j, a.out) else '    ', j)
        sys.exit()
    torch.set_num_threads(1)
    start = time.monotonic()
    make_data(a.data, corpora)
    if a.workers > 1:
        left = a.minutes - (time.monotonic() - start) / 60
        procs = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    f'--minutes={left}',
                    f'--data={a.data}',
                    f'--out={a.out}',
                    f'--only={a.only}',
                    *['--quick'] * a.quick,
                ],
                env=dict(os.environ, OMP_NUM_THREADS='1'),
            )
            for _ in range(a.workers)
        ]
        sys.exit(max(p.wait() for p in procs))
    work(todo, a.data, a.out, a.minutes)
    left = sum(not done(j, a.out) for j in todo)
    print(
        f'{len(todo) - left} of {len(todo)} runs are done' + (f', {left} are not, or not yet' if left else '')
    )
