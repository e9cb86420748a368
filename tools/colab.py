"""The versions of Colab's images as constraints for pip: `python tools/colab.py FOLDER --date 2026-08-19`

FOLDER is a clone of github.com/googlecolab/backend-info, which publishes `pip freeze` of each image.
What an image lacks and this project's tests need has the version of `constraints.txt`.
"""

import argparse
import re
from pathlib import Path

root = Path(__file__).parent.parent
images = dict(cpu='pip-freeze.txt', tpu='pip-freeze.tpu.txt')


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def pins(text):
    "name -> version, of lines `name==version` and of wheels `name @ https://…/name-version-….whl`"
    found = {}
    for line in text.splitlines():
        if m := re.match(r'([\w.-]+)==([\w.]+)', line):  # a local version, `2.11.0+cu128`, is on no index
            found[normal(m[1])] = m[2]
        elif m := re.match(r'([\w.-]+) @ \S+/[\w.]+?-(\d[\w.]*)[^/]*\.whl', line):
            found[normal(m[1])] = m[2]
    return found


def constraints(freeze, ours, date, source):
    "The text of a constraints file"
    image = pins(freeze)
    image = {k: v for k, v in image.items() if not k.startswith('nvidia-')}
    rest = {k: v for k, v in pins(ours).items() if k not in image and not k.startswith('nvidia-')}
    head = f"# Colab's image of {date}: {source} of github.com/googlecolab/backend-info, by tools/colab.py\n"
    more = '# What the image lacks: the versions of constraints.txt\n'
    lines = [''.join(f'{k}=={v}\n' for k, v in sorted(d.items())) for d in (image, rest)]
    return head + lines[0] + more + lines[1]


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('folder', type=Path, help='a clone of github.com/googlecolab/backend-info')
    p.add_argument('--date', required=True, help='day of the commit that is checked out there')
    a = p.parse_args(args)
    ours = (root / 'constraints.txt').read_text(encoding='utf-8')
    for image, name in images.items():
        text = constraints((a.folder / name).read_text(encoding='utf-8'), ours, a.date, name)
        (root / f'constraints-colab-{image}.txt').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
