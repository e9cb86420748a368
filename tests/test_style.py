"What a machine can see of style: ruff's rules, one conditional to an expression, no borrowed private names"

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
ours = ['nbs', 'tests', 'bench', 'tools', 'setup.py']
pythons = [f for d in ('tests', 'bench', 'tools') for f in sorted((root / d).rglob('*.py'))]
notebooks = [f for f in sorted((root / 'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in f.parts]


def ruff(*argv):
    p = subprocess.run([sys.executable, '-m', 'ruff', *argv], cwd=root, capture_output=True, text=True)
    return p.returncode, p.stdout + p.stderr


def test_formatted():
    status, said = ruff('format', '--check', *ours)
    assert status == 0, said


def test_no_lint():
    status, said = ruff('check', '--output-format', 'concise', *ours)
    assert status == 0, said


def test_the_exported_package_has_no_unused_or_unknown_names():
    status, said = ruff('check', '--select', 'F', '--output-format', 'concise', 'gpt2repro')
    assert status == 0, said


def sources(f):
    "(place, syntax tree) of a module, or of each code cell of a notebook that is plain Python"
    if f.suffix == '.py':
        yield f.name, ast.parse(f.read_text(encoding='utf-8'))
        return
    for c in json.loads(f.read_text(encoding='utf-8'))['cells']:
        src = ''.join(c['source'])
        if c['cell_type'] == 'code' and not re.search(r'^\s*[!%]', src, re.M):
            yield f'{f.name}#{c["id"]}', ast.parse(src)


def nested(tree):
    "Conditional expressions inside others"
    for o in ast.walk(tree):
        parts = (o.test, o.body, o.orelse) if isinstance(o, ast.IfExp) else ()
        if any(isinstance(q, ast.IfExp) for p in parts for q in ast.walk(p)):
            yield o


def test_the_check_for_nesting_finds_one():
    assert list(nested(ast.parse('x = a if b else (c if d else e)')))
    assert not list(nested(ast.parse('x = a if b else c')))


@pytest.mark.parametrize('f', [*pythons, *notebooks], ids=lambda f: str(f.relative_to(root)))
def test_one_conditional_to_an_expression(f):
    found = [f'{place}:{o.lineno}' for place, tree in sources(f) for o in nested(tree)]
    assert not found, f'a conditional within a conditional, write an `if`: {found}'


@pytest.mark.parametrize('f', notebooks, ids=lambda f: str(f.relative_to(root)))
def test_no_private_name_of_another_module(f):
    found = [
        f'{place}: {o.module}.{a.name}'
        for place, tree in sources(f)
        for o in ast.walk(tree)
        if isinstance(o, ast.ImportFrom) and (o.module or '').startswith('gpt2repro.')
        for a in o.names
        if a.name.startswith('_')
    ]
    assert not found, f'make the name public: {found}'
