"""The server and its clients: the `openai` package, lm-eval's `local-completions`, crowds, abuse, and signals

What one module promises is tested in its notebook. Here are clients that others wrote, and a whole process
"""

import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time

os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
from pathlib import Path
import pytest
import torch
from gpt2repro.decode import Decoder
from gpt2repro.evaluate import answers, evaluate, tasks
from gpt2repro.generation import samples
from gpt2repro.model import GPT2
from gpt2repro.rules import word_ids
from gpt2repro.settings import GPT2Config
from gpt2repro.tasks.core import LogLik
from gpt2repro.tokenizer import GPT2BPE, SentencePiece
from gpt2repro.utils import reference_data
from gpt2repro.weights import from_pretrained, save_pretrained

pytest.importorskip('starlette')
openai = pytest.importorskip('openai')
from gpt2repro.cli import main
from gpt2repro.serve.models import Models, Served
from gpt2repro.serve.server import Server, Service, background

pytestmark = pytest.mark.xdist_group('serve')
root = Path(__file__).parent.parent
lines = ['the cat sat on the mat and the dog sat on the log', 'a naïve café in São Paulo, 東京 🙂'] * 30


def test_logging_is_not_the_servers(service):
    "Whoever starts a server in his program keeps the handlers of his logs"
    closed = []

    class Kept(logging.Handler):
        def close(self):
            closed.append(self)
            super().close()

    logging.getLogger('test').addHandler(kept := Kept())
    level = logging.getLogger().level
    Server(service)
    logging.getLogger('test').removeHandler(kept)
    assert not closed and logging.getLogger().level == level


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A folder with a small random model, the model and its tokenizer"
    tok = SentencePiece.train(lines, vocab_size=400)
    torch.manual_seed(0)
    cfg = GPT2Config(vocab_size=tok.vocab_size, n_ctx=64, n_embd=24, n_layer=2, n_head=3).no_dropout()
    model = GPT2(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3) if p.ndim > 1 else p
    return save_pretrained(model, tmp_path_factory.mktemp('serve') / 'small', tok), model, tok


@pytest.fixture(scope='module')
def service(small):
    return Service(Models([Served(str(small[0]), rows=8)]), most_waiting=100)


@pytest.fixture(scope='module')
def url(service):
    with background(service) as url:
        yield url


@pytest.fixture(scope='module')
def client(url):
    return openai.OpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0, timeout=30)


# the `openai` package


penalties = dict(presence_penalty=1.5, frequency_penalty=-0.5)


def test_text_usage_and_names(client, small):
    _, model, tok = small
    got = client.completions.create(model='small', prompt='the cat', max_tokens=12, seed=3, temperature=0.8)
    [s] = samples(model, tok, 'the cat', 12, seed=3, temperature=0.8)
    assert (got.choices[0].text, got.choices[0].finish_reason) == (s.text, 'length')
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(tok.encode('the cat')), 12)
    assert got.object == 'text_completion' and got.model == 'small' and got.choices[0].logprobs is None
    assert [m.id for m in client.models.list()] == ['small']
    assert client.models.retrieve('small').owned_by == 'gpt2repro'


def test_stream_is_the_text(client, small):
    _, model, tok = small
    kw = dict(model='small', prompt=['a', 'the cat'], n=2, max_tokens=20, seed=1, stop=['t', '🙂'])
    whole = client.completions.create(**kw)
    texts, ends, usage = [''] * 4, [None] * 4, None
    for part in client.completions.create(**kw, stream=True, stream_options=dict(include_usage=True)):
        usage = part.usage or usage
        for c in part.choices:
            texts[c.index] += c.text
            ends[c.index] = c.finish_reason or ends[c.index]
    assert texts == [c.text for c in whole.choices] and ends == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage
    want = samples(model, tok, ['a', 'the cat'], 20, seed=1, n=2, stop=['t', '🙂'])
    assert texts == [s.text for s in want]


def test_logprobs_and_echo(client, small):
    _, model, tok = small
    kw = dict(model='small', prompt='a café', max_tokens=9, seed=2, logprobs=3, echo=True)
    [c] = client.completions.create(**kw).choices
    ids = tok.encode('a café')
    [s] = samples(model, tok, 'a café', 9, seed=2)
    with torch.no_grad():
        z = model(torch.tensor([ids + s.ids]))[0].log_softmax(-1)
    want = [z[k, i].item() for k, i in enumerate((ids + s.ids)[1:])]
    assert c.text == 'a café' + s.text and c.logprobs.token_logprobs[0] is None
    assert c.logprobs.token_logprobs[1:] == pytest.approx(want, abs=1e-4)
    assert c.logprobs.token_logprobs[len(ids) :] == s.logprobs
    for top, row in zip(c.logprobs.top_logprobs[1:], z):
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    streamed = dict(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for part in client.completions.create(**kw, stream=True):
        for k, v in streamed.items():
            v += getattr(part.choices[0].logprobs, k)
    assert streamed == {k: getattr(c.logprobs, k) for k in streamed}


@pytest.mark.parametrize(
    'theirs, ours',
    [
        (dict(temperature=0), dict(temperature=0)),
        (dict(top_p=0.7), dict(top_p=0.7)),
        (dict(top_p=0, seed=9), dict(temperature=0)),
        (penalties, penalties),
        (dict(logit_bias={'7': 5, '9': -100}), dict(logit_bias={7: 5, 9: -100})),
        (dict(extra_body=dict(top_k=4, min_p=0.02)), dict(top_k=4, min_p=0.02)),
        (
            dict(extra_body=dict(repetition_penalty=1.4, no_repeat_ngram=2, min_tokens=15)),
            dict(repetition_penalty=1.4, no_repeat_ngram=2, min_new_tokens=15),
        ),
        (dict(extra_body=dict(bad_words=['cat'])), dict(banned=['cat'])),
    ],
)  # fmt: skip
def test_rules(client, small, theirs, ours):
    _, model, tok = small
    kw = dict(model='small', prompt='the', max_tokens=15, seed=4) | theirs
    if 'banned' in ours:
        ours = ours | dict(banned=word_ids(tok, ours['banned']))
    assert (
        client.completions.create(**kw).choices[0].text
        == samples(model, tok, 'the', 15, seed=4, **ours)[0].text
    )


def test_prompts_of_all_kinds(client, small):
    _, model, tok = small
    ids = [tok.encode('the cat'), tok.encode('a')]
    kw = dict(model='small', max_tokens=5, temperature=0)
    one = client.completions.create(prompt='the cat', **kw).choices[0].text
    assert client.completions.create(prompt=ids[0], **kw).choices[0].text == one
    both = [c.text for c in client.completions.create(prompt=ids, **kw).choices]
    assert both == [c.text for c in client.completions.create(prompt=['the cat', 'a'], **kw).choices]
    assert both[0] == one
    scored = client.completions.create(model='small', prompt=ids, max_tokens=0, echo=True, logprobs=1)
    assert [c.text for c in scored.choices] == ['the cat', 'a'] and scored.usage.completion_tokens == 0


def test_errors_are_the_client_s_own(client, service):
    ask = lambda **kw: client.completions.create(**dict(model='small', prompt='a') | kw)
    with pytest.raises(openai.BadRequestError, match='maximum context length is 64 tokens') as e:
        ask(max_tokens=64)
    assert e.value.code == 'context_length_exceeded' and e.value.param == 'prompt'
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not here"):
        ask(model='gpt-4')
    with pytest.raises(openai.RateLimitError, match='try again later'):
        ask(n=101)
    with pytest.raises(openai.NotFoundError, match='no chat model'):
        client.chat.completions.create(model='small', messages=[dict(role='user', content='hi')])
    with pytest.raises(openai.PermissionDeniedError, match='may not use this server'):
        ask(extra_headers=dict(origin='https://evil.example'))
    assert service.engine.rows == service.engine.waiting == 0


# lm-eval


data = reference_data()
needs_data = pytest.mark.skipif(not data.exists(), reason='the data are not here')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    pytest.importorskip('lm_eval')
    from test_evaluate_lm_eval import trained_a_little

    tok = GPT2BPE.from_files(data / 'tokenizer/encoder.json', data / 'tokenizer/vocab.bpe')
    return trained_a_little(tok, tmp_path_factory.mktemp('model') / 'trained', n_ctx=256, steps=8), tok


@pytest.fixture(scope='module')
def theirs(trained, tmp_path_factory):
    "Function (lm-eval's configuration, rows of the data set, …) -> its results through the server"
    lm_eval = pytest.importorskip('lm_eval')
    yaml = pytest.importorskip('yaml')
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    configs = Path(lm_eval.__file__).parent / 'tasks'
    folder, _ = trained

    def run(config, rows, **how):
        d = tmp_path_factory.mktemp('rows')
        (d / 'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        here = dict(data_files=dict(test=str(d / 'rows.jsonl')), cache_dir=str(d / 'cache'))
        local = dict(include=str(configs / config), task='local', dataset_path='json', dataset_name=None)
        local |= dict(training_split=None, validation_split=None, test_split='test', dataset_kwargs=here)
        (d / 'local.yaml').write_text(yaml.safe_dump(local))
        with background(Service(Models([Served(str(folder))]))) as url:
            lm = LocalCompletionsAPI(
                base_url=f'{url}/v1/completions',
                model='trained',
                tokenizer=str(folder),
                max_length=256,
                **how,
            )
            return lm_eval.simple_evaluate(
                lm,
                tasks=['local'],
                task_manager=TaskManager(include_path=str(d), include_defaults=False),
                log_samples=True,
                bootstrap_iters=0,
            )

    return run


def logliks(got):
    "(context, target, log-likelihood, is it the likeliest?) of each request, in the order of the items"
    for s in sorted(got['samples']['local'], key=lambda s: s['doc_id']):
        for a, r in zip(s['arguments'], s['resps'], strict=True):
            logprob, best = r[0]
            yield *a, float(logprob), best in (True, 'True')


def score(got, name):
    return next(v for k, v in got['results']['local'].items() if k.split(',')[0] == name)


@needs_data
def test_lm_eval_on_lambada(theirs, trained):
    folder, tok = trained
    model, t = from_pretrained(folder), tasks['lambada']
    ex = t.examples(data)[:40]
    got = theirs(
        'lambada/lambada_openai.yaml', [dict(text=x) for x in ex], batch_size=8
    )  # it finds out which tokenizer to use
    requests = [r for x in ex for r in t.requests(x, 'modern')]
    for (context, target, logprob, best), r, mine in zip(
        logliks(got), requests, answers(model, tok, requests), strict=True
    ):
        assert (context, target) == (r.context, r.target)
        assert logprob == pytest.approx(mine.sum, abs=1e-4) and best == bool(mine.best.all())
    res = evaluate(model, tok, 'lambada', 'modern', data, limit=40)
    assert res['lambada.ppl'].value == pytest.approx(score(got, 'perplexity'), rel=1e-4)
    assert res['lambada.acc'].value == pytest.approx(100 * score(got, 'acc'), abs=1e-6)


@needs_data
def test_lm_eval_on_arc_easy(theirs, trained):
    folder, tok = trained
    file = data / 'core/eval_data/world_knowledge/arc_easy.jsonl'
    if not file.exists():
        pytest.skip('ARC-easy is not here')
    items = [json.loads(l) for l in file.read_text().splitlines()[:20]]
    rows = [
        dict(
            question=o['query'].removeprefix('Question: '),
            choices=dict(text=o['choices'], label=list('ABCDE')[: len(o['choices'])]),
            answerKey='ABCDE'[o['gold']],
        )
        for o in items
    ]
    got = theirs('arc/arc_easy.yaml', rows, num_concurrent=8, tokenizer_backend='huggingface')
    requests = [LogLik(f'{o["query"]}\nAnswer:', f' {c}') for o in items for c in o['choices']]
    mine = answers(from_pretrained(folder), tok, requests)
    for (context, target, logprob, best), r, m in zip(logliks(got), requests, mine, strict=True):
        assert (context, target) == (r.context, r.target)
        assert logprob == pytest.approx(m.sum, abs=1e-4) and best == bool(m.best.all())
    sums = iter(m.sum for m in mine)
    picked = [max((next(sums), -k) for k in range(len(o['choices'])))[1] == -o['gold'] for o in items]
    assert score(got, 'acc') == pytest.approx(sum(picked) / len(items), abs=1e-9)


# crowds


def test_a_thousand_requests_by_64_clients(url, service, small):
    _, model, tok = small
    dec = Decoder(model)
    rng = random.Random(0)
    words = 'the cat sat on mat and dog log a naïve café in São Paulo 東京 🙂'.split()
    asked = []
    for i in range(1000):
        prompt = ' '.join(rng.choices(words, k=rng.randint(0, 8)))
        kw = [dict(), dict(temperature=0), dict(top_k=3), dict(presence_penalty=0.3)][i % 4]
        asked.append(dict(prompt=prompt, max_tokens=rng.randint(1, 12), seed=i, stream=i % 3 == 0, **kw))
    got = [None] * len(asked)

    async def run():
        todo = list(enumerate(asked))
        client = openai.AsyncOpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0, timeout=60)

        async def one():
            while todo:
                i, kw = todo.pop()
                more = {k: kw[k] for k in kw.keys() & {'top_k'}}
                kw = {k: v for k, v in kw.items() if k not in more}
                answer = await client.completions.create(model='small', extra_body=more, **kw)
                if kw['stream'] and i % 9 == 0:
                    await answer.close()  # it hangs up
                elif kw['stream']:
                    got[i] = ''.join([p.choices[0].text async for p in answer])
                else:
                    got[i] = answer.choices[0].text

        async with client:
            await asyncio.gather(*(one() for _ in range(64)))

    asyncio.run(run())
    end = time.monotonic() + 10
    while service.engine.rows or service.engine.waiting:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert service._queues == {}
    for i in random.Random(1).sample([i for i, text in enumerate(got) if text is not None], 60):
        kw = {k: v for k, v in asked[i].items() if k != 'stream'}
        [s] = samples(dec, tok, kw.pop('prompt'), kw.pop('max_tokens'), **kw)
        assert got[i] == s.text, asked[i]
    assert sum(text is not None for text in got) == 1000 - len([i for i in range(1000) if i % 9 == 0])


# abuse


def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is read from /proc')
@pytest.mark.parametrize('chunked', [False, True])
def test_a_body_of_a_gigabyte_takes_no_memory(url, chunked):
    host, port = url.removeprefix('http://').split(':')
    block = b' ' * (1 << 20)
    before = resident()
    with socket.create_connection((host, int(port)), timeout=30) as s:
        s.sendall(b'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n')
        s.sendall(b'transfer-encoding: chunked\r\n\r\n' if chunked else b'content-length: %d\r\n\r\n' % 2**30)
        try:
            for _ in range(200):  # enough to see it
                s.sendall(b'%x\r\n%s\r\n' % (len(block), block) if chunked else block)
        except ConnectionError:
            return  # the server did not want to hear more
        assert resident() - before < 100 << 20
        assert s.recv(12) == b'HTTP/1.1 413'


@pytest.mark.parametrize(
    'lines',
    [
        [b'GET / HTTP/1.1', b'host: evil.example'],
        [b'GET / HTTP/1.1', b'host: localhost', b'host: evil.example'],
        [b'GET / HTTP/1.1'],
        [b'GET http://evil.example/ HTTP/1.1', b'host: evil.example'],
        [b'POST /v1/completions HTTP/1.1', b'host: localhost', b'content-length: -5'],
        [b'POST /v1/completions HTTP/1.1', b'host: localhost', b'content-length: 1e9'],
        [b'GET /\xff\xfe HTTP/1.1', b'host: localhost'],
        [b'GET /../../etc/passwd HTTP/1.1', b'host: localhost'],
        [b'OPTIONS /v1/completions HTTP/1.1', b'host: localhost', b'origin: http://evil.example'],
        [b'nonsense'],
    ],
)
def test_raw_requests_that_are_refused(url, lines):
    host, port = url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(b'\r\n'.join([*lines, b'connection: close', b'', b'']))
        status = s.recv(12)
    assert status[:10] == b'HTTP/1.1 4', status


# a process


@pytest.fixture
def process(small):
    p = subprocess.Popen(
        [sys.executable, '-m', 'gpt2repro', 'serve', str(small[0]), '--port', '0', '--rows', '2'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=root,
    )
    try:
        yield p, p.stdout.readline().split(': ')[0]
    finally:
        p.kill()
        p.wait()


def test_a_signal_lets_texts_come_to_their_end(process, small):
    p, url = process
    _, model, tok = small
    client = openai.OpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0, timeout=60)
    more = dict(ignore_eos=True, slide=True)
    coming = client.completions.create(
        model='small', prompt='a', n=2, max_tokens=1500, seed=1, stream=True, extra_body=more
    )
    texts = ['', '']
    for i, part in enumerate(coming):
        for c in part.choices:
            texts[c.index] += c.text
        if i == 5:
            p.send_signal(signal.SIGTERM)
    want = samples(model, tok, 'a', 1500, seed=1, n=2, min_new_tokens=1500)
    assert texts == [s.text for s in want]
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    out, _ = p.communicate(timeout=20)
    assert p.returncode == 0 and out.splitlines()[-1] == 'Stopped. What was being written is finished.'


def test_what_the_command_refuses(small, capsys):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        for argv, words in (
            (['no/such/run', '--port', '0'], 'no/such/run does not exist'),
            ([small[0], small[0], '--port', '0'], 'named twice'),
            ([small[0], '--port', taken.getsockname()[1]], 'give another --port'),
            ([small[0], '--host', 'no.such.host.invalid'], 'cannot listen at no.such.host.invalid'),
            ([small[0], '--rows', '0'], '--rows 0: give a number from 1'),
        ):
            assert main(['serve', *map(str, argv)]) == 2
            err = capsys.readouterr().err
            assert words in err and err.count('\n') == 1, err
