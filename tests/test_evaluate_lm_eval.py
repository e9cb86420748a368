"Protocol *modern* against lm-eval itself: the same checkpoint, the same items, request by request"

import json
import os
import random

os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
from pathlib import Path
import numpy as np
import pytest
import torch
from gpt2repro.weights import save_pretrained
from gpt2repro.config import GPT2Config
from gpt2repro.evaluate import answers, evaluate, prepared, tasks
from gpt2repro.loss import lm_loss
from gpt2repro.model import GPT2
from gpt2repro.tasks.core import LogLik, Rolling
from gpt2repro.tasks.perplexity import wikitext_pages
from gpt2repro.utils import reference_data
from gpt2repro.tokenizer import GPT2BPE

lm_eval = pytest.importorskip('lm_eval')
data = reference_data()
pytestmark = [
    pytest.mark.skipif(not data.exists(), reason='the data are not here'),
    pytest.mark.xdist_group('lm_eval'),
]


@pytest.fixture(scope='module')
def tok():
    return GPT2BPE.from_files(data / 'tokenizer/encoder.json', data / 'tokenizer/vocab.bpe')


@pytest.fixture(scope='module')
def folder(tok, tmp_path_factory):
    "A small GPT-2 with the real tokenizer, trained a little so that its scores differ from token to token"
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_ctx=128, n_embd=16, n_layer=2, n_head=2).no_dropout())
    ids = torch.tensor(tok.encode((data / 'tinyshakespeare/input.txt').read_text()[:60_000]))
    opt = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for i in range(10):
        x = torch.stack([ids[j : j + 65] for j in torch.randint(len(ids) - 65, (6,)).tolist()])
        lm_loss(model, x[:, :-1], x[:, 1:]).backward()
        opt.step()
        opt.zero_grad()
    return save_pretrained(model.eval(), tmp_path_factory.mktemp('model') / 'small', tok)


@pytest.fixture(scope='module')
def model(folder):
    from gpt2repro.weights import from_pretrained

    return from_pretrained(folder)


@pytest.fixture(scope='module')
def theirs(folder, tmp_path_factory):
    "Function (lm-eval's configuration, rows of the data set) -> its results and logged samples"
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=str(folder), device='cpu', dtype='float32', batch_size=8)
    configs = Path(lm_eval.__file__).parent / 'tasks'

    def run(config, rows):
        d = tmp_path_factory.mktemp('rows')
        (d / 'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        (d / 'local.yaml').write_text(
            yaml.safe_dump(
                dict(
                    include=str(configs / config),
                    task='local',
                    dataset_path='json',
                    dataset_name=None,
                    training_split=None,
                    validation_split=None,
                    test_split='test',
                    dataset_kwargs=dict(
                        data_files=dict(test=str(d / 'rows.jsonl')), cache_dir=str(d / 'cache')
                    ),
                )
            )
        )
        return lm_eval.simple_evaluate(
            lm,
            tasks=['local'],
            task_manager=TaskManager(include_path=str(d), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )

    return run


def same_items(got, requests, model, tok):
    "Each request has the same text, and the same log-probability to 1e-4 (of a whole article: per token)"
    samples = sorted(got['samples']['local'], key=lambda s: s['doc_id'])
    assert len(samples) == len(requests)
    flat = [r for rs in requests for r in rs]
    ours = iter(answers(model, tok, flat, prepared(flat, tok, model.cfg.n_ctx, truncate=True)))
    for s, rs in zip(samples, requests):
        for a, r, resp in zip(s['arguments'], rs, s['resps'], strict=True):
            mine = next(ours)
            theirs = np.ravel(np.array(resp, dtype=object))
            assert tuple(a) == ((r.text,) if isinstance(r, Rolling) else (r.context, r.target))
            assert abs(mine.sum - float(theirs[0])) < 1e-4 * (
                len(mine.logprobs) if isinstance(r, Rolling) else 1
            )
            if isinstance(r, LogLik):
                assert bool(theirs[1]) == bool(mine.best.all())
    return len(flat)


def score(got, name):
    return next(v for k, v in got['results']['local'].items() if k.split(',')[0] == name)


def test_lambada(theirs, model, tok):
    t = tasks['lambada']
    ex = t.examples(data)[:60]
    got = theirs('lambada/lambada_openai.yaml', [dict(text=x) for x in ex])
    assert same_items(got, [t.requests(x, 'modern') for x in ex], model, tok) == 60
    res = evaluate(model, tok, 'lambada', 'modern', data, limit=60, truncate=True)
    assert res['lambada.ppl'].value == pytest.approx(score(got, 'perplexity'), rel=1e-4)
    assert res['lambada.acc'].value == pytest.approx(100 * score(got, 'acc'), abs=1e-6)


def test_wikitext(theirs, model, tok):
    t = tasks['wikitext2']
    text = t.examples(data)[0][:24_000]  # the first articles, longer than the context
    pages = wikitext_pages(text)
    got = theirs('wikitext/wikitext.yaml', [dict(page=p) for p in pages])
    assert len(pages) > 1 and same_items(got, [[r] for r in t.requests(text, 'modern')], model, tok) == len(
        pages
    )
    rows = t.rows([text], [answers(model, tok, t.requests(text, 'modern'))], 'modern')
    assert t.metrics['ppl'].of(rows['ppl'].sum(0)) == pytest.approx(score(got, 'word_perplexity'), rel=1e-4)
    assert t.metrics['bpb'].of(rows['bpb'].sum(0)) == pytest.approx(score(got, 'bits_per_byte'), rel=1e-4)


def hellaswag_rows():
    rng = random.Random(0)
    words = Path(data / 'tinyshakespeare/input.txt').read_text()[:30_000].split()
    say = lambda n: ' '.join(rng.choices(words, k=n))
    for i in range(12):
        a = say(12) + '.'
        b = say(3)
        ends = [say(rng.randint(3, 12)) for _ in range(4)]
        if i % 3 == 0:
            a = '[header] How to ' + a + ' [title] ' + say(4)
            ends[1] = ends[1] + ' [substeps] ' + say(5) + '  and'
        yield dict(
            ind=i,
            activity_label='Cutting ' + say(1),
            ctx_a=a,
            ctx_b=b,
            ctx=f'{a} {b}',
            endings=ends,
            label=str(rng.randrange(4)),
            split='val',
            source_id='x',
        )


def test_hellaswag(theirs, model, tok, tmp_path):
    "The real file is not here: items of its format"
    rows = list(hellaswag_rows())
    (tmp_path / 'hellaswag_val.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    ex = tasks['hellaswag'].examples(tmp_path, subset=True)
    got = theirs('hellaswag/hellaswag.yaml', rows)
    assert same_items(got, [tasks['hellaswag'].requests(x, 'modern') for x in ex], model, tok) == 48
    res = evaluate(model, tok, 'hellaswag', 'modern', tmp_path, subset=True)
    for k in 'acc', 'acc_norm':
        assert res[f'hellaswag.{k}'].value == pytest.approx(100 * score(got, k), abs=1e-6)


schemas = [
    (
        "The trophy doesn't fit into the brown suitcase because",
        'it',
        'is too large.',
        ('The trophy', 'The suitcase'),
        'A',
    ),
    ('Paul tried to call George on the phone, but', 'he', 'was not successful.', ('Paul', 'George'), 'A'),
    ('Jane knocked on the door.', 'She', 'did not get an answer from Susan.', ('Jane', 'Susan'), 'A'),
    (
        'Ann asked Mary what time the library closes, because',
        'her',
        'watch had stopped.',
        ('Ann', 'Mary'),
        'B',
    ),
    ('The man lifted the boy onto', 'his', 'shoulders.', ('The man', 'The boy'), 'A'),
]


def test_winograd(theirs, model, tok, tmp_path):
    "Schemas in the format of WSCollection.xml; as rows in that of the data set"
    (tmp_path / 'WSCollection.xml').write_text(
        '<collection>'
        + ''.join(
            f'<schema><text><txt1>{a}</txt1><pron>{p}</pron><txt2>{b}</txt2></text><answers><answer>{x}</answer><answer>{y}</answer></answers><correctAnswer>{c}</correctAnswer></schema>'
            for a, p, b, (x, y), c in schemas
        )
        + '</collection>'
    )
    ex = tasks['winograd'].examples(tmp_path, subset=True)
    rows = [
        dict(text=f'{a} {p} {b}', pronoun=p, pronoun_loc=len(a) + 1, options=list(o), label='AB'.index(c))
        for a, p, b, o, c in schemas
    ]
    got = theirs('wsc273/default.yaml', rows)
    assert same_items(got, [tasks['winograd'].requests(x, 'modern') for x in ex], model, tok) == 10
    res = evaluate(model, tok, 'winograd', 'modern', tmp_path, subset=True)
    assert res['winograd.acc'].value == pytest.approx(100 * score(got, 'acc'), abs=1e-6)
