"`--slow` runs what takes minutes; without it such tests are skipped and counted"

import os
from pathlib import Path
import pytest

data = Path(__file__).parent.parent.parent / 'shared/data'
if data.is_dir():  # published texts for tests, where this checkout has them beside it
    os.environ.setdefault('GPT2REPRO_TEST_DATA', str(data))


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests and cells that take minutes')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes; runs with --slow')
    if hasattr(config, 'workerinput'):
        # Several workers: one thread each, before torch is loaded
        os.environ.setdefault('OMP_NUM_THREADS', '1')


# These take longest. They run first, so that no worker waits at the end for the other
longest = ('test_site.py', 'test_train.py', 'test_webtext.py', 'test_distributed.py', 'test_bench.py')


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda o: o.path.name not in longest)
    if config.getoption('--slow'):
        return
    for o in items:
        if 'slow' in o.keywords:
            o.add_marker(pytest.mark.skip(reason='slow: run with --slow (make test-slow)'))
