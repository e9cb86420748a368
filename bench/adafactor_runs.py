"""Held-out loss with Adafactor (paper), Adafactor (2019) and AdamW, three seeds each, small model

They train on the embedded corpus; the peers are each other. The losses go to bench/adafactor_runs.json,
which the notebook on Adafactor draws. A run that is in the file is not done again, so the work can be split
and stopped; all nine take some ten minutes on two cores."""

import json
import time
from pathlib import Path
from bench.common import folder, machine, parser, versions
import torch
from gpt2repro.batches import Batches
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig
from gpt2repro.model import GPT2
from gpt2repro.shards import load_manifest, prepare
from gpt2repro.train import fit, make_optimizer, valid_loss

out = folder / 'adafactor_runs.json'
steps = 200
every = 20
seeds = (0, 1, 2)
model = GPT2Config(vocab_size=4096, n_ctx=64, n_embd=64, n_layer=2, n_head=2).no_dropout()
optims = {
    'Adafactor (paper)': OptimConfig(schedule='paper', clip=0.0),
    'Adafactor (2019)': OptimConfig(
        preset='connor2019',
        lr=2.5e-4,
        final=0.0,
        warmup_steps=steps // 20,
        weight_decay=0.01,
        decay='all',
        clip=0.0,
    ),
    'AdamW': OptimConfig(
        name='adamw', lr=1e-3, beta1=0.9, final=0.0, warmup_steps=steps // 20, weight_decay=0.1, clip=1.0
    ),
}


def one(optim, seed, data):
    "[step, held-out loss] of one run, every 20 steps"
    cfg = RunConfig(model=model, batch_tokens=8 * model.n_ctx, max_steps=steps, optim=optim, seed=seed)
    torch.manual_seed(seed)
    m = GPT2(model)
    cpu = torch.device('cpu')
    valid = Batches(data / 'shards/valid', batch_size=16, n_ctx=model.n_ctx)
    train = Batches(data / 'shards/train', batch_size=cfg.batch_size, n_ctx=model.n_ctx, seed=seed)
    now = lambda: round(float(valid_loss(m, valid, 4, cpu)), 4)
    losses = [[0, now()]]
    for step, _, _ in fit(m, make_optimizer(m, optim, steps), train, cfg, cpu):
        if step % every == 0:
            losses.append([step, now()])
    return losses


def read():
    return json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}


def keep(name, seed, losses, data):
    "Add a run to the file as it is now: another process may have written meanwhile"
    got = read()
    got.update(
        machine=machine(),
        versions=versions('torch'),
        model=f'{model.n_layer} layers × {model.n_embd}, {model.n_params:,} parameters',
        batch=f'8 × {model.n_ctx} tokens',
        documents=load_manifest(data / 'shards/train').docs_sha256[:16],
    )
    got.setdefault('runs', {}).setdefault(name, {})[str(seed)] = losses
    out.write_text(json.dumps(got, separators=(',', ':')) + '\n', encoding='utf-8')


def main(argv=None):
    p = parser(__doc__)
    p.add_argument(
        'data',
        type=Path,
        help='a folder that `gpt2repro prepare python-docs --out` filled (or `gpt2repro reproduce`); made '
        'if it is not there',
    )
    p.add_argument('--only', default='', help='one of: ' + ', '.join(optims))
    a = p.parse_args(argv)
    if not (a.data / 'shards').exists():
        prepare(['python-docs'], a.data, vocab_size=model.vocab_size)
    for name in [n for n in optims if a.only in ('', n)]:
        for seed in seeds:
            if str(seed) in read().get('runs', {}).get(name, {}):
                continue
            t = time.perf_counter()
            losses = one(optims[name], seed, a.data)
            keep(name, seed, losses, a.data)
            print(name, seed, losses[-1], f'{time.perf_counter() - t:.0f} s', flush=True)


if __name__ == '__main__':
    main()
