"""The page of `inspect` in a browser, from its file:

every part drawn, keys and the choice of heads work, nothing overflows, no token is run,
characters in several tokens are whole, and it is small
"""

import html
import pytest
import torch
from gpt2repro.look import inspect
from gpt2repro.model import GPT2
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import GPT2BPE, SentencePiece
from gpt2repro.utils import reference_data

evil = '</script><script>alert(1)</script><img src=x onerror=alert(2)>\n<!--<script> שלום 🙂 the cat sat'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    torch.manual_seed(0)
    tok = SentencePiece.train(['the cat sat on the mat. the cat ran.'] * 50, vocab_size=300)
    model = GPT2(GPT2Config(vocab_size=tok.vocab_size, n_ctx=128, n_embd=20, n_layer=3, n_head=5))
    return inspect(model, tok, evil).save(tmp_path_factory.mktemp('look') / 'page.html')


@pytest.mark.parametrize(
    'width, scheme, framed', [(1300, 'light', False), (360, 'dark', False), (900, 'dark', True)]
)
def test_page(recorded, file, tmp_path, width, scheme, framed):
    if framed:  # as a notebook shows it
        srcdoc = html.escape(file.read_text(encoding='utf-8'))
        file = tmp_path / 'frame.html'
        file.write_text(
            f'<iframe sandbox="allow-scripts" width="800" height="600" srcdoc="{srcdoc}"></iframe>',
            encoding='utf-8',
        )
    page = recorded('file:', 'about:', width=width, color_scheme=scheme)
    page.goto(file.as_uri())
    look = page.frames[-1]
    look.wait_for_selector('.token[aria-pressed=true]')
    n = look.locator('.token').count()
    assert n > 20 and look.locator('.heads button').count() == 15
    assert look.locator('.lens tr').count() == 5 and look.locator('#removed tr').count() == 4
    assert look.locator('#instead tr').count() >= 10 and look.locator('#lines line').count() > 0
    assert look.evaluate('document.images.length') == 0
    text = look.locator('#text').inner_text()
    assert '🙂' in text and 'שלום' in text.replace('2', '') and '\\x' not in text  # each of several tokens
    piece = look.locator('.token[aria-label="🙂, piece 2 of 4"]')
    piece.focus()
    assert look.locator('#chosen').inner_text().startswith('“🙂 2/4”')
    assert look.locator('.lens th', has_text='🙂 4/4').count() == 1
    look.locator('.token').first.focus()
    first = look.locator('#chosen').inner_text()
    look.locator('.token').first.focus()
    page.keyboard.press('ArrowRight')
    assert look.locator('.token').nth(1).get_attribute('aria-pressed') == 'true'
    assert look.locator('#chosen').inner_text() != first
    look.locator('.heads button').first.click()  # head 0 of the last layer
    assert 'Layer 2, head 0' in look.locator('#head').inner_text()
    page.keyboard.press('ArrowDown')
    assert 'Layer 1, head 0' in look.locator('#head').inner_text()
    over = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'
    assert look.evaluate(over) <= 0
    look.locator('#theme').click()
    now = look.evaluate('document.documentElement.dataset.theme')
    assert now == dict(light='dark', dark='light')[scheme]


@pytest.mark.skipif(not reference_data('tokenizer').exists(), reason='no tokenizer of GPT-2')
def test_weight():
    "The page of 64 tokens of 124M: its layers, heads and vocabulary weigh, its channels do not"
    tok = GPT2BPE.from_folder(reference_data('tokenizer'))
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_embd=24))
    text = tok.decode(tok.encode('Heads copy what they have seen. 日本語 is in pieces. ' * 4)[:63])
    seen = inspect(model, tok, text)
    assert any('本' in whole for whole, *_ in seen.data()['pieces'].values())
    assert len(seen.page().encode()) < 1_000_000
