"""`gpt2repro evaluate` as its users meet it:

the suite, the sheet, two runs, an interrupted run, and what is wrong with the data said before work starts
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import pytest
import torch
from test_cli import command, env, fails, lines, process
from gpt2repro.weights import save_pretrained
from gpt2repro.config import GPT2Config
from gpt2repro.evaluate import evaluate
from gpt2repro.model import GPT2
from gpt2repro.shards import write_shards
from gpt2repro.tokenizer import SentencePiece

item = lambda i: (
    f'{i} ran to the old mill and saw that the {["cat", "dog"][i % 2]} was there, so {i} went home with the '
    f'{["cat", "dog"][i % 2]}'
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Small stand-ins in the formats of the released files"
    d = tmp_path_factory.mktemp('data')
    (d / 'lambada_test.jsonl').write_text(''.join(json.dumps(dict(text=item(i))) + '\n' for i in range(40)))
    (d / 'wiki.test.raw').write_text(' \n = Mill = \n \n' + ''.join(f' {item(i)} . \n' for i in range(30)))
    (d / 'NQ-open.dev.jsonl').write_text(
        ''.join(
            json.dumps(dict(question=f'who ran to mill {i}', answer=['the cat'])) + '\n' for i in range(3)
        )
    )
    (d / 'hellaswag_val.jsonl').write_text(
        ''.join(
            json.dumps(
                dict(
                    activity_label='Running',
                    ctx_a=item(i) + '.',
                    ctx_b='he',
                    ctx=item(i) + '. he',
                    endings=['saw it', 'went home', 'ran', 'was there'],
                    label=i % 4,
                )
            )
            + '\n'
            for i in range(8)
        )
    )
    return d


@pytest.fixture(scope='module')
def models(tmp_path_factory, data):
    "Two model folders of one shape"
    d = tmp_path_factory.mktemp('models')
    tok = SentencePiece.train(
        [item(i) for i in range(40)] * 3
        + [
            'Q: who wrote it? A: Answer these questions: Running: Tokyo 1945 William Shakespeare Au eight '
            '= , . ! \n'
        ],
        vocab_size=420,
    )
    for i, n in enumerate('ab'):
        torch.manual_seed(i)
        save_pretrained(
            GPT2(
                GPT2Config(vocab_size=tok.vocab_size, n_ctx=256, n_embd=16, n_layer=1, n_head=2).no_dropout()
            ),
            d / n,
            tok,
        )
    return d / 'a', d / 'b'


os.environ['GPT2REPRO_QUIET'] = '1'
sub = ['--subset', '--device', 'cpu']


def test_suite_prints_writes_and_judges(models, data, tmp_path):
    out = tmp_path / 'out'
    s, text, err = command(
        'evaluate',
        models[0],
        '--suite',
        'paper',
        '--available',
        '--data',
        data,
        '--out',
        out,
        '--sheet',
        '--truncate',
        *sub,
    )
    assert s == 0, err
    assert 'left out: ptb needs ptb.test.txt' in err  # said, not silent
    for w in (
        'GPT-2 117M',
        'GPT-2 1542M',
        '2019, 1.5B',
        '109.47',
        'wikitext103.ppl',
        'It falls short of GPT-2 117M',
        'not known',
    ):
        assert w in text, w
    d = json.loads((out / 'results.json').read_text())
    assert {(r['task'], r['protocol']) for r in d['results']} == {
        (t, p) for t in ('lambada', 'wikitext2', 'wikitext103', 'nq') for p in ('paper', 'modern')
    }
    for r in d['results']:
        for k in (
            'protocol',
            'context',
            'stride',
            'normalisation',
            'items',
            'tokenizer',
            'low',
            'high',
            'data',
        ):
            assert k in r
    assert d['reproduction2019'] == {'lambada.ppl': 109.47, 'wikitext2.ppl': 43.79}
    assert (out / 'figure.html').stat().st_size > 1_000_000  # opens offline
    s, again, _ = command(
        'evaluate',
        models[0],
        '--suite',
        'paper',
        '--available',
        '--data',
        data,
        '--out',
        out,
        '--sheet',
        '--truncate',
        '--json',
        *sub,
    )
    d2 = json.loads(again)
    assert d2['results'] == d['results'] and len(d2['sheet']['points']) == 4 and d2['verdict'] == d['verdict']


def test_two_models_in_pairs(models, data):
    s, out, err = command('evaluate', *models, '--tasks', 'lambada,hellaswag', '--data', data, '--json', *sub)
    assert s == 0, err
    d = {(x['task'], x['metric']): x for x in json.loads(out)['differences']}
    one = {
        n: {
            (r['task'], r['metric']): r['value']
            for r in json.loads(
                command('evaluate', m, '--tasks', 'lambada,hellaswag', '--data', data, '--json', *sub)[1]
            )['results']
        }
        for n, m in zip('ab', models)
    }
    for k, x in d.items():
        assert (
            x['diff'] == pytest.approx(one['b'][k] - one['a'][k], abs=1e-9)
            and x['low'] <= x['diff'] <= x['high']
        )
    same = json.loads(
        command('evaluate', models[0], models[0], '--tasks', 'lambada', '--data', data, '--json', *sub)[1]
    )['differences']
    assert all(x['diff'] == x['low'] == x['high'] == 0 and x['better'] == 'neither' for x in same)


def test_overlap(models, data, tmp_path):
    write_shards(
        [item(i) for i in range(0, 40, 2)], load(models[0])[1], tmp_path / 'p/shards/train', workers=0
    )
    s, out, err = command(
        'evaluate',
        models[0],
        '--overlap',
        tmp_path / 'p',
        '--tasks',
        'lambada',
        '--data',
        data,
        '--json',
        *sub,
    )
    assert s == 0, err
    o = json.loads(out)['overlap']['lambada']
    # Every second item was read; the numbers differ in the others.
    assert 50 <= o['percent'] < 100 and o['n'] == 8


def test_a_killed_evaluation_goes_on(models, data, tmp_path):
    """SIGKILL in the middle: what was scored is not scored again, and the result is that of an
    uninterrupted one"""
    args = [
        sys.executable,
        '-m',
        'gpt2repro',
        'evaluate',
        str(models[0]),
        '--tasks',
        'wikitext2',
        '--data',
        str(data),
        '--out',
        str(tmp_path / 'o'),
        *sub,
    ]
    p = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kept = lambda: list((tmp_path / 'o').rglob('wikitext2-paper-*.jsonl'))
    end = time.time() + 60
    while time.time() < end and not (kept() and kept()[0].read_bytes().count(b'\n') > 1) and p.poll() is None:
        time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    f = kept()[0]
    before = f.read_text().split('\n')[:-1]  # whole lines: a kill may tear the last
    n = max(1, len(before) // 2)
    f.write_text('\n'.join(before[:n]) + '\n["torn')  # as a kill may leave it
    argv = ('evaluate', models[0], '--tasks', 'wikitext2', '--data', data, '--out', tmp_path / 'o', *sub)
    assert command(*argv)[0] == 0
    after = f.read_text().splitlines()
    # Those were found, and nothing is there twice.
    assert after[:n] == before[:n] and len(after) > n + 1
    assert len({l[:28] for l in after}) == len(after)
    clean = evaluate(*load(models[0]), 'wikitext2', data=data, subset=True)
    got = json.loads((tmp_path / 'o/results.json').read_text())['results'][0]
    assert got['value'] == pytest.approx(clean[0].value, rel=1e-6)


def load(folder):
    from gpt2repro.cli import load_model

    return load_model(folder, 'cpu')


def test_partial_texts_are_kept_too(models, data, tmp_path):
    args = dict(data=data, subset=True, keep=tmp_path)
    first = evaluate(*load(models[0]), 'nq', **args)
    (f,) = tmp_path.glob('nq-paper-*.jsonl')
    lines = f.read_text().splitlines()
    f.write_text('\n'.join(lines[:1]) + '\n')
    assert [r.value for r in evaluate(*load(models[0]), 'nq', **args)] == [r.value for r in first]
    assert len([l for l in f.read_text().splitlines() if l]) == len(lines)


@pytest.mark.parametrize(
    'words,change,argv',
    [
        ("unknown task 'lambda': did you mean lambada", None, ['--tasks', 'lambda']),
        ("unknown suite 'papr': did you mean paper", None, ['--suite', 'papr']),
        ('--protocol old: choose paper', None, ['--tasks', 'lambada', '--protocol', 'old']),
        (
            'lambada needs lambada_test.jsonl',
            lambda d: (d / 'lambada_test.jsonl').rename(d / 'lambada.jsonl'),
            ['--tasks', 'lambada'],
        ),
        (
            'did you mean lambada_tst.jsonl',
            lambda d: (d / 'lambada_test.jsonl').rename(d / 'lambada_tst.jsonl'),
            ['--tasks', 'lambada'],
        ),
        (
            'line 3 is damaged',
            lambda d: (d / 'lambada_test.jsonl').write_text('{"text": "a b"}\n{"text": "a b"}\n{"text": '),
            ['--tasks', 'lambada'],
        ),
        (
            'not UTF-8 at byte 3',
            lambda d: (d / 'wiki.test.raw').write_bytes(b'abc\xff\xfe'),
            ['--tasks', 'wikitext2'],
        ),
        ('is empty', lambda d: (d / 'wiki.test.raw').write_text(''), ['--tasks', 'wikitext2']),
        (
            'lambada, example 1 has',
            lambda d: (d / 'lambada_test.jsonl').write_text(json.dumps(dict(text=item(0) * 30))),
            ['--tasks', 'lambada'],
        ),
        (
            'nq, example 1 has',
            lambda d: (d / 'NQ-open.dev.jsonl').write_text(
                json.dumps(dict(question='to ' * 300, answer=['x']))
            ),
            ['--tasks', 'nq'],
        ),
        ('nowhere does not exist', None, ['--tasks', 'lambada', '--data', 'nowhere']),
    ],
)
def test_bad_input_is_named_before_work_starts(words, change, argv, models, data, tmp_path, monkeypatch):
    d = shutil.copytree(data, tmp_path / 'data')
    if change:
        change(d)
    monkeypatch.setattr('gpt2repro.evaluate.score_windows', lambda *a, **k: pytest.fail('work has started'))
    monkeypatch.setattr('gpt2repro.evaluate.samples', lambda *a, **k: pytest.fail('work has started'))
    fails(words, 'evaluate', models[0], *([] if '--data' in argv else ['--data', d]), *argv, *sub)


def test_without_subset_a_part_is_refused(models, data):
    fails(
        '40 examples where 5,153 were released',
        'evaluate',
        models[0],
        '--tasks',
        'lambada',
        '--data',
        data,
        '--device',
        'cpu',
    )


def test_a_tokenizer_that_cannot_write_the_text(models, data, tmp_path):
    from gpt2repro.evaluate import jobs

    net, tok = load(models[0])

    class NoDigits:
        vocab_size = tok.vocab_size
        eot = tok.eot
        fingerprint = 'x' * 64

        def encode(self, s):
            return tok.encode(s.replace('7', ''))

        def decode(self, ids):
            return tok.decode(ids)

    with pytest.raises(ValueError, match="lambada: the tokenizer cannot write '.*7.*'"):
        jobs(net, NoDigits(), 'lambada', data=data, subset=True)


def test_data_by_name_without_a_network(models):
    # A process has HF_HUB_OFFLINE set before it imports anything.
    p = process('evaluate', models[0], '--tasks', 'lambada', '--device', 'cpu')
    _, err = p.communicate(timeout=60)
    assert (
        p.returncode == 2
        and len(lines(err)) == 1
        and "data set 'EleutherAI/lambada_openai' for lambada can't be opened" in err
        and '--data FOLDER' in err
    ), err


def test_a_broken_model(models, data, tmp_path):
    net, tok = load(models[0])
    with torch.no_grad():
        net.ln_f.weight[0] = math.nan
    save_pretrained(net, tmp_path / 'broken', tok)
    fails('not finite', 'evaluate', tmp_path / 'broken', '--tasks', 'lambada', '--data', data, *sub)
