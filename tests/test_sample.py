"""Sampling against transformers:

the rules one by one, greedy text on the same weights, and frequencies of draws
"""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import numpy as np
import pytest
import torch
from gpt2repro.config import GPT2Config
from gpt2repro.model import GPT2
from gpt2repro.beams import beam_search
from gpt2repro.decode import Decoder, weight_kinds
from gpt2repro.generation import generate
from gpt2repro.rules import Sampling, ban, min_p, no_repeat_ngram, occurrences
from gpt2repro.generation import samples
from gpt2repro.rules import repetition_penalty, row_uniforms, temperature, top_k, top_p
from gpt2repro.sample import token_view
from gpt2repro.tokenizer import SentencePiece

hf = pytest.importorskip('transformers')
import transformers.generation.logits_process as lp

V = 211


@pytest.fixture(scope='module')
def tok():
    return SentencePiece.train(
        [
            'the cat sat on the mat and the dog sat on the log',
            'to be or not to be, that is the question — 東京 🙂',
        ]
        * 40,
        vocab_size=360,
    )


@pytest.fixture(scope='module')
def model(tok):
    torch.manual_seed(0)
    m = GPT2(GPT2Config(vocab_size=tok.vocab_size, n_ctx=128, n_embd=48, n_layer=3, n_head=3).no_dropout())
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return m.eval()


@pytest.fixture(scope='module')
def ref(model, tok):
    "transformers' GPT-2 with the same weights"
    c = model.cfg
    h = hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.n_ctx,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            bos_token_id=tok.eot,
            eos_token_id=tok.eot,
        )
    )
    sd = {
        f'transformer.{k}': v.T if k.split('.')[-2] in ('c_attn', 'c_proj', 'c_fc') and v.ndim == 2 else v
        for k, v in model.state_dict().items()
    }
    missing, extra = h.load_state_dict(sd | {'lm_head.weight': sd['transformer.wte.weight']}, strict=False)
    assert not extra and not missing
    return h.eval()


def rows(seed=0, B=64):
    return torch.randn(B, V, generator=torch.Generator().manual_seed(seed)) * 3


def history(seed=1, B=64, S=40):
    return torch.randint(0, 25, (B, S), generator=torch.Generator().manual_seed(seed))


full = lambda ids: torch.full((len(ids),), ids.shape[1])


@pytest.mark.parametrize('t', [0.1, 0.7, 1.5])
def test_temperature(t):
    torch.testing.assert_close(
        temperature(rows(), t), lp.TemperatureLogitsWarper(t)(None, rows()), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('k', [1, 2, 40, V, V + 9])
def test_top_k(k):
    assert torch.equal(top_k(rows(), k), lp.TopKLogitsWarper(k)(None, rows()))


@pytest.mark.parametrize('p', [1e-4, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p):
    assert torch.equal(top_p(rows(), p), lp.TopPLogitsWarper(p)(None, rows()))


@pytest.mark.parametrize('p', [0.01, 0.2, 1.0])
def test_min_p(p):
    assert torch.equal(min_p(rows(), p), lp.MinPLogitsWarper(p)(None, rows()))


@pytest.mark.parametrize('p', [0.5, 1.3, 3.0])
def test_repetition(p):
    ids = history()
    assert torch.equal(
        repetition_penalty(rows(), occurrences(ids, full(ids), V), p),
        lp.RepetitionPenaltyLogitsProcessor(p)(ids, rows()),
    )


@pytest.mark.parametrize('n', [1, 2, 3, 41])
def test_no_repeat_ngram(n):
    ids = history()
    assert torch.equal(
        no_repeat_ngram(rows(), ids, full(ids), n), lp.NoRepeatNGramLogitsProcessor(n)(ids, rows())
    )


def test_banned():
    ids = history()
    words = [[7], [int(ids[0, -1]), 9], [int(ids[3, -2]), int(ids[3, -1]), 11], [1, 2, 3, 4]]
    assert torch.equal(
        ban(rows(), ids, full(ids), words),
        lp.NoBadWordsLogitsProcessor(words, eos_token_id=[V - 1])(ids, rows()),
    )


def test_bias():
    bias = {3: 2.5, 100: -4.0}
    want = lp.SequenceBiasLogitsProcessor([[[k], v] for k, v in bias.items()])(history(), rows())
    torch.testing.assert_close(Sampling(logit_bias=bias)(rows()), want, rtol=0, atol=1e-6)


def test_composed():
    "All together, in transformers' order"
    x = rows()
    ids = history()
    procs = [
        lp.RepetitionPenaltyLogitsProcessor(1.3),
        lp.NoRepeatNGramLogitsProcessor(2),
        lp.TemperatureLogitsWarper(0.8),
        lp.TopKLogitsWarper(30),
        lp.TopPLogitsWarper(0.9),
        lp.MinPLogitsWarper(0.02),
    ]
    want = x
    for p in procs:
        want = p(ids, want)
    got = Sampling(
        repetition_penalty=1.3, no_repeat_ngram=2, temperature=0.8, top_k=30, top_p=0.9, min_p=0.02
    )(x, ids, full(ids), full(ids) - 5)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'kw',
    [
        dict(),
        dict(repetition_penalty=1.4),
        dict(no_repeat_ngram=3),
        dict(no_repeat_ngram=2, repetition_penalty=1.2),
    ],
)
def test_greedy_equals_transformers(model, ref, tok, kw):
    prompts = ['the cat sat', 'to be or not', 'that is the question of the', 'a']
    got = samples(model, tok, prompts, 60, temperature=0, **kw)
    for s in got:
        ids = torch.tensor([tok.encode(s.prompt)])
        out = ref.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=60,
            do_sample=False,
            pad_token_id=tok.eot,
            **{dict(no_repeat_ngram='no_repeat_ngram_size').get(k, k): v for k, v in kw.items()},
        )[0, ids.shape[1] :].tolist()
        assert s.ids == (out[: out.index(tok.eot)] if tok.eot in out else out)
        assert s.ended == ('eot' if tok.eot in out else 'length')


def chi2(counts, p):
    keep = p * counts.sum() > 5
    e = p[keep] * counts.sum()
    return float(((counts[keep] - e) ** 2 / e).sum()), int(keep.sum()) - 1


@pytest.mark.parametrize('kw', [dict(), dict(temperature=0.7, top_k=12), dict(top_p=0.8), dict(min_p=0.1)])
def test_draws(kw):
    "100,000 draws: the frequencies are the distribution's, and what is cut off never comes"
    from gpt2repro.rules import draw

    x = rows(5, 1)
    p = Sampling(**kw)(x).softmax(-1)
    u = torch.from_numpy(np.stack([row_uniforms(s, [1, 2], 0, 1000) for s in range(100)]).reshape(-1))
    c = torch.cat([draw(p.expand(len(o), -1), o) for o in u.split(10000)]).bincount(minlength=V).double()
    stat, df = chi2(c, p[0].double())
    assert stat < df + 4 * (2 * df) ** 0.5, (stat, df)
    assert c[p[0] == 0].sum() == 0


def test_first_tokens_are_independent_over_seeds(model, tok):
    "The first token over many seeds has the model's distribution"
    with torch.no_grad():
        p = model(torch.tensor([tok.encode('the')]))[0, -1].softmax(-1).double()
    n = 3000
    first = samples(model, tok, 'the', 1, seed=0)[0].ids[0]
    u = torch.tensor([row_uniforms(s, tok.encode('the'), 0, 1)[0] for s in range(n)])
    from gpt2repro.rules import draw

    c = draw(p.float().expand(n, -1), u).bincount(minlength=len(p)).double()
    stat, df = chi2(c, p)
    assert stat < df + 4 * (2 * df) ** 0.5, (stat, df)
    assert first == int(draw(p.float()[None], u[:1]))


def test_batches_do_not_matter(model, tok):
    "Twenty prompts of many lengths, several samples each, in any batch size and order: the same texts"
    prompts = ['the cat sat on the mat and ' * i + 'the' for i in range(12)] + ['', 'the']
    want = generate(model, tok, prompts, 40, seed=9, top_k=50, n=2)
    assert generate(model, tok, prompts, 40, seed=9, top_k=50, n=2, batch_size=3) == want
    back = generate(model, tok, prompts[::-1], 40, seed=9, top_k=50, n=2)
    uniq = [i for i, p in enumerate(prompts) if prompts.count(p) == 1]
    for i in uniq:
        assert back[2 * (len(prompts) - 1 - i) :][:2] == want[2 * i : 2 * i + 2]


def test_dropout_comes_back(tok):
    m = GPT2(GPT2Config(vocab_size=tok.vocab_size, n_ctx=16, n_embd=12, n_layer=1, n_head=1)).train()
    a, b = (generate(m, tok, 'the cat', 8, seed=1) for _ in range(2))
    assert a == b and m.training


@pytest.mark.parametrize(
    'kw',
    [
        dict(),
        dict(length_penalty=0.0),
        dict(length_penalty=2.0, repetition_penalty=1.3),
        dict(beams=7, no_repeat_ngram=2),
    ],
)
def test_beams_equal_transformers(model, ref, tok, kw):
    "The same texts in the same order, with ends of text among them"
    kw = dict(beams=4, length_penalty=1.0) | kw
    names = dict(no_repeat_ngram='no_repeat_ngram_size', beams='num_beams')
    bias = {tok.eot: 6.0}  # often enough an end of text
    for p in ['the cat sat', 'to be or not', 'a']:
        ids = torch.tensor([tok.encode(p)])
        got = beam_search(model, tok, p, 14, n=kw['beams'], logit_bias=bias, **kw)
        out = ref.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=14,
            do_sample=False,
            pad_token_id=tok.eot,
            num_return_sequences=kw['beams'],
            sequence_bias=[[[tok.eot], 6.0]],
            **{names.get(k, k): v for k, v in kw.items()},
        )[:, ids.shape[1] :].tolist()
        assert [s.ids for s in got] == [o[: o.index(tok.eot)] if tok.eot in o else o for o in out]


@pytest.mark.parametrize('weights', weight_kinds)
@pytest.mark.parametrize(
    'kw', [dict(), dict(top_p=0.9, repetition_penalty=1.2), dict(temperature=0)], ids=str
)
def test_alone_and_in_a_batch_to_the_bit(model, tok, weights, kw):
    "Ids and log-probabilities, for each kind of weights, also past the context; as `samples` says"
    dec = Decoder(model, weights)
    if dec.c is None:
        pytest.skip('the kernels in C are not there: the same up to rounding')
    prompts = ['the cat sat on the mat and ' * (i % 9) + 'the' + ' dog' * (i % 3) for i in range(18)]
    kw = dict(seed=2, min_new_tokens=90, max_new_tokens=90) | kw
    alone = [samples(dec, tok, p, **kw)[0] for p in dict.fromkeys(prompts)]
    for batch_size in 16, 5:
        assert samples(dec, tok, list(dict.fromkeys(prompts)), batch_size=batch_size, **kw) == alone


def test_rows_equal_single_runs_without_c(model, tok):
    "In PyTorch: the same texts in float32, log-probabilities up to rounding"
    dec = Decoder(model, compile=False)
    prompts = ['the cat sat on the mat and ' * i + 'the' for i in range(6)]
    kw = dict(seed=2, min_new_tokens=20)
    for one, many in zip(
        [samples(dec, tok, p, 20, **kw)[0] for p in prompts], samples(dec, tok, prompts, 20, **kw)
    ):
        assert one.ids == many.ids
        np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-3)


@pytest.mark.parametrize('weights', weight_kinds)
@pytest.mark.parametrize('compile', [None, False])
def test_surplus_rows_are_never_drawn(model, tok, weights, compile):
    "A table grown by a padding token, to a multiple of 64, or tenfold: the texts of the model without them"
    kws = [{}, dict(temperature=0), dict(temperature=3.0, top_k=10**6), dict(top_p=1e-45), dict(min_p=1e-300)]
    kws += [dict(frequency_penalty=1e12), dict(no_repeat_ngram=1), dict(logit_bias={tok.eot: 1e12})]
    V = tok.vocab_size
    plain = Decoder(model, weights, compile=compile)
    for rows in V + 1, 384, 10 * V:
        m = GPT2(model.cfg.replace(vocab_size=rows)).eval()
        sd = model.state_dict()
        table = torch.cat([sd['wte.weight'], 9 * torch.randn(rows - V, model.cfg.n_embd)])
        m.load_state_dict(sd | {'wte.weight': table})
        dec = Decoder(m, weights, compile=compile)
        for kw in kws:
            got = samples(dec, tok, ['the cat', ''], 8, seed=1, **kw)
            want = samples(plain, tok, ['the cat', ''], 8, seed=1, **kw)
            assert [s.ids for s in got] == [s.ids for s in want]
        for s in beam_search(dec, tok, 'the cat', 8, n=4):
            assert max(s.ids) < V
        assert all(b for o in token_view(dec, tok, 'the', got[0].ids) for b in o['best'])
    with pytest.raises(ValueError, match=f'token {V} is biased or banned'):
        samples(dec, tok, 'a', logit_bias={V: 1.0})


@pytest.mark.parametrize('t', [1e-320, 1e-45, 1e-39, 1e-37, 1e-20, 1e-9])
def test_tiny_temperatures_are_greedy(model, tok, t):
    prompts = ['the cat', 'to be']
    for weights in weight_kinds:
        for compile in None, False:
            dec = Decoder(model, weights, compile=compile)
            want = generate(dec, tok, prompts, 12, temperature=0)
            for kw in {}, dict(top_p=0.5, min_p=0.5), dict(top_k=3):
                assert generate(dec, tok, prompts, 12, seed=3, temperature=t, **kw) == want
