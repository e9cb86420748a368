"""The server: tokens/s and time to the first token under load, 124M weights, against `transformers serve`

`peers` (about four minutes on two cores) asks the same of each server, one request after the other and by 16
clients at once: a prompt of some 16 tokens, 64 more of them, streamed. `load` (about two minutes) sends 1,000
requests by 64 clients to ours, of which every tenth hangs up in the middle. Needs GPT2REPRO_TEST_DATA for
GPT-2's tokenizer, and for `peers`: pip install 'transformers[serving]'. Not run on a GPU yet."""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from bench.common import environment, need_reference, parser, save_table
import torch
from bench.peers import random_model
from gpt2repro.backend import get_device
from gpt2repro.serve.server import listening
from gpt2repro.tokenizer import GPT2BPE
from gpt2repro.weights import save_pretrained

n_new = 32
words = 'the of and a to in he was that it his her with as had for she not at but be on they have him'.split()
hf = [sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve']
servers = {
    'ours': [sys.executable, '-m', 'gpt2repro', 'serve'],
    'transformers serve': [*hf, '--device', 'cpu', '--dtype', 'float32'],
    'transformers serve, continuous batching': [
        *hf, '--device', 'cpu', '--dtype', 'float32', '--continuous-batching',
    ],
}  # fmt: skip


def prompt(i, n=16):
    "A prompt of `n` words, another one for each `i`"
    return ' '.join(random.Random(i).choices(words, k=n))


async def ask(port, model, text, tokens=n_new, leave_after=None):
    "Stream one completion: seconds until its first token and its last, and how many tokens there were"
    body = dict(model=model, prompt=text, max_tokens=tokens, temperature=0, stream=True)
    data = json.dumps(body).encode()
    head = 'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
    head += f'Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n'
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    try:
        writer.write(head.encode() + data)
        status = (await reader.readline()).split()[1]
        if status != b'200':
            raise RuntimeError(f'status {status.decode()}: {(await reader.read()).decode()[-300:]}')
        first, n = None, 0
        async for line in reader:
            if not line.startswith(b'data: {'):
                continue
            choices = json.loads(line[6:])['choices']
            if choices and choices[0]['text']:
                first = first or time.perf_counter() - start
                n += 1
            if leave_after and n >= leave_after:
                break
        return dict(first=first, last=time.perf_counter() - start, events=n)
    finally:
        writer.close()


async def crowd(port, model, texts, clients, leave=lambda i: None, tokens=n_new):
    "Each client asks for the next text as soon as it has its last one: the answers, and the seconds in all"
    todo = list(enumerate(texts))[::-1]
    got = []

    async def client():
        while todo:
            i, text = todo.pop()
            got.append(await ask(port, model, text, tokens, leave(i)))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return got, time.perf_counter() - start


@contextmanager
def running(name, folder):
    "A server in a process of its own: its port, and what it calls the model"
    with listening('127.0.0.1', 0) as free:
        port = free.getsockname()[1]
    model = folder.rpartition('/')[2] if name == 'ours' else folder
    where = ['--port', str(port), *(['--host', '127.0.0.1', folder] if name == 'ours' else [])]
    log = tempfile.TemporaryFile('w+')
    p = subprocess.Popen([*servers[name], *where], env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        for i in range(240):
            try:
                asyncio.run(ask(port, model, 'the', tokens=2))  # the first one loads the model
                break
            except (OSError, RuntimeError, IndexError) as e:
                if p.poll() is not None or i == 239:
                    log.seek(0)
                    raise RuntimeError(f'{name} does not answer ({e}): {log.read()[-2000:]}') from None
                time.sleep(0.5)
        yield port, model
    finally:
        p.terminate()
        p.wait(60)


def made_model(folder):
    "A folder with the 124M model that all servers load"
    data = need_reference('tokenizer')
    tok = GPT2BPE.from_files(data / 'encoder.json', data / 'vocab.bpe')
    return str(save_pretrained(random_model('124M', get_device()), f'{folder}/gpt2-124M', tok))


def row(name, how, got, seconds, tokens):
    first = sorted(o['first'] for o in got)
    return {
        'server': name,
        'clients': how,
        'tokens/s': tokens / seconds,
        'first token, median ms': 1000 * statistics.median(first),
        '95 of 100': 1000 * first[int(0.95 * (len(first) - 1))],
    }


def peers(names, requests=16, clients=16):
    "Each server alone on the machine: one request after the other, then many at once"
    rows = []
    with tempfile.TemporaryDirectory() as d:
        folder = made_model(d)
        for name in names:
            with running(name, folder) as (port, model):
                texts = [prompt(i) for i in range(requests)]
                asyncio.run(crowd(port, model, texts, clients, tokens=2))  # a rehearsal
                for how, some, n in (('one after the other', texts[:8], 1), ('at once', texts, clients)):
                    got, seconds = asyncio.run(crowd(port, model, some, n))
                    rows.append(row(name, how, got, seconds, n_new * len(got)))
                    print(rows[-1], file=sys.stderr, flush=True)
    ours = next(r['tokens/s'] for r in rows if r['clients'] != 'one after the other')
    for r in rows:
        peer = r['server'] != 'ours'
        r['ours at once / this'] = f'{ours / r["tokens/s"]:.2f}'
        r['goal'] = 2 if peer or r['clients'] == 'one after the other' else ''
    save_table(
        'The server, 124M random weights, float32',
        rows,
        note=f'A prompt of 16 words and {n_new} tokens, greedy, streamed; {torch.get_num_threads()} threads; '
        f'the clients run on the same cores. Each server has the machine to itself. A goal is for '
        f'the ratio beside it. Not run on a GPU yet.',
        packages=('torch', 'transformers', 'starlette', 'uvicorn'),
    )


def load(requests=1000, clients=64, tokens=16):
    "Many short requests by many clients, of which every tenth hangs up in the middle"
    with tempfile.TemporaryDirectory() as d:
        folder = made_model(d)
        with running('ours', folder) as (port, model):
            texts = [prompt(i, 1 + i * 37 % 60) for i in range(requests)]
            leaves = lambda i: 3 if i % 10 == 9 else None
            got, seconds = asyncio.run(crowd(port, model, texts, clients, leaves, tokens))
    whole = [o for i, o in enumerate(got) if o['events'] > 3]
    r = row('ours', f'{requests} requests by {clients} clients', got, seconds, sum(o['events'] for o in got))
    r |= {'answered': len(got), 'hung up': len(got) - len(whole)}
    save_table(
        'The server under load, 124M random weights, float32',
        [r],
        note=f'Prompts of 1 to 60 words, {tokens} tokens each, greedy, streamed; {torch.get_num_threads()} '
        f'threads; 16 rows, so 48 clients wait at any time. Every tenth client hangs up after three tokens.',
        packages=('torch', 'starlette', 'uvicorn'),
    )


def main(argv=None):
    p = parser(__doc__)
    parts = p.add_subparsers(dest='part', required=True)
    part = parts.add_parser('peers', help=peers.__doc__)
    part.add_argument('names', nargs='*', metavar='SERVER', help=f'some of: {", ".join(servers)}; all')
    parts.add_parser('load', help=load.__doc__)
    a = p.parse_args(argv)
    if a.part == 'load':
        return load()
    for name in a.names:
        if name not in servers:
            p.error(f'{name!r} is none of: {", ".join(servers)}')
    peers(a.names or list(servers))


if __name__ == '__main__':
    main()
