"""The whole training loop at 124M against its own bare step, and against transformers' Trainer: bfloat16 autocast, batch 2 × 512, Adafactor. Each contender in a process of its own, so that each has its own peak of memory.
`python bench/train.py` runs all and keeps the table; `--size tiny` is a quick look. On a CUDA device the same with batch 16 × 1024 (not run on a GPU yet)."""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here.parent))
born = float(os.environ.get('BENCH_BORN', time.time()))


def setting(size):
    "Configuration, device"
    from gpt2repro.backend import get_device
    from gpt2repro.config import DataConfig, OptimConfig, RunConfig, sizes

    dev = get_device('auto')
    B, T = (16, 1024) if dev.type == 'cuda' else (2, 512)
    model = sizes[size].replace(n_ctx=T) if size != 'tiny' else sizes[size].replace(n_ctx=128)
    cfg = RunConfig(
        model=model.no_dropout(),
        data=DataConfig(source=os.environ['BENCH_DATA']),
        optim=OptimConfig(lr=1e-3, clip=0.0),
        batch_tokens=B * model.n_ctx,
        micro_batch=B,
        dtype='bfloat16',
        max_steps=25,
        log_every=10,
        eval_every=10_000,
        eval_batches=1,
        save_every=12,
        keep=1,
    )
    return cfg, dev


def timed(step, dev, n):
    "Seconds of each of `n` calls after two that do not count"
    from gpt2repro.backend import sync

    out = []
    for _ in range(n + 2):
        sync(dev)
        t = time.perf_counter()
        step()
        sync(dev)
        out.append(time.perf_counter() - t)
    return out[2:]


def bare(size, n=6):
    "Forward, backward, Adafactor, and nothing else"
    import torch
    from gpt2repro.backend import autocast, compile_model, peak_memory
    from gpt2repro.loss import lm_loss
    from gpt2repro.model import GPT2
    from gpt2repro.train import make_optimizer

    cfg, dev = setting(size)
    model = GPT2(cfg.model).to(dev)
    opt = make_optimizer(model, cfg.optim, 100)
    f = compile_model(lambda x, y: lm_loss(model, x, y), dev)
    ids = torch.randint(300, (cfg.batch_size, cfg.model.n_ctx + 1), device=dev)

    def step():
        with autocast(dev, cfg.dtype):
            loss = f(ids[:, :-1], ids[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad()

    ts = timed(step, dev, n)
    return dict(
        tokens_per_s=cfg.batch_tokens * n / sum(ts), step=sum(ts) / n, peak_gib=peak_memory(dev) / 2**30
    )


def loop(size):
    """`train`, logging every 10 steps; a checkpoint after steps 12 and 24, written while the steps
    after it run"""
    import gpt2repro.train as T

    cfg, dev = setting(size)
    marks, stalls, begun, told, recs = {}, [], [], {}, []
    read, save, fit = T.Batches.__call__, T.Saver.__call__, T.fit

    def batches(self, step, *a):
        if not begun:
            begun.append(time.time() - born)
        marks[step] = time.perf_counter()
        return read(self, step, *a)

    def saver(self, *a, **kw):
        t = time.perf_counter()
        save(self, *a, **kw)
        stalls.append(time.perf_counter() - t)

    def steps(*a, **kw):
        for o in fit(*a, **kw):
            t = time.perf_counter()
            yield o
            told[o[0]] = time.perf_counter() - t

    T.Batches.__call__, T.Saver.__call__, T.fit = batches, saver, steps
    with tempfile.TemporaryDirectory(dir=os.environ['BENCH_DATA']) as d:
        T.train(cfg, Path(d) / 'run', watch=[recs.append])
    # steps 2 to 11 with the boundary after 10; 13 to 24 while a checkpoint is written and, at the end,
    # the next begun
    step = (marks[11] - marks[1]) / 10
    saving = (marks[24] - marks[12]) / 12
    mem = [r['memory'] / 2**30 for r in recs if r['kind'] == 'train']
    return dict(
        tokens_per_s=cfg.batch_tokens / step,
        step=step,
        saving=saving,
        start=begun[0],
        peak_gib=mem[0],
        saving_gib=mem[1] - mem[0],
        stall=max(stalls[:2]),
        told=sum(told[i] for i in range(2, 12)) / (10 * step),
    )


def host(size):
    "Memory that a checkpoint takes besides what is there, as a multiple of parameters and optimizer state"
    import torch
    from gpt2repro.checkpoint import Saver
    from gpt2repro.model import GPT2
    from gpt2repro.train import make_optimizer

    cfg, dev = setting(size)
    model = GPT2(cfg.model).to(dev)
    opt = make_optimizer(model, cfg.optim, 100)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    opt.zero_grad()
    now = lambda k: next(
        int(l.split()[1]) * 1024
        for l in Path('/proc/self/status').read_text().splitlines()
        if l.startswith(k)
    )
    state = sum(
        t.nbytes
        for t in [
            *model.state_dict().values(),
            *(v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)),
        ]
    )
    with tempfile.TemporaryDirectory(dir=os.environ['BENCH_DATA']) as d, Saver(Path(d)) as saver:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what the gradients took is given back, or it would be used here and not seen
        Path('/proc/self/clear_refs').write_text('5')  # the peak is counted from here
        before = now('VmRSS')
        for step in 1, 2:
            saver(step, model, opt)
            saver.wait()
        return dict(extra=(now('VmHWM') - before) / state, state_gib=state / 2**30)


def trainer(size, n=5):
    "transformers' Trainer with its Adafactor"
    import torch
    import transformers
    from gpt2repro.backend import peak_memory

    cfg, dev = setting(size)
    c = cfg.model
    hf = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.n_ctx,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            use_cache=False,
        )
    )
    data = [dict(input_ids=(o := torch.randint(300, (c.n_ctx,))), labels=o) for _ in range(64)]
    marks = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *a, **kw):
            marks.append(time.perf_counter())

        def on_train_end(self, *a, **kw):
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as d:
        args = transformers.TrainingArguments(
            output_dir=d,
            per_device_train_batch_size=cfg.batch_size,
            max_steps=n + 2,
            bf16=True,
            optim='adafactor',
            use_cpu=dev.type == 'cpu',
            report_to=[],
            logging_steps=10,
            save_strategy='no',
            max_grad_norm=0.0,
            disable_tqdm=True,
        )
        transformers.Trainer(model=hf, args=args, train_dataset=data, callbacks=[Clock()]).train()
    seconds = marks[-1] - marks[2]
    return dict(
        tokens_per_s=cfg.batch_tokens * n / seconds, step=seconds / n, peak_gib=peak_memory(dev) / 2**30
    )


def make_data(folder):
    from gpt2repro.shards import write_shards
    from gpt2repro.tokenizer import SentencePiece

    rng = random.Random(0)
    docs = [
        ' '.join(rng.choices('the cat sat on a mat and saw how one dog ran past it'.split(), k=200))
        for _ in range(400)
    ]
    tok = SentencePiece.train(docs, vocab_size=320)
    tok.save(folder / 'tokenizer')
    for name, part in dict(train=docs[:360], valid=docs[360:]).items():
        write_shards(part, tok, folder / 'shards' / name, workers=1)


contenders = dict(bare=bare, loop=loop, trainer=trainer, host=host)

if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--size', default='124M')
    p.add_argument('--one', choices=contenders)
    a = p.parse_args()
    if a.one:
        print('RESULT', json.dumps(contenders[a.one](a.size)))
        sys.exit()
    from common import save_table

    with tempfile.TemporaryDirectory() as d:
        make_data(Path(d))
        env = {**os.environ, 'BENCH_DATA': d, 'GPT2REPRO_QUIET': '1'}

        def run(name):
            out = subprocess.run(
                [sys.executable, __file__, '--one', name, '--size', a.size],
                env={**env, 'BENCH_BORN': str(time.time())},
                capture_output=True,
                text=True,
            )
            if out.returncode:
                raise SystemExit(out.stderr)
            print(name, out.stdout.strip().splitlines()[-1], flush=True)
            return json.loads(next(l for l in out.stdout.splitlines() if l.startswith('RESULT'))[7:])

        r = {name: run(name) for name in contenders}
    b, l, t, h = (r[k] for k in ('bare', 'loop', 'trainer', 'host'))
    rows = [
        dict(what=w, **{'tokens/s': o['tokens_per_s'], 's per step': o['step'], 'peak GiB': o['peak_gib']})
        for w, o in (
            ('bare step: forward, backward, Adafactor', b),
            ('whole loop, logging every 10 steps', l),
            ("transformers' Trainer, its Adafactor", t),
        )
    ]
    ratios = [
        ('whole loop / bare step, tokens/s', '≥ 0.97', l['tokens_per_s'] / b['tokens_per_s']),
        ('whole loop / Trainer, tokens/s', '≥ 1.3', l['tokens_per_s'] / t['tokens_per_s']),
        ('whole loop / Trainer, peak memory', '≤ 0.7', l['peak_gib'] / t['peak_gib']),
        ('loop outside the step with logging every 10 steps, share of the time', '≤ 0.01', l['told']),
        ('seconds from the process to the beginning of the first step', '≤ 10', l['start']),
        ('a step with a checkpoint every 12 / a step', '< 1.05', l['saving'] / l['step']),
        ('longest stall of a checkpoint / a step', '', l['stall'] / l['step']),
        ('host memory of a checkpoint / parameters and optimizer state', '≤ 1.1', h['extra']),
        ('the same in the loop, peak with one under way less peak without, GiB', '', l['saving_gib']),
    ]
    note = '\n'.join(
        ['| number | target | measured |', '|---|---|---|']
        + [f'| {n} | {g} | {v:.3g} |' for n, g, v in ratios]
    )
    note += (
        '\n\nTwo CPU threads or one GPU. The loop keeps freed memory while it trains '
        '(`backend.retain_heap`), the bare step does not: that is why it can be the faster one, and why '
        'its peak is higher.'
    )
    if a.size == '124M':
        save_table(
            'Training loop (bench/train.py)', rows, note, packages=('torch', 'transformers', 'accelerate')
        )
    else:
        for o in rows:
            print(o)
        print(note)
