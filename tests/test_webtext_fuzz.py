"""Strangers' data, made up by hypothesis: dumps, archives, headers and pages that are odd in any way.

No exception comes out, what is wrong is counted, and the good parts are all there. The environment's
`GPT2REPRO_FUZZ=1000` tries so many examples, other ones each time; by default a few, always the same ones
"""

import gzip
import json
import os
from collections import Counter

import pytest

pytest.importorskip('gpt2repro.webtext.run')
pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trafilatura
from datatrove.data import Document
from gpt2repro.webtext.dedup import word_grams
from gpt2repro.webtext.extract import Language, NotRepetitive, ReadPages, charset, decode, http_response
from gpt2repro.webtext.extract import warc_records, whole_text
from gpt2repro.webtext.fetch import FetchError, Response, is_html, warc_record
from gpt2repro.webtext.links import FindLinks, MergeLinks, left_out, link_key, normalise, site
from gpt2repro.webtext.options import WebTextConfig

more = int(os.environ.get('GPT2REPRO_FUZZ', 0))
fuzz = settings(
    max_examples=more or 25,
    derandomize=not more,
    deadline=None if more else 2000,  # ms for one example
    database=None,
    suppress_health_check=list(HealthCheck),
)

odd_text = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ['\0', '\ud800', 'a\nb', 'a\rb', 'a\tb', 'é', '٣', '', ' ', '\u2028', '9' * 5000, 'x' * 999]
    ),
)
odd_value = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        odd_text,
        st.sampled_from([10**30, -(2**63), 2**64, 99999999999999, 1e308]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(odd_text, inner, max_size=3)),
    max_leaves=5,
)
urls = st.one_of(
    odd_text,
    odd_value,
    st.builds(
        'http://{}{}/{}'.format,
        st.sampled_from(['e.com', 'a..b', '[::1]', '[', 'ü.x', 'x' * 70, '1.2', '.']),
        st.sampled_from(['', ':80', ':99999', ':x', ':-1', '@x', ':٣']),
        odd_text,
    ),
)
submissions = st.fixed_dictionaries(
    {},
    optional=dict(id=odd_value, url=urls, score=odd_value, created_utc=odd_value, is_self=odd_value),
).map(lambda d: json.dumps(d).encode('utf-8', 'surrogatepass'))
good = b'{"id":"g","url":"http://good.example/","score":9,"created_utc":1119552233,"is_self":false}'


@fuzz
@given(st.lists(st.one_of(submissions, st.binary(max_size=40), st.just(good)), max_size=8))
def test_dumps(tmp_path_factory, lines):
    tmp = tmp_path_factory.mktemp('d')
    dump = b'\n'.join([good, *lines, good])
    (tmp / 'dump').write_bytes(dump)
    step = FindLinks([tmp / 'dump'], tmp / 'runs', WebTextConfig(tasks=1))
    step.run()
    n = {k: v.total for k, v in step.stats.stats.items()}
    assert n['submissions'] == sum(bool(l.strip()) for l in dump.split(b'\n'))
    assert n.get('damaged', 0) + n['score'] <= n['submissions']
    merge = MergeLinks(tmp / 'runs', tmp / 'links')
    merge.run()
    found = [json.loads(l) for l in (tmp / 'links/00000.jsonl').open(encoding='utf-8')]
    assert 'http://good.example/' in [o['url'] for o in found] and merge.stats['damaged'].total == 0
    assert all(len(o['date']) == 10 and normalise(o['url']) == o['url'] for o in found)


@fuzz
@given(urls)
def test_urls(url):
    if isinstance(url, str) and (u := normalise(url)):
        assert u.isascii() and u.isprintable() and normalise(u) == u
        assert link_key(u) and site(u) is not None and left_out(u) is not None


def page(i):
    a = Response(
        url=f'http://e.com/{i}',
        status=200,
        headers=(('Content-Type', 'text/html'),),
        body=b'<p>Page %d</p>' % i * 50,
        ip='192.0.2.1',
    )
    return warc_record(a, dict(url=a.url, score=3, date='2005-06-24'))


pages = [page(i) for i in range(5)]


@fuzz
@given(st.data())
def test_archives(tmp_path_factory, data):
    "One of five records is damaged: flipped, cut, grown; the others are read"
    f = tmp_path_factory.mktemp('w') / 'x.warc.gz'
    packed = data.draw(st.booleans())
    parts = pages if packed else [gzip.decompress(p) for p in pages]
    i = data.draw(st.integers(0, 4))
    part = bytearray(parts[i])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(part) - 1)))
        kind = data.draw(st.sampled_from(['flip', 'cut', 'grow', 'gap']))
        if kind == 'flip' and part:
            part[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == 'cut':
            del part[at:]
        elif kind == 'gap':
            del part[at : at + data.draw(st.integers(1, 200))]
        else:
            part[at:at] = data.draw(st.binary(max_size=300))
    f.write_bytes(b''.join([*parts[:i], bytes(part), *parts[i + 1 :]]))
    counts = Counter()
    found = [h.get('warc-target-uri') for h, _ in warc_records(f, counts)]
    others = {f'http://e.com/{j}' for j in range(5) if j != i}
    # without members nothing says where the damaged record ends: it can take its neighbour with it
    assert len(others - set(found)) <= (not packed)
    step = ReadPages([f])
    assert all(d.text.encode() for d in step.run()) and len(list(ReadPages([f]).run())) >= 3


@fuzz
@given(st.binary(max_size=600))
def test_no_archive_at_all(tmp_path_factory, data):
    f = tmp_path_factory.mktemp('w') / 'x.warc.gz'
    for raw in (data, gzip.compress(data), b'WARC/1.0\r\n' + data, b'\x1f\x8b\x08' + data):
        f.write_bytes(raw)
        assert all(isinstance(d.text, str) for d in ReadPages([f]).run())


header_lines = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda k, v: k + b': ' + v,
            st.sampled_from(
                [b'Content-Type', b'Content-Encoding', b'Transfer-Encoding', b'Content-Length', b'X']
            ),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [b'chunked', b'gzip', b'deflate', b'br', b'text/html; charset=zlib', b'9' * 5000]
                ),
            ),
        ),
    ),
    max_size=6,
)


@fuzz
@given(st.binary(max_size=30), header_lines, st.binary(max_size=200))
def test_headers(first, lines, body):
    "An answer in an archive, and the same headers from a server on their way into an archive"
    try:
        status, fields, content = http_response(b'\r\n'.join([first, *lines, b'', body]), 100)
    except ValueError:
        return
    assert len(content) <= 101
    is_html(fields.get('content-type', ''), content)
    text, _ = decode(content, charset(fields.get('content-type', '')))
    assert whole_text(text) == text
    headers = tuple((k, v) for k, v in fields.items())
    a = Response(url='http://e.com/', status=200, headers=headers, body=content, ip='192.0.2.1')
    try:
        record = warc_record(a, dict(url=a.url, score=3, date='2005-06-24'))
    except FetchError:
        raise AssertionError from None
    block = gzip.decompress(record).split(b'\r\n\r\n', 1)[1].removesuffix(b'\r\n\r\n')
    kept = block.split(b'\r\n\r\n', 1)
    assert kept[1] == content


tags = st.sampled_from(
    [
        '<p>',
        '</p>',
        '<div>',
        '<table><tr><td>',
        '<script>',
        '</script>',
        '<!--',
        '<a href="',
        '<',
        '&#xD800;',
        '&#0;',
        '\0',
        '<![CDATA[',
        '<meta charset="idna">',
        '<ul><li>',
    ]
)
html = st.lists(st.one_of(tags, odd_text, st.just('The old letter was carried to the market. ')), max_size=30)
language = Language('en')
repetitive = NotRepetitive()


@fuzz
@given(html)
def test_pages(parts):
    raw = ''.join(parts).encode('utf-8', 'surrogatepass')
    text, _ = decode(raw)
    assert whole_text(text) == text
    try:
        text = whole_text(trafilatura.extract(text, include_comments=False, fast=True) or '')
    except Exception:  # the step counts it
        text = ''
    for t in (text, decode(raw)[0]):
        if t:
            d = Document(text=t, id='x', metadata={})
            language.filter(d)
            repetitive.filter(d)
            word_grams(t)
