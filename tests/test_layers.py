"""The listing of notebooks is the data flow:

an exported cell imports only from lower numbers, by name, relatively
"""

import ast
import json
import re
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
nbs = sorted([*(root / 'nbs').glob('[0-9]*.ipynb'), *(root / 'nbs').glob('*/[0-9]*.ipynb')])


def module(nb):
    "Module that a notebook exports ('' for a lesson), as in its `default_exp` cell"
    for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
        if m := re.match(r'#\| *default_exp +([\w.]+)', ''.join(c['source'])):
            return m[1]
    return ''


order = {m: nb.relative_to(root / 'nbs').as_posix() for nb in nbs if (m := module(nb))}

folders = dict(
    tasks=30, webtext=10, scores=34, experiments=36, serve=36
)  # folder -> number of the notebook before which its members stand


def place(m):
    "Sort key of a module: its number; the members of a folder stand just before the number of `folders`"
    nb = order[m]
    folder, _, name = nb.rpartition('/')
    return (folders[folder] - 1, name) if folder else (int(nb.split('_')[0]), '~')


def imports(m):
    "(imported module, names) of the package's own modules, with star and absolute imports refused"
    f = root / 'gpt2repro' / (m.replace('.', '/') + '.py')
    for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import):
            for a in o.names:
                assert a.name.split('.')[0] != 'gpt2repro', f'{f.name}: absolute import of {a.name}'
        if not isinstance(o, ast.ImportFrom):
            continue
        names = [a.name for a in o.names]
        assert '*' not in names, f'{f.name}: star import from {o.module}'
        if not o.level:
            assert o.module.split('.')[0] != 'gpt2repro', f'{f.name}: absolute import from {o.module}'
            continue
        here = m.split('.')[: -o.level] if o.level <= m.count('.') else []
        if o.module:
            yield '.'.join(here + o.module.split('.')), names
        else:
            yield from (('.'.join(here + [n]), []) for n in names)


@pytest.mark.parametrize('m', list(order))
def test_imports_only_from_lower_numbers(m):
    for other, names in imports(m):
        assert other in order, f'{m} imports {other}, which no notebook exports'
        assert place(other) < place(m), (
            f'{m} ({order[m]}) imports {other} ({order[other]}), which comes later'
        )


def test_names_follow_the_notebooks():
    for m, nb in order.items():
        assert re.sub(r'^\d+_', '', Path(nb).stem) == m.split('.')[-1], (m, nb)


def test_only_backend_names_an_accelerator():
    word = re.compile(r'torch_xla|torch_tpu|\bxm\.|\bxr\.|torch\.cuda|torch\.mps|torch\.backends|is_cuda')
    # how XLA's devices share a model is written beside how processes share one
    sharding = re.compile(
        r'from torch_xla\.distributed import spmd|import torch_xla\b|'
        r'from torch_xla\.experimental\.spmd_fully_sharded_data_parallel import SpmdFullyShardedDataParallel|'
        r'torch_xla\._XLAC\._(?:xla_mark_sharding|get_xla_op_sharding)\('
    )
    for m in order:
        if m == 'backend':
            continue
        f = root / 'gpt2repro' / (m.replace('.', '/') + '.py')
        code = ast.unparse(ast.parse(f.read_text(encoding='utf-8')))
        # Words in messages may name them.
        code = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "''", code)
        if m == 'parallel':
            code = sharding.sub('', code)
        assert not word.search(code), f'{m} names an accelerator: {word.search(code)[0]}'
