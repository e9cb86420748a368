"""Every option of every verb with wrong kinds of values: one line that names the value, never a defect

The table is made from the parser's own declarations, so that a new option is covered by itself
"""

import argparse
import contextlib
import io
import random
import shutil

import pytest
from fastcore.script import anno_parser
from gpt2repro.cli import main, verbs

small = (
    'n_layer=1 n_embd=16 n_head=1 n_ctx=16 batch_tokens=64 micro_batch=4 max_steps=1 eval_every=1 '
    'eval_batches=1 optim.warmup_steps=0 dtype=float32'
).split()


def command(*argv, stdin=''):
    "Exit status, standard output, lines of standard error that are the program's own"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as m:
        m.setattr('sys.stdin', io.StringIO(stdin))
        m.setenv('GPT2REPRO_QUIET', '1')
        m.setenv('HF_HUB_OFFLINE', '1')
        try:
            status = main([str(a) for a in argv])
        except SystemExit as e:
            status = e.code
    assert 'Traceback' not in err.getvalue()
    return status, out.getvalue(), [l for l in err.getvalue().splitlines() if l.startswith('gpt2repro: ')]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A text, a file of prompts, a run with its data"
    d = tmp_path_factory.mktemp('values')
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefgh', k=rng.randint(2, 5))) for _ in range(50)]
    (d / 'text.txt').write_text(' '.join(rng.choices(words, k=600)))
    (d / 'a file').write_text('not what is asked for\n')
    (d / 'an empty folder').mkdir()
    s, _, err = command(
        'train', d / 'run', '--data', d / 'text.txt', *small, '--device', 'cpu', '--workers', 0
    )
    assert s == 0, err
    return d


base = dict(
    prepare='text.txt --out new --workers 0'.split(),
    train=['new', '--data', 'text.txt', *small, '--device', 'cpu', '--workers', '0'],
    sample='run a --max-new-tokens 2 --device cpu'.split(),
    evaluate='run --device cpu --limit 1'.split(),
    report='run --out new.html'.split(),
    export='run --out new'.split(),
    push='run me/small --dry-run'.split(),
    serve='run --device cpu --port 0'.split(),
    inspect='run a --out new.html --device cpu'.split(),
    webtext='text.txt --out new --stage links --workers 1'.split(),
    plan=[],
    experiment='then-now --list'.split(),
    doctor=[],
    reproduce=[],
)


def actions(verb):
    p = anno_parser(verbs[verb].__wrapped__, prog=verb)
    return [
        a for a in p._actions if not isinstance(a, argparse._HelpAction) and a.dest not in ('pdb', 'xtra')
    ]


def options(*kinds):
    "(verb, option) of all that take a value of these types"
    return [
        (verb, a.option_strings[-1])
        for verb in verbs
        for a in actions(verb)
        if a.option_strings and a.nargs != 0 and a.type in kinds
    ]


def refused(value, *argv):
    "The command ends with 2 and one line that holds the value"
    s, out, err = command(*argv)
    assert s == 2, (argv, s, out[:300], err)
    assert len(err) == 1 and str(value)[:40] in err[0] and 'a defect' not in err[0], (argv, err)


@pytest.mark.parametrize('verb,option', options(int, float))
def test_numbers(verb, option, place, monkeypatch):
    "What is no number, or none that this machine can count to, is refused before any work"
    monkeypatch.chdir(place)
    kind = next(a.type for a in actions(verb) if option in a.option_strings)
    wrong = ['many', '', 'nan', 'inf', '-inf', '0x10', '9' * 40]
    for v in wrong + (['1.5', '1e3'] if kind is int else ['1e400']):
        refused(option if v in ('1e400', '9' * 40) else v, verb, *base[verb], f'{option}={v}')


may_be_negative = ['--frequency-penalty', '--presence-penalty']


@pytest.mark.parametrize('verb,option', options(int, float))
def test_negative_numbers(verb, option, place, monkeypatch):
    monkeypatch.chdir(place)
    if option not in may_be_negative:
        for v in -7, -1000000:
            refused(v, verb, *base[verb], f'{option}={v}')


odd = [
    'a file',
    'an empty folder',
    'x' * 300,
    'nul\0',
    'caf\udce9',
    '☃',
    'no/such/place',
    '',
    ',',
    '-',
    '0',
    'null',
    'a~b',
    '*',
]


def copes(verb, *argv):
    "The command does what it is told, or ends with 2 and one line; no value is a defect"
    s, out, err = command(verb, *argv, stdin='a\n')
    assert s in (0, 130) or s == 2 and err, (argv, s, err)
    assert not any('a defect' in l for l in err), (argv, err)
    assert s != 2 or len(err[-1]) > 30, err
    return s


class Reached(KeyboardInterrupt):
    "All values were looked at: the work would begin"


@pytest.fixture
def no_work(monkeypatch, here):
    "Training, crawling and the network are left out"

    def reached(*args, **kw):
        raise Reached('the work would begin')

    for f in ('train_run', 'reproduce_run', 'write_report', 'ask_compiler'):
        monkeypatch.setattr(f'gpt2repro.cli.{f}', reached)
    monkeypatch.setattr('gpt2repro.webtext.run.webtext', reached)
    monkeypatch.setattr('gpt2repro.serve.server.Server.run', reached)


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    "A fresh copy of the place"
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('verb,option', options(str))
def test_texts(verb, option, no_work, here):
    "A name that does not exist, a file in the place of a folder and the other way round, an odd character"
    for v in odd:
        copes(verb, *base[verb], f'{option}={v}')


@pytest.mark.parametrize('verb', [v for v in verbs if base[v][:1] and not base[v][0].startswith('-')])
def test_words(verb, no_work):
    "The same in the place of the run, the model and the sources"
    for v in odd:
        copes(verb, v, *base[verb][1:])
    assert copes(verb, '', *base[verb][1:]) == 2


@pytest.mark.parametrize(
    'verb,option,value',
    [
        ('evaluate', '--dtype', 'fp16'),
        ('evaluate', '--dtype', 'abs'),
        ('evaluate', '--protocol', 'papers'),
        ('evaluate', '--suite', 'table4'),
        ('evaluate', '--tasks', 'lambda'),
        ('evaluate', '--data', 'nowhere'),
        ('evaluate', '--overlap', 'nowhere'),
        ('evaluate', '--size', '1.5G'),
        ('evaluate', '--device', 'gpu'),
        ('sample', '--weights', 'int4'),
        ('sample', '--file', 'an empty folder'),
        ('sample', '--bias', 'a=nan'),
        ('sample', '--top-p', '1.5'),
        ('sample', '--min-p', '2'),
        ('sample', '--n', '0'),
        ('sample', '--repetition-penalty', '0'),
        ('sample', '--max-new-tokens', '0'),
        ('sample', '--tokenizer', 'a file'),
        ('prepare', '--errors', 'ignore'),
        ('prepare', '--valid-fraction', '1'),
        ('prepare', '--near-copies', '0'),
        ('prepare', '--tokenizer', 'bpee'),
        ('prepare', '--out', 'a file'),
        ('prepare', '--separator', '\\x'),
        ('prepare', '--verify', 'an empty folder'),
        ('train', '--track', 'mlflow'),
        ('train', '--recipe', 'tinny'),
        ('train', '--from', 'nowhere'),
        ('plan', '--chip', 'v9'),
        ('plan', '--size', '9T'),
        ('plan', '--precision', 'half'),
        ('plan', '--optimizer', 'sgd'),
        ('plan', '--remat', 'all'),
        ('plan', '--recipe', 'tinny'),
        ('plan', '--batch', '0'),
        ('reproduce', '--recipe', 'tinny'),
        ('webtext', '--stage', 'crawl'),
        ('webtext', '--executor', 'dask'),
        ('report', '--out', 'an empty folder'),
    ],
)
def test_refused_by_name(verb, option, value, here):
    more = ['--tasks', 'lambada'] if option == '--overlap' else []
    argv = [verb, *(w for w in base[verb] if w != 'a' or option != '--file'), *more, f'{option}={value}']
    refused(value.removeprefix('a='), *argv)


@pytest.mark.parametrize(
    'setting',
    [
        'optim.lr=nan',
        'optim.lr=inf',
        'optim.lr=0',
        'optim.eps=-1',
        'n_layer=0',
        'n_layer=-2',
        'n_embd=1e9',
        'max_steps=0',
        'save_every=-1',
        'dtype=float16',
        'model.vocab_size=0',
        'init=xavier',
        'remat=all',
        'optim.clip=nan',
        'optim.name=sgd',
        'data.source=',
        'valid_fraction=2',
        'seed=-4',
        'data.sampler=random',
        'n_layer=' + '9' * 30,
        'max_steps=' + '9' * 30,
        'keep=0',
        'micro_batch=-1',
        'optim.final=2',
    ],
)
def test_settings(setting, no_work, here):
    name = setting.rpartition('.')[2].partition('=')[0]
    others = [w for w in base['train'] if not w.rpartition('.')[2].startswith(f'{name}=')]
    refused(name, 'train', *others, setting)
