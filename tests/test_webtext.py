"""The WebText pipeline in processes of its own:

killed and run again, on Ray, under Slurm, without its extra. All traffic goes to this machine
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest

pytest.importorskip('gpt2repro.webtext.run')
from gpt2repro.cli import main
from gpt2repro.webtext.fetch import Response, warc_record
from gpt2repro.webtext.options import CrawlConfig, WebTextConfig
from gpt2repro.webtext.practice_site import PracticeSite, practice_dump
from gpt2repro.webtext.run import webtext

env = {**os.environ, 'GPT2REPRO_QUIET': '1', 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
crawl = ['delay=0.005', 'timeout=9', 'deadline=5', 'max_bytes=1048576', 'retries=1', 'backoff=0.01']


def process(*argv, **kw):
    return subprocess.Popen(
        [sys.executable, '-m', 'gpt2repro', 'webtext', *map(str, argv)],
        env={**env, **kw},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a job in the background of a shell is started deaf to Ctrl-C


def made(folder, *parts):
    "The files that count, by name"
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for p in parts
        for f in sorted((folder / p).rglob('*'))
        if f.is_file()
    }


def wait_for(test, p, seconds=90):
    end = time.time() + seconds
    while time.time() < end:
        if test():
            return
        assert p.poll() is None, p.communicate()
        time.sleep(0.005)
    raise TimeoutError


def lines(folder):
    return sum(f.read_bytes().count(b'\n') for f in (folder / '.work/pages').glob('*.journal'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A small crawl that nothing interrupted, by the local executor, while its site stays up"
    tmp = tmp_path_factory.mktemp('web')
    with PracticeSite(pages=150) as site:
        practice_dump(site.urls, tmp / 'dump.jsonl')
        cfg = WebTextConfig(
            tasks=2,
            crawl=CrawlConfig(
                delay=0.005,
                timeout=9.0,
                deadline=5.0,
                max_bytes=1 << 20,
                retries=1,
                backoff=0.01,
                private='127.0.0.0/8,::1/128',
            ),
        )
        card = webtext([tmp / 'dump.jsonl'], tmp / 'a', cfg, workers=1)
        assert card['documents'] > 40
        yield site, tmp / 'dump.jsonl', tmp / 'a'


def test_stopped_and_killed_it_ends_with_the_same_files(whole, tmp_path):
    """Ctrl-C and a kill -9 among the pages, a kill -9 in a later stage; no link is fetched twice, and
    the documents are the same bytes"""
    site, dump, a = whole
    b = tmp_path / 'b'
    args = [dump, '--out', b, '--allow-private', 'tasks=2', *crawl]
    before = len(site.log)
    p = process(*args)
    wait_for(lambda: lines(b) > 50, p)

    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'Traceback' not in err, err
    n = lines(b)
    p = process(*args)
    wait_for(lambda: lines(b) > n + 50, p)
    p.kill()
    p.communicate()
    p = process(*args)
    wait_for(lambda: (b / 'text').exists(), p)
    p.kill()
    p.communicate()
    p = process(*args, '--json')
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    card, other = json.loads(out), json.loads((a / 'card.json').read_text())
    assert card['funnel'] == other['funnel'] and card['counts'] == other['counts']
    assert made(b, 'links', 'text', 'documents', 'removed') == made(
        a, 'links', 'text', 'documents', 'removed'
    )
    fetched = [l for l in site.log[before:] if l.startswith('/page')]
    once = [l for l in site.log[:before] if l.startswith('/page')]
    assert len(fetched) < len(once) + 40  # only what was under way when it died is asked for again
    assert site.most == 1  # never two connections at one host, killed or not


def test_wrong_words(whole, tmp_path, capsys):
    site, dump, a = whole
    for words, argv in (
        ('was begun with other inputs or settings', [dump, '--out', a, 'tasks=3']),
        ('no such file', [a / 'x.zst', '--out', tmp_path / 'x']),
        (
            "unknown setting 'min_scoore': did you mean min_score",
            [dump, '--out', tmp_path / 'x', 'min_scoore=2'],
        ),
        ("stage='txt'", [dump, '--out', tmp_path / 'x', '--stage', 'txt']),
        (
            'WARC files begin with the stage text',
            [next((a / 'pages').glob('*.warc.gz')), '--out', tmp_path / 'x', '--stage', 'pages'],
        ),
        ('name of a partition', [dump, '--out', tmp_path / 'y', '--executor', 'slurm']),
        ('workers=0', [dump, '--out', tmp_path / 'y', '--workers', '0']),
        ('not among those that py3langid', [dump, '--out', tmp_path / 'y', 'language=xx']),
    ):
        assert main(['webtext', *map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / 'x').exists() and not (tmp_path / 'y').exists()


def test_prepare_takes_it_from_there(whole, tmp_path, monkeypatch):
    monkeypatch.setenv('GPT2REPRO_QUIET', '1')
    assert (
        main(
            [
                'prepare',
                str(whole[2] / 'documents'),
                '--out',
                str(tmp_path / 'p'),
                '--vocab-size',
                '400',
                '--valid-fraction',
                '.1',
                '--workers',
                '0',
            ]
        )
        == 0
    )
    assert (tmp_path / 'p/shards/train/manifest.json').exists()


def test_ray_makes_the_same_documents(whole, tmp_path):
    pytest.importorskip('ray', reason='ray is not installed')
    src = sorted((whole[2] / 'pages').glob('*.warc.gz'))
    p = process(*src, '--out', tmp_path / 'r', '--executor', 'ray', '--workers', 2, 'tasks=2', RAY_ADDRESS='')
    out, err = p.communicate(timeout=240)
    assert p.returncode == 0, err
    parts = 'text', 'documents', 'removed'
    want = made(whole[2], *parts)
    # all six hosts may fall to one task: their ports are drawn anew in each run
    assert {name.partition('/')[0] for name in want} == set(parts)
    assert made(tmp_path / 'r', *parts) == want


sbatch = r"""#!/usr/bin/env python3
"Runs a job at once, as many times as its array wants: Slurm's way in, and nothing else of it"
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
with open(os.environ['JOBS'], 'a') as f: f.write(' '.join(sys.argv[1:-1])+'\n')
n = sum(1 for _ in open(os.environ['JOBS']))
last = int(re.search(r'--array=0-(\d+)', script)[1])
kw = dict(re.findall(r'^#SBATCH --([\w-]+)=?(.*)$', script, re.M))
assert kw['partition'] == 'tiny', kw
for i in range(last+1) if 'merge_stats' not in script else ():
    env = {**os.environ, 'SLURM_ARRAY_TASK_ID': str(i), 'SLURM_NODELIST': 'here'}
    err = open(os.environ['JOBS']+'.err', 'a')
    subprocess.run(['bash', sys.argv[-1]], check=True, env=env, stdout=subprocess.DEVNULL, stderr=err)
print('Submitted batch job', n)
"""


@pytest.mark.slow
def test_slurm_gets_the_same_jobs(whole, tmp_path):
    "A stand-in for sbatch runs each job when it is submitted; a real cluster has not been tried"
    bin = tmp_path / 'bin'
    bin.mkdir()
    for name, text in dict(
        sbatch=sbatch,
        srun='#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
        scontrol='#!/bin/bash\necho here\n',
    ).items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    src = sorted((whole[2] / 'pages').glob('*.warc.gz'))
    p = process(
        *src,
        '--out',
        tmp_path / 's',
        '--executor',
        'slurm',
        '--partition',
        'tiny',
        'tasks=2',
        PATH=f'{bin}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
        JOBS=str(tmp_path / 'jobs'),
    )
    out, err = p.communicate(timeout=280)
    assert p.returncode == 0, err
    assert made(tmp_path / 's', 'documents') == made(whole[2], 'documents'), (
        tmp_path / 'jobs.err'
    ).read_text()[-3000:]
    assert 'dependency=afterok' in (tmp_path / 'jobs').read_text()


def test_without_the_extra_one_line_says_what_to_install():
    for package in 'datatrove', 'trafilatura', 'warcio':
        code = (
            f'import sys; sys.modules[{package!r}] = None; from gpt2repro.cli import main; '
            f'sys.exit(main(["webtext", "x", "--out", "y"]))'
        )
        if package != 'datatrove':
            code = f'import sys; sys.modules[{package!r}] = None; import gpt2repro.webtext.run'
        r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
        assert r.returncode and r.stderr.splitlines()[-1].endswith(
            f"webtext needs the package {package}: pip install 'gpt2repro[webtext]'"
        ), r.stderr
        if package == 'datatrove':
            assert len(r.stderr.splitlines()) == 1 and 'Traceback' not in r.stderr


def processes(mark):
    "The processes that have `MARK=mark` in their environment, zombies aside"
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            alive = (p / 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
            if alive and f'\0MARK={mark}\0' in '\0' + (p / 'environ').read_text(errors='replace'):
                found.append(int(p.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('how', [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_run_leaves_no_process(how, tmp_path):
    "It dies while two tasks extract text, each with a process beside it; all of them end within seconds"
    page = b'<html><body><article>' + b'<p>The old letter was carried to the market.</p>' * 200
    a = Response(
        url='http://e.com/', status=200, headers=(('Content-Type', 'text/html'),), body=page, ip='192.0.2.1'
    )
    record = warc_record(a, dict(url=a.url, score=3, date='2005-06-24'))
    for i in range(2):
        (tmp_path / f'{i}.warc.gz').write_bytes(record * 3000)
    mark = f'{os.getpid()}-{how}'
    p = process(*sorted(tmp_path.glob('*.gz')), '--out', tmp_path / 'o', 'tasks=2', MARK=mark)
    wait_for(lambda: len(processes(mark)) >= 6, p)  # with the fork server and its tracker
    p.send_signal(how)
    p.communicate(timeout=60)
    end = time.time() + 10
    while processes(mark) and time.time() < end:
        time.sleep(0.1)
    assert processes(mark) == []


def test_a_stage_names_what_it_left_out(tmp_path, capsys, monkeypatch):
    "Odd submissions, and a damaged archive: the run goes on, and one line says what was left out"
    monkeypatch.setenv('GPT2REPRO_QUIET', '1')
    good = b'{"id":"g","url":"http://good.example/","score":9,"created_utc":1119552233}\n'
    (tmp_path / 'd.json').write_bytes(
        good.replace(b'"g"', b'"a\\nb"') + good + good.replace(b':9,', b':1e99,')
    )
    args = '--workers', '1', 'tasks=1'
    assert (
        main(['webtext', str(tmp_path / 'd.json'), '--out', str(tmp_path / 'l'), '--stage', 'links', *args])
        == 0
    )
    assert 'webtext: links-find left out: 2 damaged' in capsys.readouterr().err
    links = tmp_path / 'l/links/00000.jsonl'
    assert len(links.read_bytes().splitlines()) == 1
    links.write_bytes(b'{"url":[]}\n')  # what a later stage reads from the disk is checked too
    assert (
        main(['webtext', str(tmp_path / 'd.json'), '--out', str(tmp_path / 'l'), '--stage', 'pages', *args])
        == 2
    )
    err = capsys.readouterr().err.splitlines()
    assert '00000.jsonl: damaged' in err[-1] and 'delete .work/logs/links-merge in' in err[-1]
    shutil.rmtree(tmp_path / 'l/.work/logs/links-merge')  # as the message says
    argv = ['webtext', str(tmp_path / 'd.json'), '--out', str(tmp_path / 'l'), '--stage', 'links', *args]
    assert main(argv) == 0 and b'good.example' in links.read_bytes()
    capsys.readouterr()
    (tmp_path / 'no.warc.gz').write_bytes(b'hello\n')
    args = *args, 'repetition=false', 'near=false'
    assert main(['webtext', str(tmp_path / 'no.warc.gz'), '--out', str(tmp_path / 'w'), *args]) == 0
    assert 'webtext: text left out: 1 damaged' in capsys.readouterr().err
