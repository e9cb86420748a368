"""Files that are damaged, each in many ways

Every file of a run, of a data folder and of a model is spoilt, and each verb that reads it is called: it goes
on (where nothing is wrong for what it does), or says in one line which file it is.
"""

import contextlib
import io
import json
import random
import re
import shutil

import pytest
import torch
from gpt2repro.cli import main
from gpt2repro.tokenizer import GPT2BPE, byte_alphabet
from gpt2repro.utils import sealed

whole_files = {
    'list': b'[]',
    'null': b'null',
    'number': b'1',
    'text': b'"x"',
    'object': b'{}',
    'nothing': b'',
    'not UTF-8': b'{"a": "\xff"}',
    'NaN': b'NaN',
    'nested': b'[' * 100_000,
    'nested objects': b'{"a":' * 500 + b'1' + b'}' * 500,
    'digits': b'1' * 5000,
}
other_values = ([], None, 'x', {}, [[1]], True, -1, 10**30, 1e999, [None])
small = (
    'vocab_size=320 n_ctx=32 n_embd=32 n_layer=1 n_head=2 batch_tokens=64 micro_batch=2 log_every=2 '
    'eval_every=5 eval_batches=1 save_every=5 warmup_steps=0 schedule_steps=10'
).split()


def command(*argv):
    "Exit status and the lines on standard error; in this process"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in argv])
        except SystemExit as e:
            status = e.code
    return status, [l for l in err.getvalue().splitlines() if l.startswith('gpt2repro: ')]


def check(name, *argv):
    "Status 0, or 2 and a last line that names the file (or its folder); what went wrong as text"
    status, lines = command(*argv)
    said = lines[-1] if lines else ''
    if (
        'a defect' in said
        or status not in (0, 2)
        or (status == 2 and name not in said and f'{argv[1]}: ' not in said)
    ):
        return [f'{argv[0]} gave {status}: {said[:200]}']
    return []


def spoilt(content):
    "(what, content) for a file of JSON, or for one line of a log"
    yield from whole_files.items()
    yield 'half', content[: len(content) // 2]


def fields(value, at=()):
    "The places of all values in JSON, of lists the first two"
    yield at
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:2])
    for k, v in items:
        yield from fields(v, (*at, k))


def changed(value, at, new):
    "A copy of JSON with another value at a place"
    if not at:
        return new
    out = json.loads(json.dumps(value))
    inner = out
    for k in at[:-1]:
        inner = inner[k]
    inner[at[-1]] = new
    return out


def other_types(value, most, seed=0):
    "(what, value): one field is of another type, or missing; as many cases as `most`"
    cases = []
    for at in fields(value):
        cases += [(f'{at}={new!r}', changed(value, at, new)) for new in other_values]
        if at and isinstance(at[-1], str):
            out = changed(value, at, None)
            inner = out
            for k in at[:-1]:
                inner = inner[k]
            del inner[at[-1]]
            cases.append((f'{at} missing', out))
    random.Random(seed).shuffle(cases)
    return cases[:most]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A finished run of 10 steps with its data in it, scores, and kept answers"
    import os

    os.environ['GPT2REPRO_QUIET'] = '1'
    folder = tmp_path_factory.mktemp('damaged')
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefgh', k=rng.randint(2, 6))) for _ in range(200)]
    docs = folder / 'docs.jsonl'
    docs.write_text(
        ''.join(json.dumps(dict(text=' '.join(rng.choices(words, k=40)))) + '\n' for _ in range(200))
    )
    r = folder / 'run'
    s, said = command('prepare', docs, '--out', r, '--vocab-size', 320, '--overlap', 1.1, '--workers', 0)
    assert s == 0, said
    s, said = command(
        'train', r, '--recipe', 'tiny', '--data', r, '--max-steps', 10, '--device', 'cpu', *small
    )
    assert s == 0, said
    s, said = command('evaluate', r, '--device', 'cpu')
    assert s == 0, said
    scores = dict(bpb=2.5, nats_per_token=3.1, yardsticks=dict(xz=2.0), facts=dict(documents=3))
    (r / 'scores.json').write_text(json.dumps(sealed(scores)))
    return r


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / 'r')
    return tmp_path / 'r'


def model_folder(run, folder):
    "The newest model alone"
    folder.mkdir(exist_ok=True)
    for f in ('config.json', 'model.safetensors', 'tokenizer.model'):
        shutil.copy(run / 'checkpoints/step-00000010' / f, folder)
    return folder


def try_all(file, cases, *verbs):
    "Each spoilt content with each verb; the file is put back"
    good = file.read_bytes()
    wrong = []
    for what, content in cases:
        for argv in verbs:
            file.write_bytes(content)
            wrong += [f'{what}: {line}' for line in check(file.name, *argv)]
    file.write_bytes(good)
    assert not wrong, '\n'.join(wrong)


def as_bytes(cases):
    return [(what, json.dumps(value).encode()) for what, value in cases]


def test_settings(copy):
    f = copy / 'config.json'
    d = json.loads(f.read_text())
    train = 'train', copy, '--max-steps', 10, '--device', 'cpu'
    try_all(f, spoilt(f.read_bytes()), train, ('report', copy))
    del d['sha256']  # as an older program wrote it: the types alone must do
    try_all(f, as_bytes(other_types(d, 60)), train)
    try_all(f, as_bytes(other_types(d, 12, 1)), ('report', copy))


@pytest.mark.parametrize('field', ['seed', 'lr', 'max_steps'])
def test_a_digit_of_the_settings(copy, field):
    f = copy / 'config.json'
    text, n = re.subn(f'("{field}": [0-9.]*)[0-9]', r'\g<1>3', f.read_text())
    assert n == 1
    f.write_text(text)
    before = sorted(copy.rglob('*'))
    for verb in ('train', copy, '--device', 'cpu'), ('report', copy):
        status, said = command(*verb)
        assert status == 2 and 'config.json: damaged or edited' in said[-1] and 'line sha256' in said[-1]
    assert sorted(copy.rglob('*')) == before
    # Taken as it is, what the checkpoints were made with must still not change.
    f.write_text(''.join(l + '\n' for l in f.read_text().splitlines() if '"sha256"' not in l))
    status, said = command('train', copy, '--max-steps', 11, '--device', 'cpu')
    assert (status == 0) if field == 'max_steps' else (status == 2 and 'was begun with' in said[-1]), said


def test_log(copy):
    f = copy / 'log.jsonl'
    lines = f.read_bytes().splitlines(keepends=True)
    kinds = {}
    for i, l in enumerate(lines):
        rec = json.loads(l)
        kinds.setdefault((rec['kind'], rec.get('what')), i)
    skipped = dict(kind='event', step=3, tokens=9, what='skipped', updates=1, sequences=[1, 2])
    skipped['first'] = dict(step=3, parameter='wte.weight', group='embed', loss='finite')
    lines.insert(1, json.dumps(skipped).encode() + b'\n')
    report, train = ('report', copy), ('train', copy, '--max-steps', 11, '--device', 'cpu')
    cases = list(spoilt(lines[2])) + as_bytes(other_types(skipped, 20))
    for at in kinds.values():
        cases += as_bytes(other_types(json.loads(lines[at]), 12))
    cases += [('half of a text', b'{"kind":"sample","step":1,"text":"\\ud800"}')]
    whole = [(what, b''.join([lines[0], c, b'\n', *lines[1:]])) for what, c in cases]
    try_all(f, whole[:12] + whole[12::3], report)
    for what, content in whole[:12] + whole[12::9]:
        state = shutil.copytree(copy, copy.parent / 'r2')
        (state / 'log.jsonl').write_bytes(content)
        assert not (wrong := check('log.jsonl', 'train', state, *train[2:])), (what, wrong)
        shutil.rmtree(state)


def test_scores(copy):
    f = copy / 'scores.json'
    d = json.loads(f.read_text())
    try_all(f, spoilt(f.read_bytes()), ('report', copy))
    f.write_text(f.read_text().replace('2.5', '2.6'))
    assert 'scores.json: damaged or edited' in command('report', copy)[1][-1]
    del d['sha256']
    f.write_text(json.dumps(d))
    try_all(f, as_bytes(other_types(d, 25)), ('report', copy))


def test_kept_answers(copy):
    evaluate = 'evaluate', copy, '--device', 'cpu'
    for f in (copy / 'evaluation/answers').iterdir():
        good = f.read_bytes()
        first, *rest = good.splitlines(keepends=True)
        key, *values = json.loads(first)
        old = [key.split(':')[0], *values]  # as an older program wrote it
        cases = [*spoilt(first), *as_bytes(other_types(old, 25))]
        try_all(f, [(what, b''.join([c, b'\n', *rest])) for what, c in cases], evaluate)
        f.write_bytes(good.replace(b'[-', b'[-1', 1))
        status, said = command(*evaluate)
        assert status == 2 and f'{f.name} line 1: damaged, its checksum is another' in said[-1], said
        f.write_bytes(good)


def test_checkpoint_state(copy):
    "The newest one damaged: the one before is used, and a line says so; all damaged: one line"
    new, *older = sorted(copy.glob('checkpoints/step-*'), reverse=True)
    train = 'train', copy, '--max-steps', 10, '--device', 'cpu'
    for name in 'state.json', 'config.json', 'optimizer.safetensors', 'tokenizer.model':
        f = new / name
        good = f.read_bytes()
        for what, content in [*spoilt(good), ('a bit', good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])]:
            f.write_bytes(content)
            for verb in train, ('sample', copy, 'a', '--max-new-tokens', 1, '--device', 'cpu'):
                if verb is train and what not in ('list', 'half', 'a bit'):
                    continue
                state = shutil.copytree(copy, copy.parent / 'r2')
                status, said = command(verb[0], state, *verb[2:])
                assert status == 0 and name in said[0] and 'using the checkpoint before it' in said[0], (
                    what,
                    said,
                )
                shutil.rmtree(state)
        f.unlink()
        assert 'missing' in command('sample', copy, 'a', '--max-new-tokens', 1, '--device', 'cpu')[1][0]
        f.write_bytes(good)
    for o in (new, *older):
        (o / 'model.safetensors').write_bytes(b'')
    for verb in train, ('sample', copy, 'a'), ('evaluate', copy):
        status, said = command(*verb)
        assert status == 2 and 'none is whole' in said[0] and str(copy) in said[0] and len(said) == 1
    status, said = command('sample', new, 'a')  # a checkpoint by its own name is not read either
    assert status == 2 and 'model.safetensors: its content is not what was written' in said[-1]


def test_a_checkpoint_on_a_bad_sector(copy, monkeypatch):
    import gpt2repro.checkpoint as c

    good = c.file_sha256

    def bad(path):
        if 'step-00000010' in str(path) and path.name == 'optimizer.safetensors':
            raise OSError(5, 'Input/output error')
        return good(path)

    monkeypatch.setattr(c, 'file_sha256', bad)
    status, said = command('train', copy, '--max-steps', 10, '--device', 'cpu')
    assert status == 0 and 'optimizer.safetensors: cannot be read (Input/output error): using' in said[0], (
        said
    )


def test_manifests_and_preparation(copy, run):
    train, verify = ('train', copy, '--max-steps', 10, '--device', 'cpu'), ('prepare', '--verify', copy)
    for kind in 'train', 'valid':
        f = copy / 'shards' / kind / 'manifest.json'
        d = json.loads(f.read_text())
        d.pop('sha256')
        cases = [(what, sealed(v) if isinstance(v, dict) else v) for what, v in other_types(d, 60)]
        try_all(f, [*spoilt(f.read_bytes()), *as_bytes(cases)], train)
        try_all(f, spoilt(f.read_bytes()), verify, ('evaluate', copy, '--device', 'cpu'))
    prepare = 'prepare', run.parent / 'docs.jsonl', '--out', copy, '--vocab-size', 320, '--overlap', 1.1
    f = copy / 'prepare.json'
    try_all(f, spoilt(f.read_bytes()), prepare)
    f.write_text(f.read_text().replace('320', '321'))
    assert 'prepare.json: damaged or edited' in command(*prepare)[1][-1]


def test_unfinished_shards(copy, run):
    f = copy / 'shards/train/progress.json'
    manifest = json.loads((copy / 'shards/train/manifest.json').read_text())
    (copy / 'shards/train/manifest.json').unlink()
    shape = {k: manifest[k] for k in ('files', 'n_docs', 'docs_sha256')} | dict(plan={})
    prepare = 'prepare', run.parent / 'docs.jsonl', '--out', copy, '--vocab-size', 320, '--overlap', 1.1
    f.write_text(json.dumps(shape))
    cases = [(w, json.dumps(v).encode()) for w, v in other_types(shape, 10) if 'plan' not in w]
    wrong = []
    for what, content in [*spoilt(f.read_bytes()), *cases]:
        f.write_bytes(content)
        status, said = command(*prepare)
        if status != 2 or 'a defect' in said[-1] or str(copy) not in said[-1]:
            wrong.append((what, status, said))
    assert not wrong


def test_shards(copy):
    train, evaluate = (
        ('train', copy, '--max-steps', 10, '--device', 'cpu'),
        ('evaluate', copy, '--device', 'cpu'),
    )
    f = copy / 'shards/train/tokens-00000.bin'
    good = f.read_bytes()
    for bad in (bytes([good[0] ^ 1]) + good[1:], b'\xff' * len(good), good[:-2], good + b'\0\0', b''):
        f.write_bytes(bad)
        status, said = command(*train)
        assert status == 2 and 'tokens-00000.bin' in said[-1] and 'a defect' not in said[-1], said
    f.write_bytes(good)
    assert command(*train)[0] == 0
    (copy / 'shards/train/.verified.json').write_text('[1]')
    assert command(*train)[0] == 0
    f = copy / 'shards/valid/tokens-00000.bin'
    f.write_bytes(b'\xff' * f.stat().st_size)
    for verb in train, evaluate:
        status, said = command(*verb)
        assert status == 2 and 'tokens-00000.bin: damaged' in said[-1], said


def test_the_tokenizer_beside_the_shards(copy, run):
    "One that is damaged, or another, is not trained with"
    f = copy / 'tokenizer/tokenizer.model'
    good = f.read_bytes()
    at = good.rindex(b'e')
    for bad in (b'', good[: len(good) // 2], b'\xff' * 100, good[:at] + b'q' + good[at + 1 :]):
        f.write_bytes(bad)
        status, said = command('train', copy, '--max-steps', 10, '--device', 'cpu')
        assert status == 2 and 'tokenizer' in said[-1] and 'a defect' not in said[-1], said
    prepare = 'prepare', run.parent / 'docs.jsonl', '--out', copy, '--vocab-size', 320, '--overlap', 1.1
    status, said = command(*prepare)
    assert status == 2 and 'restore them' in said[-1], said


def test_model_folder(run, tmp_path):
    m = model_folder(run, tmp_path / 'm')
    sample = 'sample', m, 'x', '--max-new-tokens', 1, '--device', 'cpu'
    f = m / 'config.json'
    d = json.loads(f.read_text())
    try_all(f, [*spoilt(f.read_bytes()), *as_bytes(other_types(d, 100))], sample)
    for k, v in dict(
        n_layer=10**9, n_embd=2 * 10**9, n_head=10**9, n_positions=10**12, vocab_size=10**15
    ).items():
        try_all(f, as_bytes([(k, d | {k: v})]), sample)
        f.write_text(json.dumps(d | {k: v}))
        assert command(*sample)[0] == 2
    f.write_text(json.dumps(d))
    names = ['a', '', '..', '.', '/etc/passwd', '../m/model.safetensors', 'config.json', 'no.safetensors']
    index = [('name', json.dumps(dict(weight_map=dict(a=n))).encode()) for n in names]
    f = m / 'model.safetensors.index.json'
    f.write_text('{}')
    whole = dict(weight_map={'wte.weight': 'model.safetensors'})
    cases = [*spoilt(json.dumps(whole).encode()), *index, *as_bytes(other_types(whole, 30))]
    wrong = []
    for what, content in cases:
        f.write_bytes(content)
        status, said = command(*sample)
        if status == 2 and ('a defect' in said[-1] or str(m) not in said[-1]):
            wrong.append((what, said))
    assert not wrong, wrong


def test_weights_that_lie(run, tmp_path):
    "The header of a safetensors file: any byte of it flipped, lengths that lie"
    m = model_folder(run, tmp_path / 'm')
    sample = 'sample', m, 'x', '--max-new-tokens', 1, '--device', 'cpu'
    f = m / 'model.safetensors'
    good = f.read_bytes()
    n = int.from_bytes(good[:8], 'little')
    cases = [
        (f'length {k}', k.to_bytes(8, 'little') + good[8:]) for k in (0, 1, n - 8, n + 8, 2**40, 2**64 - 1)
    ]
    rng = random.Random(0)
    for _ in range(60):
        i = rng.randrange(8 + n)
        cases.append((f'byte {i}', good[:i] + bytes([good[i] ^ (1 << rng.randrange(8))]) + good[i + 1 :]))
    wrong = []
    for what, content in cases:
        f.write_bytes(content)
        status, said = command(*sample)
        if status == 2 and ('a defect' in said[-1] or str(m) not in said[-1]):
            wrong.append((what, said))
    assert not wrong, wrong


def test_nanogpt_files_that_lie(tmp_path):
    from gpt2repro.config import GPT2Config
    from gpt2repro.model import GPT2
    from gpt2repro.weights import from_nanogpt

    shape = dict(vocab_size=50, n_embd=8, n_layer=1, n_head=2)
    sd = GPT2(GPT2Config(n_ctx=16, **shape)).state_dict()
    good = dict(model=sd, model_args=dict(shape, block_size=16, dropout=0.0, bias=True))
    f = tmp_path / 'ckpt.pt'
    one = torch.zeros(1)
    bad = [
        *([], None, 1, 'x', {}, dict(model=sd), dict(good, model=[]), dict(good, model={1: one})),
        *(dict(good, model=dict(sd, **{'wte.weight': v})) for v in (1, None, 'x', one.long(), one * 1j)),
        dict(good, model=dict(sd, **{'wte.weight': one.to_sparse()})),
        *(
            dict(good, model_args=dict(good['model_args'], dropout=v))
            for v in (None, 'x', [], 2, float('nan'))
        ),
        *(
            dict(good, model_args=dict(good['model_args'], n_layer=v))
            for v in (None, 10**9, 10**30, 0, -1, True)
        ),
    ]
    big = dict(sd, **{'wte.weight': one.expand(10**9, 8)})  # one number that says it is many
    bad.append(dict(good, model=big, model_args=dict(good['model_args'], vocab_size=10**9)))
    for d in bad:
        torch.save(d, f)
        with pytest.raises(ValueError, match='ckpt.pt|dropout|n_layer|embd_pdrop'):
            from_nanogpt(f)
    torch.save(good, f)
    data = f.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        i = rng.randrange(len(data) if rng.random() < 0.5 else 600)
        f.write_bytes(data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :])
        with contextlib.suppress(ValueError):
            from_nanogpt(f)


def gpt2_tokenizer(folder):
    tok = GPT2BPE(
        {p: i for i, p in enumerate([*byte_alphabet(), 'th', 'the', '<|endoftext|>'])},
        [('t', 'h'), ('th', 'e')],
    )
    tok.save(folder)
    return folder


def test_tokenizer_files(tmp_path):
    from gpt2repro.tokenizer import load_tokenizer, save_hf

    folder = gpt2_tokenizer(tmp_path / 't')
    tok = load_tokenizer(folder)
    alone = tmp_path / 'alone'
    save_hf(tok, alone)
    for f in alone.glob('*'):
        if f.name != 'tokenizer.json':
            f.unlink()
    (folder / 'added_tokens.json').write_text('{"<pad>": 259}')
    encoder = json.loads((folder / 'vocab.json').read_text())
    small_encoder = {k: encoder[k] for k in list(encoder)[:3]}
    body = json.loads((alone / 'tokenizer.json').read_text())
    merges = [
        b'#v\na\n',
        b'#v\na b c\n',
        b'#v\nt h\nt h\n',
        b'\xff',
        b'',
        '#v\nあ い\n'.encode(),
        b'#v\nt h\nth q\n',
    ]
    cases = {
        folder / 'vocab.json': as_bytes(other_types(small_encoder, 30)),
        folder / 'added_tokens.json': as_bytes(other_types({'<pad>': 259}, 30)),
        folder / 'merges.txt': [('merges', o) for o in merges],
        alone / 'tokenizer.json': as_bytes(other_types(body, 150)),
    }
    wrong = []
    for f, of in cases.items():
        good = f.read_bytes()
        for what, content in [*spoilt(good), *of]:
            f.write_bytes(content)
            try:
                load_tokenizer(f.parent).encode('the cat')
            except ValueError as e:
                if str(f.parent) not in str(e):
                    wrong.append((f.name, what, e))
            except Exception as e:
                wrong.append((f.name, what, e))
        f.write_bytes(good)
    assert not wrong, '\n'.join(map(str, wrong))


def test_a_sentencepiece_model_with_any_byte_flipped(run, tmp_path):
    from gpt2repro.tokenizer import load_tokenizer

    good = (run / 'tokenizer/tokenizer.model').read_bytes()
    f = tmp_path / 'tokenizer.model'
    rng = random.Random(0)
    for _ in range(150):
        i = rng.randrange(len(good))
        f.write_bytes(good[:i] + bytes([good[i] ^ (1 << rng.randrange(8))]) + good[i + 1 :])
        try:
            load_tokenizer(tmp_path)
        except ValueError as e:
            assert str(f) in str(e)


def test_records_and_settings_of_2019(tmp_path):
    from gpt2repro.config2019 import from_json2019
    from gpt2repro.experiment import read_experiment, run_frame

    runs = [
        dict(cell='ours', seed=0, steps=10, bpb=2.0, curve=[[0, 3.0]], groups={}, settings=dict(optim={}))
    ]
    records = dict(about=dict(size='1M', corpus='docs', n_params=5), runs=runs)
    old = dict(n_vocab=320, n_ctx=32, n_embd=32, n_layer=1, n_head=2, attn_dropout=0.1, res_dropout=0.1)
    old |= dict(opt_name='adafactor', lr=0.1, warmup_steps=1, train_batch_size=2, max_steps=10, beta1=0.0)
    readers = {
        'records.json': (records, lambda f: run_frame(read_experiment(f.parent))),
        'old.json': (old, from_json2019),
    }
    wrong = []
    for name, (good, read) in readers.items():
        f = tmp_path / name / name
        f.parent.mkdir()
        f.write_text(json.dumps(good))
        read(f)
        for what, content in [*spoilt(f.read_bytes()), *as_bytes(other_types(good, 200))]:
            f.write_bytes(content)
            try:
                read(f)
            except (ValueError, FileNotFoundError) as e:
                if name not in str(e) and str(f.parent) not in str(e):
                    wrong.append((name, what, e))
            except Exception as e:
                wrong.append((name, what, repr(e)))
    assert not wrong, '\n'.join(map(str, wrong))


def test_what_a_kill_leaves(copy):
    "It goes at the next start; what a living process is writing, and what only looks alike, stays"
    fcntl = pytest.importorskip('fcntl')
    left = [
        copy / f'.{f}.ab12cd34.gpt2repro-tmp'
        for f in ('report.html', 'log.jsonl', 'config.json', 'scores.json')
    ]
    part = copy / 'checkpoints/.part-00000009-12345'
    living = copy / '.report.html.living00.gpt2repro-tmp'
    mine = [copy / '.report.html.original', copy / '.log.jsonl.backup', copy / 'checkpoints/.part-of-mine']
    for f in (*left, living, *mine):
        f.write_text('x' * 5000)
    part.mkdir()
    (part / 'model.safetensors').write_text('x')
    for verb in ('report', copy), ('train', copy, '--max-steps', 10, '--device', 'cpu'):
        for f in left:
            f.write_text('x' * 5000)
        with open(living) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            status, said = command(*verb)
        assert status == 0 and living.exists() and all(f.exists() for f in mine), said
        assert not any(f.exists() for f in left)
    assert not part.exists()


def test_a_killed_scratch_folder(tmp_path):
    "A folder for a checkpoint on its way to a slow mount, or for the hub"
    from gpt2repro.utils import scratch_folder

    dead = tmp_path / '.ab12cd34.gpt2repro-tmp'
    (dead / 'new').mkdir(parents=True)
    (dead / 'new/model.safetensors').write_text('x')
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert not dead.exists() and first.exists() and second.exists()
    assert not list(tmp_path.iterdir())


def test_state_files_of_the_crawl(tmp_path):
    from gpt2repro.webtext.data_card import card, counts

    stats = [dict(name='x: links', stats=dict(total=3, doc_len=[], kept=dict(total=2)))]
    described = dict(n=dict(documents=1), lengths={'8': 1}, sites=dict(a=1))
    good = {
        'webtext.json': dict(inputs=['a'], settings={}),
        '.work/logs/links/stats/00000.json': stats,
        '.work/described/00000.json': described,
        'links/00000.sites': dict(a=1),
    }
    for name, d in good.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(d))
    assert card(tmp_path)['inputs'] == ['a'] and counts(tmp_path) == dict(
        links=dict(links=dict(total=3, kept=2))
    )
    wrong = []
    for name, d in good.items():
        f = tmp_path / name
        for what, content in [*spoilt(f.read_bytes()), *as_bytes(other_types(d, 40))]:
            f.write_bytes(content)
            try:
                card(tmp_path)
            except ValueError as e:
                if str(f) not in str(e):
                    wrong.append((name, what, e))
            except Exception as e:
                wrong.append((name, what, repr(e)))
        f.write_text(json.dumps(d))
    assert not wrong, '\n'.join(map(str, wrong))


def test_files_of_the_tasks(tmp_path):
    from gpt2repro.evaluate import CoQA, HellaSwag, Lambada, NaturalQuestions

    turns = [dict(input_text='a', turn_id=1)]
    scene = dict(activity_label='a', ctx_a='b', ctx_b='c', ctx='d', endings=['e'] * 4, label=1)
    good = {
        Lambada: dict(text='a b'),
        HellaSwag: scene,
        NaturalQuestions: dict(question='a', answer=['b']),
        CoQA: dict(data=[dict(story='a', questions=turns, answers=turns, additional_answers={'0': turns})]),
    }
    wrong = []
    for task, d in good.items():
        f = tmp_path / f'{task.name}.json'
        f.write_text(json.dumps(d) + '\n')
        task().requests(task().read(f)[0], 'paper')
        for what, content in [*spoilt(f.read_bytes()), *as_bytes(other_types(d, 60))]:
            f.write_bytes(content + b'\n')
            try:
                task().requests(task().read(f)[0], 'modern')
            except ValueError as e:
                if str(f) not in str(e) and task.name not in str(e):
                    wrong.append((task.name, what, e))
            except Exception as e:
                wrong.append((task.name, what, repr(e)))
    assert not wrong, '\n'.join(map(str, wrong))
