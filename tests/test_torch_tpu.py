"""torch_tpu without a TPU:

a stand-in with its names (those of 0.2.0) shows that the device is chosen and its own functions are called.
Nothing here has run on hardware
"""

import os
import subprocess
import sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent

stub = """
import os, sys, types, torch
class tpu(types.ModuleType):
    "What torch_tpu registers as torch.tpu"
    calls = []
    @classmethod
    def is_available(cls): return True
    @classmethod
    def is_initialized(cls): return True
    @classmethod
    def _is_in_bad_fork(cls): return False
    @classmethod
    def device_count(cls): return 4
    @classmethod
    def current_device(cls): return 0
    @classmethod
    def manual_seed_all(cls, seed): cls.calls.append(('seed', seed))
    @classmethod
    def synchronize(cls, device=None): cls.calls.append('synchronize')
    @classmethod
    def set_device(cls, device): cls.calls.append(('set_device', str(device)))
if os.environ.get('STUB_TPUS')!='0':
    torch.utils.rename_privateuse1_backend('tpu')
    torch._register_device_module('tpu', tpu)
"""
env = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')} | dict(
    PJRT_DEVICE='TPU', GPT2REPRO_QUIET='1', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''
)


@pytest.fixture
def run(tmp_path):
    "Function that runs code in a process that finds the stand-in"
    (tmp_path / 'torch_tpu.py').write_text(stub)

    def go(code, **kw):
        path = os.pathsep.join([str(tmp_path), str(root), env.get('PYTHONPATH', '')])
        p = subprocess.run(
            [sys.executable, '-c', code],
            env={**env, 'PYTHONPATH': path, **kw},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert p.returncode == 0, p.stderr[-2000:]
        return p.stdout.split('\n')[:-1]

    return go


def test_it_is_chosen_and_asked(run):
    out = run("""
import torch
from torch.optim.optimizer import _get_capturable_supported_devices  # what AdamW allows `capturable` for
import gpt2repro.backend as b
# both could be installed; torch_xla would come first
b.has_package = lambda name, has=b.has_package: name!='torch_xla' and has(name)
dev = b.get_device()
print(b.available()[0], dev, b.get_device('tpu:1'), b.needs_static_shapes(dev), b.is_cpu(dev), end=' ')
print(b.adamw_options(dev))
b.sync(dev); b.seed_all(3, dev)
b.end_step(dev)
print('synchronize' in torch.tpu.calls, ('seed', 3) in torch.tpu.calls)
capturable = 'tpu' in _get_capturable_supported_devices()
print(b.device_count(dev), b.device_counts(dev), b.describe(dev), capturable)
""")
    assert out == [
        "tpu tpu tpu:1 True False {'capturable': True}",
        'True True',
        "1 {'compilations': 0, 'reads': 0, 'fallbacks': 0} tpu True",
    ], out


def test_each_process_of_torchrun_gets_its_device(run):
    out = run("""
import os, torch, torch.distributed
import gpt2repro.backend as b
torch.distributed.init_process_group = lambda **kw: print('joined')
os.environ.update(RANK='2', WORLD_SIZE='4', LOCAL_RANK='2')
print(b.init_distributed(b.get_device('tpu')), torch.tpu.calls)
""")
    assert out == ['joined', "tpu:2 [('set_device', 'tpu:2')]"], out


def test_installed_and_no_tpu(run):
    "What torch_tpu does on a machine without one: it is imported and registers nothing"
    out = run(
        """
import gpt2repro.backend as b
try: b.get_device('tpu')
except ValueError as e: print(e)
""",
        STUB_TPUS='0',
    )
    assert 'finds no TPU' in out[0]
    out = run(
        """
import gpt2repro.backend as b
print(b.available())
try: b.get_device('tpu')
except ValueError as e: print(e)
""",
        PJRT_DEVICE='CPU',
    )
    assert 'tpu' not in out[0] and "device 'tpu' is not available here" in out[1], out
