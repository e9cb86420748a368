"""Does each kernel in C pay? Whole steps with and without it, in turns

Training of 124M (batch 2 × 512) and of the recipe `tiny`, and scoring with 124M, in float32 and bfloat16: the
plain model, the model with attention in C alone, and all of `optimize_model`. One process for each row of
the table; some eight minutes on two cores, a part of it with `--only`. Kernels for sampling and for Adafactor
are measured by bench.sample and bench.adafactor. A kernel stays if a user sees a tenth from end to end."""

from bench.common import alone, in_turns, parser, save_table, times_faster

jobs = {
    f'{what}, {dtype}': (what, dtype)
    for what in ('train 124M', 'train tiny', 'score 124M')
    for dtype in ('float32', 'bfloat16')
}


def with_attention(model):
    "The plain model with the attention kernel, and nothing else"
    from gpt2repro.optimize import CAttention

    for block in model.h:
        block.attn.__class__ = CAttention
    return model


def twins(cfg):
    "The plain model and its optimized forms, with the same parameters"
    import torch
    from gpt2repro.model import GPT2
    from gpt2repro.optimize import optimize_model

    torch.manual_seed(0)
    plain = GPT2(cfg)
    models = {
        'plain': plain,
        'attention in C': with_attention(GPT2(cfg)),
        'optimized': optimize_model(GPT2(cfg)),
    }
    for m in models.values():
        for name, p in plain.named_parameters():
            owner, _, leaf = name.rpartition('.')
            setattr(m.get_submodule(owner), leaf, p)
    return models


def setting(what):
    "Configuration of the model, batch, tokens in a sequence"
    from gpt2repro.config import recipe, sizes

    if what == 'train tiny':
        run = recipe('tiny')
        return run.model, run.micro_batch, run.model.n_ctx
    return sizes['124M'].no_dropout(), 2, 512


def step_of(model, opt, x, y, dtype, train):
    "A function that does one step of training, or scores one batch"
    import torch
    from gpt2repro.backend import autocast
    from gpt2repro.loss import lm_loss

    device = torch.device('cpu')

    def score():
        with torch.no_grad(), autocast(device, dtype):
            lm_loss(model, x, y)

    def step():
        with autocast(device, dtype):
            loss = lm_loss(model, x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()

    return step if train else score


def race(what, dtype, rounds, seconds):
    "Seconds of each form of the model, one for each round"
    import torch
    from gpt2repro.backend import retain_heap
    from gpt2repro.config import OptimConfig
    from gpt2repro.train import make_optimizer

    cfg, B, T = setting(what)
    models = twins(cfg)
    opt = make_optimizer(models['plain'], OptimConfig(lr=1e-3), 1000)
    ids = torch.randint(cfg.vocab_size, (B, T + 1))
    x = ids[:, :-1].contiguous()
    y = ids[:, 1:].contiguous()
    train = what.startswith('train')
    fns = {k: step_of(m, opt, x, y, dtype, train) for k, m in models.items()}
    with retain_heap(torch.device('cpu')):
        return in_turns(fns, rounds, warmup=2, seconds=seconds), B * T


def main(argv=None):
    ap = parser(__doc__)
    ap.add_argument('--only', choices=list(jobs), help='one row')
    ap.add_argument('--rounds', type=int, default=12, help='rounds of each row')
    ap.add_argument('--seconds', type=float, default=60.0, help='no new round after so many')
    a = ap.parse_args(argv)
    rows = []
    for label, (what, dtype) in jobs.items():
        if a.only not in (None, label):
            continue
        took, tokens = alone(race, what, dtype, a.rounds, a.seconds)
        rows.append(
            {
                'what': label,
                'plain, tokens/s': tokens / min(took['plain']),
                'with attention in C': times_faster(took, 'attention in C', 'plain'),
                'optimized': times_faster(took, 'optimized', 'plain'),
            }
        )
        print(rows[-1], flush=True)
    note = (
        'Times faster than plain: medians over the rounds. Steps are forward, backward and Adafactor, inside '
        '`backend.retain_heap` as `gpt2repro train` runs; scoring is `lm_loss` of the same batch without '
        'gradients. `optimized` saves memory besides: linear layers that keep neither copies of weights nor '
        "GELU's result."
    )
    if a.only is None:
        save_table('Kernels: with and without, from end to end', rows, note, packages=('torch',))


if __name__ == '__main__':
    main()
