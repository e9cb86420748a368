"""What `gpt2repro evaluate` says of its own numbers:

each switch between the protocols turned alone, results that can be checked and compared, contaminated items
"""

import json
import re
import shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from test_cli import command, fails
from gpt2repro.checkpoint import load_model
from gpt2repro.config import GPT2Config
from gpt2repro.model import GPT2
from gpt2repro.scores.manifest import read_results
from gpt2repro.shards import write_shards
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.weights import save_pretrained


def item(i):
    pet = ['cat', 'dog'][i % 2]
    return f'{i} ran to the “old” mill and saw that the {pet} was there, so {i} went home with the {pet}'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    (d / 'lambada_test.jsonl').write_text(''.join(json.dumps(dict(text=item(i))) + '\n' for i in range(40)))
    (d / 'wiki.test.raw').write_text(' \n = Mill = \n \n' + ''.join(f' {item(i)} . \n' for i in range(30)))
    return d


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    tok = SentencePiece.train([item(i) for i in range(40)] * 3, vocab_size=320)
    torch.manual_seed(0)
    cfg = GPT2Config(vocab_size=tok.vocab_size, n_ctx=64, n_embd=16, n_layer=1, n_head=2).no_dropout()
    return save_pretrained(GPT2(cfg), tmp_path_factory.mktemp('models') / 'small', tok)


sub = ['--subset', '--device', 'cpu']


@pytest.fixture(scope='module')
def evaluated(model, data, tmp_path_factory):
    "Folder of an evaluation under both protocols"
    out = tmp_path_factory.mktemp('out')
    tasks = ['--tasks', 'lambada,wikitext2', '--protocol', 'both']
    s, _, err = command('evaluate', model, *tasks, '--data', data, '--out', out, '--truncate', *sub)
    assert s == 0, err
    return out


def test_explain_makes_tables_and_files(model, data, tmp_path):
    tasks = ['--tasks', 'lambada,wikitext2', '--explain']
    s, text, err = command('evaluate', model, *tasks, '--data', data, '--out', tmp_path, *sub)
    assert s == 0, err
    for words in (
        'last word → last token',
        'lambada.ppl',
        'wikitext2.ppl',
        'lm-evaluation-harness#2159',
        '40.06',
    ):
        assert words in text, words
    assert err.count('left out') == 1 and 'lambada_test_plain_text.txt' in err  # one file, said once
    d = json.loads((tmp_path / 'explain.json').read_text())
    assert [(f['task'], f['metric']) for f in d['explained']] == [
        ('lambada', 'acc'),
        ('lambada', 'ppl'),
        ('wikitext2', 'ppl'),
    ]
    for f in d['explained']:
        steps = sum(s['effect']['diff'] for s in f['steps'])
        assert steps == pytest.approx(
            f['paper']['value'] - f['modern']['value'], abs=1e-6 * f['paper']['value']
        )
    assert (tmp_path / 'explain.html').stat().st_size > 1_000_000  # opens offline
    s, again, _ = command('evaluate', model, *tasks, '--data', data, '--out', tmp_path, '--json', *sub)
    assert s == 0 and json.loads(again)['explained'] == d['explained']


@pytest.mark.parametrize(
    'words,argv',
    [
        ('needs tasks of the paper', ['--explain']),
        ('needs tasks of the paper', ['--explain', '--tasks', 'heldout']),
        ("unknown task 'lambda'", ['--explain', '--tasks', 'lambda']),
        ('leave one out', ['--explain', '--tasks', 'lambada', '--protocol', 'modern']),
        ('give one at a time', ['--explain', '--tasks', 'lambada', '--overlap', '.']),
        ('lambada needs lambada_test.jsonl', ['--explain', '--tasks', 'lambada', '--data', 'EMPTY']),
        ('--contamination nowhere does not exist', ['--tasks', 'lambada', '--contamination', 'nowhere']),
        ('tasks whose items are looked for', ['--contamination', '.']),
        ('--contaminated-share 50.0: give a number', ['--contaminated_share', '50']),
        ('no such file; name the results.json', ['--verify', 'nowhere.json']),
        ('--draw 0: give a number', ['--verify', 'nowhere.json', '--draw', '0']),
    ],
)
def test_bad_words(words, argv, model, tmp_path):
    fails(words, 'evaluate', model, *[tmp_path if a == 'EMPTY' else a for a in argv], *sub)


def test_no_model_and_mixed_models(model, evaluated):
    fails('no model given', 'evaluate', '--tasks', 'lambada')
    fails('--explain with 2 models', 'evaluate', model, model, '--tasks', 'lambada', '--explain')
    fails('compared with another one', 'evaluate', model, evaluated / 'results.json')


def test_a_result_verifies(evaluated):
    s, text, err = command('evaluate', '--verify', evaluated / 'results.json', '--device', 'cpu')
    assert s == 0 and text.endswith('results.json: verified\n'), text + err
    assert 'lambada.ppl (paper)' in text and '20 of 20 drawn rows the same, of 40' in text
    m = json.loads((evaluated / 'results.manifest.json').read_text())
    assert m['protocols'][0]['switches']['counted'] == 'last token'
    [file] = m['data'][0]['files']
    assert file['name'] == 'lambada_test.jsonl' and len(file['sha256']) == 64
    assert len(m['model']['weights_sha256']) == 64 and m['versions']['torch']


@pytest.fixture
def copied(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / 'copy')


def spoil(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def not_verified(path, *checks, model=()):
    s, text, err = command('evaluate', *model, '--verify', path, '--json', '--device', 'cpu')
    assert s == 1, text + err
    d = json.loads(text)
    bad = [c['what'] for c in d['checks'] if not c['ok']]
    assert not d['verified'] and all(any(b.startswith(c) for b in bad) for c in checks), bad


def test_what_was_changed_is_found(copied, model, data, tmp_path):
    path = copied / 'results.json'
    value = read_results(path)['lambada.ppl'].value
    spoil(path, repr(value), repr(value / 2))
    not_verified(path, 'results.json', 'scores')
    net, tok = load_model(model, 'cpu')
    with torch.no_grad():
        net.ln_f.weight *= 2
    other = save_pretrained(net, tmp_path / 'other', tok)
    not_verified(path, 'model', 'lambada.ppl', model=[other])


def test_other_data_and_what_is_gone(copied, data):
    path = copied / 'results.json'
    m = copied / 'results.manifest.json'
    moved = shutil.copytree(data, copied / 'data')
    spoil(moved / 'lambada_test.jsonl', 'the cat was there', 'the cow was there')
    s, text, err = command('evaluate', '--verify', path, '--data', moved, '--device', 'cpu')
    assert s == 1 and re.search(
        r'data of lambada \(paper\): lambada_test.jsonl +NO +40 examples, not those', text
    ), text + err
    spoil(m, '"format": 1', '"format": 2')
    fails('damaged or edited', 'evaluate', '--verify', path)
    m.write_text('{}')
    fails('results.manifest.json', 'evaluate', '--verify', path)
    m.unlink()
    fails('cannot be checked: evaluate again', 'evaluate', '--verify', path)


def test_results_are_compared_without_a_model(evaluated, model, data, tmp_path):
    argv = ['--tasks', 'lambada', '--protocol', 'modern', '--data', data, '--out', tmp_path, *sub]
    assert command('evaluate', model, *argv)[0] == 0
    a, b = evaluated / 'results.json', tmp_path / 'results.json'
    s, text, err = command('evaluate', a, b, '--json')
    assert s == 0, err
    found = {(d['metric'], d['protocol']): d for d in json.loads(text)['differences']}
    assert set(found) == {('acc', 'modern'), ('ppl', 'modern')} and found['ppl', 'modern']['diff'] == 0
    spoil(b, '"counted": "last word"', '"counted": "last token"')
    fails(r'differ in counted (last word and last token)', 'evaluate', a, b)
    s, text, err = command('evaluate', a, b, '--across_protocols')
    assert s == 0 and 'lambada' in text, err
    s, text, err = command('evaluate', a, b, '--across-protocols')
    assert s == 0 and 'lambada' in text, err


def test_results_of_two_protocols_or_data(evaluated, model, data, tmp_path):
    moved = shutil.copytree(data, tmp_path / 'data')
    for protocol in 'modern', 'paper':
        argv = ['--tasks', 'lambada', '--protocol', protocol, '--data', moved, '--out', tmp_path / protocol]
        assert command('evaluate', model, *argv, *sub)[0] == 0
    a, b = (tmp_path / p / 'results.json' for p in ('modern', 'paper'))
    fails('differ in protocol (modern and paper), quotes', 'evaluate', a, b)
    spoil(moved / 'lambada_test.jsonl', 'the cat was there', 'the cow was there')
    argv = ['--tasks', 'lambada', '--protocol', 'paper', '--data', moved, '--out', tmp_path / 'other']
    assert command('evaluate', model, *argv, *sub)[0] == 0
    fails('are of other data', 'evaluate', b, tmp_path / 'other/results.json')


def test_contamination(model, data, tmp_path):
    "Every second passage was in the training text; the run's report shows both scores"
    run = shutil.copytree(model, tmp_path / 'run')
    tok = load_model(model, 'cpu')[1]
    write_shards([item(i) for i in range(0, 40, 2)], tok, run / 'shards/train', workers=0)
    argv = ['--tasks', 'lambada', '--contamination', run, '--contaminated_share', '1', '--data', data]
    s, text, err = command('evaluate', model, *argv, '--out', tmp_path / 'evaluation', *sub)
    assert s == 0, err
    assert 'Contamination by the training text' in text and '20 of 40' in text
    d = json.loads((tmp_path / 'evaluation/results.json').read_text())
    found = {c['metric']: c for c in d['contamination']['scores']}
    rows = read_results(tmp_path / 'evaluation/results.json')['lambada.ppl'].rows
    assert found['ppl']['clean'] == pytest.approx(np.exp(rows[1::2, 0].mean()), rel=1e-9)
    assert found['ppl']['dirty'] == pytest.approx(np.exp(rows[::2, 0].mean()), rel=1e-9)
    s, text, _ = command('evaluate', model, '--tasks', 'lambada', '--overlap', run, '--data', data, *sub)
    assert s == 0 and 'lambada, contamination:' in text
    assert Path(tmp_path / 'evaluation/results.manifest.json').is_file()
