"""Each notebook as a reader on Colab runs it: "Run all" in a new kernel, with the versions of Colab's image

`make test-colab` does so with the image for CPUs, `make test-xla` with the one for TPUs. The kernel knows
nothing of flags such as `#| slow`. A cell may fail only if it is flagged `network`, and only for the network.
Cells flagged `network` run against a server that stands in for the hub. What they claim about the published
weights is left out, since made files can't keep it.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
import pytest

image = os.environ.get('GPT2REPRO_COLAB')  # cpu or tpu
root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
name_of = lambda p: p.relative_to(root / 'nbs').with_suffix('').as_posix()
# These belong to a device or to the notebook server. An image has them or has no use for them.
of_the_image = {'torch_xla', 'torch_tpu', 'jax', 'jaxlib', 'libtpu', 'google', 'IPython'}
network_errors = {
    'ConnectionError',
    'ConnectError',
    'ConnectTimeout',
    'LocalEntryNotFoundError',
    'OfflineModeIsEnabled',
    'URLError',
    'gaierror',
}


@cache
def code_cells(nb):
    "(id, source) of each"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    return [(c['id'], ''.join(c['source'])) for c in cells if c['cell_type'] == 'code']


def flags(source):
    return set(re.findall(r'^#\| *(\w+)', source, re.M))


def tree(source):
    "The syntax tree of a cell; its shell commands become calls"
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(source))


# What the first cell installs

command = re.compile(r'^!\[ -e /content \] && pip install -q (.+)$', re.M)


def installed_by(nb):
    "(extras of this package, other packages) that the notebook's first code cell installs, or `None`"
    asked = [p for line in command.findall(code_cells(nb)[0][1]) for p in shlex.split(line)]
    ours = [p for p in asked if ' @ ' in p]
    if not ours:
        return None
    m = re.fullmatch(r'gpt2repro(?:\[(.+)\])? @ git\+https://github\.com/gpt2repro/gpt2repro', ours[0])
    return set((m[1] or '').split(',')) - {''}, set(asked) - set(ours)


def asks(node):
    "Whether an `if` asks for a package"
    return isinstance(node, ast.If) and re.search('find_spec|has_package', ast.unparse(node.test))


def guarded(node):
    "Whether `if find_spec(…)` or `try … except ImportError` says what to do without the package"
    if isinstance(node, ast.Try):
        return any('ImportError' in ast.unparse(h.type) for h in node.handlers if h.type)
    return asks(node)


def imports(node, all=False):
    "Names of the packages that a piece of code imports without a guard, or `all`"
    found = set()
    if isinstance(node, ast.Import):
        found = {a.name.split('.')[0] for a in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level:
        found = {node.module.split('.')[0]}
    for child in ast.iter_child_nodes(node):
        if not all and asks(child) and isinstance(child.body[-1], ast.Raise):
            break  # what follows runs only with the package
        if all or not guarded(child):
            found |= imports(child, all)
    return found


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


installed = cache(metadata.packages_distributions)  # it reads the record of every package


def packages_of(module):
    "Distributions, by normal name, that bring a module; its own name if it is not installed"
    return {normal(d) for d in installed().get(module, [module])}


@cache
def brought(requirement):
    "Normal names of all that `pip install requirement` installs, as far as it is installed here"
    from packaging.requirements import Requirement

    r = Requirement(requirement)
    found, todo = set(), [(r.name, frozenset(r.extras))]
    while todo:
        name, extras = todo.pop()
        if (normal(name), extras) in found:
            continue
        found.add((normal(name), extras))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for n in map(Requirement, needs):
            if n.marker is None or any(n.marker.evaluate(dict(extra=e)) for e in extras or ['']):
                todo.append((n.name, frozenset(n.extras)))
    return {n for n, _ in found}


not_ours = set(sys.stdlib_module_names) | of_the_image


def imported(nb, all=False):
    "Packages that the notebook's code imports, this project too"
    return set().union(*(imports(tree(s), all) for _, s in code_cells(nb))) - not_ours


def behind(nb):
    "Packages that the modules of this project import from which the notebook imports"
    used = [n for _, s in code_cells(nb) for n in ast.walk(tree(s)) if isinstance(n, ast.ImportFrom)]
    names = {n.module for n in used if n.module.startswith('gpt2repro.')}
    files = [root.joinpath(*n.split('.')).with_suffix('.py') for n in names]
    return set().union(
        *(imports(ast.parse(f.read_text(encoding='utf-8')), all=True) for f in files if f.is_file())
    )


@pytest.mark.skipif(bool(image), reason='run by make test, where every extra is installed')
@pytest.mark.parametrize('nb', notebooks, ids=name_of)
def test_first_cell_installs_what_the_notebook_imports_and_no_more(nb):
    uses = imported(nb)
    if not uses:
        return
    assert installed_by(nb), 'the first code cell must install gpt2repro where /content is there'
    extras, others = installed_by(nb)
    base = brought('gpt2repro')
    by_extra = {e: brought(f'gpt2repro[{e}]') - base for e in extras}
    there = base.union(*map(brought, others), *by_extra.values())
    for module in uses:
        assert packages_of(module) & there, f'{module} is imported, and the first cell does not install it'
    needs = set().union(*map(packages_of, imported(nb, all=True) | behind(nb)))
    if nb.parent.name == 'webtext':
        needs.add('datatrove')  # each module of the crawl asks for it
    for o in others:
        assert normal(o) in needs - base, f'{o} is installed, and no cell imports it'
    for e, packages in by_extra.items():
        assert needs & packages, f'gpt2repro[{e}] is installed, and nothing here needs it'


# The job

pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
as_on_colab = """
import os, sys, types
sys.modules['google.colab'] = types.ModuleType('google.colab')
import IPython.display
"""


# trafilatura and datatrove need newer ones than the images have: `gpt2repro[webtext]` replaces them there
replaced = {'charset-normalizer', 'lxml', 'urllib3', 'pyarrow'}


def constraints(folder):
    "The image's versions, but for what an extra replaces: there those of constraints.txt"
    lines = []
    for name, wanted in (f'constraints-colab-{image}.txt', False), ('constraints.txt', True):
        pins = (root / name).read_text(encoding='utf-8').splitlines()
        lines += [l for l in pins if '==' in l and (normal(l.partition('==')[0]) in replaced) == wanted]
    file = folder / 'constraints.txt'
    file.write_text('\n'.join(lines), encoding='utf-8')
    return file


def run_first_cell(nb, lock, folder):
    "Install what the notebook's first cell would, with this checkout in the place of the address"
    extras, others = installed_by(nb) or (set(), set())
    if not extras and not others:
        return
    own = ['-e', f'{root}[{",".join(sorted(extras))}]'] if extras else []
    with lock:
        subprocess.run([*pip, '-c', constraints(folder), *own, *sorted(others)], check=True)


class WithoutClaims(ast.NodeTransformer):
    """Code without its tests of published numbers: `assert …`, `test_eq(…)`, `test_close(…)`

    And `evaluate`, `explain` and `Task.examples` are told that the data are a part of the published ones
    """

    def visit_Call(self, node):
        self.generic_visit(node)
        if ast.unparse(node.func) in ('evaluate', 'explain') or ast.unparse(node.func).endswith('.examples'):
            node.keywords.append(ast.keyword('subset', ast.Constant(True)))
        return node

    def visit_Assert(self, node):
        return ast.copy_location(ast.Pass(), node)

    def visit_Expr(self, node):
        f = node.value.func if isinstance(node.value, ast.Call) else None
        claim = isinstance(f, ast.Name) and f.id.startswith('test_')
        return ast.copy_location(ast.Pass(), node) if claim else self.generic_visit(node)


@pytest.fixture(scope='session')
def hub(tmp_path_factory):
    "The address of a server that has a small GPT-2 and small data sets under the names of the real ones"
    from hub_standin import repositories, serve

    server = serve(repositories(tmp_path_factory.mktemp('hub')))
    yield server.url
    server.shutdown()


def failures(nb, folder, env):
    "(cell, source, name of the error, its text) of each cell that failed"
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book = nbformat.v4.new_notebook()
    book.cells.append(nbformat.v4.new_code_cell(as_on_colab))
    for id, source in code_cells(nb):
        if 'network' in flags(source):
            source = '#| network\n' + ast.unparse(WithoutClaims().visit(tree(source)))
        book.cells.append(nbformat.v4.new_code_cell(source, id=id))
    client = NotebookClient(
        book, timeout=900, kernel_name='python3', resources=dict(metadata=dict(path=folder))
    )
    failed = []
    with client.setup_kernel(env=env):
        for i, c in enumerate(book.cells):
            try:
                client.execute_cell(c, i)
            except CellExecutionError as e:
                failed.append((c.id, c.source, e.ename, str(e)[-3000:]))
                if 'network' not in flags(c.source):
                    break
    return failed


if image:
    runs = sorted(notebooks, key=lambda p: sum(map(len, installed_by(p) or ())))  # installations come last
else:
    runs = [pytest.param(None, marks=pytest.mark.skip(reason='run by make test-colab and make test-xla'))]


@pytest.mark.parametrize('nb', runs, ids=name_of if image else ['all'])
def test_run_all(nb, tmp_path, hub, tmp_path_factory):
    from filelock import FileLock

    lock = FileLock(tmp_path_factory.getbasetemp().parent / 'pip.lock')
    run_first_cell(nb, lock, tmp_path_factory.mktemp('pins'))
    (tmp_path / 'repository').symlink_to(root)  # the clone that some first cells make
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'GPT2REPRO_TEST_DATA', 'PYTHONPATH')}
    env |= dict(
        HF_ENDPOINT=hub, HF_HOME=str(tmp_path / 'hf'), MPLBACKEND='agg', PYDEVD_DISABLE_FILE_VALIDATION='1'
    )
    for cell, source, name, text in failures(nb, tmp_path, env):
        assert 'network' in flags(source) and name in network_errors, (
            f'{name_of(nb)}#{cell}\n{source}\n\n{text}'
        )
