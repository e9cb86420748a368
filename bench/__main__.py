"`python -m bench` lists the benchmarks, one line each"

import argparse
import ast
from bench.common import folder, parser

not_scripts = {'__init__', '__main__', 'common', 'peers', 'why2019'}  # why2019: a design, for `make why2019`


def scripts():
    "Name of each benchmark -> the first line of its help; nothing is imported"
    files = sorted(f for f in folder.glob('*.py') if f.stem not in not_scripts)
    docs = {f.stem: ast.get_docstring(ast.parse(f.read_text(encoding='utf-8'))) or '' for f in files}
    return {name: doc.partition('\n')[0] for name, doc in docs.items()}


def main(argv=None):
    known = scripts()
    width = max(map(len, known))
    lines = '\n'.join(f'  {name:{width}}  {line}' for name, line in known.items())
    p = parser(
        f'Benchmarks. `python -m bench.NAME --help` says what each measures, against whom, and how long '
        f'it takes.\n\n{lines}\n\nThe last results stand in bench/RESULTS.md.',
        prog='python -m bench',
    )
    p.add_argument('name', nargs='?', help=argparse.SUPPRESS)
    name = p.parse_args(argv).name
    if name is not None:
        p.error(f'write `python -m bench.{name}`: each benchmark is a program of its own')
    p.print_help()


if __name__ == '__main__':
    main()
