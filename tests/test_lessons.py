"""Every lesson begins with what it needs, takes and gives, and ends with exercises that have answers.

The answers' code runs in test_notebooks.py, where the notebook's own cells have run before it
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple
import pytest

nbs = Path(__file__).parent.parent / 'nbs'
names = """
    05_corpus 06_tokenizer 07_shards 08_batches 10_model 11_loss 12_look 12_variants 14_adafactor 19_loop
    24_generation 26_sample 30_evaluate 40_one_page 41_sampling 42_finetuning 43_why_2019_fell_short
    44_one_chip 45_rebuilding_webtext 46_slices 47_numbers_differ 48_what_it_has_learnt 49_then_and_now
    serve/00_batcher
"""
lessons = [nbs / f'{name}.ipynb' for name in names.split()]
head = re.compile(
    r'- \*\*You need\*\* (?P<need>.+)\n- \*\*Time\*\* (?P<time>.+)\n- \*\*You get\*\* (?P<get>.+)'
)
# Markdown inside of HTML: the attribute is for the site, the empty lines are for Jupyter, Colab and GitHub
folded = re.compile(
    r'<details markdown="1">\n<summary>Answer</summary>\n\n(?P<answer>.+?)\n\n</details>', re.S
)
code_block = re.compile(r'^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?', re.S | re.M)
number = re.compile(r'\d[\d,]*\.?\d*(?:e[-+]\d+)?')


class Answer(NamedTuple):
    "A block of code in an answer"

    id: str  # number of the exercise, and of the block in it
    code: str
    output: str  # that the text says it has
    slow: bool  # the code begins with a comment that says so


def cells(fn):
    "(type, source) of each cell"
    nb = json.loads(fn.read_text(encoding='utf-8'))
    return [(c['cell_type'], ''.join(c['source'])) for c in nb['cells']]


def exercises(fn):
    "The text of each exercise: what follows the heading, cut at the numbers"
    text = '\n\n'.join(s for kind, s in cells(fn) if kind == 'markdown')
    _, _, text = text.partition('## Exercises\n')
    return re.split(r'^(?=\*\*\d\. )', text, flags=re.M)[1:]


def answers(fn):
    "The code of all answers"
    for i, text in enumerate(exercises(fn), 1):
        for k, m in enumerate(code_block.finditer(text), 1):
            yield Answer(f'exercise-{i}.{k}', m[1], m[2] or '', m[1].startswith('# slow'))


def same_output(got, want):
    "The same words, and numbers within a fifth: another machine rounds in another way"
    if not want:
        return True
    if number.sub('#', got).split() != number.sub('#', want).split():
        return False
    pairs = zip(number.findall(got), number.findall(want))
    a_b = [[float(o.rstrip('.').replace(',', '')) for o in p] for p in pairs]
    return all(math.isclose(a, b, rel_tol=0.2, abs_tol=0.05) for a, b in a_b)


def test_same_output():
    assert same_output('loss 1.00, of 1,000\n', 'loss  1.02, of 1,010')
    assert not same_output('loss 1.00', 'loss 2.00')
    assert not same_output('loss 1.00', 'bits 1.00')
    assert not same_output('1 2', '1')


@pytest.mark.parametrize('fn', lessons, ids=lambda f: f.stem)
def test_head(fn):
    (kind, title), (_, install), (kind2, text) = cells(fn)[:3]
    assert kind == kind2 == 'markdown' and title.startswith('# ') and 'pip install' in install
    m = head.fullmatch(text)
    assert m, f'{fn.name}: the third cell is not the list You need, Time, You get, but\n{text}'
    assert re.search(r'\b(seconds?|minutes?|hours?)\b', m['time']), m['time']


@pytest.mark.parametrize('fn', lessons, ids=lambda f: f.stem)
def test_exercises(fn):
    found = exercises(fn)
    assert 2 <= len(found) <= 3, f'{fn.name} has {len(found)} exercises'
    for i, text in enumerate(found, 1):
        assert re.match(rf'\*\*{i}\. [^*]+\*\* ', text), text[:80]
        question, *rest = folded.split(text)
        assert len(rest) == 2 and not rest[1].strip(), f'{fn.name}, {i}: not one folded answer at the end'
        assert '<' not in re.sub(r'`[^`]*`', '', question)
        assert list(code_block.finditer(rest[0])), f'{fn.name}, {i}: an answer without code'
    assert cells(fn)[-1][0] == 'markdown' and cells(fn)[-1][1].endswith('</details>')
