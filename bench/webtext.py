"""The WebText pipeline: links a second, extraction against bare trafilatura, near-duplicates, memory

`speed` compares with json.loads and with trafilatura on the same pages; `near` counts planted near-duplicates
found; `memory` is each stage's peak at 1 and 10 times the input, in a process of its own. All three if none
is named: some fifteen minutes on two cores. `--rough` does a twentieth of everything and keeps nothing."""

import json
import random
import resource
import tempfile
from collections import deque
from pathlib import Path
from bench.common import alone, parser, peak_mib, save_table, section
from loguru import logger
from datatrove.data import Document
from gpt2repro.webtext.options import CleanConfig, CrawlConfig, DedupConfig, WebTextConfig
from gpt2repro.webtext.streams import dump_lines
from gpt2repro.webtext.links import FindLinks, MergeLinks
from gpt2repro.webtext.practice_site import PracticeSite, page_html
from gpt2repro.webtext.fetch import FetchPages, Response, warc_record
from gpt2repro.webtext.extract import ExtractText, Language, LongEnough, NotRepetitive, ReadPages
from gpt2repro.webtext.dedup import Bands, Clusters, DropCopies, DropNear, FindCopies, NoteContent, ReadText
from gpt2repro.webtext.dedup import Sign, word_grams
from gpt2repro.webtext.data_card import Describe, ToJsonl, ToParquet, full_document

packages = ('datatrove', 'trafilatura', 'orjson', 'zstandard', 'numpy')


def cpu():
    "CPU seconds of this process and of those it has waited for"
    return sum(
        getattr(resource.getrusage(w), k)
        for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for k in ('ru_utime', 'ru_stime')
    )


def drain(step, *a):
    deque(step.run(*a) or (), 0)


def through(steps):
    data = None
    for s in steps:
        data = s.run(data, 0, 1)
    deque(data or (), 0)


# what goes in


images = 'https://b.thumbs.redditmedia.com/abcdef.jpg'
extra = {f'field_{i}': v for i, v in enumerate([None, False, [], 'public', images, 0] * 8)}


def submission(rng, words, i, n):
    "A submission of 1.4 kB with the 60 fields of a dump"
    own = rng.random() < 0.25
    if own:
        url = f'https://www.reddit.com/r/x/comments/{i:x}/'
    else:
        site = int(rng.paretovariate(0.6)) % 50_000
        page = f'{rng.choice(words)}/{rng.randrange(max(2, n * 9 // 10))}'
        url = f'https://www.site{site}.com/{page}?utm_source=reddit'
    return dict(
        extra,
        id=f'{i:x}',
        author=rng.choice(words),
        created_utc=1500000000 + i,
        domain='x.com',
        is_self=own,
        num_comments=rng.randrange(99),
        permalink=f'/r/x/comments/{i:x}/',
        score=rng.choice((0, 1, 1, 3, 40)),
        subreddit=rng.choice(words),
        title=' '.join(rng.choices(words, k=10)),
        selftext=' '.join(rng.choices(words, k=60)) if own else '',
        url=url,
    )


def write_dump(path, n, seed=0, copies=1):
    """`n` submissions, zstd; two in five have a score of 3 or more, one in four is text, names repeat as
    on Reddit; `copies` times, with other addresses"""
    import zstandard

    rng = random.Random(seed)
    words = [''.join(rng.choices('etaoinshrdlu', k=rng.randint(3, 9))) for _ in range(2000)]
    with open(path, 'wb') as f, zstandard.ZstdCompressor(level=3).stream_writer(f) as z:
        for i in range(n):
            line = json.dumps(submission(rng, words, i, n)).encode() + b'\n'
            for k in range(copies):
                z.write(line.replace(b'utm_source=reddit', b'copy=%d' % k) if k else line)


def prose(n, seed=0):
    "Documents of 100 to 800 words of no meaning"
    rng = random.Random(seed)
    words = [''.join(rng.choices('etaoinshrdlucmfwyp', k=rng.randint(2, 9))) for _ in range(20_000)]
    return [' '.join(rng.choices(words, k=rng.randint(100, 800))) for _ in range(n)]


def python_pages(n):
    "Pages of some 25 kB: a menu of 250 links and a footer around text of the embedded corpus"
    from gpt2repro.corpus import python_docs

    docs = [d for d in python_docs() if 1500 < len(d) < 30_000]
    for i in range(n):
        paragraphs = docs[i % len(docs)].split('\n\n')
        safe = [p.replace('&', '&amp;').replace('<', '&lt;') for p in paragraphs]
        yield page_html(f'Page {i}', safe, 250)


def write_warc(path, pages):
    with open(path, 'wb') as f:
        for i, p in enumerate(pages):
            f.write(
                warc_record(
                    Response(
                        url=f'http://site{i % 97}.example/{i}',
                        status=200,
                        headers=(('Content-Type', 'text/html'),),
                        body=p.encode(),
                        ip='192.0.2.1',
                    ),
                    dict(url=f'http://site{i % 97}.example/{i}', score=3, date='2019-02-14'),
                )
            )


def write_text(folder, texts):
    through([Feed(texts), NoteContent(folder / 'content'), ToJsonl(folder / 'text', full_document)])


class Feed:
    def __init__(self, texts):
        self.texts = texts

    def run(self, data=None, rank=0, world_size=1):
        yield from (
            Document(
                text=t,
                id=str(i),
                metadata=dict(url=f'http://site{i % 97}.example/{i}', score=3, date='2019-02-14'),
            )
            for i, t in enumerate(self.texts)
        )


# the four numbers


def links_row(tmp, n):
    dump = tmp / 'RS.zst'
    write_dump(dump, n)
    step = FindLinks([dump], tmp / 'runs', WebTextConfig())
    t = cpu()
    drain(step)
    ours = cpu() - t
    t = cpu()
    k = 0
    for lines in dump_lines(dump):
        for l in lines:
            if l and (d := json.loads(l))['score'] >= 3 and not d['is_self']:
                k += 1
    peer = cpu() - t
    assert step.stats['submissions'].total == n
    return dict(
        what='links: submissions/s per core, zst to sorted runs',
        ours=n / ours,
        peer=n / peer,
        ratio=peer / ours,
        **{'peer is': 'json.loads of each line and two tests'},
        target='80,000',
    )


def text_stage(warc, cfg, tmp):
    "The steps from a WARC file to clean text"
    return [
        ReadPages([warc]),
        ExtractText(cfg),
        Language('en'),
        LongEnough(200),
        NotRepetitive(),
        NoteContent(tmp / 'c'),
        ToJsonl(tmp / 't', full_document),
    ]


def cpu_of(fn):
    "CPU seconds of one call"
    t = cpu()
    fn()
    return cpu() - t


def extraction_row(tmp, n):
    from trafilatura import extract

    warc = tmp / 'x.warc.gz'
    write_warc(warc, python_pages(n))
    cfg = CleanConfig()
    html = [d.text for d in ReadPages([warc]).run()]
    for h in html[:20]:
        extract(h, include_comments=False)
    ways = {
        'bare': lambda: [extract(h, include_comments=False, deduplicate=False) for h in html],
        'ours': lambda: through([ReadPages([warc]), ExtractText(cfg)]),
        'stage': lambda: through(text_stage(warc, cfg, tmp)),
    }
    took = {k: [] for k in ways}
    for _ in range(3):  # in turns: the machine's speed drifts
        for k, fn in ways.items():
            took[k].append(cpu_of(fn))
    bare, ours, stage = (min(s) for s in took.values())
    peer = {'peer is': 'bare trafilatura on the same decoded pages'}
    return [
        dict(
            what='extraction: pages/s per core, WARC to text',
            ours=n / ours,
            peer=n / bare,
            ratio=bare / ours,
            **peer,
            target='0.85 of the peer',
        ),
        dict(
            what='the whole text stage: with language, length, repetition, output',
            ours=n / stage,
            peer=n / bare,
            ratio=bare / stage,
            **peer,
            target='',
        ),
    ]


def jaccard(a, b, n):
    a, b = (set(word_grams(o, n).tolist()) for o in (a, b))
    return len(a & b) / len(a | b)


def near_copy(rng, text, others, n_grams):
    "The text with words exchanged, to a similarity somewhere between 0.3 and 1"
    words = text.split()
    want = rng.uniform(0.3, 1)
    changed = min(len(words), round(len(words) * (1 - want) / (1 + want) / n_grams * 1.15))
    for at in rng.sample(range(len(words)), changed):
        words[at] = rng.choice(others) + 'x'
    return ' '.join(words)


def planted(n, n_grams):
    "Texts, and (number of one, number of its near-copy, Jaccard similarity) of `n` pairs among them"
    rng = random.Random(1)
    docs = prose(2 * n, 1)
    others = docs[-1].split()
    pairs = []
    for i in range(n):
        docs.append(near_copy(rng, docs[i], others, n_grams))
        pairs.append((i, len(docs) - 1, jaccard(docs[i], docs[-1], n_grams)))
    order = list(range(len(docs)))
    rng.shuffle(order)
    return docs, pairs, order


def dropped(tmp, docs, order, cfg):
    "Numbers of the documents that de-duplication drops, and documents a second of processor time"
    write_text(tmp, [docs[i] for i in order])
    read = lambda: [ReadText(tmp / 'text'), DropCopies(tmp / 'copies')]
    t = cpu()
    drain(FindCopies(tmp / 'content', tmp / 'copies'))
    through([*read(), Sign(tmp / 'sig', cfg)])
    drain(Bands(tmp / 'sig', tmp / 'pairs', cfg), None, 0, 1)
    Clusters(tmp / 'pairs', tmp / 'clusters', cfg).run()
    data = None
    for s in (*read(), DropNear(tmp / 'clusters')):
        data = s.run(data, 0, 1)
    gone = set(range(len(docs))) - {order[int(d.id)] for d in data}
    return gone, len(docs) / (cpu() - t)


def near_rows(tmp, n):
    """Pairs with a similarity spread over 0.3 to 1, among documents that have no relative; found: one
    of the two is dropped"""
    cfg = DedupConfig()
    docs, pairs, order = planted(n, cfg.n_grams)
    gone, speed = dropped(tmp, docs, order, cfg)
    hit = [(s, a in gone or b in gone) for a, b, s in pairs]
    true = sum(f for s, f in hit if s >= 0.8)
    alike = sum(s >= 0.8 for s, _ in hit)
    unlike = sum(s < 0.6 for s, _ in hit)
    false = sum(f for s, f in hit if s < 0.6) + len(gone - {i for a, b, _ in pairs for i in (a, b)})
    rows = [
        dict(
            what=f'near-duplicates: recall of {alike:,} pairs at Jaccard >= 0.8',
            ours=true / alike,
            target='0.95',
        ),
        dict(
            what=f'precision, among {len(docs):,} documents and {unlike:,} look-alikes below 0.6',
            ours=true / (true + false),
            target='0.95',
        ),
    ]
    for lo, hi in ((0.3, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 1.01)):
        g = [f for s, f in hit if lo <= s < hi]
        what = f'share found at Jaccard {lo} to {min(hi, 1.0)}'
        rows.append(dict(what=what, ours=sum(g) / max(1, len(g)), target=''))
    return rows + [dict(what='documents/s per core, all steps, 450 words each', ours=speed, target='')]


# memory: each stage in a process of its own


crawl = CrawlConfig(
    delay=0.0, private='127.0.0.0/8', retries=0, timeout=5.0, deadline=1.0, max_bytes=1 << 20, backoff=0.01
)


def stage_peak(name, tmp):
    "Peak of this process and of the largest it started while one stage runs on what is in `tmp`, MiB"
    logger.disable('datatrove')
    tmp = Path(tmp)
    cfg = WebTextConfig(tasks=1)
    d = DedupConfig()
    read = [ReadText(tmp / 'text'), DropCopies(tmp / 'copies')]
    run = dict(
        links=lambda: drain(FindLinks([tmp / 'RS.zst'], tmp / 'runs', cfg)),
        merge=lambda: drain(MergeLinks(tmp / 'runs', tmp / 'links')),
        pages=lambda: drain(FetchPages(tmp / 'links', tmp / 'pages', tmp / 'work', crawl)),
        text=lambda: through(text_stage(tmp / 'x.warc.gz', cfg.clean, tmp)),
        copies=lambda: drain(FindCopies(tmp / 'content', tmp / 'copies')),
        sign=lambda: through([*read, Sign(tmp / 'sig', d)]),
        bands=lambda: drain(Bands(tmp / 'sig', tmp / 'pairs', d), None, 0, 1),
        clusters=lambda: Clusters(tmp / 'pairs', tmp / 'clusters', d).run(),
        write=lambda: through(
            [*read, DropNear(tmp / 'clusters'), Describe(tmp / 'd'), ToParquet(tmp / 'documents')]
        ),
    )[name]
    run()
    return max(peak_mib(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def memory_rows(tmp, n_subs, n_urls, n_pages, n_docs):
    peaks = {}
    for k in (1, 10):
        f = tmp / f'x{k}'
        f.mkdir()
        write_dump(f / 'RS.zst', n_subs, copies=k)
        write_warc(f / 'x.warc.gz', python_pages(n_pages * k))
        write_text(f, prose(n_docs * k))
        for s in ('links', 'merge', 'text', 'copies', 'sign', 'bands', 'clusters', 'write'):
            peaks[s, k] = alone(stage_peak, s, str(f))
        with PracticeSite(pages=n_urls * k, hosts=12) as site:
            (f / 'links/00000.jsonl').write_text(
                ''.join(json.dumps(dict(url=u, score=3, date='2019-02-14')) + '\n' for u in sorted(site.urls))
            )
            peaks['pages', k] = alone(stage_peak, 'pages', str(f))
    size = dict(
        links=f'{n_subs:,} submissions',
        merge='their links',
        pages=f'{n_urls:,} URLs',
        text=f'{n_pages:,} pages',
        **dict.fromkeys(('copies', 'sign', 'bands', 'clusters', 'write'), f'{n_docs:,} documents'),
    )
    return [
        {
            'stage': s,
            '1 x is': size[s],
            'peak at 1 x, MiB': peaks[s, 1],
            'at 10 x': peaks[s, 10],
            'ratio': peaks[s, 10] / peaks[s, 1],
        }
        for s in size
    ]


def speed(tmp, k):
    rows = [links_row(tmp, 1_000_000 // k), *extraction_row(tmp, 300 // k)]
    note = (
        'CPU seconds of the step and of the processes it started; one task; other work ran on the machine '
        'at the same time.'
    )
    return 'WebText: speed', rows, note


def near(tmp, k):
    note = (
        '30 bands of 10 hashes over word 5-grams; planted pairs of known Jaccard similarity, spread evenly '
        'over 0.3 to 1.'
    )
    return 'WebText: near-duplicates', near_rows(tmp, 2000 // k), note


def memory(tmp, k):
    note = (
        'Each stage in a process of its own; the larger of the process and of those it started. The sorted '
        'runs of links (100,000 lines in memory) are full at 10 x only.'
    )
    return 'WebText: peak memory', memory_rows(tmp, 60_000 // k, 200 // k, 40 // k, 400 // k), note


parts = dict(speed=speed, near=near, memory=memory)


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('part', nargs='*', help=', '.join(parts))
    p.add_argument('--rough', action='store_true', help='a twentieth of everything, nothing kept')
    a = p.parse_args(argv)
    for part in a.part:
        if part not in parts:
            p.error(f'no part {part!r}; known: {", ".join(parts)}')
    logger.disable('datatrove')
    for part in a.part or parts:
        with tempfile.TemporaryDirectory() as d:
            title, rows, note = parts[part](Path(d), 20 if a.rough else 1)
        if a.rough:
            print(section(title, rows, note, packages), flush=True)
        else:
            save_table(title, rows, note, packages)


if __name__ == '__main__':
    main()
