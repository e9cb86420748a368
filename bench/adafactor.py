"""One step of Adafactor: time, memory and state beside fused AdamW, torch's and transformers' Adafactor

Every optimizer steps the same weights with the same gradients, in turns. Without our kernels it runs once
more in a process that has no C compiler. A minute on two cores for the 124M. The comparison of losses over
three seeds is bench.adafactor_runs. Not run on a GPU yet."""

import statistics
from bench.common import in_turns, parser, peak_of, save_table
import torch
from transformers.optimization import Adafactor as HFAdafactor
from gpt2repro.adafactor import Adafactor
from gpt2repro.adafactor import param_groups
from gpt2repro.backend import get_device
from gpt2repro.config import sizes
from gpt2repro.model import GPT2

ours = 'Adafactor, ours'
peers = ('AdamW, fused', 'torch.optim.Adafactor', "transformers' Adafactor")


def state_mb(size):
    "Megabytes of Adafactor's state, counted on meta tensors"
    with torch.device('meta'):
        opt = Adafactor(GPT2(sizes[size]).parameters())
    return sum(v.numel() * v.element_size() for s in opt.state.values() for v in s.values()) / 1e6


def optimizers(model):
    "Name -> the optimizer over the model's parameters"
    ps = list(model.parameters())
    return {
        ours: Adafactor(param_groups(model)),
        'the same, with statistics': Adafactor(param_groups(model), track=True),
        'AdamW, fused': torch.optim.AdamW(ps, lr=1e-4, fused=True),
        'torch.optim.Adafactor': torch.optim.Adafactor(ps),
        "transformers' Adafactor": HFAdafactor(ps),
    }


def steps(
    size,
    n,  # rounds
    device_name='auto',
):  # list of rows of the table
    "Every optimizer in turns on the same weights and gradients"
    device = get_device(device_name)
    model = GPT2(sizes[size]).to(device)
    ps = list(model.parameters())
    for p in ps:
        p.grad = torch.randn_like(p) * 1e-3
    largest = max(p.numel() * p.element_size() for p in ps)
    opts = optimizers(model)
    memory = {}
    for name, opt in opts.items():
        opt.step()  # makes its state
        memory[name] = peak_of(opt.step, device)
    took = in_turns({name: opt.step for name, opt in opts.items()}, n, device, warmup=0)
    rows = []
    for name, seconds in took.items():
        row = {
            'optimizer': name,
            'ms': min(seconds) * 1e3,
            'median ms': statistics.median(seconds) * 1e3,
            'temporary memory, × the largest parameter': memory[name] / largest,
        }
        for peer in peers:
            row[f'time / {peer}'] = statistics.median(a / b for a, b in zip(seconds, took[peer]))
        rows.append(row)
    return rows


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--size', default='124M')
    p.add_argument('--n', type=int, default=10, help='steps of each optimizer, in turns; the median counts')
    p.add_argument('--device', default='auto')
    a = p.parse_args(argv)
    device = get_device(a.device)
    rows = steps(a.size, a.n, a.device)
    save_table(
        f'Adafactor: one step at {a.size}',
        rows,
        f'{torch.get_num_threads()} threads. Steps of all optimizers in turns; the ratios are medians over '
        f'the rounds of ratios within a round. State: {state_mb("124M"):.2f} MB at 124M, '
        f'{state_mb("1.5B"):.2f} MB at 1.5B (counted on meta tensors). '
        + ('' if device.type == 'cuda' else 'Not run on a GPU yet.'),
    )


if __name__ == '__main__':
    main()
