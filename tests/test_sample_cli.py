"The command that writes text: prompts from everywhere, every option, and what cannot be done"

import io
import json
import sys
import pytest
import torch
from gpt2repro.weights import save_pretrained
from gpt2repro.config import GPT2Config
from gpt2repro.model import GPT2
from gpt2repro.tokenizer import SentencePiece
from test_cli import command, fails

lines = ['the cat sat on the mat and the dog sat on the log', 'a naïve café in São Paulo, 東京 🙂'] * 40


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A model with random weights and its tokenizer, and the same without a tokenizer"
    torch.manual_seed(0)
    tok = SentencePiece.train(lines, vocab_size=360)
    m = GPT2(GPT2Config(vocab_size=360, n_ctx=32, n_embd=24, n_layer=1, n_head=3).no_dropout())
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim > 1:
                p.mul_(4)
    out = tmp_path_factory.mktemp('model')
    tok.save(save_pretrained(m, out / 'whole'))
    save_pretrained(m, out / 'bare')
    save_pretrained(GPT2(m.cfg.replace(vocab_size=300)), out / 'smaller')
    tok.save(out / 'tok')
    SentencePiece.train(lines, vocab_size=330).save(out / 'other')
    return out


def run(folder, *argv, stdin=None, monkeypatch=None):
    if stdin is not None:
        monkeypatch.setattr(sys, 'stdin', io.StringIO(stdin))
    s, out, err = command('sample', folder / 'whole', *argv, '--device', 'cpu', '--max-new-tokens', 12)
    assert s == 0, err
    return out


def test_prompts_from_everywhere(folder, tmp_path, monkeypatch):
    f = tmp_path / 'prompts.txt'
    f.write_text('the cat\nthe dog\n')
    rows = lambda *a, **kw: [json.loads(l) for l in run(folder, '--jsonl', *a, **kw).splitlines()]
    two = rows('--file', f, '--n', 2)
    assert [r['prompt'] for r in two] == ['the cat'] * 2 + ['the dog'] * 2 and len(
        {r['text'] for r in two}
    ) > 2
    assert rows('the cat') == two[:1]  # the same seed: the same text
    assert rows(stdin='the cat\nthe dog\n', monkeypatch=monkeypatch) == [two[0], two[2]]
    monkeypatch.setattr(sys, 'stdin', io.StringIO(''))
    fails('no prompt: give one', 'sample', folder / 'whole', '--device', 'cpu')
    assert rows('--unconditional')[0]['prompt'] == ''
    assert all(len(r['ids']) == len(r['logprobs']) <= 12 and max(r['logprobs']) <= 0 for r in two)
    assert run(folder, 'the cat', '--stream') == 'the cat' + two[0]['text'] + '\n' == run(folder, 'the cat')


def test_asks_in_a_terminal(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked = iter(['the cat', 'the dog'])

    def answer(question):
        assert 'prompt>' in question
        try:
            return next(asked)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr('builtins.input', answer)
    monkeypatch.setattr(sys, 'stdin', Terminal())
    out = command('sample', folder / 'whole', '--device', 'cpu', '--max-new-tokens', 5)[1]
    assert 'the cat' in out and 'the dog' in out


def test_options_change_the_text(folder):
    plain = run(folder, 'the cat', '--temperature', 0)
    assert run(folder, 'the cat', '--top-k', 1) == plain
    for opt in (
        ['--repetition-penalty', 50],
        ['--no-repeat-ngram', 1],
        ['--frequency-penalty', 9],
        ['--presence-penalty', 99],
        ['--bias', 'dog=90'],
    ):
        assert run(folder, 'the cat', '--temperature', 0, *opt) != plain, (
            opt
        )  # without it, greedy goes round in a circle
    assert run(folder, 'the cat', '--beams', 1) == plain
    text = json.loads(run(folder, 'the cat', '--json'))['samples'][0]['text']
    assert (
        json.loads(run(folder, 'the cat', '--json', '--stop', text[3:5]))['samples'][0]['text']
        == text[: text.index(text[3:5])]
    )
    assert 'cat' in run(folder, '--unconditional', '--bias', 'cat=90') and 'cat' not in run(
        folder, '--unconditional', '--bias', 'cat=90', '--ban', 'cat'
    )
    assert run(folder, 'the cat', '--weights', 'int8').startswith('the cat')
    s, out, _ = command(
        'sample',
        folder / 'bare',
        'the cat',
        '--tokenizer',
        folder / 'tok',
        '--max-new-tokens',
        12,
        '--device',
        'cpu',
    )
    assert s == 0 and out == run(folder, 'the cat')


@pytest.mark.parametrize(
    'words,argv',
    [
        ('--temperature -1.0: give a number from 0', ['x', '--temperature', '-1']),
        ('--top-k -3', ['x', '--top-k', '-3']),
        ('--top-p 1.5', ['x', '--top-p', '1.5']),
        ('--min-p -0.1', ['x', '--min-p', '-.1']),
        ('--max-new-tokens 0', ['x', '--max-new-tokens', 0]),
        ('--n 0', ['x', '--n', 0]),
        ('exclude each other', ['x', '--unconditional']),
        ('--stream writes one text', ['x', '--stream', '--n', 2]),
        ("--bias 'cat': write WORD=NATS", ['x', '--bias', 'cat']),
        ('--weights int4', ['x', '--weights', 'int4']),
        ('n=3 texts of 2 beams', ['x', '--beams', 2, '--n', 3]),
        ('--frequency-penalty 1e+308', ['x', '--frequency-penalty', '1e308']),
        ('--repetition-penalty 1e-45', ['x', '--repetition-penalty', '1e-45']),
        ('--temperature inf', ['x', '--temperature', '1e400']),
        ('an empty word', ['x', '--ban', 'a,']),
        ('unrecognized arguments: --predict_text', ['--predict_text', 'x']),
    ],
)
def test_what_cannot_be_done(folder, words, argv):
    fails(words, 'sample', folder / 'whole', *argv, '--device', 'cpu')


def test_tokenizers_that_do_not_fit(folder):
    fails('no tokenizer there', 'sample', folder / 'bare', 'x', '--device', 'cpu')
    fails(
        'the tokenizer has 330 tokens and the model 300',
        'sample',
        folder / 'smaller',
        'x',
        '--tokenizer',
        folder / 'other',
        '--device',
        'cpu',
    )
    s, _, err = command(
        'sample',
        folder / 'bare',
        'x',
        '--tokenizer',
        folder / 'other',
        '--max-new-tokens',
        2,
        '--device',
        'cpu',
    )  # rows that are no tokens are never drawn; many of them are worth a warning
    assert s == 0 and 'the model has 360 rows and its tokenizer 330 tokens' in err
    s, _, err = command(
        'sample', folder / 'whole', 'the cat sat on the mat ' * 20, '--max-new-tokens', 2, '--device', 'cpu'
    )
    assert s == 0 and 'longer than the context: only the last 32 tokens' in err


def test_the_help_names_the_options_of_2019():
    out = ' '.join(command('sample', '--help')[1].split())
    assert all(o in out for o in ('2019: --predict_text', '2019: --predict_file', '2019: --top_k'))
