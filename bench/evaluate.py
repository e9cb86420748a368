"""Zero-shot scoring of the 124M against lm-eval with transformers, and stride 32 against the plain loop

Each contestant runs in a process of its own, so that memory is its own; all with the same random weights,
threads and precision, in turns. Texts: LAMBADA and WikiText-2 from the folder that GPT2REPRO_TEST_DATA names.
Without options the counts are those that fit into five minutes on two cores; `--items 500 --tokens 50000
--stride32 1500` is what a GPU would be asked (not run on one yet). Needs: pip install 'lm-eval[hf]'."""

import statistics
import tempfile
import time
from bench.common import alone, need_reference, parser, peak_mib, save_table
import torch
from gpt2repro.backend import get_device
from gpt2repro.config import sizes
from gpt2repro.evaluate import answers, score_windows, windows
from gpt2repro.model import GPT2
from gpt2repro.tasks.lambada import Lambada
from gpt2repro.tasks.perplexity import WikiText2
from gpt2repro.tokenizer import GPT2BPE
from gpt2repro.weights import from_pretrained, save_pretrained


def tokenizer():
    folder = need_reference('tokenizer')
    return GPT2BPE.from_files(folder / 'encoder.json', folder / 'vocab.bpe')


def text_windows(tok, n_tokens, stride):
    "Windows of 1,024 over the first tokens of WikiText-2"
    [text] = WikiText2().examples(need_reference('.'))
    return windows([tok.eot, *tok.encode(text[: 8 * n_tokens])[:n_tokens]], 1024, stride)


def lambada(n):
    "Requests of the first `n` items"
    task = Lambada()
    items = task.examples(need_reference('.'))[:n]
    return [r for x in items for r in task.requests(x, 'modern')]


def result(run, few, all_of_them):
    "Seconds of `run(all_of_them)` after `run(few)`, the sum that it returns, and the process's memory"
    run(few)
    t = time.perf_counter()
    total = run(all_of_them)
    seconds = time.perf_counter() - t
    on_gpu = torch.cuda.is_available()
    mib = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mib()
    return dict(seconds=seconds, total=total, mib=mib)


def ours(job, folder, a):
    tok = tokenizer()
    model = from_pretrained(folder).to(get_device())
    if job == 'lambada':
        work = lambada(a['items'])
        run = lambda rs: sum(s.sum for s in answers(model, tok, rs, dtype=a['dtype']))
    else:
        work = text_windows(tok, a['tokens'], 512)
        run = lambda ws: sum(s.sum for s in score_windows(model, ws, dtype=a['dtype']))
    return result(run, work[:2], work)


def theirs(job, folder, a):
    "lm-eval's, with the batch size that is the faster one here"
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    batch = a['batch'] or (8 if job == 'lambada' else 1)
    lm = HFLM(pretrained=folder, device=str(get_device()), dtype=a['dtype'], batch_size=batch)
    if job == 'lambada':
        requests = enumerate(lambada(a['items']))
        work = [Instance('loglikelihood', {}, (r.context, r.target), i) for i, r in requests]
        score = lm.loglikelihood
    else:
        ws = text_windows(tokenizer(), a['tokens'], 512)
        work = [(('', ''), w.ids[: -w.n].tolist(), w.ids[-w.n :].tolist()) for w in ws]
        score = lm._loglikelihood_tokens
    run = lambda rs: sum(float(g[0]) for g in score(rs, disable_tqdm=True))
    return result(run, work[:2], work)


def plain_loop(model, ws):
    "Sum of the log-probabilities that windows ask for, a window at a time"
    out = []
    for w in ws:
        ids = torch.from_numpy(w.ids).long().to(model.wte.weight.device)
        with torch.no_grad():
            lp = model(ids[None, :-1])[0].log_softmax(-1)
        out.append(lp[torch.arange(1024), ids[1:]][-w.n :].sum().item())
    return sum(out)


def stride32(how, folder, a):
    "The last windows of 1,024, each 32 tokens on, as `how` scores them"
    n = a['stride32']
    model = from_pretrained(folder).to(get_device())
    ws = text_windows(tokenizer(), 1024 + 32 * (n + 1), 32)[1 : n + 1]
    packed = lambda ws: sum(s.sum for s in score_windows(model, ws))
    plain = lambda ws: plain_loop(model, ws)
    return result(plain if how == 'plain' else packed, ws[:1], ws)


def write_model(folder):
    torch.manual_seed(0)
    model = GPT2(sizes['124M'].no_dropout())
    with torch.no_grad():
        model.wte.weight.mul_(2)  # not all tokens alike
    save_pretrained(model, folder, tokenizer())


def race(folder, a):
    "(what, rounds of (peer's, ours), peer, wanted speed, wanted memory) of each comparison"

    def turns(peer, us):
        return [[alone(f, job, folder, a) for f, job in (peer, us)] for _ in range(a['rounds'])]

    jobs = {
        'lambada': f'LAMBADA, first {a["items"]} items',
        'wikitext': f'WikiText-2, first {a["tokens"]:,} tokens, windows of 1,024, stride 512',
    }
    for job, what in jobs.items():
        yield what, turns((theirs, job), (ours, job)), 'lm-eval, transformers', 1.5, 0.6
    if a['dtype'] == 'float32':
        rounds = turns((stride32, 'plain'), (stride32, 'packed'))
        yield f'{a["stride32"]} windows of 1,024, stride 32', rounds, 'plain loop', 3.0, None


def row(what, rounds, peer, speed, mem, dtype):
    off = max(abs(x['total'] - y['total']) / abs(x['total']) for x, y in rounds)
    assert off < (1e-5 if dtype == 'float32' else 1e-2), (what, rounds)
    seconds = [min(r[i]['seconds'] for r in rounds) for i in (0, 1)]
    mib = [max(r[i]['mib'] for r in rounds) for i in (0, 1)]
    return {
        'what': what,
        'peer': peer,
        'peer s': seconds[0],
        'ours s': seconds[1],
        'times faster': statistics.median(x['seconds'] / y['seconds'] for x, y in rounds),
        'wanted': f'≥{speed:g}',
        'peer MiB': mib[0],
        'ours MiB': mib[1],
        'of its memory': mib[1] / mib[0],
        'wanted ': f'≤{mem:g}' if mem else '–',
        'results differ by': f'{off:.0e}',
    }


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--items', type=int, default=40)
    p.add_argument('--tokens', type=int, default=4000)
    p.add_argument('--stride32', type=int, default=3, help='windows')
    p.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    p.add_argument('--rounds', type=int, default=3, help='of both in turn; the ratio is the median')
    p.add_argument(
        '--batch', type=int, default=0, help="lm-eval's batch size; 0: 8 for short items, 1 for contexts"
    )
    a = vars(p.parse_args(argv))
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        rows = [row(*o, a['dtype']) for o in race(folder, a)]
    save_table(
        f'Zero-shot scoring, 124M, {a["dtype"]}',
        rows,
        f'Each contestant in a process of its own (memory: its highest resident size, everything included; '
        f'on a GPU what torch allocated), random weights, {a["rounds"]} rounds in turn: fewest seconds, most '
        f'memory, median of the ratios. '
        'Counts scaled down so that a call stays under five minutes on two cores: `--items 500 --tokens '
        '50000 --stride32 1500` for all. Not run on a GPU yet.',
        ('torch', 'transformers', 'lm_eval'),
    )


if __name__ == '__main__':
    main()
