"""Shards as they meet the world:

killed at any point, a full disk, two processes, a flipped bit, files too long to read
"""

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
from gpt2repro.corpus import documents, read_file
from gpt2repro.shards import load_manifest, prepare, verify, write_shards
from gpt2repro.tokenizer import GPT2BPE, byte_alphabet

os.environ['GPT2REPRO_QUIET'] = '1'
root = os.geteuid() == 0
chars = GPT2BPE({p: i for i, p in enumerate([*byte_alphabet(), '<|endoftext|>'])}, [])
docs = [f'Document number {i}. ' * (i % 40) for i in range(300)]
size = dict(shard_tokens=30_000, group_bytes=5_000)
quiet = {**os.environ, 'GPT2REPRO_QUIET': '1', 'HF_HUB_OFFLINE': '1'}


def tree(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(Path(folder).rglob('*'))
        if f.is_file() and f.name != '.lock'
    }


def python(code, **kw):
    return subprocess.Popen(
        [sys.executable, '-c', code],
        env=quiet,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kw,
    )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    write_shards(docs, chars, folder, workers=0, **size)
    return tree(folder)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    "Two thousand short documents"
    f = tmp_path_factory.mktemp('text') / 'docs.jsonl'
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(2, 8))) for _ in range(400)]
    f.write_text(
        ''.join(json.dumps(dict(text=' '.join(rng.choices(words, k=80)) + '.')) + '\n' for _ in range(2000))
    )
    return f


# interrupted

acts = {'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'tempfile.mkstemp', 'os.chmod'}


def killed_at(k, folder):
    """A process that writes shards and dies, without a word, before its act number `k` on the disk or at
    the document after it; True if it came to its end"""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    n = 0

    def hook(event, args):
        nonlocal n
        if event in acts and str(args[0]).startswith(str(folder)):
            n += 1
            if n > k:
                os._exit(9)

    sys.addaudithook(hook)
    write_shards(docs, chars, folder, workers=0, **size)
    os._exit(0)


def test_killed_before_any_act_on_the_disk_and_again(whole, tmp_path):
    for k in range(1000):
        folder = tmp_path / str(k)
        finished = killed_at(k, folder)
        if not finished and (folder / 'manifest.json').exists():
            assert load_manifest(folder).n_docs == len(docs)  # what looks whole is whole
        if k % 3 == 2 and not finished:
            killed_at(k // 2, folder)  # killed in the second run too
        write_shards(docs, chars, folder, workers=2 if k % 10 == 5 else 0, **size)
        assert tree(folder) == whole, k
        if finished:
            break
    assert k > 20


def test_killed_at_any_time_with_other_numbers_of_workers(text, tmp_path):
    "SIGKILL to the whole of `prepare`, then again with another number of workers: the same files"
    want = [dict(vocab_size=400, valid_fraction=0.1, shard_tokens=20_000), tmp_path / 'want']
    prepare(text, want[1], workers=1, **want[0])
    rng = random.Random(1)
    for i in range(3):
        out = tmp_path / str(i)
        p = python(
            f'from gpt2repro.shards import prepare\n'
            f'prepare({str(text)!r}, {str(out)!r}, workers={1 + i}, **{want[0]!r})',
            start_new_session=True,
        )
        while not (out / 'prepare.json').exists() and p.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1.2))
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
        prepare(text, out, workers=2 - i % 2, **want[0])
        assert tree(out) == tree(want[1])


# the disk and other processes

full_disk = """
import shutil, subprocess, sys
sys.path.insert(0, sys.argv[1])
from test_data import Path, chars, docs, load_manifest, pytest, size, write_shards
disk, copy = map(Path, sys.argv[2:])
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', disk], check=True)
full = 'the disk is full after .* documents: free some space and run the same command again'
with pytest.raises(OSError, match=full):
    write_shards(docs, chars, disk/'s', **size)
assert not list((disk/'s').glob('*.part')) and not (disk/'s/manifest.json').exists()
with pytest.raises(FileNotFoundError, match='unfinished'): load_manifest(disk/'s')
subprocess.run(['mount', '-o', 'remount,size=4m', disk], check=True)
write_shards(docs, chars, disk/'s', **size)
shutil.copytree(disk/'s', copy)
"""


def test_a_full_disk_and_then_a_larger_one(whole, tmp_path):
    "In a process with mounts of its own, which are gone with it"
    (disk := tmp_path / 'disk').mkdir()
    private = ['unshare', '--mount']
    if (
        not shutil.which('unshare')
        or subprocess.run(
            [*private, 'mount', '-t', 'tmpfs', 'tmpfs', disk], stderr=subprocess.DEVNULL
        ).returncode
    ):
        pytest.skip('mounting a tmpfs is not allowed here')
    p = subprocess.run(
        [*private, sys.executable, '-c', full_disk, Path(__file__).parent, disk, tmp_path / 'copy'],
        env=quiet,
        capture_output=True,
        text=True,
    )
    assert p.returncode == 0, p.stderr
    assert tree(tmp_path / 'copy') == whole
    assert not list(disk.iterdir())


def test_two_processes_in_one_folder(text, tmp_path):
    p = python(
        f'import time\n'
        f'from gpt2repro.shards import folder_lock\n'
        f'with folder_lock({str(tmp_path / "out")!r}):\n'
        f'    print("held", flush=True)\n'
        f'    time.sleep(60)'
    )
    try:
        assert p.stdout.readline() == 'held\n'
        with pytest.raises(RuntimeError, match='another process is writing here'):
            prepare(text, tmp_path / 'out', vocab_size=400, workers=0)
        assert [f.name for f in (tmp_path / 'out').iterdir()] == ['.lock']
    finally:
        p.kill()
        p.communicate()
    # A lock dies with its process.
    prepare(text, tmp_path / 'out', vocab_size=400, valid_fraction=0.1, workers=0)


# damage


def test_any_flipped_bit_is_found(text, tmp_path):
    out = tmp_path / 'out'
    prepare(text, out, vocab_size=400, valid_fraction=0.1, workers=0)
    verify(out)
    files = [
        f
        for f in sorted(out.rglob('*'))
        if f.is_file() and f.name not in ('.lock', 'prepare.json', 'done') and f.stat().st_size
    ]
    assert len(files) == 5  # a shard and a manifest on each side, and the tokenizer
    rng = random.Random(0)
    for f in files:
        good = f.read_bytes()
        for _ in range(25):
            at, bit = rng.randrange(len(good)), rng.randrange(8)
            f.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            with pytest.raises(ValueError) as e:
                verify(out)
            assert '\n' not in str(e.value), (f, at, bit)
        f.write_bytes(good[:-2])
        with pytest.raises(ValueError):
            verify(out)
        f.unlink()
        with pytest.raises((ValueError, FileNotFoundError)):
            verify(out)
        f.write_bytes(good)
    verify(out)


# files


def test_a_line_of_a_gigabyte(tmp_path):
    "Refused, or left out, without taking its size in memory"
    names = {k: tmp_path / f'long.{k}' for k in ('txt', 'jsonl', 'csv', 'json')}
    begin = dict(txt=b'', jsonl=b'{"text": "first"}\n', csv=b'text\n', json=b'["')
    for k, f in names.items():
        with open(f, 'wb') as o:
            o.write(begin[k])
            for _ in range(16 if k == 'json' else 0):
                o.write(b'x' * (10 << 20))
            if k != 'json':
                o.truncate(1 << 30)
    code = f"""
from pathlib import Path
from gpt2repro.corpus import read_file
for f in {list(map(str, names.values()))!r}:
    try: print(len(list(read_file(f))))
    except ValueError as e: print(str(e)[len({str(tmp_path)!r})+1:])
print(list(read_file({str(names['jsonl'])!r}, errors='skip')))
# ru_maxrss would begin with the parent's
status = Path('/proc/self/status').read_text().splitlines()
print(int(next(l for l in status if l.startswith('VmHWM')).split()[1]) // 1024)"""
    out, err = python(code).communicate()
    *lines, skipped, mib = out.splitlines()
    assert [l.partition(':')[0] for l in lines] == [
        'long.txt before byte 68157440',
        'long.jsonl line 2',
        'long.csv line 2',
        'long.json',
    ], (lines, err)
    assert all('of more than 64 MiB' in l for l in lines), lines
    assert skipped == "['first']" and '1 document left out' in err
    assert int(mib) < 600, mib  # the array's limit is twice that of a document


@pytest.mark.skipif(not root, reason='needs root to become somebody else')
def test_a_file_that_may_not_be_read(tmp_path):
    f = tmp_path / 'secret.txt'
    f.write_text('hush')
    f.chmod(0)
    os.chmod(tmp_path, 0o755)
    try:
        os.seteuid(65534)
        with pytest.raises(PermissionError, match='secret.txt'):
            list(read_file(f))
    finally:
        os.seteuid(0)


def test_a_data_set_through_datasets(tmp_path, monkeypatch):
    "`hf:` streams with the hub's own library; a folder stands in for the hub"
    import pandas as pd

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    texts = [f'text {i} – ünï\r\n' for i in range(1000)]
    (tmp_path / 'set').mkdir()
    pd.DataFrame(dict(id=range(1000), body=texts)).to_parquet(tmp_path / 'set/train.parquet')
    name = f'hf:{tmp_path}/set'
    assert list(documents(name, field='body')) == texts
    with pytest.raises(ValueError, match="has no field 'text'"):
        documents(name)
    with pytest.raises(ValueError, match="can't be opened"):
        documents('hf:nobody/nothing')


def test_the_command_records_what_it_did(tmp_path, capsys):
    from gpt2repro.cli import main

    rows = [dict(body=f'document {i}, long enough to stay') for i in range(200)] + [
        dict(body='short'),
        dict(body='document 7, long enough to stay'),
        dict(other=1),
        dict(body='it is â€œtwiceâ€\x9d encoded, alas'),
    ]
    (tmp_path / 'd.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    argv = [
        'prepare',
        tmp_path / 'd.jsonl',
        '--out',
        tmp_path / 'out',
        '--vocab_size',
        300,
        '--valid_fraction',
        0.2,
        '--field',
        'body',
        '--errors',
        'skip',
        '--dedup',
        '--min_chars',
        10,
        '--fix_text',
    ]
    assert not main([str(a).replace('_', '-') if str(a).startswith('--') else str(a) for a in argv]), (
        capsys.readouterr().err
    )
    facts = load_manifest(tmp_path / 'out/shards/train').facts
    assert facts['documents'] == dict(skipped=1, too_short=1, repeated=1, mended=1)
    assert (facts['field'], facts['errors'], facts['fix_text'], facts['min_chars'], facts['dedup']) == (
        'body',
        'skip',
        True,
        10,
        True,
    )
    assert 'left out as repetitions' in capsys.readouterr().err
