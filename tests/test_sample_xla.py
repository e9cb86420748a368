"""Sampling under torch_xla on the CPU:

two programs for prompts of one length bucket, and the CPU's texts. Runs in the environment of `make test-xla`
"""

import os
import pytest

pytest.importorskip('torch_xla', reason='torch_xla is not installed: make test-xla')
if os.environ.setdefault('PJRT_DEVICE', 'CPU') != 'CPU':
    pytest.skip('these tests want PJRT_DEVICE=CPU', allow_module_level=True)
import torch
from gpt2repro.backend import device_counts, get_device
from gpt2repro.config import GPT2Config, VariantConfig
from gpt2repro.model import GPT2
from gpt2repro.variants import Variant
from gpt2repro.generation import samples


class Bytes:
    "A tokenizer of bytes (SentencePiece cannot train in a process that has loaded torch_xla)"

    vocab_size, eot, escape = 257, 256, ''
    token_bytes = [*(bytes([i]) for i in range(256)), b'<|endoftext|>']

    def unescape(self, s):
        return s

    def encode_batch(self, texts):
        return [list(t.encode()) for t in texts]


def test_two_compilations_and_the_same_texts():
    tok = Bytes()
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=257, n_ctx=64, n_embd=32, n_layer=2, n_head=2).no_dropout()).eval()
    batches = [
        ['the cat', 'a'],
        ['the dog sat', 'on the mat'],
        ['log', 'and the log'],
    ]  # all at most 16 tokens long
    kw = dict(seed=1, min_new_tokens=30, top_k=20)
    want = [[s.ids for s in samples(model, tok, p, 30, **kw)] for p in batches]
    past = [
        s.ids
        for s in samples(model, tok, ['the cat sat on the mat', 'a'], 70, **{**kw, 'min_new_tokens': 70})
    ]
    dev = get_device('xla')
    model.to(dev)
    seen = []
    for p, w in zip(batches, want):
        before = device_counts(dev)
        assert [s.ids for s in samples(model, tok, p, 30, **kw)] == w
        seen.append({k: v - before[k] for k, v in device_counts(dev).items()})
    assert [s['compilations'] for s in seen] == [
        2,
        0,
        0,
    ]  # one reads prompts, one makes a token; then both are there
    assert all(
        s['fallbacks'] == 0 and s['reads'] <= 4 for s in seen
    )  # tokens, log-probabilities: twice in 30 tokens
    assert [
        s.ids
        for s in samples(model, tok, ['the cat sat on the mat', 'a'], 70, **{**kw, 'min_new_tokens': 70})
    ] == past  # sliding past the context


def test_a_variant_writes_what_it_writes_on_the_cpu():
    "Grouped heads, norms of queries and keys, rotation: two programs as for GPT-2"
    tok = Bytes()
    torch.manual_seed(0)
    model = Variant(
        VariantConfig(vocab_size=257, n_ctx=64, n_embd=32, n_layer=2, n_head=4, n_kv_head=2)
    ).eval()
    kw = dict(seed=1, min_new_tokens=20, top_k=20)
    batches = [['the cat', 'a'], ['the dog sat', 'on the mat']]
    want = [[s.ids for s in samples(model, tok, p, 20, **kw)] for p in batches]
    dev = get_device('xla')
    model.to(dev)
    before = device_counts(dev)
    assert [[s.ids for s in samples(model, tok, p, 20, **kw)] for p in batches] == want
    after = device_counts(dev)
    assert after['compilations'] - before['compilations'] == 2
    assert after['fallbacks'] == before['fallbacks']


def test_surplus_rows_and_tiny_temperatures():
    "Rows that are no tokens are never drawn, and what float32 cannot tell from temperature 0 is greedy"
    tok = Bytes()
    torch.manual_seed(0)
    cfg = GPT2Config(vocab_size=320, n_ctx=32, n_embd=32, n_layer=1, n_head=2).no_dropout()
    model = GPT2(cfg).eval()
    with torch.no_grad():
        model.wte.weight[257:] *= 50
    want = [s.ids for s in samples(model, tok, ['the cat', 'a'], 12, temperature=0)]
    model.to(get_device('xla'))
    for t in 0, 1e-39, 1e-37, 1e-9:
        assert [s.ids for s in samples(model, tok, ['the cat', 'a'], 12, temperature=t, seed=1)] == want
    assert max(i for s in samples(model, tok, ['the cat', 'a'], 12, seed=1) for i in s.ids) < 257
