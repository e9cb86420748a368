"""The command as its users meet it:

in processes of its own, with wrong words, damaged files, a full disk, and Ctrl-C in the middle
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch
from gpt2repro.cli import main

env = {**os.environ, 'GPT2REPRO_QUIET': '1', 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
small = [
    'model.vocab_size=320',
    'n_ctx=32',
    'n_embd=32',
    'n_layer=2',
    'n_head=2',
    'batch_tokens=256',
    'micro_batch=4',
    'log_every=5',
    'eval_every=20',
    'eval_batches=2',
    'save_every=10',
    'warmup_steps=5',
]


def command(*argv):
    "Exit status, standard output, standard error; in this process"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in argv])
        except SystemExit as e:
            status = e.code
    return status, out.getvalue(), err.getvalue()


def process(*argv, **kw):
    return subprocess.Popen(
        [sys.executable, '-m', 'gpt2repro', *map(str, argv)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell is started deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kw,
    )


def lines(err):
    return [l for l in err.splitlines() if l.startswith('gpt2repro: ')]


def tree(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(Path(folder).rglob('*'))
        if f.is_file() and f.name != '.lock'
    }


def fails(words, *argv, status=2):
    "The command ends with `status` and one line that holds `words`, without a traceback"
    os.environ['GPT2REPRO_QUIET'] = '1'
    s, out, err = command(*argv)
    assert (s, len(lines(err))) == (status, 1), (s, err)
    assert 'Traceback' not in err and words in lines(err)[0], err
    return lines(err)[0]


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    "Three hundred short documents in a .jsonl file"
    f = tmp_path_factory.mktemp('text') / 'docs.jsonl'
    rng = random.Random(0)
    words = ['the', 'cat', 'a', 'dog'] + [
        ''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(2, 8))) for _ in range(300)
    ]
    f.write_text(
        ''.join(json.dumps(dict(text=' '.join(rng.choices(words, k=60)) + '.')) + '\n' for _ in range(300))
    )
    return f


@pytest.fixture(scope='module')
def data(text):
    "The same, prepared"
    os.environ['GPT2REPRO_QUIET'] = '1'
    out = text.parent / 'prepared'
    assert command('prepare', text, '--out', out, '--vocab-size', 320, '--valid-fraction', 0.1)[0] == 0
    return out


@pytest.fixture(scope='module')
def whole(data):
    "A run of 40 steps that nothing interrupted"
    run = data.parent / 'whole'
    assert command('train', run, '--data', data, '--max-steps', 40, '--device', 'cpu', *small)[0] == 0
    return run


def test_a_finished_run_gives_samples_scores_and_a_report(whole, tmp_path):
    argv = ('sample', whole, 'the cat', '--max-new-tokens', 8, '--json', '--device', 'cpu')
    s, out, _ = command(*argv)
    assert s == 0 and json.loads(out)['samples'][0]['prompt'] == 'the cat'
    assert command(*argv)[1] == out  # the same seed, the same text
    s, out, _ = command('evaluate', whole, '--data', whole.parent / 'prepared', '--json', '--device', 'cpu')
    held = json.loads(out)['heldout']
    log = [json.loads(l) for l in (whole / 'log.jsonl').read_text().splitlines()]
    last = [r for r in log if r['kind'] == 'valid'][-1]
    # Whole documents against windows: near, not equal
    assert s == 0 and abs(held['nats_per_token'] - last['loss']) < 0.5
    s, out, _ = command('report', whole, '--out', tmp_path / 'r.html')
    assert s == 0 and 50_000 < (tmp_path / 'r.html').stat().st_size < 1_500_000
    inspected = tmp_path / 'i.html'
    s, out, _ = command('report', whole, '--out', inspected, '--inspect', 'held-out')
    assert s == 0 and 'whole: inside step-00000040' in inspected.read_text()
    assert 'inside step-' not in (tmp_path / 'r.html').read_text()
    s, _, err = command('report', whole, '--out', inspected, '--inspect', 'the cat ' * 99)
    assert s == 2 and 'give at most 31 for this model' in err
    s, out, _ = command('report', whole, '--out', tmp_path / 'w.html', '--watch')
    assert s == 0 and 'Written a last time' in out  # a finished run ends it at once
    s, out, _ = command('report', whole, '--out', tmp_path / 'w.html', '--watch', '--json')
    assert s == 0 and json.loads(out) == dict(report=str(tmp_path / 'w.html'))
    prompts = tmp_path / 'prompts.txt'
    prompts.write_text('the\na dog\n')
    s, out, _ = command(
        'sample', whole, '--file', prompts, '--n', 2, '--max-new-tokens', 3, '--json', '--device', 'cpu'
    )
    assert [r['prompt'] for r in json.loads(out)['samples']] == ['the', 'the', 'a dog', 'a dog']


def test_a_checkpoint_loads_in_transformers(whole):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from gpt2repro.checkpoint import latest_checkpoint
    from gpt2repro.weights import from_pretrained
    from gpt2repro.tokenizer import load_tokenizer

    last = latest_checkpoint(whole / 'checkpoints')
    ours = from_pretrained(last)
    theirs = AutoModelForCausalLM.from_pretrained(last)
    ids = torch.randint(320, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    s = 'the cat sat 17 times'
    assert AutoTokenizer.from_pretrained(last)(s)['input_ids'] == load_tokenizer(last).encode(s)


# what people type


@pytest.mark.parametrize(
    'words,argv',
    [
        ("unknown verb 'trian': did you mean train", ['trian']),
        ("unknown recipe 'tinny': did you mean tiny", ['train', 'new', '--recipe', 'tinny']),
        (
            "unknown setting 'n_layerz': did you mean n_layer",
            ['train', 'new', '--recipe', 'tiny', 'n_layerz=3'],
        ),
        ('n_layer=six: int needed', ['train', 'new', '--recipe', 'tiny', 'n_layer=six']),
        ('not divisible by n_head=7', ['train', 'new', '--recipe', 'tiny', 'n_head=7']),
        ('not a multiple of n_ctx', ['train', 'new', '--recipe', 'tiny', 'batch_tokens=1000']),
        ('invalid int value', ['train', 'new', '--max-steps', 'many']),
        ('unrecognized arguments: --recipee', ['train', 'new', '--recipee', 'tiny']),
        ('new is no run', ['train', 'new']),
        ('new is no run', ['report', 'new']),
        ('new does not exist', ['sample', 'new', 'hello']),
        ('nofile.txt', ['prepare', 'nofile.txt', '--out', 'new']),
        ('nofile.txt does not exist', ['sample', '.', '--file', 'nofile.txt']),
        ("unknown device 'gpu'", ['reproduce', '--device', 'gpu', '--out', 'new']),
        ('give a number above 0', ['reproduce', '--minutes', '0', '--out', 'new']),
    ],
)
def test_wrong_words(words, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(words, *argv)
    assert not list(tmp_path.iterdir())  # a mistake leaves nothing behind


def test_a_short_run_gets_a_short_warm_up(data, tmp_path):
    s, out, err = command(
        'train',
        tmp_path / 'r',
        '--data',
        data,
        '--max-steps',
        20,
        '--device',
        'cpu',
        *[o for o in small if 'warmup' not in o],
    )
    assert s == 0 and 'warm-up shortened from 100 to 2 steps' in err
    assert json.loads((tmp_path / 'r/config.json').read_text())['optim']['warmup_steps'] == 2


def test_debug_shows_the_traceback():
    s, _, err = command('train', 'nothing', '--debug')
    assert s == 2 and 'Traceback' in err


# texts


def test_an_empty_and_a_binary_corpus(tmp_path):
    (tmp_path / 'empty.txt').write_text('')
    (tmp_path / 'binary.txt').write_bytes(bytes(range(256)) * 40)
    fails('empty.txt', 'prepare', tmp_path / 'empty.txt', '--out', tmp_path / 'a')
    fails('binary.txt', 'prepare', tmp_path / 'binary.txt', '--out', tmp_path / 'b')
    for o in 'a', 'b':
        assert not (tmp_path / o / 'shards/train/manifest.json').exists()


def test_a_flipped_bit_is_found(data, tmp_path):
    shutil.copytree(data, tmp_path / 'p')
    assert command('prepare', '--verify', tmp_path / 'p')[0] == 0
    f = next((tmp_path / 'p/shards/train').glob('*.bin'))
    b = bytearray(f.read_bytes())
    b[len(b) // 2] ^= 1
    f.write_bytes(b)
    fails(f.name, 'prepare', '--verify', tmp_path / 'p')


# run folders


def test_folders_that_are_no_runs_or_half_of_one(data, whole, tmp_path):
    (tmp_path / 'empty').mkdir()
    fails('is no run', 'train', tmp_path / 'empty')
    fails('neither a run nor a model', 'sample', tmp_path / 'empty', 'x')
    begun = tmp_path / 'begun'
    begun.mkdir()
    shutil.copy(whole / 'config.json', begun)
    (begun / 'checkpoints').mkdir()
    fails('has no checkpoint yet: go on with `gpt2repro train', 'sample', begun, 'x')
    (begun / 'config.json').write_text('{"name": "be')
    before = tree(begun)
    fails('config.json is not JSON', 'train', begun)
    fails('config.json is not JSON', 'report', begun)
    cfg = json.loads((whole / 'config.json').read_text())
    (begun / 'config.json').write_text(json.dumps({**cfg, 'max_steps': 'many'}))
    fails("max_steps='many' is str, but int is needed", 'train', begun)
    assert tree(begun).keys() == before.keys()
    fails('was begun with', 'train', whole, 'optim.lr=0.5')
    (tmp_path / 'afile').write_text('')
    fails('afile', 'train', tmp_path / 'afile', '--recipe', 'tiny', '--data', data, *small)


def test_a_torn_checkpoint_is_passed_over(whole, tmp_path):
    run = tmp_path / 'torn'
    shutil.copytree(whole, run)
    last = run / 'checkpoints/step-00000040/model.safetensors'
    last.write_bytes(last.read_bytes()[:1000])
    s, out, err = command('sample', run, 'the', '--max-new-tokens', 2, '--device', 'cpu')
    assert s == 0 and 'step-00000040' in err and 'using the checkpoint before it' in err


def test_a_full_disk(data, tmp_path):
    "The disk fills up while a run saves: one line, and what was there stays"
    small_disk = tmp_path / 'disk'
    small_disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', small_disk], stderr=subprocess.DEVNULL
        ).returncode
    ):
        pytest.skip('mounting a small tmpfs needs root')
    try:
        (small_disk / 'mine.txt').write_text('precious')
        msg = fails(
            'no space left',
            'train',
            small_disk / 'run',
            '--data',
            data,
            '--max-steps',
            40,
            '--device',
            'cpu',
            *small,
        )
        assert 'free some' in msg
        assert (small_disk / 'mine.txt').read_text() == 'precious'
        assert not list((small_disk / 'run').rglob('.part-*'))  # nothing half written is left
        fails(
            'free some', 'prepare', data.parent / 'docs.jsonl', '--out', small_disk / 'p', '--vocab-size', 320
        )
        assert not (small_disk / 'p/shards/train/manifest.json').exists()
    finally:
        subprocess.run(['umount', small_disk], check=True)


# signals


def wait_for(test, p, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if test():
            return
        assert p.poll() is None, p.communicate()
        time.sleep(0.002)
    raise TimeoutError


def logged(run, step):
    return (run / 'log.jsonl').exists() and f'"step": {step},' in (run / 'log.jsonl').read_text()


def weights(run):
    return (run / 'checkpoints/step-00000150/model.safetensors').read_bytes()


def test_stopped_runs_end_with_the_same_weights(data, tmp_path):
    """Ctrl-C and SIGTERM in the middle; after the last go the weights are, bit for bit, those of the
    run that nothing interrupted (SIGKILL: test_train.py)"""
    args = ['--data', data, '--max-steps', 150, '--device', 'cpu', *small, 'resid_pdrop=0.1', 'keep=1']
    a = tmp_path / 'a'
    b = tmp_path / 'b'
    for sig, step, status in (signal.SIGINT, 30, 130), (signal.SIGTERM, 80, 130):
        p = process('train', b, *args)
        wait_for(lambda: logged(b, step), p)
        p.send_signal(sig)
        out, err = p.communicate(timeout=60)
        assert p.returncode == status, (sig, p.returncode, err)
        assert len(lines(err)) == 1 and 'Traceback' not in err, err
        assert 'all saved: go on with `gpt2repro train' in err
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: the order of a sum is that of its threads
    assert command('train', b)[0] == 0  # goes on by itself
    assert command('train', a, *args)[0] == 0
    torch.set_num_threads(threads)
    assert weights(a) == weights(b)
    steps = lambda run: [
        r['step']
        for r in map(json.loads, (run / 'log.jsonl').read_text().splitlines())
        if r['kind'] == 'train'
    ]
    assert steps(a) == steps(b) == list(range(5, 151, 5))  # no gap, nothing twice


def test_fine_tuning(whole, tmp_path):
    """--from takes the model's own size and tokenizer and the recipe for it; settings may follow the
    files; TensorBoard gets the log"""
    pytest.importorskip('tensorboard')
    texts = [tmp_path / 'a.txt', tmp_path / 'b.txt']
    rng = random.Random(1)
    for f in texts:
        f.write_text(
            '\n\n'.join(
                ' '.join(rng.choices('the dog cat saw ran past sat on and one mat'.split(), k=40))
                for _ in range(80)
            )
        )
    run = tmp_path / 'tuned'
    s, out, err = command(
        'train',
        run,
        '--from',
        whole,
        '--data',
        *texts,
        'batch_tokens=256',
        'eval_every=10',
        'save_every=10',
        'sample_every=10',
        '--max-steps',
        20,
        '--track',
        'tensorboard',
        '--device',
        'cpu',
        '--json',
    )
    assert s == 0, err
    cfg, before = (json.loads((r / 'config.json').read_text()) for r in (run, whole))
    assert (cfg['optim']['lr'], cfg['model'], cfg['batch_tokens']) == (1e-3, before['model'], 256) and cfg[
        'start_from'
    ].startswith(str(whole))
    assert (run / 'tokenizer/tokenizer.model').read_bytes() == (
        whole.parent / 'prepared/tokenizer/tokenizer.model'
    ).read_bytes()
    recs = [json.loads(l) for l in (run / 'log.jsonl').read_text().splitlines()]
    valid = [r['loss'] for r in recs if r['kind'] == 'valid']
    assert (
        valid[-1] < valid[0]
        and sum(r['kind'] == 'sample' for r in recs) == 2
        and list((run / 'tensorboard').glob('events*'))
    )
    fails('--track tensorbord: did you mean tensorboard', 'train', run, '--track', 'tensorbord')
    fails(
        "unknown recipe 'connor2019-1.5': did you mean connor2019-1.5B",
        'train',
        tmp_path / 'new',
        '--recipe',
        'connor2019-1.5',
    )


def test_ctrl_c_while_preparing(text, tmp_path):
    big = tmp_path / 'big.jsonl'
    big.write_text(text.read_text() * 400)
    p = process('prepare', big, '--out', tmp_path / 'p', '--vocab-size', 320)
    wait_for(lambda: (tmp_path / 'p').exists(), p)
    time.sleep(0.3)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and len(lines(err)) == 1 and 'Traceback' not in err, err
    assert (
        not (tmp_path / 'p/shards/train/manifest.json').exists()
        or not (tmp_path / 'p/shards/valid/manifest.json').exists()
    )


def test_two_processes_on_one_run(data, tmp_path):
    run = tmp_path / 'run'
    p = process('train', run, '--data', data, '--max-steps', 100000, '--device', 'cpu', *small)
    try:
        wait_for(lambda: logged(run, 5), p)
        fails('another process', 'train', run)
    finally:
        p.terminate()
        p.communicate(timeout=60)
