"""Files for llama.cpp, judged by llama.cpp

`LLAMA_CPP` names a folder with its `convert_hf_to_gguf.py`, `conversion/` and `gguf-py/`. The package
`llama-cpp-python` runs the files. Without either, what it would judge is skipped; the notebook on exporting
tests the same by the rules of the package `gguf`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
import pytest
import torch
from gpt2repro.corpus import documents
from gpt2repro.export import export_model, write_gguf
from gpt2repro.model import GPT2
from gpt2repro.settings import GPT2Config
from gpt2repro.tokenizer import GPT2BPE, SentencePiece
from gpt2repro.utils import reference_data

pytestmark = pytest.mark.skipif(find_spec('gguf') is None, reason='pip install "gpt2repro[gguf]"')
llama_cpp = os.environ.get('LLAMA_CPP', '')
vocabulary = reference_data('tokenizer')
needs_vocabulary = pytest.mark.skipif(not vocabulary.exists(), reason="GPT-2's vocabulary is not at hand")
needs_converter = pytest.mark.skipif(not llama_cpp, reason='LLAMA_CPP names no folder with the converter')
texts = (
    'The function returns a list of the names that are defined.',
    "  two  spaces, a tab\tand\n\nlines: don't, we'LL  ",
    'naïve 🚀🚀 在 3333 ===---=== нещо',
)


def read(path):
    "(keys, tensors) of a GGUF file"
    import gguf

    r = gguf.GGUFReader(path)
    tensors = {t.name: (t.tensor_type.name, t.data.shape, t.data.tobytes()) for t in r.tensors}
    return {k: f.contents() for k, f in r.fields.items()}, tensors


def small_model(tok, more=0):
    "A model for the tokenizer, with so many rows of the table too many"
    torch.manual_seed(0)
    model = GPT2(
        GPT2Config(vocab_size=tok.vocab_size + more, n_ctx=256, n_embd=64, n_layer=2, n_head=2)
    ).eval()
    for p in model.parameters():
        p.data.mul_(5 if p.ndim > 1 else 1)  # so that its text is not one token again and again
    return model


def convert(folder, out, dtype='f32'):
    return subprocess.run(
        [sys.executable, f'{llama_cpp}/convert_hf_to_gguf.py', folder, '--outfile', out, '--outtype', dtype],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )


@pytest.fixture(scope='module')
def trained():
    docs = (d for d, _ in zip(documents('python-docs'), range(300)))
    return SentencePiece.train(docs, vocab_size=1000)


@needs_converter
@needs_vocabulary
@pytest.mark.parametrize('dtype, kind', [('float32', 'f32'), ('bfloat16', 'bf16'), ('float16', 'f16')])
def test_the_published_converter_reads_an_export_and_writes_the_same(tmp_path, dtype, kind):
    tok = GPT2BPE.from_folder(vocabulary)
    export_model(small_model(tok), tok, tmp_path / 'out', '# Card', dtype, gguf=True)
    r = convert(tmp_path / 'out', tmp_path / 'theirs.gguf', kind)
    assert r.returncode == 0, r.stderr[-2000:]
    (keys, tensors), (ours, own_tensors) = read(tmp_path / 'theirs.gguf'), read(tmp_path / 'out/model.gguf')
    assert own_tensors == tensors
    for k in ours.keys() & keys.keys() - {'general.name', 'GGUF.kv_count'}:
        assert ours[k] == keys[k], k
    ignored = ('general.', 'GGUF.', 'tokenizer.ggml.unknown_token_id')
    assert not [k for k in keys.keys() - ours.keys() if not k.startswith(ignored)]


@needs_converter
def test_the_published_converter_does_not_know_a_tokenizer_that_was_trained(tmp_path, trained):
    "So that a day on which it does is noticed"
    export_model(small_model(trained), trained, tmp_path / 'out', '# Card')
    r = convert(tmp_path / 'out', tmp_path / 'theirs.gguf')
    assert r.returncode and 'pre-tokenizer was not recognized' in r.stderr, r.stderr[-2000:]


@pytest.mark.skipif(find_spec('llama_cpp') is None, reason='llama-cpp-python is not installed')
@pytest.mark.parametrize('kind', ['trained', 'padded', pytest.param('gpt2', marks=needs_vocabulary)])
def test_llama_cpp_gives_our_ids_logits_and_text(tmp_path, trained, kind):
    from llama_cpp import Llama

    tok = GPT2BPE.from_folder(vocabulary) if kind == 'gpt2' else trained
    model = small_model(tok, more=3 if kind == 'padded' else 0)
    file = str(write_gguf(model, tok, tmp_path / 'model.gguf'))
    theirs = Llama(file, n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    for text in texts:
        ids = theirs.tokenize(text.encode(), add_bos=True, special=False)
        assert ids == tok.encode(text), text
        assert theirs.detokenize(ids).decode() == text
    prompt = texts[0]
    ids = tok.encode(prompt)
    theirs.eval(ids)
    with torch.no_grad():
        want = model(torch.tensor([ids]))[0]
    got = torch.tensor(theirs.scores[: len(ids)].copy())
    assert (got - want).abs().max() < 0.01 * want.std()  # its GELU is a table of float16
    written = list(ids)
    with torch.no_grad():
        for _ in range(20):
            written.append(model(torch.tensor([written]))[0, -1].argmax().item())
    assert list(islice(theirs.generate(ids, temp=0.0, repeat_penalty=1.0), 20)) == written[len(ids) :]
    assert len(set(written[len(ids) :])) > 1
