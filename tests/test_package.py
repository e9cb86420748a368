"""What people install:

a wheel without notebooks and tests, a library and a command that need no nbdev and work from any folder
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
pytestmark = pytest.mark.xdist_group('package')


def ok(*argv, **kw):
    r = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=600, **kw)
    assert r.returncode == 0, r.stderr[-3000:]
    return r.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built as PyPI would build it, from a copy, so that nothing is left in the checkout"
    src = tmp_path_factory.mktemp('src')
    files = (
        ok('git', 'ls-files', cwd=root).splitlines()
        if (root / '.git').exists()
        else [str(f.relative_to(root)) for f in root.rglob('*') if f.is_file()]
    )
    for f in files:
        if not (root / f).is_file():
            continue
        (src / f).parent.mkdir(parents=True, exist_ok=True)
        (src / f).write_bytes((root / f).read_bytes())
    ok(sys.executable, '-m', 'build', '--outdir', src / 'dist', src)
    return next((src / 'dist').glob('*.whl'))


def test_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split('/')[0] for n in names} == {
        'gpt2repro',
        f'gpt2repro-{wheel.name.split("-")[1]}.dist-info',
    }
    assert not [n for n in names if n.endswith('.ipynb') or 'test' in n]
    assert {'gpt2repro/py.typed', 'gpt2repro/cli.py', 'gpt2repro/tasks/core.py'} <= set(names)
    sources = {f'gpt2repro/csrc/{f.name}' for f in (root / 'gpt2repro' / 'csrc').glob('*.[ch]')}
    assert sources and sources <= set(names)  # kernels are compiled where they are used
    assets = {f'gpt2repro/assets/{f.name}' for f in (root / 'gpt2repro' / 'assets').iterdir()}
    assert assets and assets <= set(names)  # a report is made of them
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    runtime = [l for l in meta.splitlines() if l.startswith('Requires-Dist') and 'extra ==' not in l]
    # Lower bounds only, and no nbdev
    assert runtime and not [l for l in runtime if 'nbdev' in l or '==' in l], runtime
    assert '# gpt2repro' in meta


def test_installed_it_works_from_any_folder_without_nbdev(wheel, tmp_path):
    "In an environment of its own that sees this one's libraries, but neither this checkout nor nbdev"
    ok(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'v')
    py = tmp_path / 'v/bin/python'
    site = Path(ok(py, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    ok(
        sys.executable,
        '-m',
        'pip',
        'install',
        '-q',
        '--no-deps',
        '--disable-pip-version-check',
        '--target',
        site,
        wheel,
    )
    (site / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')
    (site / 'nbdev.py').write_text('raise ImportError("nbdev is not a runtime requirement")\n')
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')}
    away = tmp_path / 'elsewhere'
    away.mkdir()
    where = ok(py, '-c', 'import gpt2repro, gpt2repro.cli; print(gpt2repro.__file__)', cwd=away, env=env)
    assert where.startswith(str(site)), where
    help_ = ok(py, '-m', 'gpt2repro', '--help', cwd=away, env=env)
    for v in 'reproduce prepare train sample evaluate report doctor'.split():
        assert v in help_
    assert '--minutes' in ok(py, '-m', 'gpt2repro', 'reproduce', '--help', cwd=away, env=env)


@pytest.mark.slow
def test_pip_install_in_a_fresh_environment(tmp_path):
    ok(sys.executable, '-m', 'venv', tmp_path / 'v')
    pip = [tmp_path / 'v/bin/python', '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
    ok(*pip, 'torch==2.13.0')
    ok(*pip, root)
    assert 'reproduce' in ok(
        tmp_path / 'v/bin/gpt2repro',
        '--help',
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
    )
