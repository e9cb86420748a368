"""TensorFlow checkpoints as OpenAI and the reproduction of 2019 released them, written and read with
TensorFlow itself, in a process of its own"""

import os
import subprocess
import sys
from importlib.util import find_spec
import pytest

needs_tf = pytest.mark.skipif(
    find_spec('tensorflow') is None, reason='TensorFlow is not installed: pip install "gpt2repro[tf]"'
)

released = r"""
import json, os, sys
from pathlib import Path
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
import numpy as np, torch
from transformers import GPT2Config as HFConfig, GPT2LMHeadModel
import tensorflow as tf                                  # before transformers it crashes under Python 3.13
from gpt2repro.weights import from_pretrained, from_tensorflow, save_pretrained

folder = Path(sys.argv[1])
torch.manual_seed(0)
V, T, C, L = 211, 37, 128, 11                            # two heads of 64; more than ten layers
hf = GPT2LMHeadModel(HFConfig(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=2)).eval()

def released_names(hf):
    "name -> array: transformers' matrices are (in, out) as OpenAI's are, which have a leading axis of 1"
    leaf = dict(weight='g', bias='b')
    for n, p in hf.transformer.named_parameters():
        a, parts = p.detach().numpy(), n.split('.')
        if parts[0] in ('wte', 'wpe'): yield f'model/{parts[0]}', a
        elif parts[0] == 'ln_f': yield f'model/ln_f/{leaf[parts[1]]}', a
        elif parts[2].startswith('ln_'): yield f'model/h{parts[1]}/{parts[2]}/{leaf[parts[3]]}', a
        else:
            is_matrix = parts[4] == 'weight'
            name = f'model/h{parts[1]}/{parts[2]}/{parts[3]}/'+('w' if is_matrix else 'b')
            yield name, a[None] if is_matrix else a

def write(prefix, arrays):
    "As tf.train.Saver does it"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    tensors = [tf.constant(arrays[n]) for n in names]
    slices = ['']*len(names)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=slices, tensors=tensors)

weights = dict(released_names(hf))
assert weights['model/h10/attn/c_attn/w'].shape == (1, C, 3*C) and len(weights) == 12*L+4
ids = torch.randint(V, (2, 31))
with torch.no_grad(): want = hf(ids).logits

def same(where):
    model = from_pretrained(where)
    with torch.no_grad(): assert (model(ids)-want).abs().max() < 1e-5
    return model

openai = folder/'117M'                                   # weights and hparams.json
write(openai/'model.ckpt', weights)
(openai/'checkpoint').write_text('model_checkpoint_path: "model.ckpt"\n')
(openai/'hparams.json').write_text(json.dumps(dict(n_vocab=V, n_ctx=T, n_embd=C, n_head=2, n_layer=L)))
model = same(openai)
same(openai/'model.ckpt')
hf = GPT2LMHeadModel.from_pretrained(save_pretrained(model, folder/'hf'))
with torch.no_grad(): assert (hf(ids).logits-want).abs().max() < 1e-5

# optimizer slots and counters beside the weights, paths of another machine, an older step
connor = folder/'PrettyBig'
slots = {f'{n}/Adam{i}': np.zeros_like(a) for n, a in weights.items() for i in ('', '_1')}
slots |= dict(beta1_power=np.float32(.9), global_step=np.int64(500000))
write(connor/'model.ckpt-500000', weights | slots)
write(connor/'model.ckpt-90000', {n: a+1 for n, a in weights.items()})
same(connor)                                             # the later step, though its name sorts first
bucket = 'gs://connors-models/GPT2-PrettyBig'
(connor/'checkpoint').write_text(
    f'model_checkpoint_path: "{bucket}/model.ckpt-500000"\n'
    f'all_model_checkpoint_paths: "{bucket}/model.ckpt-90000"\n')
assert same(connor).cfg.n_head == 2

def refused(words, arrays, error=ValueError):
    write(folder/'bad'/'model.ckpt', arrays)
    try: from_tensorflow(folder/'bad')
    except error as e: assert words in str(e), e
    else: raise AssertionError(f'not refused: {words}')

bad = dict(weights)
bad['model/h3/mlp/c_fc/w'] = bad['model/h3/mlp/c_fc/w'].copy()
bad['model/h3/mlp/c_fc/w'][0, 5, 7] = np.nan
refused('tensor h.3.mlp.c_fc.weight has values that are not finite', bad)
refused('tensor h.10.ln_2.bias is missing', {n: a for n, a in weights.items() if n != 'model/h10/ln_2/b'})
refused('extra tensor model/h0/attn/rotary', weights | {'model/h0/attn/rotary': np.ones(3, 'float32')})
short = {'model/h0/mlp/c_proj/b': np.ones(64, 'float32')}
refused('tensor h.0.mlp.c_proj.bias is (64,), but this config needs (128,)', weights | short)
refused('tensor wte.weight is missing', {n: a for n, a in weights.items() if n != 'model/wte'})
data = folder/'bad'/'model.ckpt.data-00000-of-00001'
write(folder/'bad'/'model.ckpt', weights)
data.write_bytes(data.read_bytes()[:1000])
try: from_tensorflow(folder/'bad')
except ValueError as e: assert 'damaged, TensorFlow cannot read it' in str(e) and '\n' not in str(e), e
else: raise AssertionError('a torn file was read')
print('all equal')
"""


@needs_tf
def test_tensorflow_checkpoints_with_the_released_names(tmp_path):
    r = subprocess.run(
        [sys.executable, '-c', released, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )
    assert r.returncode == 0 and r.stdout.split('\n')[-2] == 'all equal', r.stdout + r.stderr


def test_without_tensorflow_the_error_says_what_to_install(tmp_path):
    code = (
        'import sys\nfrom unittest.mock import patch\nfrom gpt2repro import weights as c\nwith '
        'patch.object(c, "has_package", lambda n: False):\n try: c.from_pretrained(sys.argv[1])\n except '
        'ImportError as e: print(e)'
    )
    (tmp_path / 'model.ckpt.index').write_bytes(b'')
    out = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert out == 'TensorFlow is needed to read its checkpoints: pip install "gpt2repro[tf]"\n'
