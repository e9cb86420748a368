"""CORE's items on the 124M: prefixes that choices share computed once, against nanochat's forward passes

Both score the same items of an eval bundle with the same random weights, in turns, and must pick the same.
The peer's way is nanochat's, on this project's plain model: the choices of an item as a padded batch, logits
and loss at every position. Needs the folder that GPT2REPRO_TEST_DATA names, with `core` and `tokenizer`.
About three minutes on two cores."""

import os
import statistics
import torch
import torch.nn.functional as F
from bench.common import in_turns, need_reference, parser, save_table, times_faster
from gpt2repro.backend import get_device
from gpt2repro.config import sizes
from gpt2repro.core_score import score_task
from gpt2repro.model import GPT2
from gpt2repro.optimize import optimize_model
from gpt2repro.tasks.bundle import read_bundle, read_items, shuffled
from gpt2repro.tasks.in_context import pick, prompts, tokenized
from gpt2repro.tokenizer import GPT2BPE

# Task -> how many of its items, so that each takes the peer about as long
asked = dict(
    arc_easy=2,
    commonsense_qa=2,
    piqa=3,
    agi_eval_lsat_ar=1,
    copa=24,
    winograd=24,
    bigbench_operators=4,
    bigbench_qa_wikidata=6,
    lambada_openai=12,
)


@torch.no_grad()
def plain(model, tok, task, items, n):
    "(pick, correct) of the first `n` items: a forward pass for each item, the loss at every position"
    device = model.wte.weight.device
    out = []
    for i in range(n):
        ps = tokenized(tok, task.kind, prompts(task, items, i), model.cfg.n_ctx)
        x = torch.full((len(ps), max(len(p.ids) for p in ps)), tok.eot)
        for row, p in zip(x, ps):
            row[: len(p.ids)] = torch.from_numpy(p.ids)
        x = x.to(device)
        logits = model(x)
        losses = F.cross_entropy(logits.flatten(0, 1), x.roll(-1, 1).flatten(), reduction='none').view_as(x)
        best = logits.argmax(-1)
        of_choices = []
        for k, p in enumerate(ps):
            scored = slice(len(p.ids) - p.n - 1, len(p.ids) - 1)
            of_choices.append(losses[k, scored].mean().item())
        if task.kind == 'language_modeling':
            targets = x[0, len(ps[0].ids) - ps[0].n :]
            out.append((0, bool((best[0, scored] == targets).all())))
        else:
            picked = pick(of_choices)
            out.append((picked, picked == items[i]['gold']))
    return out


def shared(model, tok, task, items, n):
    "The same as this project does it"
    [got] = score_task(model, tok, task, items, numbers=range(n))
    return list(zip(got.picks.tolist(), got.correct.tolist()))


def random_model():
    torch.manual_seed(0)
    model = GPT2(sizes['124M'].no_dropout())
    with torch.no_grad():
        model.wte.weight.mul_(2)  # not all tokens alike
    return model.eval().to(get_device())


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--times', type=float, default=1, help='so many times as many items')
    p.add_argument('--rounds', type=int, default=3, help='of both in turn; the ratio is the median')
    p.add_argument('--tasks', default=','.join(asked), help='with commas between')
    a = p.parse_args(argv)
    files = need_reference('tokenizer')
    tok = GPT2BPE.from_files(files / 'encoder.json', files / 'vocab.bpe')
    theirs = random_model()
    ours = random_model()
    optimize_model(ours)
    tasks = {t.label: t for t in read_bundle(need_reference('core'))}
    rows = []
    hours = [0.0, 0.0]
    for label in a.tasks.split(','):
        task = tasks[label]
        items = shuffled(read_items(task))
        n = max(1, round(asked[label] * a.times))
        answers = {}
        fns = dict(
            plain=lambda: answers.update(plain=plain(theirs, tok, task, items, n)),
            shared=lambda: answers.update(shared=shared(ours, tok, task, items, n)),
        )
        took = in_turns(fns, a.rounds, warmup=0)
        assert answers['plain'] == answers['shared'], label
        seconds = [statistics.median(took[k]) / n for k in ('plain', 'shared')]
        hours = [h + s * len(items) / 3600 for h, s in zip(hours, seconds)]
        rows.append(
            {
                'task': label,
                'kind': task.kind,
                'shots': task.n_shots,
                'items': f'{n} of {len(items):,}',
                'plain, s an item': seconds[0],
                'ours, s an item': seconds[1],
                'times faster': times_faster(took, 'shared', 'plain'),
            }
        )
    rows.append(
        {
            'task': 'all items of these tasks, in hours',
            'plain, s an item': hours[0],
            'ours, s an item': hours[1],
            'times faster': hours[0] / hours[1],
            'wanted': '≥2',
        }
    )
    load = os.getloadavg()[0]
    save_table(
        'CORE, 124M',
        rows,
        f"Plain: nanochat's forward passes on this project's plain model. Random weights, float32, "
        f'{torch.get_num_threads()} threads, {a.rounds} rounds in turn, medians; each task picked the same '
        f'item by item. Load of the machine at the end: {load:.1f}.',
        ('torch',),
    )


if __name__ == '__main__':
    main()
