"""People's files and terminals: names with commas, either line end, byte order marks, other encodings"""

import io
import json
from pathlib import Path

import pytest
from gpt2repro.cli import main
from gpt2repro.reproduce import run_config
from gpt2repro.settings import from_dict, to_dict
from gpt2repro.settings import RunConfig
from test_cli_values import base, command, here, no_work, place  # noqa: F401


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252'])
@pytest.mark.parametrize('more', [(), ('--stream',), ('--json',), ('--jsonl',), ('--beams', '2')])
def test_a_sample_is_never_lost(encoding, more, here, monkeypatch):  # noqa: F811
    "What the encoding of standard output lacks is escaped"
    raw = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding=encoding, errors='strict'))
    assert main(['sample', 'run', 'é snow ☃ 你', '--max-new-tokens', '2', '--device', 'cpu', *more]) == 0
    assert r'snow \u2603 \u4f60' in raw.getvalue().decode(encoding)


def test_messages_and_reports_are_never_lost(here, monkeypatch):  # noqa: F811
    raw = io.BytesIO()
    for name in 'stdout', 'stderr':
        monkeypatch.setattr(f'sys.{name}', io.TextIOWrapper(raw, encoding='ascii', errors='strict'))
    (here / 'r☃').symlink_to(here / 'run')
    assert main(['report', 'r☃', '--out', 'out☃.html']) == 0
    assert main(['evaluate', 'r☃', '--limit', '1', '--device', 'cpu']) == 0
    assert main(['sample', 'nowhere☃', 'x']) == 2
    assert raw.getvalue().count(rb'\u2603') >= 3


def test_what_a_user_decided_about_the_encoding_stays(here, monkeypatch):  # noqa: F811
    raw = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding='ascii', errors='replace'))
    assert main(['sample', 'run', 'snow ☃', '--max-new-tokens', '1', '--device', 'cpu']) == 0
    assert b'snow ?' in raw.getvalue()


def test_a_comma_in_a_name_is_a_comma(no_work, here):  # noqa: F811
    for name in 'a, b.txt', 'c,d e.txt':
        (here / name).write_text((here / 'text.txt').read_text() + name)
    files = ['a, b.txt', 'c,d e.txt']
    argv = (
        base['train'][: base['train'].index('text.txt')]
        + files
        + base['train'][base['train'].index('text.txt') + 1 :]
    )
    assert command('train', *argv)[0] == 130
    assert json.loads((here / 'new/prepare.json').read_text())['sources'] == files
    assert command('prepare', *files, '--out', 'both', '--workers', 0)[0] == 0
    assert json.loads((here / 'both/prepare.json').read_text())['sources'] == files
    swap = {'text.txt': 'c,d e.txt', 'new': 'one'}
    one = [swap.get(w, w) for w in base['train']]
    assert command('train', *one)[0] == 130
    assert json.loads((here / 'one/prepare.json').read_text())['sources'] == ['c,d e.txt']


def test_settings_of_earlier_versions_are_read():
    old = to_dict(run_config('tiny', data='a.txt,b.txt'))
    assert old['data']['source'] == 'a.txt,b.txt'
    assert from_dict(RunConfig, json.loads(json.dumps(old))).data.sources == ['a.txt', 'b.txt']


def test_prompt_files_of_windows(here):  # noqa: F811
    for data in b'\xef\xbb\xbfab\r\ncd\r\n', 'ab\u2028\x0c\ncd'.encode():
        Path('prompts.txt').write_bytes(data)
        s, out, err = command(
            'sample', 'run', '--file', 'prompts.txt', '--max-new-tokens', 1, '--json', '--device', 'cpu'
        )
        assert s == 0, err
        assert [r['prompt'].strip('\u2028\x0c') for r in json.loads(out)['samples']] == ['ab', 'cd']
    for data, words in ('ab'.encode('utf-16'), 'UTF-16'), (b'caf\xe9', 'not UTF-8 at byte 3'):
        Path('prompts.txt').write_bytes(data)
        s, _, err = command('sample', 'run', '--file', 'prompts.txt', '--device', 'cpu')
        assert s == 2 and 'prompts.txt' in err[0] and words in err[0]


@pytest.mark.parametrize('n', [1, 2, 3, 30])
def test_few_documents_are_divided(n, here):  # noqa: F811
    "Whatever the hashes say, both sides have text, and nothing is lost or on both"
    (here / 'few').mkdir()
    for i in range(n):
        (here / f'few/{i}.txt').write_text(f'Document {i}: ' + ' '.join(f'word{i}x{j}' for j in range(30)))
    for more in [], ['--valid-fraction', 0.99]:
        out = f'few-{len(more)}'
        s, text, err = command('prepare', 'few', '--out', out, '--workers', 0, '--json', *more)
        assert s == 0, err
        d = json.loads(text)
        size = sum(f.stat().st_size for f in (here / 'few').iterdir())
        assert d['train']['bytes'] + d['valid']['bytes'] == size and min(o['bytes'] for o in d.values()) > 0
        assert n == 30 and not more or 'too few documents' in ' '.join(err)


def test_a_text_of_one_line_repeated_is_kept_unless_asked(here):  # noqa: F811
    (here / 'same.txt').write_text('the same line again and again it comes\n' * 100)
    s, _, err = command('prepare', 'same.txt', '--out', 'a', '--workers', 0)
    assert s == 0 and any('flatters' in l for l in err)
    s, _, err = command('prepare', 'same.txt', '--out', 'b', '--workers', 0, '--overlap', 0.3)
    assert s == 2 and 'near-copies' in err[-1]


def test_under_another_locale(here):  # noqa: F811
    "With LC_ALL=C Python stands in for bytes beyond ASCII with lone surrogates, in names and in texts"
    odd = lambda s: s.encode().decode('ascii', 'surrogateescape')  # noqa: E731
    s, out, err = command('sample', 'run', odd('snow ☃'), '--max-new-tokens', 1, '--json', '--device', 'cpu')
    assert s == 0 and json.loads(out)['samples'][0]['prompt'] == 'snow ☃', err
    (here / 'caf\udce9').symlink_to(here / 'run')
    (here / 'snow\udce2\udc98\udc83').symlink_to(here / 'run')
    s, _, err = command('report', 'caf\udce9')  # no UTF-8: Hugging Face's reader takes no such path
    assert s == 0, err
    for argv in ['report'], ['evaluate', '--limit', '1', '--device', 'cpu', '--out', 'out☃']:
        s, _, err = command(argv[0], 'snow\udce2\udc98\udc83', *argv[1:])
        assert s == 0, err
