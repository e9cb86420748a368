"""Text to shards to batches: rates against the bare tokenizers, memory, cold start, SentencePiece

The peers are tiktoken's and SentencePiece's own batch encoding. Parts: rates, memory-gpt2, memory-bpe,
batches, training; all if none is named, which takes half an hour on two cores and 3 GB of disk. GPT-2's
tokenizer and real sentences come from the folder that GPT2REPRO_TEST_DATA names; without it the parts that
need them are left out, and sentences are of Python's documentation. `BUSY=1` notes that other work was
running."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from bench.common import alone, best_of, environment, parser, reference, save_table
import numpy as np
import psutil
from gpt2repro.batches import Batches
from gpt2repro.corpus import documents, python_docs
from gpt2repro.shards import write_shards
from gpt2repro.tokenizer import GPT2BPE, SentencePiece, gpt2_pattern

note = ' Other work was running on the machine.' if os.environ.get('BUSY') else ''
packages = ('tiktoken', 'sentencepiece', 'numpy')
tmp = Path(tempfile.gettempdir()) / 'gpt2repro-bench'


def sentences():
    """Real sentences to build documents of: OpenWebText and WikiText-2 if they are here, else Python's
    documentation"""
    web = reference('openwebtext/openwebtext-1000.decoded.jsonl')
    wiki = reference('wikitext2/wiki.train.tokens')
    docs = python_docs()
    if web and wiki:
        docs = [*documents(web), *wiki.read_text(encoding='utf-8').split('\n')]
    return [s + '.' for d in docs for s in d.split('. ') if 20 < len(s) < 500]


def make_corpus(n_bytes):
    """A .jsonl file of about so many bytes of text: sentences at random, and every fiftieth word a new
    one put together from halves of two others, so that the vocabulary goes on growing"""
    f = tmp / f'corpus-{n_bytes}.jsonl'
    if f.exists():
        return f
    tmp.mkdir(exist_ok=True)
    rng = random.Random(0)
    pool = sentences()
    words = sorted({w for s in pool for w in s.split() if w.isalpha()})
    size = 0
    with open(f.with_suffix('.part'), 'w') as out:
        while size < n_bytes:
            parts = rng.choices(pool, k=rng.randint(5, 60))
            for a, b in zip(rng.choices(words, k=len(parts) // 2), rng.choices(words, k=len(parts) // 2)):
                parts.append(a[: len(a) // 2 + 1] + b[len(b) // 2 :])
            rng.shuffle(parts)
            text = ' '.join(parts)
            size += len(text.encode())
            out.write(json.dumps(dict(text=text)) + '\n')
    return f.with_suffix('.part').rename(f)


def gpt2_bpe():
    "GPT-2's own tokenizer from the published files, or None without them"
    folder = reference('tokenizer')
    return GPT2BPE.from_folder(folder) if folder else None


def bare_tiktoken(tok):
    "tiktoken's batch encoding with two threads"
    import tiktoken

    ranks = {b: i for i, b in enumerate(tok.token_bytes[:-1])}
    own = tiktoken.Encoding('gpt2', pat_str=gpt2_pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda docs: own.encode_ordinary_batch(docs, num_threads=2)


def bare_sentencepiece(model):
    "SentencePiece's batch encoding with two threads"
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda docs: own.encode(docs, num_threads=2)


def tokenizers():
    """(name, tokenizer, its library's own batch encoding, bytes of text) of each kind; those that are
    trained are trained once"""
    if tok := gpt2_bpe():
        yield 'GPT-2 BPE (tiktoken)', tok, bare_tiktoken(tok), 60_000_000
    for kind, size in dict(bpe=12_000_000, unigram=40_000_000).items():
        f = tmp / f'{kind}.model'
        if not f.exists():
            f.write_bytes(SentencePiece.train(documents(make_corpus(100_000_000)), 4096, kind, 8 << 20).model)
        model = f.read_bytes()
        yield f'SentencePiece {kind}', SentencePiece(model), bare_sentencepiece(model), size


def cpu_seconds():
    "Processor time of this process and of those it has waited for"
    return sum(os.times()[:4])


def rate_row(name, tok, bare, size):
    "Two rounds in turn, the better one counts"
    f = make_corpus(size)
    docs = list(documents(f))
    mb = sum(len(d.encode()) for d in docs) / 1e6
    out = tmp / 'shards'

    def shards(workers):
        shutil.rmtree(out, ignore_errors=True)
        write_shards(documents(f), tok, out, workers=workers)

    ways = {'bare': lambda: bare(docs), **{w: (lambda w=w: shards(w)) for w in (1, 2, 3)}}
    best, cpu = {}, {}
    for _ in range(2):
        for k, run in ways.items():
            before = cpu_seconds()
            best[k] = max(best.get(k, 0), mb / best_of(run, 1))
            cpu[k] = min(cpu.get(k, 1e9), cpu_seconds() - before)
    return {
        'tokenizer': name,
        'bare, 2 threads, MB/s': best['bare'],
        **{f'{w} worker{"s" * (w > 1)}, MB/s': best[w] for w in (1, 2, 3)},
        'ratio of 2 workers': best[2] / best['bare'],
        'ratio by processor time': cpu['bare'] / cpu[2],
    }


def rates():
    "Text (a .jsonl file) to shards on the disk, against the bare tokenizer with all texts in memory"
    rows = []
    for o in tokenizers():
        rows.append(rate_row(*o))
        save_table(
            'Text to shards',
            rows,
            'Ratio: 0.85 is asked for. Bare: `encode_ordinary_batch` of tiktoken, `encode` of '
            'SentencePiece. Shards: JSON read, documents and ids hashed, files synced. Processor time: of '
            'all processes, which other work on the machine disturbs less than the clock.' + note,
            packages,
        )


def peak_pss(argv):
    """Most memory of a command and all its processes together (each shared page counted once), MiB, and
    its seconds"""
    t = time.perf_counter()
    peak = 0
    p = psutil.Popen(argv, env=environment(OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL)
    while p.poll() is None:
        total = 0
        for q in [p, *p.children(recursive=True)]:
            try:
                total += q.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue  # it has just ended
        peak = max(peak, total)
        time.sleep(0.2)
    assert p.returncode == 0, argv
    return peak / 2**20, time.perf_counter() - t


def memory(name):
    "`gpt2repro prepare` on 100 MB and 1 GB, with one tokenizer"
    tokenizer = 'bpe' if name == 'SentencePiece bpe' else reference('tokenizer')
    if tokenizer is None:
        return print(f'not run: {name} needs the tokenizer in the folder GPT2REPRO_TEST_DATA')
    rows = []
    out = tmp / 'prepared'
    for size in (100_000_000, 1_000_000_000):
        f = make_corpus(size)
        shutil.rmtree(out, ignore_errors=True)
        command = f'{sys.executable} -m gpt2repro prepare {f} --out {out} --tokenizer {tokenizer}'
        mib, s = peak_pss([*command.split(), '--overlap', '1.1'])
        rows.append(
            {'text, MB': size // 1_000_000, 'peak PSS, MiB': mib, 'seconds': s, 'MB/s': size / 1e6 / s}
        )
        save_table(
            f'Memory of prepare, {name}',
            rows,
            'The whole command with two workers: two readings of the text, the tokenizer (trained here if '
            'SentencePiece), the check for near-copies, shards. 600 MiB are asked for, the sum over all '
            'processes.' + note,
            packages,
        )


class RandomIds(GPT2BPE):
    "GPT-2's vocabulary, and 999,999 random ids for the text of a seed"

    def encode_np(self, text):
        return np.random.default_rng(int(text)).integers(0, 50256, 999_999).astype(np.uint32)


def random_row(n):
    "A folder of shards of `n` random tokens"
    folder = tmp / f'row-{n}'
    if not (folder / 'manifest.json').exists():
        tok = RandomIds.from_folder(reference('tokenizer'))
        write_shards(map(str, range(n // 1_000_000)), tok, folder, workers=0, group_bytes=1)
    return folder


def cold_start(folder):
    "Seconds to the batch of step 1,000,000, files not in the system's cache; in a process of its own"
    for f in Path(folder).iterdir():
        fd = os.open(f, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    t = time.perf_counter()
    Batches(folder, batch_size=32, n_ctx=1024)(1_000_000)
    return time.perf_counter() - t


def batch_rate(source, n, B, T, threads, **kw):
    "Million tokens a second of `n` batches that some threads share"
    b = Batches(source, batch_size=B, n_ctx=T, **kw)
    steps = iter(range(n))

    def work():
        for s in steps:
            b(s)

    working = [threading.Thread(target=work) for _ in range(threads)]

    def all_of_them():
        for t in working:
            t.start()
        for t in working:
            t.join()

    return n * B * T / best_of(all_of_them, 1) / 1e6


def batches():
    "Batches from 300 million tokens, with one, two and three threads"
    if gpt2_bpe() is None:
        return print('not run: batches need the tokenizer in the folder GPT2REPRO_TEST_DATA')
    folder = random_row(300_000_000)
    cold = sorted(1000 * alone(cold_start, str(folder)) for _ in range(7))
    kinds = {
        'windows, 32 × 1024': (folder, 1500, 32, 1024),
        'windows, 64 × 128': (folder, 2000, 64, 128),
        'mixture of two, 32 × 1024': ({folder: 0.7, random_row(100_000_000): 0.3}, 1000, 32, 1024),
    }
    rows = []
    for name, args in kinds.items():
        r = {k: sorted(batch_rate(*args, k) for _ in range(3)) for k in (2, 1, 3)}
        rows.append(
            {
                'batches': name,
                **{f'{k} thread{"s" * (k > 1)}, million tokens/s': r[k][1] for k in (1, 2, 3)},
                'worst of three with 2': r[2][0],
                'asked for, 2 threads': '≥ 20',
            }
        )
    save_table(
        'Batches',
        rows,
        f'Median of three; 300 million tokens in three shards. The worst is the first, whose windows come '
        f'from the disk. Step 1,000,000 in a new process, files not in the cache: {cold[3]:.1f} ms, median '
        f'of seven, the worst {cold[-1]:.1f} (asked for: under 50).' + note,
        packages,
    )


def training():
    "Training of SentencePiece from 100 MB of text"
    rows = []
    f = make_corpus(100_000_000)
    for kind in ('bpe', 'unigram'):
        s = best_of(lambda: SentencePiece.train(documents(f), 4096, kind), 1)
        sample = (16 << 20) / 1e6
        rows.append(
            {'model': kind, 'text, MB': 100, 'sample, MB': sample, 'seconds': s, 'asked for': '< 120'}
        )
        save_table(
            'Training SentencePiece',
            rows,
            'From a .jsonl file of 100 MB to the model, 4,096 pieces. Trained on a sample by hash, which '
            '`prepare` says.' + note,
            packages,
        )


parts = {
    'rates': rates,
    'memory-gpt2': lambda: memory('GPT-2 BPE'),
    'memory-bpe': lambda: memory('SentencePiece bpe'),
    'batches': batches,
    'training': training,
}


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('part', nargs='*', help=', '.join(parts))
    named = p.parse_args(argv).part
    for part in named:
        if part not in parts:
            p.error(f'no part {part!r}; known: {", ".join(parts)}')
    for part in named or parts:
        parts[part]()


if __name__ == '__main__':
    main()
