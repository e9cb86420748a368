"""What a message tells people to type exists: each `--option` is one of the verb that can print it"""

import ast
import re
from errno import EACCES, EROFS
from pathlib import Path

import pytest
import gpt2repro
from fastcore.script import anno_parser
from gpt2repro.cli import verbs
from test_cli_values import base, command, here, place  # noqa: F401

package = Path(gpt2repro.__file__).parent
has = {
    v: {o for a in anno_parser(f.__wrapped__)._actions for o in a.option_strings} | {'--debug', '--help'}
    for v, f in verbs.items()
}
with_device = {v for v in verbs if '--device' in has[v]}
# The verbs that can print the messages of a module. A module that is not here names no option
heard_in = {
    'backend.py': with_device,
    'aot.py': {'plan'},
    'export.py': {'export', 'push'},
    'checkpoint.py': {v for v in verbs if '--tokenizer' in has[v]},
    'core_score.py': {'evaluate'},
    'tasks/bundle.py': {'evaluate'},
    'tasks/in_context.py': {'evaluate'},
    'evaluate.py': {'evaluate'},
    'paper_table.py': {'evaluate'},
    'scores/manifest.py': {'evaluate'},
    'tasks/core.py': {'evaluate'},
    'train.py': {'train', 'evaluate'},
    'reproduce.py': {'train'},
    'report.py': {'report'},
    'experiments/runs.py': {'experiment'},
    'webtext/run.py': {'webtext'},
    'serve/batcher.py': {'serve'},
    'serve/server.py': {'serve'},
}
# Of those verbs the one that prints a message with this option
heard_only = {
    ('train.py', '--schedule'): {'train'},
    ('train.py', '--max-steps'): {'train'},
    ('export.py', '--out'): {'export'},
    ('cli.py', '--from'): {'train'},
}
option = re.compile(r'(?<![\w-])--[a-z][a-z-]*[a-z]')
command_line = re.compile(r'(?:gpt2repro |\b(?=plan --))(\w+)([^`]*)')
foreign = (
    'convert_hf_to_gguf',
    'brew ',
    'hf download',
    'ollama ',
    'llama-',
    'pip install',
    'apt-get',
    'xcode-select',
    'zstd --long',
)


def texts(tree):
    "(string, line) of each string that is no docstring; what an f-string fills in is a dot"
    docs = {
        id(o.body[0].value)
        for o in ast.walk(tree)
        if isinstance(o, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and isinstance((o.body or [o])[0], ast.Expr)
    }
    inner = set()
    for o in ast.walk(tree):
        if isinstance(o, ast.JoinedStr):
            inner |= {id(v) for v in o.values}
            yield ''.join(v.value if isinstance(v, ast.Constant) else '…' for v in o.values), o.lineno
        elif isinstance(o, ast.Constant) and isinstance(o.value, str) and not {id(o)} & (docs | inner):
            yield o.value, o.lineno


def callers(tree):
    "Function of cli.py -> the verbs that call it, directly or through others"
    uses = {
        f.name: {o.id for o in ast.walk(f) if isinstance(o, ast.Name)}
        for f in tree.body
        if isinstance(f, (ast.FunctionDef, ast.ClassDef))
    }

    def reached(name, seen):
        for n in (uses[name] & uses.keys()) - seen:
            seen.add(n)
            reached(n, seen)
        return seen

    out = {}
    for v in verbs:
        for name in reached(v, {v}):
            out.setdefault(name, set()).add(v)
    return out


def by_verb(o):
    "The entries of a dict with a text for each verb"
    keywords = getattr(getattr(o, 'value', None), 'keywords', [])
    return keywords if {k.arg for k in keywords} <= verbs.keys() else []


def exists(o, options):
    "Is it one of the options, or the beginning of one, as argparse takes it?"
    return any(h.startswith(o) for h in options)


def said():
    "(file and line, text, verbs that can print it) of every message with an option"
    for f in sorted(package.rglob('*.py')):
        tree = ast.parse(f.read_text(encoding='utf-8'))
        name = f.relative_to(package).as_posix()
        if name != 'cli.py':
            parts = [(tree, heard_in.get(name, set()))]
        else:
            heard = callers(tree)
            parts = [(o, heard.get(getattr(o, 'name', ''), set(verbs))) for o in tree.body]
            parts = [p for p in parts if not by_verb(p[0])] + [
                (k.value, {k.arg}) for o in tree.body for k in by_verb(o)
            ]
        for part, by in parts:
            for text, line in texts(part):
                if option.search(text) and not any(w in text for w in foreign):
                    yield f'{name}:{line}', text, by


def test_options_in_messages_exist():
    found = list(said())
    assert len(found) > 15
    for at, text, by in found:
        if text in ('--debug', '--help', '--version'):
            continue
        rest = text
        for m in command_line.finditer(text):
            assert m[1] == 'VERB' or m[1] in verbs, (at, text)
            assert all(exists(o, has.get(m[1], {'--help'})) for o in option.findall(m[2])), (at, text)
            rest = rest.replace(m[0], '')
        for o in option.findall(rest):
            assert by, f'{at}: say in `heard_in` which verbs print it: {text}'
            heard = heard_only.get((at.partition(':')[0], o), by)
            assert all(exists(o, has[v]) for v in heard), (at, text, o, heard)


def test_what_a_reader_of_text_is_told_to_set_can_be_set():
    "Messages of `corpus` speak of errors, field and separator, to every verb that reads text"
    for verb in 'prepare', 'train':
        assert {'--errors', '--field', '--separator'} <= has[verb]


@pytest.mark.parametrize('errno', [EACCES, EROFS])
@pytest.mark.parametrize(
    'verb,remedy',
    [
        ('prepare', '--out FOLDER'),
        ('train', 'another RUN'),
        ('evaluate', '--out FOLDER'),
        ('report', '--out FILE'),
        ('webtext', '--out FOLDER'),
        ('reproduce', '--out FOLDER'),
    ],
)
def test_a_folder_that_cannot_be_written(verb, remedy, errno, here, monkeypatch):  # noqa: F811
    "The message names the option that puts results elsewhere"

    def refuse(path='', *args, **kw):
        path = path or kw['dir']
        raise OSError(errno, 'Read-only file system' if errno == EROFS else 'Permission denied', str(path))

    # The embedded corpus is slow to collect
    monkeypatch.setattr('gpt2repro.cli.reproduce_run', lambda cfg, folder, *args: refuse(folder))
    for f in 'os.mkdir', 'os.open', 'tempfile.mkstemp':
        monkeypatch.setattr(f, refuse)
    s, _, err = command(verb, *base[verb])
    assert (
        s == 2
        and len(err) == 1
        and err[0].endswith(
            f'; results go elsewhere with {remedy}' + (' as the first word' if verb == 'train' else '')
        )
    ), err
    assert not (here / 'new').exists()


@pytest.mark.parametrize('verb', ['prepare', 'train', 'evaluate', 'webtext'])
def test_a_file_in_the_way(verb, here):  # noqa: F811
    argv = ['a file' if w == 'new' else w for w in base[verb]] + (
        ['--out', 'a file'] if verb == 'evaluate' else []
    )
    s, _, err = command(verb, *argv)
    assert s == 2 and 'a file' in err[-1], err
    assert any(w in err[-1] for w in ('--out FOLDER', 'name a folder', 'another RUN')), err
