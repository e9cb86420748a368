"""The page to write with, in a browser:

texts, alternatives, rules, two models, a run that grows; and no request leaves the machine
"""

import json
import time
import pytest
import torch
from gpt2repro.checkpoint import save_checkpoint
from gpt2repro.config import recipe, to_dict
from gpt2repro.generation import samples
from gpt2repro.model import GPT2
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import SentencePiece
from gpt2repro.weights import save_pretrained

pytest.importorskip('starlette')
from gpt2repro.serve.batcher import Batcher
from gpt2repro.serve.models import Models, Served
from gpt2repro.serve.server import Service, background

pytestmark = pytest.mark.xdist_group('serve')
lines = ['the cat sat on the mat and the dog sat on the log', 'a naïve café in São Paulo, 東京 🙂'] * 30
evil = '</b><img src=x onerror=alert(1)>'


def random_model(vocab_size, seed, scale=3):
    torch.manual_seed(seed)
    cfg = GPT2Config(vocab_size=vocab_size, n_ctx=64, n_embd=24, n_layer=2, n_head=3).no_dropout()
    model = GPT2(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale) if p.ndim > 1 else p
    return model


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Tokenizer, a model in a folder, and a run with one checkpoint"
    d = tmp_path_factory.mktemp('page')
    tok = SentencePiece.train(lines, vocab_size=400)
    model = random_model(400, 0)
    save_pretrained(model, d / evil.replace('/', '∕'), tok)
    save_pretrained(model, d / 'small', tok)
    run = d / 'run'
    (run / 'checkpoints').mkdir(parents=True)
    (run / 'config.json').write_text(
        json.dumps(to_dict(recipe('tiny').replace(model=model.cfg, max_steps=90)))
    )
    log = [
        dict(kind='train', step=10, tokens=9, left_s=90.0),
        dict(kind='valid', step=10, tokens=9, bpb=2.5, loss=5.0),
    ]
    log.append(log[-1] | dict(step=20, bpb=2.25))
    (run / 'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in log))
    save_checkpoint(run / 'checkpoints', 10, random_model(400, 1), tok)
    return d, tok, model


@pytest.fixture(scope='module')
def service(made):
    d, _, _ = made
    names = ['small', 'run', evil.replace('/', '∕')]
    return Service(Models([Served(str(d / name), rows=4) for name in names]))


@pytest.fixture(scope='module')
def url(service):
    service.models.follow(0.2)
    with background(service) as url:
        yield url


@pytest.fixture
def page(recorded, url):
    "The page, opened, and in `sent` what it sends"
    p = recorded(url, 'data:')
    p.sent = []
    p.on('request', lambda r: p.sent.append(r.post_data_json) if r.method == 'POST' else None)
    p.goto(url)
    p.locator('.pane option').first.wait_for(state='attached')
    return p


def slide(page, name, value):
    "Set a slider"
    page.locator(f'#{name}').evaluate(
        '(o, v) => { o.value = v; o.dispatchEvent(new Event("input")); }', str(value)
    )


def write(page, text, tokens=12, button='Write', seed=3):
    "Write, and wait for the end"
    page.fill('#prompt', text)
    slide(page, 'max_tokens', tokens)
    if seed is not None:
        page.uncheck('#fresh')
        page.fill('#seed', str(seed))
    page.get_by_role('button', name=button, exact=True).click()
    finished(page)


def finished(page, n=1):
    page.locator('.pane:has(.more:enabled)').nth(n - 1).wait_for()
    page.locator('#stop:disabled').wait_for()


def text_of(page, pane=0):
    return page.locator('.pane .text').nth(pane).evaluate('o => o.textContent')


def test_a_text_is_written_as_tokens(page, made):
    _, tok, model = made
    write(page, 'a naïve 東京 🙂', 20)
    [s] = samples(model, tok, 'a naïve 東京 🙂', 20, seed=3, top_k=40)
    assert text_of(page) == 'a naïve 東京 🙂' + s.text
    ids = tok.encode('a naïve 東京 🙂') + s.ids
    assert page.locator('.token').count() == len(ids) and page.locator('.token.own').count() == len(ids) - 20
    heat = page.locator('.token').nth(3).evaluate('o => getComputedStyle(o).backgroundColor')
    assert heat.startswith('rgba(214, 84, 20'), heat
    assert '20 tokens' in page.locator('.status').inner_text()
    page.get_by_role('button', name='Continue').click()
    finished(page)
    assert page.locator('.token').count() == len(ids) + 20 and text_of(page).startswith(
        'a naïve 東京 🙂' + s.text
    )


@pytest.mark.parametrize('by', ['mouse', 'keyboard'])
def test_a_token_is_replaced_by_one_of_its_alternatives(page, made, by):
    _, tok, model = made
    write(page, 'the cat', 10)
    n = len(tok.encode('the cat'))
    before = page.locator('.token').evaluate_all('all => all.map(o => o.textContent)')
    if by == 'mouse':
        page.locator('.token').nth(n + 3).click()
    else:
        page.locator('.text').focus()
        for _ in range(n + 4):
            page.keyboard.press('ArrowRight')
        page.keyboard.press('Enter')
    card = page.locator('#card')
    assert card.locator('.other').count() == 10
    chances = [float(o.split()[0]) for o in card.locator('.other span').all_inner_texts()]
    assert chances == sorted(chances, reverse=True)
    if by == 'mouse':
        card.locator('.other').nth(1).click()
    else:
        current = card.locator('.other').evaluate_all('all => all.indexOf(document.activeElement)')
        for _ in range((1 - max(current, 0)) % 10):
            page.keyboard.press('ArrowDown')
        page.keyboard.press('Enter')
    finished(page)
    sent = page.sent[-1]['prompt']
    ids = tok.encode('the cat')
    assert sent[:n] == ids and len(sent) == n + 4  # up to there, and the chosen token
    with torch.no_grad():
        best = model(torch.tensor([sent[:-1]]))[0, -1].topk(2).indices.tolist()
    assert sent[-1] == best[1]
    after = page.locator('.token').evaluate_all('all => all.map(o => o.textContent)')
    assert after[: n + 3] == before[: n + 3] and len(after) == n + 4 + 10
    assert card.is_hidden() and text_of(page) == tok.decode(sent) + ''.join(after[n + 4 :])


def test_every_rule_reaches_the_server(page, made):
    _, tok, model = made
    values = dict(
        temperature=0.8, top_k=7, top_p=0.9, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.3,
        presence_penalty=-0.2, no_repeat_ngram=3, min_tokens=5,
    )  # fmt: skip
    for name, v in values.items():
        slide(page, name, v)
        assert page.locator(f'output[for={name}]').inner_text() == str(v)
    page.fill('#stops', 'zz|\\n')
    page.fill('#banned', 'dog, log')
    page.fill('#bias', 'cat=1.5')
    write(page, 'the', 15)
    sent = page.sent[-1]
    assert {k: sent[k] for k in values} == values
    assert (sent['stop'], sent['bad_words'], sent['word_bias']) == (
        ['zz', '\n'],
        ['dog', 'log'],
        dict(cat=1.5),
    )
    page.reload()  # what was set stays
    assert (
        page.locator('#temperature').input_value() == '0.8' and page.locator('#prompt').input_value() == 'the'
    )
    page.locator('.pane option').first.wait_for(state='attached')
    page.click('#reset')
    assert page.locator('#temperature').input_value() == '1' and page.locator('#banned').input_value() == ''
    page.fill('#bias', 'cat')
    page.click('#write')
    page.locator('.status.wrong').wait_for()
    assert 'is no bias' in page.locator('.status').inner_text()


def test_look_edit_and_stop(page, made, service, monkeypatch):
    _, tok, _ = made
    write(page, 'the cat sat', button='Only look')
    assert page.locator('.token').count() == len(tok.encode('the cat sat')) and text_of(page) == 'the cat sat'
    page.locator('.token').last.click()
    page.get_by_role('button', name='Edit from here').click()
    assert page.locator('#prompt').input_value() == 'the cat'
    slide(page, 'max_tokens', 500)
    slide(page, 'min_tokens', 500)
    turn = Batcher.turn
    monkeypatch.setattr(Batcher, 'turn', lambda self: (time.sleep(0.02), turn(self))[1])  # a slow model
    page.keyboard.press('Control+Enter')
    page.locator('.token').nth(20).wait_for(state='attached')
    page.keyboard.press('Escape')
    finished(page)
    assert 'stopped' in page.locator('.status').inner_text() and page.locator('.token').count() < 500
    end = time.monotonic() + 5
    while service.engine.rows:  # the server knows that nobody reads on
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_models_side_by_side(page, made):
    _, tok, model = made
    page.get_by_role('button', name='Two models').click()
    assert page.locator('.pane').count() == 2
    selects = page.locator('.pane select')
    assert [selects.nth(i).input_value() for i in (0, 1)] == ['small', 'run']
    write(page, 'the cat', 12)
    finished(page, 2)
    [s] = samples(model, tok, 'the cat', 12, seed=3, top_k=40)
    assert text_of(page) == 'the cat' + s.text and text_of(page, 1).startswith('the cat')
    assert text_of(page, 1) != text_of(page)
    page.locator('.pane').nth(1).locator('select').select_option('small')
    write(page, 'the cat', 12)
    finished(page, 2)
    assert text_of(page, 1) == text_of(page)  # the same model, rules and seed
    page.get_by_role('button', name='Two models').click()
    assert page.locator('.pane').count() == 1


def test_a_run_is_followed(page, made, service):
    d, tok, _ = made
    page.locator('.pane select').select_option('run')
    facts = page.locator('.facts').inner_text()
    for words in 'checkpoint 10', 'step 20 of 90', '2.250 bits per byte', '2 min left':
        assert words in facts, facts
    assert page.locator('.facts polyline').count() == 1
    write(page, 'the cat', 10)
    first = text_of(page)
    page.get_by_label('write again at each checkpoint').check()
    new = random_model(400, 2)
    save_checkpoint(d / 'run/checkpoints', 30, new, tok)
    page.locator('.earlier li').wait_for()
    finished(page)
    assert page.locator('.earlier li').inner_text() == f'checkpoint 10\n{first}'
    [s] = samples(new, tok, 'the cat', 10, seed=3, top_k=40)
    assert text_of(page) == 'the cat' + s.text
    page.get_by_text('checkpoint 30', exact=True).wait_for()


@pytest.mark.parametrize('width, scheme', [(1300, 'dark'), (390, 'light'), (320, 'dark')])
def test_nothing_overflows_and_names_are_text(page, made, width, scheme):
    page.set_viewport_size(dict(width=width, height=800))
    page.emulate_media(color_scheme=scheme)
    page.locator('.pane select').select_option(label=evil.replace('/', '∕'))
    write(page, f'{evil} {"x" * 90}'[:60], 40)
    assert page.locator('img').count() == 0 and evil in text_of(page)
    assert page.evaluate('() => document.documentElement.scrollWidth <= innerWidth')
    page.locator('.token').nth(12).click()
    box = page.locator('#card').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= width
    dark = page.locator('body').evaluate('o => getComputedStyle(o).backgroundColor') != 'rgb(255, 255, 255)'
    assert dark == (scheme == 'dark')
    page.keyboard.press('Escape')
    assert page.locator('#card').is_hidden()


def test_a_page_elsewhere_can_do_nothing(browser, url, tmp_path):
    "A page of another origin cannot write, read, or show this one in a frame"
    (tmp_path / 'evil.html').write_text(f'<iframe src="{url}/"></iframe><img src="{url}/v1/models">', 'utf-8')
    p = browser.new_page()
    p.goto((tmp_path / 'evil.html').as_uri())
    got = p.evaluate(
        """async url => {
            const body = JSON.stringify({prompt: 'a'});
            const tries = [fetch(url + '/v1/models'), fetch(url + '/v1/completions', {method: 'POST', body}),
                fetch(url + '/v1/completions', {method: 'POST', body, mode: 'no-cors'})];
            const ended = await Promise.allSettled(tries);
            return ended.map(o => o.status === 'fulfilled' ? o.value.type : 'refused');
        }""",
        url,
    )
    assert got[:2] == ['refused', 'refused'] and got[2] in ('refused', 'opaque')
    assert p.locator('img').evaluate('o => o.naturalWidth') == 0
    assert p.frames[1].evaluate('() => document.querySelector("#prompt")') is None
    p.close()


def test_a_server_that_has_gone(page, url, service):
    "This one is last"
    service.engine.close()
    page.fill('#prompt', 'a')
    page.click('#write')
    page.locator('.status.wrong').wait_for()
    assert 'the server stops' in page.locator('.status').inner_text()
    page.wrong[:] = [w for w in page.wrong if '503' not in w]
