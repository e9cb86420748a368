"""The kernels in C at odd sizes, against PyTorch in float64.

`make sanitize` runs this file with the compiler's checks of addresses and of undefined behaviour. So each
kernel must be called here at the sizes where it can go wrong: one number, one more than a vector, lengths
that are no multiple of a block
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from gpt2repro.config import GPT2Config
from gpt2repro.decode import Decoder, dequantize, quantize, quantize_in_c, weight_kinds
from gpt2repro.kernels import call_c, csrc, load_library
from gpt2repro.model import GPT2
from gpt2repro.optimize import causal_attention

needs_compiler = pytest.mark.skipif(not shutil.which('gcc'), reason='gcc is not installed')

vectors = """#include "vectors.h"
void map(const void *x, void *y, int64_t n, int64_t half) {
    for (int64_t i = 0; i + 16 <= n; i += 16) store16(y, i, gelu16(load16(x, i, half)), half);
}
void powers(const float *x, float *y) { *(f32 *)y = exp16(*(const f32 *)x); }
float total(const float *x) { return sum16(*(const f32 *)x); }
"""


@pytest.fixture(scope='module')
def vector_lib(tmp_path_factory):
    f = tmp_path_factory.mktemp('vectors') / 'vectors_test.c'
    f.write_text(vectors)
    lib = load_library(f)
    lib.total.restype = ctypes.c_float
    return lib


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_vectors(vector_lib, dtype):
    x = torch.cat([torch.randn(58) * 4, torch.tensor([0.0, -0.0, 1e4, -1e4, torch.inf, torch.nan])]).to(dtype)
    y = torch.zeros_like(x)
    call_c(vector_lib.map, x, y, len(x), dtype == torch.bfloat16)
    want = torch.nn.functional.gelu(x.double(), approximate='tanh')
    tol = 1e-6 if dtype == torch.float32 else 1 / 256
    assert y[-1].isnan() and y[-2] == torch.inf
    assert ((y - want).abs() <= tol * want.abs() + 1e-6)[:-2].all()


@needs_compiler
def test_exponential_and_sum(vector_lib):
    for x in torch.linspace(-87, 88, 16 * 40).view(40, 16):
        y = torch.empty(16)
        call_c(vector_lib.powers, x.contiguous(), y)
        torch.testing.assert_close(y.double(), x.double().exp(), rtol=3e-7, atol=0)
        assert abs(call_c(vector_lib.total, x.contiguous()) - float(x.double().sum())) < 1e-3


@needs_compiler
def test_every_kernel_is_tested_here():
    "`make sanitize` checks what this file calls"
    text = Path(__file__).read_text(encoding='utf-8')
    for f in csrc.glob('*.c'):
        assert f"'{f.stem}'" in text, f'{f.name} has no test in {Path(__file__).name}'


@needs_compiler
@pytest.mark.skipif(bool(os.environ.get('LD_PRELOAD')), reason='runs under the sanitizers already')
def test_sanitizers_see_a_wrong_address(tmp_path):
    "The check itself: a kernel that writes one number too many ends its process under `make sanitize`"
    (tmp_path / 'bad.c').write_text('void bad(float *x, long n) { for (long i = 0; i <= n; i++) x[i] = 1; }')
    (tmp_path / 'test_bad.py').write_text(
        'from pathlib import Path\nimport torch\nfrom gpt2repro.kernels import call_c, load_library\n'
        f'def test_bad():\n    lib = load_library(Path({str(tmp_path / "bad.c")!r}))\n'
        '    call_c(lib.bad, torch.zeros(16), 16)\n'
    )
    root = Path(__file__).parent.parent
    r = subprocess.run(
        [sys.executable, root / 'tools/sanitize.py', str(tmp_path / 'test_bad.py')],
        capture_output=True,
        text=True,
        cwd=root,
    )
    if 'skipped' in r.stdout:
        pytest.skip('gcc has no sanitizers here')
    assert r.returncode and 'heap-buffer-overflow' in r.stdout + r.stderr


def decoder_model(C, H, V):
    torch.manual_seed(0)
    cfg = GPT2Config(vocab_size=V, n_ctx=40, n_embd=C, n_layer=2, n_head=H).no_dropout()
    model = GPT2(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.1 if p.ndim > 1 else 0.3) + (1.0 if p.ndim == 1 else 0.0))
    return model


@needs_compiler
@pytest.mark.parametrize('kind', weight_kinds)
@pytest.mark.parametrize('C,H,V', [(3, 1, 2), (57, 3, 101), (96, 2, 67), (128, 2, 131)])
def test_decode(kind, C, H, V):
    "A step, the head and a product by themselves, at the first and the last slot, for one row to many"
    assert load_library('decode')
    model = decoder_model(C, H, V)
    tol = dict(float32=1e-4, int8=0.05, bfloat16=0.3)[kind]  # bfloat16: activations are rounded too
    with torch.no_grad():
        for B in 1, 2, 4, 5, 9, 259:
            decs = [Decoder(model, kind, compile=c) for c in (True, False)]
            g = torch.Generator().manual_seed(B)
            pos = torch.randint(0, 40, (B,), generator=g)
            pos[0], pos[-1] = 0, 39
            tok = torch.randint(V, (B,), generator=g)
            caches = [dec.kv_cache(B, 40) for dec in decs]
            for a, b in zip(*caches):
                a.copy_(torch.randn(a.shape, generator=g))
                b.copy_(a)
            got, want = (d.logits(d.step(tok, pos, c)) for d, c in zip(decs, caches))
            torch.testing.assert_close(got, want, rtol=tol, atol=tol)
            x = torch.randn(B, C, generator=g)
            for m in decs[0].weights.layers[1][1:3]:
                got = decs[0].c.linear(x, m)
                want = x.double() @ dequantize(m).double().T + m.bias
                torch.testing.assert_close(got.double(), want, rtol=0, atol=tol)


@needs_compiler
def test_decode_quantize():
    for N, K in (1, 1), (3, 15), (2, 16), (5, 33), (1025, 1024):
        w = torch.randn(N, K, generator=torch.Generator().manual_seed(K))
        for got, want in zip(quantize_in_c(load_library('decode'))(w, 'int8'), quantize(w, 'int8')):
            assert (got is None and want is None) or torch.equal(got, want)


def attention_errors(f, qkv, g, n_head):
    "Of result and gradient, as shares of the plain way's in float64"
    pairs = []
    for h, x, o in (f, qkv, g), (plain_attention, qkv.double(), g.double()):
        x = x.detach().requires_grad_()
        y = h(x, n_head)
        pairs.append((y.detach(), *torch.autograd.grad(y, x, o)))
    return [float((a - b).norm() / b.norm()) for a, b in zip(*pairs)]


def plain_attention(qkv, n_head):
    B, T, C3 = qkv.shape
    q, k, v = qkv.view(B, T, 3, n_head, -1).permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, C3 // 3)


@needs_compiler
@pytest.mark.parametrize('D', [32, 64])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention(D, dtype):
    "Around the sizes of a vector (16), of four rows and of a block of queries (64)"
    name = str(dtype).removeprefix('torch.')
    if not hasattr(load_library('attention'), f'attention_{name}'):
        pytest.skip(f'no attention in {name} on this processor')
    for B, T, H in (
        (1, 1, 1),
        (2, 2, 3),
        (1, 15, 2),
        (1, 17, 1),
        (3, 63, 1),
        (1, 64, 2),
        (2, 65, 1),
        (1, 131, 2),
    ):
        g = torch.Generator().manual_seed(T)
        qkv = (torch.randn(B, T, 3 * H * D, generator=g) * 2).to(dtype)
        out = torch.randn(B, T, H * D, generator=g).to(dtype)
        ours = attention_errors(causal_attention, qkv, out, H)
        assert max(ours) < (1e-6 if dtype == torch.float32 else 1 / 128), (B, T, H, ours)
