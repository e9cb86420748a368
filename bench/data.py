"Text to shards to batches: rates against the bare tokenizers, memory, cold start, training of SentencePiece. `python bench/data.py [PART …]`, all parts if none is named"

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

os.environ['GPT2REPRO_QUIET'] = '1'
from pathlib import Path
import numpy as np
import psutil
from common import best_of, save_table
from gpt2repro.corpus import documents, python_docs
from gpt2repro.tokenizer import GPT2BPE, SentencePiece, gpt2_pattern

here = Path(__file__).parent
data = here / '../../shared/data'
note = ' Other work was running on the machine.' if os.environ.get('BUSY') else ''
packages = ('tiktoken', 'sentencepiece', 'numpy')
tmp = Path(tempfile.gettempdir()) / 'gpt2repro-bench'


def sentences():
    """Real sentences to build documents of: OpenWebText and WikiText-2 if they are here, else Python's
    documentation"""
    if data.exists():
        docs = [
            *documents(data / 'openwebtext/openwebtext-1000.decoded.jsonl'),
            *(data / 'wikitext2/wiki.train.tokens').read_text().split('\n'),
        ]
    else:
        docs = python_docs()
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


def tokenizers():
    """(name, tokenizer, its library's own batch encoding with two threads) of each kind; those that are
    trained are trained once"""
    import tiktoken

    if data.exists():
        g = GPT2BPE.from_folder(data / 'tokenizer')
        own = tiktoken.Encoding(
            'gpt2',
            pat_str=gpt2_pattern,
            mergeable_ranks={b: i for i, b in enumerate(g.token_bytes[:-1])},
            special_tokens={},
        )
        yield (
            'GPT-2 BPE (tiktoken)',
            g,
            lambda docs: own.encode_ordinary_batch(docs, num_threads=2),
            60_000_000,
        )
    for kind in ('bpe', 'unigram'):
        f = tmp / f'{kind}.model'
        if not f.exists():
            f.write_bytes(SentencePiece.train(documents(make_corpus(100_000_000)), 4096, kind, 8 << 20).model)
        sp = SentencePiece(f.read_bytes())
        yield (
            f'SentencePiece {kind}',
            sp,
            lambda docs: sp._sp.encode(docs, num_threads=2),
            12_000_000 if kind == 'bpe' else 40_000_000,
        )


def rates():
    """Text (a .jsonl file) to shards on the disk, against the bare tokenizer with all texts in memory;
    two rounds in turn, the better one counts"""
    from gpt2repro.shards import write_shards

    rows = []
    out = tmp / 'shards'
    for name, tok, bare, size in tokenizers():
        f = make_corpus(size)
        docs = list(documents(f))
        mb = sum(len(d.encode()) for d in docs) / 1e6

        def shards(workers):
            shutil.rmtree(out, ignore_errors=True)
            write_shards(documents(f), tok, out, workers=workers)

        best, cpu = {}, {}
        for _ in range(2):
            for k in ('bare', 1, 2, 3):
                before = sum(os.times()[:4])
                best[k] = max(
                    best.get(k, 0), mb / best_of(lambda: bare(docs) if k == 'bare' else shards(k), 1)
                )
                cpu[k] = min(cpu.get(k, 1e9), sum(os.times()[:4]) - before)
        rows.append(
            {
                'tokenizer': name,
                'bare, 2 threads, MB/s': best['bare'],
                **{f'{w} worker{"s" * (w > 1)}, MB/s': best[w] for w in (1, 2, 3)},
                'ratio of 2 workers': best[2] / best['bare'],
                'ratio by processor time': cpu['bare'] / cpu[2],
            }
        )
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
    p = psutil.Popen(argv, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.DEVNULL)
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
    kinds = {'SentencePiece bpe': 'bpe', **({'GPT-2 BPE': data / 'tokenizer'} if data.exists() else {})}
    if name not in kinds:
        return
    rows = []
    out = tmp / 'prepared'
    for size in (100_000_000, 1_000_000_000):
        f = make_corpus(size)
        shutil.rmtree(out, ignore_errors=True)
        mib, s = peak_pss(
            [
                sys.executable,
                '-m',
                'gpt2repro',
                'prepare',
                str(f),
                '--out',
                str(out),
                '--tokenizer',
                str(kinds[name]),
                '--overlap',
                '1.1',
            ]
        )
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


cold_code = """
import sys, time, os, glob
from gpt2repro.batches import Batches
for f in glob.glob(sys.argv[1]+'/*'):
    fd = os.open(f, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
t = time.perf_counter()
x, y = Batches(sys.argv[1], batch_size=32, n_ctx=1024)(1_000_000)
print(time.perf_counter()-t)
"""


def make_row(n):
    "A folder of shards of `n` random tokens"
    from gpt2repro.shards import write_shards

    class Any(GPT2BPE):
        def encode_np(self, text):
            return np.random.default_rng(int(text)).integers(0, 50256, 999_999).astype(np.uint32)

    folder = tmp / f'row-{n}'
    if not (folder / 'manifest.json').exists():
        write_shards(
            map(str, range(n // 1_000_000)),
            Any.from_folder(data / 'tokenizer'),
            folder,
            workers=0,
            group_bytes=1,
        )
    return folder


def batches():
    from gpt2repro.batches import Batches

    folder = make_row(300_000_000)
    cold = sorted(
        float(
            subprocess.run(
                [sys.executable, '-c', cold_code, str(folder)], capture_output=True, text=True, check=True
            ).stdout
        )
        * 1000
        for _ in range(7)
    )

    def run(n, B, T, threads, **kw):
        b = Batches(kw.pop('source', folder), batch_size=B, n_ctx=T, **kw)
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

    rows = []
    for name, kw in {
        'windows, 32 × 1024': dict(n=1500, B=32, T=1024),
        'windows, 64 × 128': dict(n=2000, B=64, T=128),
        'mixture of two, 32 × 1024': dict(
            n=1000, B=32, T=1024, source={folder: 0.7, make_row(100_000_000): 0.3}
        ),
    }.items():
        r = {k: sorted(run(threads=k, **kw) for _ in range(3)) for k in (2, 1, 3)}
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
    rows = []
    f = make_corpus(100_000_000)
    for kind in ('bpe', 'unigram'):
        s = best_of(lambda: SentencePiece.train(documents(f), 4096, kind), 1)
        rows.append(
            {
                'model': kind,
                'text, MB': 100,
                'sample, MB': (16 << 20) / 1e6,
                'seconds': s,
                'asked for': '< 120',
            }
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
if __name__ == '__main__':
    for part in sys.argv[1:] or parts:
        parts[part]()
