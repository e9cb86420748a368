"""`gpt2repro evaluate --suite core` as its users meet it:

a whole bundle and a part of one, an interrupted evaluation, the report, and what is wrong said in one line
"""

import json
import shutil

import pytest
import torch
from gpt2repro import evaluate as evaluate_module
from gpt2repro.config import GPT2Config
from gpt2repro.core_score import published_core
from gpt2repro.model import GPT2
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.weights import save_pretrained
from test_cli import command, fails, lines, tree

lands = 'France Japan Peru Kenya Norway Chad Cuba Mali'.split()
cities = 'Paris Tokyo Lima Nairobi Oslo Lagos Havana Bamako'.split()
items = dict(
    capitals=[
        dict(query=f'The capital of {land}?', choices=[cities[(i + k) % 8] for k in range(4)], gold=i % 4)
        for i, land in enumerate(lands)
    ],
    pronouns=[
        dict(
            context_options=[f'{a} won since {a}', f'{a} won since {b}'], continuation='was fast.', gold=i % 2
        )
        for i, (a, b) in enumerate(zip(lands, cities))
    ],
    endings=[dict(context=f'{a} is far from ', continuation=b) for a, b in zip(lands, cities)],
)
kinds = dict(capitals='multiple_choice', pronouns='schema', endings='language_modeling')
chances = dict(capitals=25, pronouns=50, endings=0)
cpu = ['--device', 'cpu']


def write_bundle(folder, n=3):
    "A bundle of `n` tasks, which share three files of items"
    listed = 'icl_tasks:\n'
    meta = 'Eval Task,Task Category,#datapoints,Random baseline\n'
    for k in range(n):
        name = list(items)[k % 3]
        label = name if k < 3 else f'{name}_{k}'
        listed += (
            f'-\n  label: {label}\n  dataset_uri: some/{name}.jsonl\n  num_fewshot: [{k % 4}]\n'
            f'  icl_task_type: {kinds[name]}\n'
        )
        meta += f'{label},x,8,{chances[name]}\n'
    (folder / 'eval_data/some').mkdir(parents=True)
    for name, rows in items.items():
        write_items(folder, name, rows)
    (folder / 'core.yaml').write_text(listed)
    (folder / 'eval_meta_data.csv').write_text(meta)
    return folder


def write_items(folder, name, rows):
    (folder / f'eval_data/some/{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Two model folders of one shape"
    d = tmp_path_factory.mktemp('models')
    texts = [' '.join(map(str, r.values())) for rows in items.values() for r in rows]
    tok = SentencePiece.train(texts * 5, vocab_size=350)
    cfg = GPT2Config(vocab_size=tok.vocab_size, n_ctx=128, n_embd=16, n_layer=1, n_head=2)
    for seed, name in enumerate('ab'):
        torch.manual_seed(seed)
        save_pretrained(GPT2(cfg.no_dropout()), d / name, tok)
    return d / 'a', d / 'b'


def test_a_whole_bundle_stands_beside_gpt2(models, tmp_path):
    bundle = write_bundle(tmp_path / 'whole', 22)
    out = tmp_path / 'out'
    argv = ['evaluate', models[0], '--suite', 'core', '--data', bundle, *cpu]
    s, text, err = command(*argv, '--out', out, '--prefixes', 'both')
    assert s == 0, err
    assert 'GPT-2 1.5B' in text and '0.2565' in text and 'items that differ' in text
    d = json.loads((out / 'core.json').read_text())
    assert d['complete'] and d['published'] == published_core and len(d['tasks']) == 22
    for way in 'nanochat', 'exact':
        scores = [t['scores'][way] for t in d['tasks']]
        for t, o in zip(d['tasks'], scores):
            assert o['centered'] == pytest.approx((o['accuracy'] - t['chance']) / (1 - t['chance']))
        assert d['core'][way]['value'] == pytest.approx(sum(o['centered'] for o in scores) / 22)
    assert d['sentence'] in text and d['sentence'].startswith('CORE ')
    assert {r['protocol'] for r in d['results']} == {'nanochat', 'exact'}
    s, again, _ = command(*argv, '--json', '--prefixes', 'both')
    assert s == 0 and json.loads(again)['tasks'] == d['tasks']
    s, text, err = command(*argv, '--limit', 5)
    assert s == 0 and 'an estimate from at most 5 items of each task' in text, err


def test_a_part_is_no_core(models, bundle):
    (bundle / 'eval_data/some/pronouns.jsonl').unlink()
    argv = ['evaluate', models[0], '--suite', 'core', '--data', bundle, *cpu]
    fails('pronouns needs', *argv)
    s, text, err = command(*argv, '--available')
    assert s == 0 and 'no CORE' in text and 'the mean of 2 of the 3 tasks' in text, err
    s, text, _ = command(*argv, '--tasks', 'endings', '--json')
    d = json.loads(text)
    assert s == 0 and not d['complete'] and [t['label'] for t in d['tasks']] == ['endings']


def test_two_models_in_pairs(models, bundle, tmp_path):
    out = tmp_path / 'out'
    s, text, err = command(
        'evaluate', *models, '--suite', 'core', '--data', bundle, '--out', out, '--json', *cpu
    )
    assert s == 0, err
    d = json.loads(text)
    assert {x['task'] for x in d['differences']} == {f'core/{name}' for name in items}
    assert (out / 'A-a/core.json').is_file() and (out / 'B-b/core.json').is_file()


def test_a_core_can_be_trusted(models, bundle, tmp_path):
    "Its manifest says what it depends on, and a drawn sample is scored again"
    for m in models:
        argv = ['evaluate', m, '--suite', 'core', '--data', bundle, '--prefixes', 'both', '--limit', 6, *cpu]
        s, _, err = command(*argv, '--out', tmp_path / m.name)
        assert s == 0, err
    a, b = tmp_path / 'a/core.json', tmp_path / 'b/core.json'
    manifest = json.loads(a.with_name('core.manifest.json').read_text())
    assert {d['task'] for d in manifest['data']} == {f'core/{name}' for name in items}
    assert manifest['settings'] == dict(seed=0, dtype='float32', prefixes='both', limit=6, labels=list(items))
    s, text, err = command('evaluate', '--verify', a, '--draw', 4, *cpu)
    assert s == 0 and 'verified' in text and '4 of 4 drawn rows the same, of 6' in text, (text, err)
    s, text, err = command('evaluate', a, b)
    assert s == 0 and 'core/capitals' in text, err
    s, text, _ = command('evaluate', models[1], '--verify', a, *cpu)
    assert s == 1 and 'its weights are others' in text
    write_items(bundle, 'endings', items['endings'][::-1])
    s, text, _ = command('evaluate', '--verify', a, *cpu)
    assert s == 1 and 'not those of the evaluation' in text and 'NOT verified' in text
    bundle.rename(tmp_path / 'moved')
    fails('name its place with --data', 'evaluate', '--verify', a, *cpu)


def test_an_interrupted_evaluation_goes_on(models, bundle, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    argv = ['evaluate', models[0], '--suite', 'core', '--data', bundle, '--out', out, *cpu]
    calls = []
    score = evaluate_module._score_batch

    def counted(model, rows, *rest):
        calls.append(sum(len(ws) for ws, _ in rows))
        if limit and sum(calls) > limit:
            raise KeyboardInterrupt
        return score(model, rows, *rest)

    monkeypatch.setattr(evaluate_module, '_score_batch', counted)
    limit = 40
    s, _, err = command(*argv)
    assert s == 130 and not (out / 'core.json').exists(), err
    kept = sum(len(f.read_text().split()) > 0 for f in (out / 'answers').iterdir())
    assert kept > 0
    calls.clear()
    limit = 0
    assert command(*argv)[0] == 0
    rest = sum(calls)
    first = json.loads((out / 'core.json').read_text())
    calls.clear()
    shutil.rmtree(out)
    assert command(*argv)[0] == 0
    assert 0 < rest < sum(calls)  # what was answered was not asked again
    assert json.loads((out / 'core.json').read_text())['tasks'] == first['tasks']


@pytest.mark.parametrize(
    'name, i, row, words',
    [
        ('capitals', 2, {'gold': None}, 'line 3 is damaged (ValueError: gold is missing)'),
        ('capitals', 2, {'gold': 4}, 'line 3: gold is 4'),
        ('capitals', 2, {'gold': -1}, 'line 3: gold is -1'),
        ('capitals', 2, {'gold': True}, 'gold is true where a whole number belongs'),
        ('capitals', 0, {'choices': ['Paris', '']}, 'line 1: choice 1 is empty'),
        ('capitals', 0, {'choices': []}, 'line 1: 0 to choose from'),
        ('pronouns', 7, {'gold': None}, 'line 8 is damaged'),
        ('pronouns', 0, {'continuation': ' \n'}, 'line 1: the continuation is empty'),
        ('endings', 1, {'continuation': ''}, 'line 2: the continuation is empty'),
        ('endings', 1, {'context': None}, 'line 2 is damaged'),
    ],
)
def test_bad_items(models, bundle, tmp_path, name, i, row, words):
    rows = [dict(r) for r in items[name]]
    rows[i] = {k: v for k, v in (rows[i] | row).items() if v is not None}
    write_items(bundle, name, rows)
    argv = ['evaluate', models[0], '--suite', 'core', '--data', bundle, '--out', tmp_path / 'out', *cpu]
    assert f'{name}.jsonl' in fails(words, *argv)
    assert not (tmp_path / 'out').exists()


def test_bad_bundles(models, bundle, tmp_path):
    argv = ['evaluate', models[0], '--suite', 'core', '--data', bundle, '--out', tmp_path / 'out', *cpu]
    whole = tree(bundle)
    for file, old, new, words in [
        ('core.yaml', 'schema', 'scheme', "unknown icl_task_type 'scheme': did you mean schema?"),
        (
            'core.yaml',
            'num_fewshot: [1]',
            'num_fewshot: [8]',
            'shows 8 other items before each one, and has 8',
        ),
        ('core.yaml', 'some/endings', '../endings', 'leads out of the bundle'),
        ('core.yaml', 'icl_tasks:', 'icl_tasks: [', 'is no YAML'),
        ('core.yaml', 'icl_tasks:', 'icl_tasks: x\nother:', 'where a list belongs'),
        ('eval_meta_data.csv', 'endings', 'ending', 'no Random baseline of endings'),
        ('eval_meta_data.csv', ',50', ',fifty', 'line 3 is damaged'),
        ('eval_meta_data.csv', ',25', ',nan', 'line 2'),
    ]:
        text = whole[file].decode()
        assert old in text
        (bundle / file).write_text(text.replace(old, new, 1))
        fails(words, *argv)
        (bundle / file).write_text(text)
    for file in whole:
        (bundle / file).rename(tmp_path / 'aside')
        fails('missing', *argv)
        (bundle / file).write_text('')
        fails('is empty', *argv)
        (tmp_path / 'aside').rename(bundle / file)
    assert not (tmp_path / 'out').exists() and tree(bundle) == whole


def test_a_prompt_longer_than_the_context_is_said_once_a_task(models, bundle, tmp_path):
    from gpt2repro.checkpoint import load_model

    _, tok = load_model(models[0], 'cpu')
    cfg = GPT2Config(vocab_size=tok.vocab_size, n_ctx=8, n_embd=8, n_layer=1, n_head=1)
    save_pretrained(GPT2(cfg.no_dropout()), tmp_path / 'short', tok)
    s, _, err = command('evaluate', tmp_path / 'short', '--suite', 'core', '--data', bundle, *cpu)
    said = [l for l in lines(err) if 'longer than the context of 8 tokens' in l]
    assert s == 0 and len(said) == len({l.split()[1] for l in said}) > 0, err
    assert all('the beginning is cut off' in l for l in said)


def test_a_vocabulary_smaller_than_the_tokenizers(models, bundle, tmp_path):
    from gpt2repro.checkpoint import load_model

    _, tok = load_model(models[0], 'cpu')
    cfg = GPT2Config(vocab_size=300, n_ctx=64, n_embd=8, n_layer=1, n_head=1)
    small = tmp_path / 'small'
    save_pretrained(GPT2(cfg.no_dropout()), small, tok)
    argv = ['evaluate', small, '--suite', 'core', '--data', bundle, '--out', tmp_path / 'out', *cpu]
    fails('300', *argv)
    assert not (tmp_path / 'out').exists()


def test_words_that_do_not_go_together(models, bundle):
    argv = ['evaluate', models[0], *cpu]
    core = [*argv, '--suite', 'core', '--data', bundle]
    fails('--suite core needs an eval bundle', *argv, '--suite', 'core')
    fails('nowhere is no folder', *argv, '--suite', 'core', '--data', 'nowhere')
    fails('is there already', *core, '--fetch-bundle')
    fails('--prefixes belongs to --suite core', *argv, '--prefixes', 'exact')
    fails('--fetch-bundle belongs to --suite core', *argv, '--fetch-bundle')
    fails("unknown task 'capital': did you mean capitals?", *core, '--tasks', 'capital')
    for more in ('--sheet',), ('--protocol', 'paper'), ('--truncate',), ('--subset',), ('--overlap', 'x'):
        fails(f'{more[0]} does nothing for --suite core', *core, *more)
