"""Greedy text through `generate`, 124M random weights, against transformers and CTranslate2 in one process

`greedy [KIND]` writes one sequence with weights in float32, bfloat16 or int8: with a `Decoder` that is
ready, and as a user calls it, with a model whose weights are rounded in each call. `several [KIND]` writes
sixteen at once, and the first token after a long prompt. Contestants take turns. `quality RUN` gives the bits
per byte that smaller weights cost on a trained run. Each takes one to three minutes on two cores. Needs: pip
install ctranslate2. Not run on a GPU yet."""

import os
import tempfile
import time
from pathlib import Path
from bench.common import best_of, in_turns, parser, save_table, times_faster
import torch
from bench.peers import ct2_model, ct2_text, hf_copy, hf_text, our_text, random_model
from gpt2repro.backend import get_device
from gpt2repro.decode import Decoder
from gpt2repro.weights import save_pretrained

steps = 128
n_prompt = 16
kinds = ('float32', 'bfloat16', 'int8')
ready = 'ours, `Decoder` ready'
user = 'ours, `generate`'
goals = dict(
    float32=dict(transformers=2.2, CTranslate2=1.5),
    bfloat16=dict(transformers=2.2),
    int8=dict(CTranslate2=1.8),
)


def random_ids(n, length):
    "Rows of ids, the same ones each time"
    return torch.randint(50000, (n, length), generator=torch.Generator().manual_seed(1)).tolist()


def read_rate():
    "GB/s at which memory is read here: the sum of half a gigabyte, fused"
    x = torch.ones(2**27)
    return x.nbytes / best_of(lambda: x.sum(), 5) / 1e9


def contestants(model, dec, kind, folder):
    "Name -> function (rows, steps) -> ids"
    save_pretrained(model, folder)
    out = {
        ready: lambda rows, k: our_text(dec, rows, k),
        user: lambda rows, k: our_text(model, rows, k, kind),
    }
    if 'transformers' in goals[kind]:
        hf = hf_copy(folder, kind, dec.device)
        out['transformers'] = lambda rows, k: hf_text(hf, rows, k)
    if 'CTranslate2' in goals[kind] and dec.device.type == 'cpu':
        gen = ct2_model(folder, {'int8': 'int8_float32'}.get(kind, kind))
        out['CTranslate2'] = lambda rows, k: ct2_text(gen, rows, k)
    return out


def rounds(fns, rows, k, n, device):
    "Seconds of each for `k` tokens after each row, in turns, after a short first call"
    for f in fns.values():
        f(rows, min(k, 4))
    return in_turns({name: (lambda f=f: f(rows, k)) for name, f in fns.items()}, n, device, warmup=0)


def loaded():
    return f'load average {os.getloadavg()[0]:.1f} at the end' if hasattr(os, 'getloadavg') else ''


def same_tokens(fns, rows, n=32):
    "Share of greedy tokens that are transformers'"
    a, b = (fns[k](rows, n)[0] for k in (ready, 'transformers'))
    return sum(x == y for x, y in zip(a, b)) / n


def greedy(kind, n=7):
    "One sequence with weights of one kind, against the peers, in turn, `n` rounds"
    device = get_device()
    model = random_model('124M', device)
    one = random_ids(1, n_prompt)
    t = time.perf_counter()
    dec = Decoder(model, kind, compile=True)
    our_text(dec, one, 4)
    start = time.perf_counter() - t
    with tempfile.TemporaryDirectory() as d:
        fns = contestants(model, dec, kind, d)
    rate = read_rate()
    took = rounds(fns, one, steps, n, device)
    rate = max(rate, read_rate())
    rows = []
    for name, s in took.items():
        row = {'what': name, 'tokens/s': steps / min(s)}
        for ours, head in ((ready, '`Decoder` / it'), (user, '`generate` / it')):
            is_peer = name not in (ready, user)
            row[head] = f'{times_faster(took, ours, name):.2f}' if is_peer else ''
        rows.append(row | {'goal': goals[kind].get(name, '')})
    cfg = model.cfg
    need = dec.weight_bytes + 2 * cfg.n_layer * cfg.n_embd * (n_prompt + steps / 2) * dec.dtype.itemsize
    share = need / (rate * 1e9) / (min(took[ready]) / steps)
    same = ''
    if 'transformers' in fns:
        same = f"{same_tokens(fns, one):.0%} of 32 greedy tokens are transformers'. "
    save_table(
        f'Greedy text, 124M random weights, {kind}',
        rows,
        packages=('torch', 'transformers', 'ctranslate2'),
        note=f'One sequence, {n_prompt}+{steps} tokens, {n} rounds in turn, of which the '
        f"best is named and the median of the ratios within a round (the memory's speed changes within "
        f'seconds), {torch.get_num_threads()} threads, {loaded()}. Both of ours go through '
        f'`generate`, with a `Decoder` or with the model, whose weights are then rounded and whose prompt is '
        f'read in each call. Floor: {need / 1e6:.0f} MB of weights '
        f'and cache for a token at the {rate:.0f} GB/s that this run reached at best (sum of 0.5 GB); ours '
        f'is at {share:.0%} of it. Start, compilation included unless cached: {start:.1f} s. {same}'
        f'Not run on a GPU yet.',
    )


def several(kind, n=4):
    "Sixteen sequences at once, and the first token after a prompt of 512"
    device = get_device()
    model = random_model('124M', device)
    dec = Decoder(model, kind)
    fns = {'ours': lambda rows, k: our_text(dec, rows, k)}
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = hf_copy(d, kind, device)
    fns['transformers'] = lambda rows, k: hf_text(hf, rows, k)
    rows = []
    for what, ids, k, goal in (
        (f'batch of 16, {n_prompt}+32 tokens', random_ids(16, n_prompt), 32, 2),
        ('first token of a 512-token prompt', random_ids(1, 512), 1, 0.9),
    ):
        took = rounds(fns, ids, k, n, device)
        rows.append(
            {
                'what': what,
                'ours, tokens/s': len(ids) * k / min(took['ours']),
                'transformers': len(ids) * k / min(took['transformers']),
                'ratio': f'{times_faster(took, "ours", "transformers"):.2f}',
                'goal': goal,
            }
        )
    save_table(
        f'Batch and first token, 124M random weights, {kind}',
        rows,
        note=f'The best of {n} rounds in turn, and the median of the ratios, {torch.get_num_threads()} '
        f'threads, {loaded()}. Not run on a GPU yet.',
    )


def quality(run):
    "Held-out bits per byte of a trained run with weights of each kind"
    from gpt2repro.batches import read_documents
    from gpt2repro.checkpoint import load_model
    from gpt2repro.decode import fake_quantize
    from gpt2repro.evaluate import documents_loss
    from gpt2repro.loss import bits_per_byte

    model, tok = load_model(run, 'cpu')
    docs = read_documents(Path(run) / 'shards/valid', tok)[:150]
    rows = []
    for kind in kinds:
        nats, _, n = documents_loss(fake_quantize(model, kind), tok, docs)
        rows.append(
            {
                'weights': kind,
                'bits per byte': f'{bits_per_byte(nats, n):.5f}',
                'MB read per token': Decoder(model, kind).weight_bytes / 1e6,
            }
        )
    save_table(
        'What smaller weights cost',
        rows,
        note=f'{Path(run).name}: {model.cfg.n_params:,} parameters, {len(docs)} held-out documents.',
    )


def main(argv=None):
    p = parser(__doc__)
    parts = p.add_subparsers(dest='part', metavar='greedy | several | quality')
    for name, fn in (('greedy', greedy), ('several', several)):
        part = parts.add_parser(name, help=fn.__doc__)
        part.add_argument('kind', nargs='?', default='float32', choices=kinds)
    part = parts.add_parser('quality', help=quality.__doc__)
    part.add_argument('run', help='folder of a trained run')
    a = p.parse_args(argv)
    if a.part == 'quality':
        return quality(a.run)
    fn = several if a.part == 'several' else greedy
    fn(getattr(a, 'kind', 'float32'))


if __name__ == '__main__':
    main()
