"`python -m gpt2repro` is the `gpt2repro` command"

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
