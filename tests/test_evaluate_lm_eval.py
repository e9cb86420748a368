"Protocol *modern* against lm-eval itself: the same checkpoint, the same items, request by request"

import json
import os
import random
import re
import shutil
import string
import sys
from collections import Counter
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from gpt2repro.weights import save_pretrained
from gpt2repro.config import GPT2Config
from gpt2repro.evaluate import answers, evaluate, prepared, tasks
from gpt2repro.loss import lm_loss
from gpt2repro.model import GPT2
from gpt2repro.tasks.core import LogLik, Rolling, Written
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


def trained_a_little(
    tok,
    out,  # folder to write
    n_ctx,  # tokens
    steps,
):  # folder
    "A small GPT-2 with the real tokenizer, trained a little so that its scores differ from token to token"
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_ctx=n_ctx, n_embd=16, n_layer=2, n_head=2).no_dropout())
    ids = torch.tensor(tok.encode((data / 'tinyshakespeare/input.txt').read_text()[:60_000]))
    opt = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(steps):
        x = torch.stack([ids[j : j + 65] for j in torch.randint(len(ids) - 65, (6,)).tolist()])
        lm_loss(model, x[:, :-1], x[:, 1:]).backward()
        opt.step()
        opt.zero_grad()
    return save_pretrained(model.eval(), out, tok)


@pytest.fixture(scope='module')
def folder(tok, tmp_path_factory):
    return trained_a_little(tok, tmp_path_factory.mktemp('model') / 'small', n_ctx=128, steps=10)


@pytest.fixture(scope='module')
def model(folder):
    from gpt2repro.weights import from_pretrained

    return from_pretrained(folder)


@pytest.fixture(scope='module')
def theirs(folder, tmp_path_factory):
    return runner(folder, tmp_path_factory)


def runner(folder, tmp_path_factory):
    """Function (lm-eval's configuration, rows of the data set) -> its results and logged samples.

    Its data sets come from the hub, which a test has not: its own yaml is included, and `data_files` names
    rows written here in the form of the data set
    """
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
                    fewshot_split=None,
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


def test_lambada_as_released(theirs, model, tok, tmp_path):
    "lm-eval's `lambada_standard` is the file of the task's authors: here real passages in its form"
    t = tasks['lambada']
    released = replace(t.protocols['modern'], text='released')
    passages = [
        re.sub(r'([.,!?;])', r' \1', ' '.join(x.lower().split())).replace('"', "''")
        for x in t.examples(data)[:40]
        if x.split(' ')[-1].isalpha()
    ]
    (tmp_path / 'lambada_test_plain_text.txt').write_text('\n'.join(passages) + '\n')
    ex = t.examples(tmp_path, True, released)
    got = theirs('lambada/lambada_standard.yaml', [dict(text=x) for x in passages])
    assert same_items(got, [t.requests(x, released) for x in ex], model, tok) == len(passages) > 20
    res = evaluate(model, tok, 'lambada', released, tmp_path, subset=True, truncate=True)
    assert res['lambada.ppl'].value == pytest.approx(score(got, 'perplexity'), rel=1e-4)


@pytest.fixture(scope='module')
def long_folder(folder, tmp_path_factory):
    "The same kind of model with a context that has room for a story and 256 tokens"
    from gpt2repro.weights import from_pretrained

    net = from_pretrained(folder)
    torch.manual_seed(1)
    wide = GPT2(net.cfg.replace(n_ctx=1024))
    weights = net.state_dict()
    wpe = wide.state_dict()['wpe.weight'].clone()
    wpe[: len(weights['wpe.weight'])] = weights['wpe.weight']
    wide.load_state_dict(weights | {'wpe.weight': wpe})
    tok = GPT2BPE.from_files(data / 'tokenizer/encoder.json', data / 'tokenizer/vocab.bpe')
    return save_pretrained(wide.eval(), tmp_path_factory.mktemp('model') / 'long', tok)


@pytest.fixture(scope='module')
def long_model(long_folder):
    from gpt2repro.weights import from_pretrained

    return from_pretrained(long_folder)


@pytest.fixture(scope='module')
def writes(long_folder, tmp_path_factory):
    return runner(long_folder, tmp_path_factory)


def same_texts(got, requests, model, tok):
    "Each prompt is the same, and what is written after it"
    samples = sorted(got['samples']['local'], key=lambda s: s['doc_id'])
    flat = [r for rs in requests for r in rs]
    ours = answers(model, tok, flat, prepared(flat, tok, model.cfg.n_ctx))
    assert len(samples) == len(flat)
    for s, r, mine in zip(samples, flat, ours):
        (arguments,) = s['arguments']
        assert arguments[0] == r.prompt + r.tail
        [[theirs]] = s['resps']
        assert mine.text == theirs, (r.prompt[-60:], mine.text[:80], theirs[:80])
    return len(flat)


@pytest.fixture
def squad_metrics(monkeypatch):
    "SQuAD's measures as in its script: lm-eval takes them from transformers, whose version 5 has none"

    def normalized(s):
        s = ''.join(c for c in s.lower() if c not in string.punctuation)
        return re.sub(r'\b(a|an|the)\b', ' ', s).split()

    def f1(gold, answer):
        gold, answer = normalized(gold), normalized(answer)
        same = sum((Counter(gold) & Counter(answer)).values())
        if not gold or not answer:
            return float(gold == answer)
        if not same:
            return 0.0
        precision, recall = same / len(answer), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    def exact(gold, answer):
        return int(normalized(gold) == normalized(answer))

    name = 'transformers.data.metrics'
    measures = SimpleNamespace(compute_f1=f1, compute_exact=exact)
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(squad_metrics=measures))
    monkeypatch.setitem(sys.modules, f'{name}.squad_metrics', measures)
    monkeypatch.setattr('transformers.data.metrics', sys.modules[name], raising=False)


def test_coqa(writes, long_model, tok, tmp_path, squad_metrics):
    t = tasks['coqa']
    shutil.copy(data / 'coqa/coqa-dev-v1.0.first1.json', tmp_path / 'coqa-dev-v1.0.json')
    [x] = t.examples(tmp_path, subset=True)
    columns = lambda texts: dict(input_text=texts)
    few = [x | {k: x[k][:n] for k in ('questions', 'answers')} for n in (1, 2)]
    few = [f | dict(more=[m[: len(f['questions'])] for m in x['more']]) for f in few]
    rows = [
        dict(
            story=f['story'],
            questions=columns(f['questions']),
            answers=columns(f['answers']),
            additional_answers={str(i): columns(m) for i, m in enumerate(f['more'])},
        )
        for f in few
    ]
    got = writes('coqa/default.yaml', rows)
    requests = [t.requests(f, 'modern') for f in few]
    assert same_texts(got, requests, long_model, tok) == 2
    rows = t.rows(few, [answers(long_model, tok, rs) for rs in requests], 'modern')
    for k in 'f1', 'em':
        assert t.metrics[k].of(rows[k].sum(0)) == pytest.approx(100 * score(got, k), abs=1e-6)


def test_nq_open(writes, long_model, tok):
    t = tasks['nq']
    rows = [
        dict(question=f'who wrote the play of king {n}', answer=['The King', n]) for n in ('Lear', 'John')
    ]
    ex = t.from_rows(rows)
    got = writes('nq_open/nq_open.yaml', rows)
    requests = [t.requests(x, 'modern') for x in ex]
    samples = got['samples']['local']
    assert same_texts(got, requests, long_model, tok) == 2
    assert [s['arguments'][0][0] for s in samples] == [r.prompt for [r] in requests]
    counts = t.rows(ex, [answers(long_model, tok, rs) for rs in requests], 'modern')
    assert t.metrics['em'].of(counts['em'].sum(0)) == pytest.approx(100 * score(got, 'exact_match'), abs=1e-6)


@pytest.mark.parametrize('name,a,b', [('wmt14-fr-en', 'fr', 'en'), ('wmt14-en-fr', 'en', 'fr')])
def test_wmt14(name, a, b, writes, long_model, tok):
    t = tasks[name]
    ex = t.examples(data)[:3]
    got = writes(f'translation/wmt14_{a}-{b}.yaml', [dict(translation={a: x, b: y}) for x, y in ex])
    requests = [t.requests(x, 'modern') for x in ex]
    assert same_texts(got, requests, long_model, tok) == 3
    # What this model writes has no word of the gold: the arithmetic is compared on texts that have some.
    theirs = lm_eval.api.metrics.bleu([(' ' + y, y.replace('the', 'a').replace('les', 'des')) for _, y in ex])
    near = [[Written(y.replace('the', 'a').replace('les', 'des'), np.zeros(0))] for _, y in ex]
    counts = t.rows(ex, near, 'modern')['bleu']
    assert t.metrics['bleu'].of(counts.sum(0)) == pytest.approx(theirs, abs=1e-6) and theirs < 99


def test_cnn_dailymail(writes, long_model, tok):
    t = tasks['cnn-dm']
    ex = [dict(x, article=x['article'][:600]) for x in t.examples(data, subset=True)[:2]]
    rows = [dict(article=x['article'], highlights='\n'.join(x['highlights'])) for x in ex]
    got = writes('cnn_dailymail/cnn_dailymail.yaml', rows)
    requests = [t.requests(x, 'modern') for x in ex]
    assert same_texts(got, requests, long_model, tok) == 2
    counts = t.rows(ex, [answers(long_model, tok, rs) for rs in requests], 'modern')
    for k in 'rouge1', 'rouge2', 'rougeL':
        assert t.metrics[k].of(counts[k].sum(0)) == pytest.approx(100 * score(got, k), abs=1e-6)
