"""`gpt2repro train RUN TEXT`: from a text to a model that writes, without a word of recipes and shards"""

import json
import random
from pathlib import Path

import pytest
from gpt2repro.train import read_run
from test_cli import command, fails

cpu = ['--device', 'cpu', '--workers', '0']
shape = 'n_layer=1 n_embd=16 n_head=1 n_ctx=16 batch_tokens=64 micro_batch=4'.split()


@pytest.fixture
def text(tmp_path, monkeypatch):
    "A text of a few kilobytes in the working folder"
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefgh', k=rng.randint(2, 5))) for _ in range(50)]
    Path('my.txt').write_text(' '.join(rng.choices(words, k=900)))
    return 'my.txt'


def test_a_text_is_enough(text, monkeypatch):
    "Recipe and length are chosen and said; the same words again go on"
    s, out, err = command('train', 'runs/mine', text, *cpu, *shape)
    assert s == 0, err
    said = [l for l in err.splitlines() if 'tiny, 0.0M parameters' in l]
    cfg = read_run('runs/mine')
    assert len(said) == 1 and f'{cfg.max_steps} steps: as many as 20 passes over the text' in said[0], err
    assert cfg.seconds == 0 and cfg.data.source == text
    assert 'It writes:' in out and 'gpt2repro sample runs/mine' in out
    before = Path('runs/mine/config.json').read_bytes()
    assert command('train', 'runs/mine', text, *cpu)[0] == 0
    assert Path('runs/mine/config.json').read_bytes() == before


def test_minutes(text):
    "A run that has so much time; a recipe that was named; a length that was asked for"
    s, out, err = command('train', 'a', text, '--minutes', '0.2', '--json', *cpu, *shape)
    assert s == 0 and json.loads(out)['sample'] and 'as many as' in err, err
    argv = ['--recipe', 'tiny', '--data', text, *cpu, *shape]
    s, out, err = command('train', 'b', *argv, '--minutes', '0.17', 'save_every=7')
    cfg = read_run('b')
    assert s == 0 and 'tiny, 0.0M parameters' in err and 'fit into 0.17 minutes here' in err, err
    assert cfg.save_every == 7 and 'It writes:' not in out
    s, out, err = command('train', 'b', '--minutes', '3', *cpu)
    assert s == 0 and f'--minutes is for a new run: b goes on to step {cfg.max_steps}' in err, err
    s, _, err = command('train', 'c', text, '--max-steps', '3', *cpu, *shape)
    assert s == 0 and read_run('c').max_steps == 3, err


def test_refused(text):
    for words in ['nowhere.txt'], [text, 'nowhere.txt'], ['n_layer']:
        fails(f'{words[-1]}: neither FIELD=VALUE nor a file', 'train', 'new', *words, *cpu)
    for length in ['--max-steps', '5'], ['max_steps=5']:
        fails(
            '--minutes 2 and max_steps=5 both say how long', 'train', 'new', text, '--minutes', '2', *length
        )
    fails('is no run', 'train', 'new', *cpu)
    assert [f.name for f in Path('.').iterdir()] == [text]


def test_the_same_command_goes_on(tmp_path, monkeypatch):
    "Vocabulary and context were adapted to a small text; the command is repeated as it was typed"
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.txt').write_text('the cat sat on the mat. ' * 200)
    words = ['train', 'r', '--recipe', 'tiny', '--data', 'small.txt', 'n_layer=1', 'batch_tokens=512']
    words += ['--max-steps', '2', 'warmup_steps=1', '--device', 'cpu']
    assert command(*words)[0] == 0
    assert command(*words)[0] == 0
