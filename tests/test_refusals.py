"""An attempt that is refused leaves a folder as it was, a run can move, and a run that ends badly says so

Names and bytes of every file are compared before and after
"""

import json
import os
import random
import shutil
from pathlib import Path
import pytest
from test_cli import command, fails, small
from gpt2repro.shards import folder_lock
from gpt2repro.train import read_run

words = 'the cat sat on a mat and saw how one dog ran past it'.split()
cpu = ['--device', 'cpu']


def snapshot(folder):
    "Every name below a folder, with the bytes of files"
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None
        for f in sorted(Path(folder).rglob('*'))
    }


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A working folder with texts, a prepared folder `data` and a finished run `run`"
    home = tmp_path_factory.mktemp('place')
    rng = random.Random(0)
    docs = [' '.join(rng.choices(words, k=30)) + f' {i}.' for i in range(300)]
    (home / 'docs.jsonl').write_text('\n'.join(json.dumps(dict(text=d)) for d in docs))
    (home / 'other.jsonl').write_text('\n'.join(json.dumps(dict(text=d)) for d in docs[1:]))
    (home / 'one.txt').write_text(docs[0])
    (home / 'file').write_text('no folder')
    os.environ['GPT2REPRO_QUIET'] = '1'
    here = os.getcwd()
    os.chdir(home)
    for text in 'docs', 'other':
        out = 'data' if text == 'docs' else 'data2'
        s, _, err = command('prepare', f'{text}.jsonl', '--out', out, '--vocab-size', 320, '--overlap', 1.1)
        assert s == 0, err
    s, _, err = command('train', 'run', '--data', 'data', '--max-steps', 20, *cpu, *small)
    assert s == 0, err
    os.chdir(here)
    return home


@pytest.fixture
def work(place, tmp_path, monkeypatch):
    "A copy of `place` to work in"
    shutil.copytree(place, tmp_path / 'w')
    monkeypatch.chdir(tmp_path / 'w')
    return tmp_path / 'w'


prepared = ['--vocab-size', '320', '--overlap', '1.1']
long_context = ['n_ctx=1048576', 'batch_tokens=1048576', 'micro_batch=1']  # longer than the text

refused = [
    ("no field 'tweet'", ['prepare', 'docs.jsonl', '--out', 'new', '--field', 'tweet']),
    ("no field 'tweet'", ['prepare', 'docs.jsonl', '--out', 'a/deep/new', '--field', 'tweet']),
    ('vocab', ['prepare', 'docs.jsonl', '--out', 'new', '--vocab-size', '9000', '--overlap', '1.1']),
    ('--near-copies 2', ['prepare', 'docs.jsonl', '--out', 'new', '--near-copies', '2']),
    ('nowhere', ['prepare', 'docs.jsonl', '--out', 'new', '--tokenizer', './nowhere']),
    (
        'prepared with vocab_size=320, not 300',
        ['prepare', 'docs.jsonl', '--out', 'data', '--vocab-size', '300'],
    ),
    ('other documents', ['prepare', 'other.jsonl', '--out', 'data', *prepared]),
    ('vocab_size=300 is smaller', ['train', 'new', '--data', 'data', *small[1:], 'vocab_size=300']),
    ('vocab_size=300 is smaller', ['train', 'a/deep/new', '--data', 'data', *small[1:], 'vocab_size=300']),
    (
        'warmup=30 is longer',
        ['train', 'new', '--data', 'data', '--max-steps', '20', *small, 'warmup_steps=30'],
    ),
    ('a window needs', ['train', 'new', '--data', 'data', *small, *long_context]),
    # the text is prepared first, and then does not fit: nothing of it stays
    ('a window needs', ['train', 'new', '--data', 'docs.jsonl', *small, 'overlap=1', *long_context]),
    ("no field 'text'", ['train', 'new', '--data', 'rows.csv', *small]),
    ('set optim.schedule', ['train', 'new', '--data', 'data', '--schedule', 'linear', *small]),
    ('file is a file: name a folder', ['train', 'file', '--data', 'data', *small]),
    ('was begun with seed=0, not 1', ['train', 'run', '--seed', '1']),
    ('warmup=5 is longer', ['train', 'run', '--max-steps', '3']),
    ('was begun with optim.lr', ['train', 'run', '--max-steps', '40', 'optim.lr=0.5', 'save_every=1']),
    ('was trained on other tokens', ['train', 'run', '--max-steps', '40', '--data', 'data2']),
    ('--schedule lineer: did you mean linear', ['train', 'run', '--max-steps', '40', '--schedule', 'lineer']),
    ('give --max-steps above it', ['train', 'run', '--schedule', 'linear']),
    ('known: tensorboard, wandb', ['train', 'run', '--max-steps', '40', '--track', 'nosuch']),
    ('was begun with another recipe', ['train', 'run', '--recipe', '124M']),
    ('does not divide', ['train', 'run', 'micro_batch=3', 'keep=1']),
    ('give a number above 0', ['reproduce', '--out', 'new', '--minutes', '-1']),
    ('is a file', ['reproduce', '--out', 'file']),
    ('unknown task', ['evaluate', 'run', '--tasks', 'nosuch']),
    ('nowhere', ['evaluate', 'run', '--data', 'nowhere', '--out', 'scores']),
    ('is no run', ['report', 'run', 'nowhere', '--out', 'page.html']),
    ('unknown setting', ['webtext', 'docs.jsonl', '--out', 'crawl', 'nosuch=3']),
    ('nowhere', ['webtext', 'nowhere.zst', '--out', 'crawl']),
]


@pytest.mark.parametrize('words,argv', refused)
def test_a_refused_attempt_changes_nothing(words, argv, work):
    (work / 'rows.csv').write_text('id,tweet\n1,a cat sat\n')
    before = snapshot(work)
    fails(words, *argv)
    after = snapshot(work)
    assert after == before, {k for k in {*before, *after} if before.get(k) != after.get(k)}


def test_the_remedy_works_in_the_same_folder(work):
    "What was refused is mended, in the same folder"
    fails("no field 'tweet'", 'prepare', 'docs.jsonl', '--out', 'p', *prepared, '--field', 'tweet')
    assert command('prepare', 'docs.jsonl', '--out', 'p', *prepared)[0] == 0
    short = [*small, 'max_steps=6', 'eval_every=6']
    text = ['--data', 'docs.jsonl', 'overlap=1']
    fails('a window needs', 'train', 't', *text, *short, *long_context)
    assert command('train', 't', *text, *short, *cpu)[0] == 0
    fails('warmup=5 is longer', 'train', 'run', '--max-steps', 3)
    s, _, err = command('train', 'run', '--max-steps', 24, *cpu)
    assert s == 0 and json.loads(Path('run/config.json').read_text())['max_steps'] == 24, err
    # fine-tuning: a warm-up that was not asked for becomes as short as the run
    s, _, err = command('train', 'tuned', '--from', 'run', '--data', 'docs.jsonl', '--max-steps', 3, *cpu)
    assert s == 0 and 'warm-up shortened from 20 to 0' in err, err


def test_a_run_that_is_being_trained_is_left_alone(work):
    before = snapshot(work)
    with folder_lock('run'):
        fails('another process', 'train', 'run', '--max-steps', 40, 'save_every=1', *cpu)
        fails('another process', 'train', 'run', '--max-steps', 40, '--track', 'tensorboard', *cpu)
        assert snapshot(work) == before


def test_a_prepared_folder_is_trained_in_place(work):
    "With no source named, a folder that has shards is trained on them"
    short = [o for o in small if 'vocab_size' not in o] + ['max_steps=6', 'eval_every=6', *cpu]
    s, _, err = command('train', 'data', '--recipe', 'tiny', *short)
    assert s == 0 and 'vocab_size=320 as prepared, not 4096' in err, err
    cfg = read_run('data')
    assert (cfg.data.source, cfg.data.valid_fraction, cfg.model.vocab_size) == ('docs.jsonl', 0.05, 320)
    assert command('train', 'data', '--data', 'docs.jsonl', *cpu)[0] == 0  # the same, said again
    Path('data2/shards/valid/manifest.json').unlink()
    s, _, err = command('train', 'elsewhere', '--recipe', 'tiny', '--data', 'data', *short)
    assert s == 0 and 'vocab_size=320 as prepared, not 4096' in err, err
    s, _, err = command('train', 'chosen', '--recipe', 'tiny', '--data', 'data', 'vocab_size=384', *short)
    assert s == 0 and 'as prepared' not in err and read_run('chosen').model.vocab_size == 384, err
    fails('preparation was interrupted', 'train', 'data2', '--recipe', 'tiny', *short)


def test_a_run_and_its_data_move(work, monkeypatch):
    "Tokens and texts are known by what they hold, not by the path that was typed"
    assert command('train', 'raw', '--data', 'docs.jsonl', 'overlap=1', *small, 'max_steps=6', *cpu)[0] == 0
    (work / 'b').mkdir()
    for f in 'run', 'raw':
        shutil.move(f, work / 'b' / f)
    (work / 'a').mkdir()
    for f in 'data', 'data2', 'docs.jsonl', 'other.jsonl':
        shutil.move(f, work / 'a' / f)
    monkeypatch.chdir(work / 'b')
    said = fails('no tokens in run', 'train', 'run', '--max-steps', 24)
    assert 'looked in run, in data, and beside the run and above; name a prepared folder with --data' in said
    fails('was trained on other tokens', 'train', 'run', '--data', '../a/data2', '--max-steps', 24)
    s, _, err = command('train', 'run', '--data', '../a/data', '--max-steps', 24, *cpu)
    assert s == 0 and read_run('run').data.source == '../a/data', err
    assert command('evaluate', 'run', *cpu)[0] == 0
    # the run's own tokens: the text is compared with them
    fails('other documents', 'train', 'raw', '--data', '../a/other.jsonl', '--max-steps', 8)
    s, _, err = command('train', 'raw', '--data', '../a/docs.jsonl', '--max-steps', 8, *cpu)
    assert s == 0, err


def test_a_longer_run_says_what_its_rate_does(work):
    s, _, err = command('train', 'run', '--max-steps', 30, *cpu)
    assert (
        s == 0 and 'is stretched; --schedule constant, linear, cosine go on from the rate of step 20' in err
    )
    for _ in range(2):  # the same command again changes nothing
        s, _, err = command('train', 'run', '--max-steps', 40, '--schedule', 'linear', *cpu)
        assert s == 0, err
    assert read_run('run').optim.extensions == '30 linear'
    recs = map(json.loads, Path('run/log.jsonl').read_text().splitlines())
    rates = {r['step']: r['lr'] for r in recs if r['kind'] == 'train'}
    assert rates[35] == pytest.approx(rates[30] / 2) and rates[40] == 0


def test_a_last_loss_that_is_not_finite_is_said(work):
    hot = ['optim.name=adamw', 'optim.lr=1e30', 'max_steps=20', 'max_skips=1000', 'clip=0', *cpu]
    s, _, err = command('train', 'hot', '--data', 'data', *small, *hot)
    last = err.splitlines()[-1]
    assert s == 2 and 'hot: 20 steps, and the held-out loss is not finite: no checkpoint has' in last, err
    s, out, err = command('train', 'hot', '--json', *cpu)
    assert s == 2 and json.loads(out)['loss'] is None
    assert 'the loss on held-out text is not finite' in Path('hot/report.html').read_text()
    s, out, err = command('evaluate', 'hot', '--data', 'data', '--json', *cpu)
    assert 'a defect' not in err, err
    for f in (f for f in Path('hot').rglob('*.json*') if f.is_file()):
        strict = lambda c: pytest.fail(f'{c} in {f}')
        for text in [f.read_text()] if f.suffix == '.json' else f.read_text().splitlines():
            json.loads(text, parse_constant=strict)
    s, _, err = command('sample', 'hot', 'the cat', *cpu)
    assert 'a defect' not in err, err
