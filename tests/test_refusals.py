"""An attempt that is refused leaves a folder as it was, a run can move, and a run that ends badly says so

Names and bytes of every file are compared before and after
"""

import json
import os
import random
import shutil
from pathlib import Path
import pytest
import torch
from test_cli import command, fails, lines, small
from gpt2repro.shards import folder_lock
from gpt2repro.train import data_folder, read_run

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
refused = [
    ("no field 'tweet'", ['prepare', 'docs.jsonl', '--out', 'new', '--field', 'tweet']),
    ("no field 'tweet'", ['prepare', 'docs.jsonl', '--out', 'a/deep/new', '--field', 'tweet']),
    ('no document is held out', ['prepare', 'one.txt', '--out', 'new', *prepared]),
    ('near-copies', ['prepare', 'docs.jsonl', '--out', 'new', '--vocab-size', '320', '--overlap', '0']),
    ('vocab', ['prepare', 'docs.jsonl', '--out', 'new', '--vocab-size', '9000', '--overlap', '1.1']),
    ('near_copies=2', ['prepare', 'docs.jsonl', '--out', 'new', '--near-copies', '2']),
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
    ('less than one window', ['train', 'new', '--data', 'data', *small, 'n_ctx=8192', 'batch_tokens=32768']),
    # the text is prepared first, and then does not fit: nothing of it stays
    (
        'less than one window',
        ['train', 'new', '--data', 'docs.jsonl', *small, 'overlap=1', 'n_ctx=8192', 'batch_tokens=32768'],
    ),
    ("no field 'text'", ['train', 'new', '--data', 'rows.csv', *small]),
    ('set optim.schedule', ['train', 'new', '--data', 'data', '--schedule', 'linear', *small]),
    ('it is no folder', ['train', 'file', '--data', 'data', *small]),
    ('was begun with seed=0, not 1', ['train', 'run', '--seed', '1']),
    ('warmup=5 is longer', ['train', 'run', '--max-steps', '3']),
    ('was begun with optim.lr', ['train', 'run', '--max-steps', '40', 'optim.lr=0.5', 'save_every=1']),
    ('was trained on other tokens', ['train', 'run', '--max-steps', '40', '--data', 'data2']),
    ('--schedule lineer: did you mean linear', ['train', 'run', '--max-steps', '40', '--schedule', 'lineer']),
    ('give --max-steps above it', ['train', 'run', '--schedule', 'linear']),
    ('trackers', ['train', 'run', '--max-steps', '40', '--track', 'nosuch']),
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
    fails('', *argv)
    assert snapshot(work) == before, {
        k for k in {*before, *snapshot(work)} if before.get(k) != snapshot(work).get(k)
    }
