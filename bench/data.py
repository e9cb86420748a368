"Text to shards to batches: rates against the bare tokenizers, memory, cold start, training of SentencePiece. `python bench/data.py [PART …]`, all parts if none is named"
import json, os, random, shutil, subprocess, sys, tempfile, threading, time
os.environ['GPT2REPRO_QUIET'] = '1'
from pathlib import Path
import numpy as np
import psutil
from common import best_of, save_table
from gpt2repro.corpus import documents, python_docs
from gpt2repro.tokenizer import GPT2BPE, SentencePiece, gpt2_pattern

here = Path(__file__).parent
data = here/'../../shared/data'
packages = ('tiktoken', 'sentencepiece', 'numpy')
tmp = Path(tempfile.gettempdir())/'gpt2repro-bench'

def sentences():
    "Real sentences to build documents of: OpenWebText and WikiText-2 if they are here, else Python's documentation"
    if data.exists(): docs = [*documents(data/'openwebtext/openwebtext-1000.decoded.jsonl'), *(data/'wikitext2/wiki.train.tokens').read_text().split('\n')]
    else: docs = python_docs()
    return [s+'.' for d in docs for s in d.split('. ') if 20<len(s)<500]

def make_corpus(n_bytes):
    "A .jsonl file of about so many bytes of text: sentences at random, and every fiftieth word a new one put together from halves of two others, so that the vocabulary goes on growing"
    f = tmp/f'corpus-{n_bytes}.jsonl'
    if f.exists(): return f
    tmp.mkdir(exist_ok=True)
    rng, pool = random.Random(0), sentences()
    words = sorted({w for s in pool for w in s.split() if w.isalpha()})
    size = 0
    with open(f.with_suffix('.part'), 'w') as out:
        while size<n_bytes:
            parts = rng.choices(pool, k=rng.randint(5, 60))
            for a,b in zip(rng.choices(words, k=len(parts)//2), rng.choices(words, k=len(parts)//2)): parts.append(a[:len(a)//2+1]+b[len(b)//2:])
            rng.shuffle(parts)
            text = ' '.join(parts)
            size += len(text.encode())
            out.write(json.dumps(dict(text=text))+'\n')
    return f.with_suffix('.part').rename(f)
