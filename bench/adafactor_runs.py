"""Adafactor (paper), Adafactor (2019) and AdamW, three seeds each, on the embedded corpus: held-out losses into adafactor_runs.json, which the notebook draws.
A run that is in the file already is not done again, so that the work can be split."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from bench.common import machine, versions
from gpt2repro.batches import Batches
from gpt2repro.config import GPT2Config, OptimConfig, RunConfig
from gpt2repro.model import GPT2
from gpt2repro.shards import load_manifest, prepare
from gpt2repro.train import fit, make_optimizer, valid_loss

out = Path(__file__).parent / 'adafactor_runs.json'
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
    cfg = RunConfig(model=model, batch_tokens=8 * model.n_ctx, max_steps=steps, optim=optim, seed=seed)
    torch.manual_seed(seed)
    m = GPT2(model)
    cpu = torch.device('cpu')
    valid = Batches(data / 'shards/valid', batch_size=16, n_ctx=model.n_ctx)
    losses = [[0, round(float(valid_loss(m, valid, 4, cpu)), 4)]]
    for step, _, _ in fit(
        m,
        make_optimizer(m, optim, steps),
        Batches(data / 'shards/train', batch_size=cfg.batch_size, n_ctx=model.n_ctx, seed=seed),
        cfg,
        cpu,
    ):
        if step % every == 0:
            losses.append([step, round(float(valid_loss(m, valid, 4, cpu)), 4)])
    return losses


if __name__ == '__main__':
    arg = argparse.ArgumentParser(description=__doc__)
    arg.add_argument(
        'data',
        type=Path,
        help='a folder that `gpt2repro prepare python-docs --out` filled (or `gpt2repro reproduce`); made '
        'if it is not there',
    )
    arg.add_argument('--only', default='', help='one of: ' + ', '.join(optims))
    a = arg.parse_args()
    if not (a.data / 'shards').exists():
        prepare(['python-docs'], a.data, vocab_size=model.vocab_size)
    for name, o in optims.items():
        if a.only not in ('', name):
            continue
        for seed in seeds:
            got = json.loads(out.read_text()) if out.exists() else {}
            runs = got.setdefault('runs', {}).setdefault(name, {})
            if str(seed) in runs:
                continue
            t = time.perf_counter()
            losses = one(o, seed, a.data)
            got = json.loads(out.read_text()) if out.exists() else {}
            got.update(
                machine=machine(),
                versions=versions('torch'),
                model=f'{model.n_layer} layers × {model.n_embd}, {model.n_params:,} parameters',
                batch=f'8 × {model.n_ctx} tokens',
                documents=load_manifest(a.data / 'shards/train').docs_sha256[:16],
            )
            got.setdefault('runs', {}).setdefault(name, {})[str(seed)] = losses
            out.write_text(json.dumps(got, separators=(',', ':')) + '\n')
            print(name, seed, losses[-1], f'{time.perf_counter() - t:.0f} s', flush=True)
