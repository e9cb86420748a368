"""Greedy text from 124M random weights against transformers and CTranslate2 in the same process, two threads.
`python bench/sample.py greedy [KIND]` for one sequence, `several [KIND]` for sixteen and a long prompt; `quality RUN` gives the bits per byte that smaller weights cost on a trained run. Needs: pip install ctranslate2"""

import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('GPT2REPRO_QUIET', '1')
from pathlib import Path
import numpy as np
import torch
from common import best_of, save_table
from gpt2repro.backend import get_device, sync
from gpt2repro.weights import save_pretrained
from gpt2repro.config import sizes
from gpt2repro.decode import Decoder, fake_quantize
from gpt2repro.model import GPT2
from gpt2repro.generation import RowBatch, generate, grow
from gpt2repro.rules import Sampling

rules = Sampling(temperature=0)
steps, n_prompt = 128, 16


class Numbers:
    "A tokenizer whose texts are numbers: a stand-in for GPT-2's, which is not there offline"

    vocab_size, eot, held = 50257, 50256, ''
    token_bytes = [f' {i}'.encode() for i in range(vocab_size)]

    def unescape(self, s):
        return s

    def encode_batch(self, texts):
        return [list(map(int, t.split())) for t in texts]


def ours(dec, rows, steps):
    "`steps` tokens after each of `rows`, the host reading every one, as `samples` does"
    batch = RowBatch(dec, rows, steps)
    uniforms = np.zeros((len(rows), steps), dtype=np.float32)
    for _ in grow(batch, uniforms, rules, dec.cfg.vocab_size - 1, steps):
        batch.ids[:, -1].cpu()
    return batch.ids[:, len(rows[0]) :]


def by_generate(model, kind, row, steps):
    "As a user calls it: a model and a prompt. The weights are rounded anew in each call"
    prompt = ' '.join(map(str, row))
    kw = dict(temperature=0, min_new_tokens=steps, weights=kind)
    return generate(model, Numbers(), prompt, steps, **kw)


def theirs(hf, rows, steps):
    x = torch.tensor(rows, device=hf.device)
    return hf.generate(
        x,
        attention_mask=torch.ones_like(x),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        pad_token_id=50256,
    )[:, x.shape[1] :]


def ct2(gen, rows, steps):
    words = [[f'<{i}>' for i in r] for r in rows]
    out = gen.generate_batch(
        words,
        max_length=steps,
        min_length=steps,
        beam_size=1,
        sampling_topk=1,
        include_prompt_in_result=False,
        max_batch_size=64,
    )
    return [o.sequences_ids[0] for o in out]


def converted(folder, kind):
    "CTranslate2's generator from our checkpoint, through a token list of its own (no tokenizer is needed)"
    import ctranslate2
    from ctranslate2.converters import transformers as tr

    class Words:
        unk_token, bos_token, eos_token = '<0>', '<50256>', '<50256>'

        def get_vocab(self):
            return {f'<{i}>': i for i in range(50257)}

    class Converter(tr.TransformersConverter):
        def load_tokenizer(self, *a, **kw):
            return Words()

    out = f'{folder}/ct2-{kind}'
    Converter(str(folder)).convert(out, quantization=kind, force=True)
    return ctranslate2.Generator(
        out, device='cpu', compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
    )


def read_rate():
    "GB/s at which memory is read here: the sum of half a gigabyte, fused"
    x = torch.ones(2**27)
    return x.nbytes / best_of(lambda: x.sum(), 5) / 1e9


def greedy(kind='float32', n=7):
    "One sequence with weights of one kind, against the peers, in turn, `n` rounds"
    from transformers import GPT2LMHeadModel

    goals = dict(
        float32=dict(transformers=2.2, CTranslate2=1.5),
        bfloat16=dict(transformers=2.2),
        int8=dict(CTranslate2=1.8),
    )[kind]
    model, dev = net()
    one = torch.randint(50000, (1, n_prompt), generator=torch.Generator().manual_seed(1)).tolist()
    t = time.perf_counter()
    dec = Decoder(model, kind, compile=True)
    ours(dec, one, 4)
    start = time.perf_counter() - t
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = (
            GPT2LMHeadModel.from_pretrained(d, dtype=getattr(torch, kind)).eval().to(dev)
            if 'transformers' in goals
            else None
        )
        gen = (
            converted(d, {'int8': 'int8_float32'}.get(kind, kind))
            if 'CTranslate2' in goals and dev.type == 'cpu'
            else None
        )
    fns = {
        'ours, `Decoder` ready': lambda k: ours(dec, one, k),
        'ours, `generate`': lambda k: by_generate(model, kind, one[0], k),
    }
    if hf:
        fns['transformers'] = lambda k: theirs(hf, one, k)
    if gen:
        fns['CTranslate2'] = lambda k: ct2(gen, one, k)
    rate = read_rate()
    took = rounds(fns, steps, n, dev)
    rate = max(rate, read_rate())
    cfg = model.cfg
    need = dec.weight_bytes + 2 * cfg.n_layer * cfg.n_embd * (n_prompt + steps / 2) * dec.dtype.itemsize
    ready, user = list(fns)[:2]
    rows = []
    for what, s in took.items():
        peer = what in goals
        rows.append(
            {
                'what': what,
                'tokens/s': steps / min(s),
                '`Decoder` / it': ratio(took, ready, what) if peer else '',
                '`generate` / it': ratio(took, user, what) if peer else '',
                'goal': goals.get(what, ''),
            }
        )
    same = (ours(dec, one, 32).cpu() == theirs(hf, one, 32).cpu()).float().mean().item() if hf else None
    save_table(
        f'Greedy text, 124M random weights, {kind}',
        rows,
        packages=('torch', 'transformers', 'ctranslate2'),
        note=f'One sequence, {n_prompt}+{steps} tokens, {n} rounds in turn, of which the best is named and '
        f"the median of the ratios within a round (the memory's speed changes within seconds), "
        f'{torch.get_num_threads()} threads, {loaded()}. `generate` is as a user calls it: with a model '
        f'and a prompt, the weights being rounded and the prompt read in each call. Floor: '
        f'{need / 1e6:.0f} MB of weights and cache for a token at the {rate:.0f} GB/s that this run '
        f'reached at best (sum of 0.5 GB); ours is at '
        f'{need / (rate * 1e9) / (min(took[ready]) / steps):.0%} of it. '
        f'Start, compilation included unless cached: {start:.1f} s. '
        + (f"{same:.0%} of 32 greedy tokens are transformers'. " if same is not None else '')
        + 'Not run on a GPU yet.',
    )


def several(kind='float32', n=4):
    "Sixteen sequences at once, and the first token after a prompt of 512"
    from transformers import GPT2LMHeadModel

    model, dev = net()
    g = torch.Generator().manual_seed(1)
    many = torch.randint(50000, (16, n_prompt), generator=g).tolist()
    long = torch.randint(50000, (1, 512), generator=g).tolist()
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = GPT2LMHeadModel.from_pretrained(d, dtype=getattr(torch, kind)).eval().to(dev)
    dec = Decoder(model, kind)
    table = []
    for what, rows, k, goal in (
        (f'batch of 16, {n_prompt}+32 tokens', many, 32, 2),
        ('first token of a 512-token prompt', long, 1, 0.9),
    ):
        took = rounds(
            {'ours': lambda k: ours(dec, rows, k), 'transformers': lambda k: theirs(hf, rows, k)}, k, n, dev
        )
        table.append(
            {
                'what': what,
                'ours, tokens/s': len(rows) * k / min(took['ours']),
                'transformers': len(rows) * k / min(took['transformers']),
                'ratio': ratio(took, 'ours', 'transformers'),
                'goal': goal,
            }
        )
    save_table(
        f'Batch and first token, 124M random weights, {kind}',
        table,
        note=f'The best of {n} rounds in turn, and the median of the ratios, {torch.get_num_threads()} '
        f'threads, {loaded()}. Not run on a GPU yet.',
    )


def net():
    dev = get_device('auto')
    torch.manual_seed(0)
    return GPT2(sizes['124M'].no_dropout()).eval().to(dev), dev


def loaded():
    return f'load average {os.getloadavg()[0]:.1f} at the end' if hasattr(os, 'getloadavg') else ''


def rounds(fns, k, n, dev):
    "Seconds of each function in `n` rounds, in turn, after a short first call"
    took = {name: [] for name in fns}
    for f in fns.values():
        f(min(k, 4))
    for _ in range(n):
        for name, f in fns.items():
            sync(dev)
            t = time.perf_counter()
            f(k)
            sync(dev)
            took[name].append(time.perf_counter() - t)
    return took


def ratio(took, ours, peer):
    return f'{statistics.median(a / b for a, b in zip(took[peer], took[ours])):.2f}'


def quality(run):
    "Held-out bits per byte of a trained run with weights of each kind"
    from gpt2repro.cli import load_model, read_documents
    from gpt2repro.evaluate import documents_loss
    from gpt2repro.loss import bits_per_byte

    model, tok = load_model(run, 'cpu')
    docs = read_documents(Path(run) / 'shards/valid', tok)[:150]
    rows = []
    for kind in ('float32', 'bfloat16', 'int8'):
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


if __name__ == '__main__':
    {'greedy': greedy, 'several': several, 'quality': quality}[
        sys.argv[1] if len(sys.argv) > 1 else 'greedy'
    ](*sys.argv[2:])
