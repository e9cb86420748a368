"""The recipe of today: sampling against transformers' Qwen3, the step against GPT-2's, the cost of Muon

`sample [KIND]` writes one sequence and a batch of eight with a model of 124M random weights in float32,
bfloat16 or int8, in turns with transformers (which has no int8). `step` times a training step of the
recipes `tiny` and `modern`, also the latter with AdamW, in turns. `muon` times a step of Muon for all
matrices of a model, one by one (`torch.optim.Muon`), and stacked by shape (`presets.Muon`). Each takes
one to two minutes on two cores."""

import tempfile
from bench.common import in_turns, parser, save_table, times_faster
import torch
from bench.peers import hf_text, our_text
from bench.sample import loaded, random_ids, rounds
from gpt2repro.backend import autocast, fast_dtype, retain_heap
from gpt2repro.config import recipe, size
from gpt2repro.decode import Decoder
from gpt2repro.loop import gate_step, lr_schedule, make_model, make_optimizer
from gpt2repro.loss import lm_loss
from gpt2repro.optimize import optimize_model
from gpt2repro.presets import Muon
from gpt2repro.variants import build_model
from gpt2repro.weights import save_pretrained

cpu = torch.device('cpu')


def sample(kind, n=4):
    "Greedy text of the size 124M, one sequence and eight"
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = build_model(size('modern-124M')).eval()
    dec = Decoder(model, kind)
    fns = {'ours': lambda rows, k: our_text(dec, rows, k)}
    if kind != 'int8':
        with tempfile.TemporaryDirectory() as d:
            save_pretrained(model, d)
            hf = AutoModelForCausalLM.from_pretrained(d, dtype=getattr(torch, kind)).eval()
        fns['transformers'] = lambda rows, k: hf_text(hf, rows, k)
    rows = []
    for what, ids, k in ('one sequence', random_ids(1, 16), 48), ('eight', random_ids(8, 16), 24):
        took = rounds(fns, ids, k, n, cpu)
        row = {'what': f'{what}, 16+{k} tokens'} | {name: len(ids) * k / min(s) for name, s in took.items()}
        if 'transformers' in took:
            row['ratio'] = f'{times_faster(took, "ours", "transformers"):.2f}'
        rows.append(row)
    if 'transformers' in fns:
        a, b = (f(random_ids(1, 16), 24)[0] for f in fns.values())
        same = f"{sum(x == y for x, y in zip(a, b))} of 24 greedy tokens are transformers'. "
    save_table(
        f'Qwen3 of 124M random weights writes, {kind}, tokens/s',
        rows,
        note=f'The best of {n} rounds in turn, and the median of the ratios; {torch.get_num_threads()} '
        f'threads, {loaded()}. {same if "transformers" in fns else ""}Goal: 1.5 in float32.',
    )


def step_of(cfg):
    "A function that does one step of a recipe on random tokens"
    model = optimize_model(make_model(cfg, cpu))
    opt = make_optimizer(model, cfg.optim, cfg.max_steps, cfg.batch_tokens)
    rate = lr_schedule(cfg.optim, cfg.max_steps)(torch.tensor(200.0))
    ids = torch.randint(cfg.model.vocab_size, (cfg.micro_batch, cfg.model.n_ctx + 1))

    def step():
        for _ in range(cfg.n_micro):
            with autocast(cpu, cfg.dtype):
                loss = lm_loss(model, ids[:, :-1], ids[:, 1:]) / cfg.n_micro
            loss.backward()
        gate_step(opt, torch.tensor(True), rate)
        opt.step()
        opt.zero_grad()

    return step


def step(n=30):
    "A training step of `tiny` and of `modern`"
    modern = recipe('modern')
    cfgs = {'tiny': recipe('tiny'), 'modern': modern}
    cfgs['modern, AdamW'] = modern.replace(optim=modern.optim.replace(name='adamw', adamw_lr=0.0))
    dtype = fast_dtype(cpu)
    with retain_heap(cpu):
        took = in_turns({k: step_of(c.replace(dtype=dtype)) for k, c in cfgs.items()}, n, warmup=5)
    rows = [
        {
            'recipe': k,
            'parameters': f'{cfgs[k].model.n_params:,}',
            'tokens a step': cfgs[k].batch_tokens,
            'ms a step': 1e3 * min(s),
            'ms for 1,024 tokens': 1e3 * min(s) * 1024 / cfgs[k].batch_tokens,
            'times the step of tiny': f'{1 / times_faster(took, k, "tiny"):.2f}',
        }
        for k, s in took.items()
    ]
    note = f'{dtype}, the best of {n} rounds in turn and the median of the ratios, {torch.get_num_threads()} '
    save_table('A training step of today', rows, note=f'{note}threads, {loaded()}.')


def muon(n=10):
    "The optimizer alone"
    rows = []
    for name in 'modern', 'modern-124M':
        model = build_model(size(name))
        matrices = [p for m in model.h for p in m.parameters() if p.ndim == 2]
        for p in matrices:
            p.grad = torch.randn_like(p)
        fns = {}
        for what, cls in dict(stacked=Muon, torch=torch.optim.Muon).items():
            fns[what] = cls([p.detach().requires_grad_() for p in matrices], lr=1e-3)
            for p, q in zip(fns[what].param_groups[0]['params'], matrices):
                p.grad = q.grad
        took = in_turns({k: opt.step for k, opt in fns.items()}, n if name == 'modern' else 3)
        row = {'model': name, 'matrices': len(matrices)} | {f'{k}, ms': 1e3 * min(s) for k, s in took.items()}
        rows.append(row | {'torch / stacked': f'{times_faster(took, "stacked", "torch"):.2f}'})
    save_table('A step of Muon by itself', rows, note=f'{torch.get_num_threads()} threads, {loaded()}.')


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('what', choices=['sample', 'step', 'muon'])
    p.add_argument('kind', nargs='?', default='float32', choices=['float32', 'bfloat16', 'int8'])
    a = p.parse_args(argv)
    if a.what == 'sample':
        return sample(a.kind)
    return step() if a.what == 'step' else muon()


if __name__ == '__main__':
    main()
