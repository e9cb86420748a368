"""The plan's memory against the measured peak of training steps on this machine

Two steps of the 124M as `gpt2repro train` does them, in five settings, each in a process of its own; the peer
is `gpt2repro.plan`'s formula. On a CUDA device it measures that. Two minutes on two cores, and 4 GiB of
memory."""

from bench.common import alone, parser, resident, save_table
from gpt2repro.plan import plan

configs = [
    dict(size='124M', batch=2),
    dict(size='124M', batch=2, precision='float32'),
    dict(size='124M', batch=2, remat='none'),
    dict(size='124M', batch=1, optimizer='adamw'),
    dict(size='124M', batch=4, precision='float32', remat='none'),
]


def measure(kw):
    "Device, and GiB that two training steps take above what was there"
    import torch
    from gpt2repro.optimize import optimize_model
    from gpt2repro.aot import step_config
    from gpt2repro.backend import get_device, peak_memory, retain_heap
    from gpt2repro.model import GPT2
    from gpt2repro.train import fit, make_optimizer

    dev = get_device()
    cfg = step_config(kw['size'], kw['batch'], kw.get('precision', 'mixed'), kw.get('optimizer', 'adafactor'))
    ids = torch.randint(cfg.model.vocab_size, (kw['batch'], cfg.model.n_ctx + 1))
    x = ids[:, :-1].contiguous()
    y = ids[:, 1:].contiguous()
    before = 0 if dev.type == 'cuda' else resident()
    model = optimize_model(GPT2(cfg.model, remat=kw.get('remat', 'block')).to(dev))
    opt = make_optimizer(model, cfg.optim, cfg.max_steps)
    steps = fit(model, opt, lambda s: (x, y), cfg, dev)
    with retain_heap(dev):
        for _ in range(2):
            float(next(steps)[1])
    return dict(device=dev.type, gib=(peak_memory(dev) - before) / 2**30)


def row(kw):
    got = alone(measure, kw)
    want = plan(chip='CPU' if got['device'] == 'cpu' else 'H100', **kw)
    print({k: round(v, 2) for k, v in want.parts.items()}, flush=True)
    return {
        'size': kw['size'],
        'batch': kw['batch'],
        'precision': want.precision,
        'optimizer': want.optimizer,
        'remat': want.remat,
        'measured GiB': got['gib'],
        'plan GiB': want.total_gib,
        'off %': 100 * (want.total_gib / got['gib'] - 1),
    }


def main(argv=None):
    parser(__doc__).parse_args(argv)
    save_table(
        'The plan against measured memory',
        [row(kw) for kw in configs],
        note='Peak of the process over what it took before the model was built; two steps as `gpt2repro '
        'train` does them, context 1024.',
    )


if __name__ == '__main__':
    main()
