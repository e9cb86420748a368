"""Every numbered notebook from top to bottom as Colab's TPU image would run it:

torch_xla is the device, nbdev is not there. Runs in `.venv-xla` (`make test-xla`)
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

nbs = Path(__file__).parent.parent / 'nbs'
flags = {'slow', 'network', 'cuda', 'tpu'}
extras = {
    'datatrove',
    'sacrebleu',
    'rouge_score',
    'CTranslate2',
    'hypothesis',
}  # not on Colab's image, and not needed to run the package


def cells(nb):
    "Source of each code cell that may run here"
    for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
        src = ''.join(c['source'])
        said = set(re.findall(r'^#\| *(\w+)', src, re.M))
        if c['cell_type'] == 'code' and not re.search(r'^#\| *eval: *false', src, re.M) and not said & flags:
            yield c['id'], src


def run(nb):
    "Run the notebook's cells in this process, in the notebook's folder"
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(nb.parent)
    shell = InteractiveShell.instance(user_module=sys.modules['__main__'])
    for i, src in cells(nb):
        res = shell.run_cell(src, store_history=False)
        if (e := res.error_before_exec or res.error_in_exec) is None:
            continue
        if isinstance(e, ModuleNotFoundError) and e.name in extras:
            print(f'SKIP {nb.name}#{i} needs {e.name}')
        if isinstance(e, ImportError) and 'gpt2repro[' in str(e):
            print(f'SKIP {nb.name}#{i} needs an extra: {e}')
        sys.exit(f'{nb.name}#{i} failed')


if __name__ == '__main__':
    run(Path(sys.argv[1]).resolve())
else:
    import pytest

    pytest.importorskip('torch_xla', reason='torch_xla is not installed: make test-xla')

    @pytest.mark.parametrize(
        'nb', sorted([*nbs.glob('[0-9]*.ipynb'), *nbs.glob('tasks/[0-9]*.ipynb')]), ids=lambda p: p.stem
    )
    def test_notebook(nb):
        env = {
            **os.environ,
            'PJRT_DEVICE': 'CPU',
            'IN_TEST': '1',
            'GPT2REPRO_QUIET': '1',
            'MPLBACKEND': 'agg',
            'PYTHONPATH': str(nbs.parent),
        }
        p = subprocess.run(
            [sys.executable, __file__, str(nb)], env=env, capture_output=True, text=True, timeout=600
        )
        if why := re.search(r'^SKIP (.*)', p.stdout, re.M):
            pytest.skip(f'{why[1]}, which is not on the image')
        assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-1500:]
