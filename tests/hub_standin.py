"""A server that answers as the Hugging Face hub does, for a few repositories of made files

`huggingface_hub` and `datasets` speak to it when `HF_ENDPOINT` names it.
"""

import hashlib
import json
import re
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

sha = '0' * 40  # the one commit that each repository has


class Repository:
    "Files by path"

    def __init__(self, name, files):
        self.name, self.files = name, files

    def entry(self, path):
        body = self.files[path]
        return dict(type='file', path=path, size=len(body), oid=etag(body))

    @cached_property
    def info(self):
        siblings = [dict(rfilename=f) for f in self.files]
        flags = dict(private=False, gated=False, disabled=False, tags=[], downloads=0, likes=0)
        return dict(_id='0' * 24, id=self.name, sha=sha, siblings=siblings, **flags)


def etag(body):
    return hashlib.sha1(body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, **headers):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {'Content-Type': 'application/json', **headers}
        self.send_response(status)
        for k, v in {'Content-Length': len(body), **headers}.items():
            self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def missing(self, code):
        self.reply(dict(error='not found'), 404, **{'X-Error-Code': code})

    def file(self, repo, path):
        if path not in repo.files:
            return self.missing('EntryNotFound')
        body = repo.files[path]
        more = {'ETag': f'"{etag(body)}"', 'X-Repo-Commit': sha, 'Accept-Ranges': 'bytes'}
        if m := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')):
            start, end = int(m[1]), int(m[2] or len(body) - 1)
            return self.reply(body[start : end + 1], 206, **more)
        self.reply(body, **more)

    def paths(self, repo):
        asked = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        try:
            names = json.loads(asked)['paths']
        except ValueError:  # a form
            names = parse_qs(asked.decode()).get('paths', [])
        self.reply([repo.entry(p) for p in names if p in repo.files])

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        kind = 'dataset' if re.match(r'/(api/)?datasets/', path) else 'model'
        path = re.sub(r'^/(api/)?datasets/', r'/\1', path)
        path = re.sub(r'^/api/models/', '/api/', path)
        api = path.startswith('/api/')
        m = re.match(r'/([\w.-]+/[\w.-]+)(?:/(\w[\w-]*)/([^/]+)/?(.*))?$', path.removeprefix('/api'))
        repo = m and self.server.repositories.get((kind, m[1]))
        if not repo:
            return self.missing('RepoNotFound')
        if not api and m[2] == 'resolve':
            return self.file(repo, m[4])
        if m[2] == 'paths-info':
            return self.paths(repo)
        if m[2] == 'tree':
            under = [f for f in repo.files if not m[4] or f.startswith(m[4] + '/')]
            return self.reply([repo.entry(f) for f in under])
        self.reply(repo.info)

    do_HEAD = do_POST = do_GET


def serve(
    repositories,  # {('model' or 'dataset', 'owner/name'): {path: bytes}}
):  # the server: `.url`, `.shutdown()`
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.repositories = {k: Repository(k[1], files) for k, files in repositories.items()}
    server.url = f'http://127.0.0.1:{server.server_port}'
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return server


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def small_gpt2(folder):
    "A GPT-2 of one layer with a vocabulary of bytes, as the hub has the real one"
    from gpt2repro.config import GPT2Config
    from gpt2repro.model import GPT2
    from gpt2repro.tokenizer import byte_alphabet
    from gpt2repro.weights import save_pretrained

    model = GPT2(GPT2Config(vocab_size=257, n_ctx=1024, n_embd=32, n_head=2, n_layer=1))
    save_pretrained(model, folder)
    vocab = {c: i for i, c in enumerate([*byte_alphabet(), '<|endoftext|>'])}
    (folder / 'vocab.json').write_text(json.dumps(vocab), encoding='utf-8')
    (folder / 'merges.txt').write_text('#version: 0.2\n', encoding='utf-8')
    return files_of(folder)


def parquet(rows):
    "The bytes of a parquet file with these rows"
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def data_set(splits):
    "Files of a data set: {(configuration, split): rows}"
    card = ['---', 'configs:']
    for config in dict.fromkeys(c for c, _ in splits):
        card += [f'- config_name: {config}', '  data_files:']
        for c, split in splits:
            if c == config:
                card += [f'  - split: {split}', f'    path: {c}/{split}.parquet']
    files = {f'{c}/{split}.parquet': parquet(rows) for (c, split), rows in splits.items()}
    return {'README.md': '\n'.join([*card, '---', '']).encode(), **files}


def repositories(folder):
    "What the notebooks ask the hub for, made small"
    words = 'The cat sat on the mat , and the dog looked at it .'.split()
    lines = [
        ' = Robert Boulter = \n',
        '',
        ' ' + ' '.join(words) + ' \n',
        ' = The cat = \n',
        ' It sat . \n',
    ] * 4
    wikitext = [dict(text=l) for l in lines]
    options = ['cat', 'dog', 'mat', 'it', 'the', 'on', 'at', 'and', 'sat', 'looked']
    cloze = dict(sentences=[' '.join(words)] * 20, question='The XXXXX sat .', answer='cat', options=options)
    data = {
        'Salesforce/wikitext': {('wikitext-2-raw-v1', s): wikitext for s in ('train', 'validation', 'test')},
        'EleutherAI/lambada_openai': {('default', 'test'): [dict(text='The cat sat on the mat')] * 4},
        'cam-cst/cbt': {(k, s): [cloze] * 3 for k in ('CN', 'NE') for s in ('validation', 'test')},
        'ptb-text-only/ptb_text_only': {('penn_treebank', 'test'): [dict(sentence=' '.join(words))] * 4},
    }
    models = {('model', 'openai-community/gpt2'): small_gpt2(folder)}
    return models | {('dataset', name): data_set(splits) for name, splits in data.items()}
