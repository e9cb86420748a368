"""Zero-shot scoring of the 124M against lm-eval with transformers, and the stride-32 windows against the plain loop

Each contestant runs in a process of its own, so that memory is its own; all of them in the same call, with the same weights, threads and precision:
    python bench/evaluate.py [--items 500] [--tokens 50000] [--stride32 40] [--dtype float32|bfloat16]
Without options the counts are those that fit into a few minutes on two cores."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.update(
    HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false', GPT2REPRO_QUIET='1'
)
from pathlib import Path
from common import peak_mib, save_table

data = Path(__file__).parent.parent / '../shared/data'


def text_windows(tok, n_tokens, stride):
    from gpt2repro.evaluate import windows
    from gpt2repro.tasks.perplexity import WikiText2

    [text] = WikiText2().examples(data)
    return windows([tok.eot, *tok.encode(text[: 8 * n_tokens])[:n_tokens]], 1024, stride)


def lambada(n):
    from gpt2repro.tasks.lambada import Lambada

    return [r for x in Lambada().examples(data)[:n] for r in Lambada().requests(x, 'modern')]


def tokenizer():
    from gpt2repro.tokenizer import GPT2BPE

    return GPT2BPE.from_files(data / 'tokenizer/encoder.json', data / 'tokenizer/vocab.bpe')


def device():
    from gpt2repro.backend import get_device

    return get_device('auto')


def ours(job, folder, a):
    "(seconds, sum of log-probabilities)"
    from gpt2repro.weights import from_pretrained
    from gpt2repro.evaluate import answers, score_windows

    tok = tokenizer()
    model = from_pretrained(folder).to(device())
    if job == 'lambada':
        reqs = lambada(a.items)
        answers(model, tok, reqs[:2], dtype=a.dtype)
        t = time.perf_counter()
        got = answers(model, tok, reqs, dtype=a.dtype)
    else:
        ws = text_windows(tok, a.tokens, 512)
        score_windows(model, ws[:1], dtype=a.dtype)
        t = time.perf_counter()
        got = score_windows(model, ws, dtype=a.dtype)
    return time.perf_counter() - t, sum(s.sum for s in got)


def theirs(job, folder, a):
    "lm-eval's, with the batch size that is the faster one here"
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=folder, device=str(device()), dtype=a.dtype, batch_size=a.batch)
    if job == 'lambada':
        reqs = [
            Instance('loglikelihood', {}, (r.context, r.target), i) for i, r in enumerate(lambada(a.items))
        ]
        lm.loglikelihood(reqs[:2], disable_tqdm=True)
        t = time.perf_counter()
        got = lm.loglikelihood(reqs, disable_tqdm=True)
    else:
        ws = [
            (('', ''), w.ids[: -w.n].tolist(), w.ids[-w.n :].tolist())
            for w in text_windows(tokenizer(), a.tokens, 512)
        ]
        lm._loglikelihood_tokens(ws[:1], disable_tqdm=True)
        t = time.perf_counter()
        got = lm._loglikelihood_tokens(ws, disable_tqdm=True)
    return time.perf_counter() - t, sum(float(g[0]) for g in got)


def stride32(how, folder, a):
    "The last windows of 1,024, each 32 tokens on, as `how` scores them"
    import torch
    from gpt2repro.weights import from_pretrained
    from gpt2repro.evaluate import score_windows

    model = from_pretrained(folder).to(device())
    tok = tokenizer()
    ws = text_windows(tok, 1024 + 32 * (a.stride32 + 1), 32)[1 : a.stride32 + 1]

    def plain(ws):
        out = []
        for w in ws:
            ids = torch.from_numpy(w.ids).long().to(device())
            with torch.no_grad():
                lp = model(ids[None, :-1])[0].log_softmax(-1)
            out.append(lp[torch.arange(1024), ids[1:]][-w.n :].sum().item())
        return sum(out)

    run = plain if how == 'plain' else lambda ws: sum(s.sum for s in score_windows(model, ws))
    run(ws[:1])
    t = time.perf_counter()
    total = run(ws)
    return time.perf_counter() - t, total


def child(kind, job, folder, a):
    seconds, total = (
        stride32(job, folder, a)
        if kind == 'stride32'
        else (ours if kind == 'ours' else theirs)(job, folder, a)
    )
    import torch

    print(
        json.dumps(
            dict(
                seconds=seconds,
                total=total,
                mib=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mib(),
            )
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--items', type=int, default=40)
    p.add_argument('--tokens', type=int, default=4000)
    p.add_argument('--stride32', type=int, default=3, help='windows')
    p.add_argument('--dtype', default='float32')
    p.add_argument(
        '--rounds', type=int, default=3, help='of both contestants in turn; the ratio is the median'
    )
    p.add_argument(
        '--batch',
        type=int,
        default=0,
        help="lm-eval's batch size; 0: 8 for short items, 1 for whole contexts",
    )
    p.add_argument('--child', nargs=3)
    a = p.parse_args()
    if a.child:
        return child(*a.child, a)
    import torch
    from gpt2repro.weights import save_pretrained
    from gpt2repro.config import sizes
    from gpt2repro.model import GPT2

    def run(kind, job):
        batch = a.batch or (8 if job == 'lambada' else 1)
        cmd = [
            sys.executable,
            __file__,
            '--child',
            kind,
            job,
            folder,
            '--items',
            a.items,
            '--tokens',
            a.tokens,
            '--stride32',
            a.stride32,
            '--dtype',
            a.dtype,
            '--batch',
            batch,
        ]
        r = subprocess.run(list(map(str, cmd)), stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(r.stdout.splitlines()[-1])

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = GPT2(sizes['124M'].no_dropout())
        with torch.no_grad():
            model.wte.weight.mul_(2)  # not all tokens alike
        save_pretrained(model, folder, tokenizer())
        del model
        jobs = [
            ('lambada', f'LAMBADA, first {a.items} items'),
            ('wikitext', f'WikiText-2, first {a.tokens:,} tokens, windows of 1,024, stride 512'),
        ]

        def turns(*both):
            return [[run(*o) for o in both] for _ in range(a.rounds)]

        pairs = [
            (what, turns(('theirs', job), ('ours', job)), 'lm-eval, transformers', 1.5, 0.6)
            for job, what in jobs
        ]
        if a.dtype == 'float32':
            pairs.append(
                (
                    f'{a.stride32} windows of 1,024, stride 32',
                    turns(('stride32', 'plain'), ('stride32', 'ours')),
                    'plain loop',
                    3.0,
                    None,
                )
            )
    for what, rounds, peer, speed, mem in pairs:
        off = max(abs(x['total'] - y['total']) / abs(x['total']) for x, y in rounds)
        assert off < (1e-5 if a.dtype == 'float32' else 1e-2), (what, rounds)
        x, y = (
            dict(seconds=min(o[i]['seconds'] for o in rounds), mib=max(o[i]['mib'] for o in rounds))
            for i in (0, 1)
        )
        rows.append(
            {
                'what': what,
                'peer': peer,
                'peer s': x['seconds'],
                'ours s': y['seconds'],
                'times faster': statistics.median(x['seconds'] / y['seconds'] for x, y in rounds),
                'wanted': f'≥{speed:g}',
                'peer MiB': x['mib'],
                'ours MiB': y['mib'],
                'of its memory': y['mib'] / x['mib'],
                'wanted ': f'≤{mem:g}' if mem else '–',
                'results differ by': f'{off:.0e}',
            }
        )
    save_table(
        f'Zero-shot scoring, 124M, {a.dtype}',
        rows,
        f'Each contestant in a process of its own (memory: its highest resident size, everything included; '
        f'on a GPU what torch allocated), random weights, {a.rounds} rounds in turn: fewest seconds, most '
        f'memory, median of the ratios. '
        'Counts scaled down so that a call stays under five minutes on two cores: `--items 500 --tokens '
        '50000 --stride32 1500` for all. Not run on a GPU yet.',
        ('torch', 'transformers', 'lm_eval'),
    )


if __name__ == '__main__':
    main()
