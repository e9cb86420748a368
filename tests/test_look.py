"""The page of `inspect` in a browser, from its file:

every part drawn, keys and the choice of heads work, nothing overflows, and no token is run
"""

import html
import pytest
import torch
from gpt2repro.look import inspect
from gpt2repro.model import GPT2
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import SentencePiece

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
