"""The whole training loop at 124M against its own bare step, and against transformers' Trainer

bfloat16 autocast, batch 2 × 512, Adafactor; each contender in a process of its own, so that each has its own
peak of memory. Speed, memory, what logging and checkpoints cost. Five minutes on two cores; `--size tiny` is
a quick look that keeps nothing. On a CUDA device the same with batch 16 × 1024 (not run on a GPU yet)."""

import random
import tempfile
import time
from pathlib import Path
from bench.common import alone, in_turns, parser, save_table, table, trim_heap

contenders = ('bare', 'loop', 'trainer', 'host')
vocab = 320


def setting(size, data, batch=0, device_name='auto', **kw):
    "Configuration and device; other fields of `RunConfig` by name"
    from gpt2repro.backend import get_device
    from gpt2repro.config import DataConfig, OptimConfig, RunConfig, sizes

    device = get_device(device_name)
    B, T = (16, 1024) if device.type == 'cuda' else (2, 512)
    B = batch or B
    model = sizes[size].replace(n_ctx=128 if size == 'tiny' else T).no_dropout()
    settings = dict(
        model=model,
        data=DataConfig(source=str(data)),
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
    return RunConfig(**settings | kw), device


def bare(size, data, born, n=6):
    "Forward, backward, Adafactor, and nothing else"
    import torch
    from gpt2repro.optimize import optimize_model
    from gpt2repro.backend import autocast, compile_model, peak_memory
    from gpt2repro.loss import lm_loss
    from gpt2repro.model import GPT2
    from gpt2repro.train import make_optimizer

    cfg, dev = setting(size, data)
    model = optimize_model(GPT2(cfg.model).to(dev))
    opt = make_optimizer(model, cfg.optim, 100)
    f = compile_model(lambda x, y: lm_loss(model, x, y), dev)
    ids = torch.randint(300, (cfg.batch_size, cfg.model.n_ctx + 1), device=dev)

    def step():
        with autocast(dev, cfg.dtype):
            loss = f(ids[:, :-1], ids[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad()

    seconds = sum(in_turns({'step': step}, n, dev, warmup=2)['step'])
    return dict(
        tokens_per_s=cfg.batch_tokens * n / seconds, step=seconds / n, peak_gib=peak_memory(dev) / 2**30
    )


class Clocks:
    "When the loop asks for each batch, how long a checkpoint holds it up, how long it is outside of a step"

    def __init__(self):
        self.asked = {}  # step -> seconds
        self.stalls = []  # of each checkpoint
        self.outside = {}  # step -> seconds
        self.first = None  # when the first step began

    def put_into(self, train):
        "Let the names that the loop uses pass through these clocks"
        read, save, fit = train.Batches.__call__, train.Saver.__call__, train.fit

        def batches(batches, step, *a):
            self.first = self.first or time.time()
            self.asked[step] = time.perf_counter()
            return read(batches, step, *a)

        def saver(saver, *a, **kw):
            t = time.perf_counter()
            save(saver, *a, **kw)
            self.stalls.append(time.perf_counter() - t)

        def steps(*a, **kw):
            for o in fit(*a, **kw):
                t = time.perf_counter()
                yield o
                self.outside[o[0]] = time.perf_counter() - t

        train.Batches.__call__, train.Saver.__call__, train.fit = batches, saver, steps


def loop(size, data, born):
    """`train`, logging every 10 steps; a checkpoint after steps 12 and 24, written while the steps
    after it run"""
    import gpt2repro.train

    cfg, _ = setting(size, data)
    clocks = Clocks()
    clocks.put_into(gpt2repro.train)
    records = []
    with tempfile.TemporaryDirectory(dir=data) as d:
        gpt2repro.train.train(cfg, Path(d) / 'run', watch=[records.append])
    # steps 2 to 11 with the boundary after 10; 13 to 24 while a checkpoint is written and, at the end,
    # the next begun
    step = (clocks.asked[11] - clocks.asked[1]) / 10
    saving = (clocks.asked[24] - clocks.asked[12]) / 12
    mem = [r['memory'] / 2**30 for r in records if r['kind'] == 'train']
    return dict(
        tokens_per_s=cfg.batch_tokens / step,
        step=step,
        saving=saving,
        start=clocks.first - born,
        peak_gib=mem[0],
        saving_gib=mem[1] - mem[0],
        stall=max(clocks.stalls[:2]),
        told=sum(clocks.outside[i] for i in range(2, 12)) / (10 * step),
    )


def status_bytes(key):
    "A number of /proc/self/status"
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(key))


def host(size, data, born):
    "Memory that a checkpoint takes besides what is there, as a multiple of parameters and optimizer state"
    import torch
    from gpt2repro.checkpoint import Saver
    from gpt2repro.model import GPT2
    from gpt2repro.train import make_optimizer

    cfg, dev = setting(size, data)
    model = GPT2(cfg.model).to(dev)
    opt = make_optimizer(model, cfg.optim, 100)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    opt.zero_grad()
    of_optimizer = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    state = sum(t.nbytes for t in [*model.state_dict().values(), *of_optimizer])
    with tempfile.TemporaryDirectory(dir=data) as d, Saver(Path(d)) as saver:
        trim_heap()  # what the gradients took would be used here and not seen
        Path('/proc/self/clear_refs').write_text('5')  # the peak is counted from here
        before = status_bytes('VmRSS')
        for step in 1, 2:
            saver(step, model, opt)
            saver.wait()
        return dict(extra=(status_bytes('VmHWM') - before) / state, state_gib=state / 2**30)


def trainer(size, data, born, n=5, batch=0, device_name='auto'):
    "transformers' Trainer with its Adafactor"
    import torch
    import transformers
    from bench.peers import hf_model
    from gpt2repro.backend import peak_memory

    cfg, dev = setting(size, data, batch, device_name)
    rows = [torch.randint(300, (cfg.model.n_ctx,)) for _ in range(64)]
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
        transformers.Trainer(
            model=hf_model(cfg.model),
            args=args,
            train_dataset=[dict(input_ids=o, labels=o) for o in rows],
            callbacks=[Clock()],
        ).train()
    seconds = marks[-1] - marks[2]
    return dict(
        tokens_per_s=cfg.batch_tokens * n / seconds, step=seconds / n, peak_gib=peak_memory(dev) / 2**30
    )


def make_data(folder):
    "Tokenizer and shards of sentences about a cat: the steps are the same whatever the text"
    from gpt2repro.shards import write_shards
    from gpt2repro.tokenizer import SentencePiece

    rng = random.Random(0)
    words = 'the cat sat on a mat and saw how one dog ran past it'.split()
    docs = [' '.join(rng.choices(words, k=200)) for _ in range(400)]
    tok = SentencePiece.train(docs, vocab_size=vocab)
    tok.save(folder / 'tokenizer')
    for name, part in dict(train=docs[:360], valid=docs[360:]).items():
        write_shards(part, tok, folder / 'shards' / name, workers=1)


def tables(got):
    "The table's rows, and the numbers below it with their targets"
    b, l, t, h = (got[k] for k in contenders)
    names = {
        'bare step: forward, backward, Adafactor': b,
        'whole loop, logging every 10 steps': l,
        "transformers' Trainer, its Adafactor": t,
    }
    rows = [
        {'what': w, 'tokens/s': o['tokens_per_s'], 's per step': o['step'], 'peak GiB': o['peak_gib']}
        for w, o in names.items()
    ]
    numbers = [
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
    return rows, [dict(number=n, target=g, measured=v) for n, g, v in numbers]


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--size', default='124M', help='of the model; another than 124M is printed, not kept')
    a = p.parse_args(argv)
    got = {}
    with tempfile.TemporaryDirectory() as d:
        make_data(Path(d))
        for name in contenders:
            got[name] = alone(globals()[name], a.size, d, time.time())
            print(name, got[name], flush=True)
    rows, numbers = tables(got)
    note = table(numbers) + (
        '\n\nTwo CPU threads or one GPU. The loop keeps freed memory while it trains '
        '(`backend.retain_heap`), the bare step does not: that is why it can be the faster one, and why '
        'its peak is higher.'
    )
    if a.size != '124M':
        return print(f'{table(rows)}\n\n{note}')
    save_table('Training loop (bench/train.py)', rows, note, packages=('torch', 'transformers', 'accelerate'))


if __name__ == '__main__':
    main()
