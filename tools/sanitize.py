"The kernels' tests with GCC's address and undefined-behaviour sanitizers: a wrong address in C ends them"

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).parent.parent
checks = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer', '-g', '-O1']


def runtimes(cc):
    "The sanitizers' libraries, which must be loaded before Python's own"
    found = []
    for name in ('libasan.so', 'libubsan.so', 'libstdc++.so'):
        out = subprocess.run([cc, f'-print-file-name={name}'], capture_output=True, text=True).stdout.strip()
        if Path(out).is_absolute():
            found.append(str(Path(out).resolve()))
    return found


def main():
    cc = shutil.which('gcc')
    libs = runtimes(cc) if cc else []
    if len(libs) < 3:
        print('sanitize: skipped, gcc and its sanitizers are needed (apt-get install gcc)')
        return 0
    with tempfile.TemporaryDirectory() as cache:
        env = dict(
            os.environ,
            CC=cc,
            GPT2REPRO_CFLAGS=' '.join(checks),
            XDG_CACHE_HOME=cache,
            LD_PRELOAD=' '.join(libs),
            ASAN_OPTIONS='detect_leaks=0',  # Python and PyTorch keep what they have until the end
            UBSAN_OPTIONS='print_stacktrace=1',
        )
        argv = sys.argv[1:] or ['tests/test_kernels.py']
        return subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '--capture=sys', *argv],
            cwd=root,
            env=env,
        ).returncode


if __name__ == '__main__':
    sys.exit(main())
