"""What is alive on the index: a small GPT-2 of this build, looked into, and writing in the reader's browser

`python tools/alive.py` trains it, unless `build/alive` has it already, and says what became of it
"""

import json
import os
import shutil
import time
from base64 import b64encode
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from safetensors.torch import save
from gpt2repro.checkpoint import load_model
from gpt2repro.config import RunConfig, override, recipe, to_dict
from gpt2repro.corpus import docs_versions, python_docs
from gpt2repro.decode import fake_quantize, quantize, weight_modules
from gpt2repro.look import inspect, look_template
from gpt2repro.plots import read_log
from gpt2repro.reproduce import prepare_run
from gpt2repro.train import train
from gpt2repro.utils import asset, scratch_folder
from gpt2repro.weights import save_pretrained

root = Path(__file__).parent.parent
kept = root / 'build/alive'  # what was trained by earlier builds
own = Path(__file__).parent / 'site/alive'
marker = '<!-- alive -->'  # where the index has it
scripts = [f'alive/{name}.js' for name in ('look', 'inside', 'model', 'writer')]
sheets = ['alive/alive.css']
text_bytes = 4_000_000  # of the embedded corpus, from its beginning: Python's own documentation
# A model that a minute of two cores can teach: less than half of `tiny`, with the optimizer of `modern`
settings = [
    *('vocab_size=2048', 'n_embd=128', 'n_head=4', 'batch_tokens=2048', 'micro_batch=8', 'max_steps=300'),
    *('optim.name=muon', 'optim.lr=3e-3', 'optim.adamw_lr=3e-2', 'optim.final=0.0'),
    *('sample_every=0', 'save_every=300'),
]
# In the manner of what the model was trained on, with one word that it cannot expect
sentence = (
    'Return the name of the file as a string. If the file does not exist, an exception is raised. '
    'The name of the file must be a banana.'
)


def run_config() -> RunConfig:
    "The recipe `tiny`, cut short and smaller"
    return override(recipe('tiny'), settings)


def key(cfg: RunConfig) -> str:
    "The same for builds that would train the same model"
    what = [version('gpt2repro'), version('torch'), to_dict(cfg), docs_versions(), text_bytes]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def write_text(out: Path):
    "The beginning of the embedded corpus, a document a line"
    size = 0
    with open(out, 'w', encoding='utf-8') as f:
        for doc in python_docs():
            f.write(json.dumps(dict(text=doc)) + '\n')
            size += len(doc.encode('utf-8', 'surrogatepass'))
            if size > text_bytes:
                break


def browser_tensors(model) -> dict:  # name -> tensor
    "What `site/alive/model.js` reads: int8 matrices, a scale for each row, the rest in float32"
    matrices = {id(m.weight) for m in weight_modules(model)}
    tensors = {}
    for name, p in model.named_parameters():
        if id(p) not in matrices:
            tensors[name] = p.detach().float().contiguous()
            continue
        m = quantize(p, 'int8')
        tensors[name], tensors[name.removesuffix('weight') + 'scale'] = m.w.contiguous(), m.scale
    return tensors


def browser_spec(cfg, tok) -> dict:
    "Sizes of the model, and its tokens: text, a byte, or null where no text has it"
    if cfg.n_embd % 4 or cfg.activation_function != 'gelu_new':
        raise ValueError(f'{cfg}: site/alive/model.js takes n_embd in fours and gelu_new only')
    kinds = {1: lambda i: tok.token_bytes[i].decode(), 6: lambda i: tok.token_bytes[i][0]}
    tokens = [kinds[t](i) if t in kinds else None for i, (_, _, t) in enumerate(tok.pieces)]
    scores = [s for _, s, t in tok.pieces if t == 1]
    if scores != sorted(scores, reverse=True) or any(s % 1 for s in scores):
        raise ValueError('model.js merges pairs in the order of their ids: give a BPE of SentencePiece')
    names = ('n_layer', 'n_head', 'n_embd', 'n_ctx', 'layer_norm_epsilon')
    sizes = {k: getattr(cfg, k) for k in names}
    return dict(config=sizes, tokens=tokens, eot=tok.eot, escape=tok.escape)


def write_browser_files(
    model,  # a `GPT2`
    tok,  # its tokenizer, a BPE of SentencePiece
    folder: Path,
):
    "What the page loads, and the same as a script for pages that are opened as files"
    data = save(browser_tensors(model))
    spec = browser_spec(model.cfg, tok) | dict(bytes=len(data))
    text = json.dumps(spec, ensure_ascii=False, separators=(',', ':'))
    (folder / 'model.safetensors').write_bytes(data)
    (folder / 'model.json').write_text(text, encoding='utf-8')
    script = f'const aliveWeights = {{spec: {text}, file: "{b64encode(data).decode()}"}};\n'
    (folder / 'weights.js').write_text(script, encoding='utf-8')


def trained() -> Path:
    """The folder of the model: `model/` in the form of the hub, `browser/`, `facts.json`.

    The weights of both are the same: rounded to int8, a scale for each row
    """
    cfg = run_config()
    folder = kept / key(cfg)
    if (folder / 'facts.json').exists():
        return folder
    started = time.perf_counter()
    kept.mkdir(parents=True, exist_ok=True)
    with scratch_folder(kept) as scratch:
        text, run, made = scratch / 'text.jsonl', scratch / 'run', scratch / 'made'
        write_text(text)
        cfg = cfg.replace(data=cfg.data.replace(source=str(text), near_copies=1.0))
        train(prepare_run(cfg, run, settings=settings), run, 'cpu')
        model, tok = load_model(run, 'cpu')
        bpb = [r['bpb'] for r in read_log(run) if r['kind'] == 'valid'][-1]
        save_pretrained(fake_quantize(model, 'int8'), made / 'model', tok)
        (made / 'browser').mkdir()
        write_browser_files(model, tok, made / 'browser')
        facts = dict(
            parameters=model.cfg.n_params,
            tokens=cfg.max_steps * cfg.batch_tokens,
            bpb=bpb,
            seconds=time.perf_counter() - started,
        )
        (made / 'facts.json').write_text(json.dumps(facts))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
    return folder


def write(
    assets: Path,  # the site's
):
    "The files of the index' living parts"
    folder = trained()
    out = assets / 'alive'
    shutil.copytree(folder / 'browser', out)
    model, tok = load_model(folder / 'model', 'cpu')
    seen = inspect(model, tok, sentence)
    seen.save(out / 'inside.html')
    H = model.cfg.n_head
    strongest = divmod(seen.change[:, :H].argmax().item(), H)  # so young a model has no induction heads
    shown = seen.data() | dict(by='loss', head=strongest)
    (out / 'inside.js').write_text(f'const aliveInspection = {json.dumps(shown)};\n', encoding='utf-8')
    (out / 'look.js').write_text(asset('look.js'), encoding='utf-8')
    for name in ('model.js', 'writer.js', 'alive.css'):
        shutil.copy(own / name, out)


def block() -> str:
    "What stands in the place of the marker: HTML"
    folder = trained()
    facts = json.loads((folder / 'facts.json').read_text())
    size = (folder / 'browser/model.safetensors').stat().st_size
    said = (
        f'{facts["parameters"] / 1e6:.1f} million parameters, trained on {facts["tokens"]:,} tokens of '
        f"Python's documentation: {facts['bpb']:.2f} bits per byte of held-out text. "
        f'{size / 1e6:.1f} MB, loaded when you press Write.'
    )
    html = (own / 'alive.html').read_text(encoding='utf-8')
    return html.replace('TEMPLATE', look_template()).replace('FACTS', said)


def main():
    folder = trained()
    print((folder / 'facts.json').read_text())
    for f in sorted((folder / 'browser').iterdir()):
        print(f'{f.stat().st_size:>10,} {f.name}')


if __name__ == '__main__':
    main()
