"""Greedy text from 124M random weights against transformers and CTranslate2 in the same process, two threads.
`python bench/sample.py speed` is the table; `quality RUN` gives the bits per byte that smaller weights cost on a trained run. Needs: pip install ctranslate2"""
import os, sys, tempfile, time
os.environ.setdefault('HF_HUB_OFFLINE', '1'); os.environ.setdefault('GPT2REPRO_QUIET', '1')
from pathlib import Path
import numpy as np, torch
from common import best_of, save_table
from gpt2repro.backend import get_device, sync
from gpt2repro.checkpoint import save_pretrained
from gpt2repro.config import sizes
from gpt2repro.decode import Decoder, rounded
from gpt2repro.model import GPT2
from gpt2repro.sample import Sampling, _Rows, _grow

rules = Sampling(temperature=0)
steps, n_prompt = 128, 16

def ours(dec, rows, steps):
    "`steps` tokens after each of `rows`, the host reading every one, as `samples` does"
    with torch.inference_mode(): batch = _Rows(dec, rows, steps)
    for _ in _grow(batch, np.zeros((len(rows), steps), dtype=np.float32), rules, dec.cfg.vocab_size-1, steps): batch.ids[:, -1].cpu()
    return batch.ids[:, len(rows[0]):]

def theirs(hf, rows, steps):
    x = torch.tensor(rows, device=hf.device)
    return hf.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=50256)[:, x.shape[1]:]

def ct2(gen, rows, steps):
    words = [[f'<{i}>' for i in r] for r in rows]
    out = gen.generate_batch(words, max_length=steps, min_length=steps, beam_size=1, sampling_topk=1, include_prompt_in_result=False, max_batch_size=64)
    return [o.sequences_ids[0] for o in out]

def converted(folder, kind):
    "CTranslate2's generator from our checkpoint, through a token list of its own (no tokenizer is needed)"
    import ctranslate2
    from ctranslate2.converters import transformers as tr
    class Words:
        unk_token, bos_token, eos_token = '<0>', '<50256>', '<50256>'
        def get_vocab(self): return {f'<{i}>': i for i in range(50257)}
    class Converter(tr.TransformersConverter):
        def load_tokenizer(self, *a, **kw): return Words()
    out = f'{folder}/ct2-{kind}'
    Converter(str(folder)).convert(out, quantization=kind, force=True)
    return ctranslate2.Generator(out, device='cpu', compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads())

def read_rate():
    "GB/s at which memory is read here: the sum of half a gigabyte, fused"
    x = torch.ones(2**27)
    return x.nbytes/best_of(lambda: x.sum(), 5)/1e9

def speed():
    from transformers import GPT2LMHeadModel
    dev = get_device('auto')
    torch.manual_seed(0)
    model = GPT2(sizes['124M'].no_dropout()).eval().to(dev)
    g = torch.Generator().manual_seed(1)
    one = torch.randint(50000, (1, n_prompt), generator=g).tolist()
    many, long = torch.randint(50000, (16, n_prompt), generator=g).tolist(), torch.randint(50000, (1, 512), generator=g).tolist()
    rate, table = read_rate(), []
    with tempfile.TemporaryDirectory() as d:
        save_pretrained(model, d)
        hf = GPT2LMHeadModel.from_pretrained(d).eval().to(dev)
        hf16 = GPT2LMHeadModel.from_pretrained(d, dtype=torch.bfloat16).eval().to(dev)
        gens = {k: converted(d, k) for k in ('float32', 'int8_float32')} if dev.type=='cpu' else {}
    def timed(fn, warm, n=2):
        warm(); sync(dev)
        def go(): fn(); sync(dev)
        return best_of(go, n)
    secs = dict(
        hf=timed(lambda: theirs(hf, one, steps), lambda: theirs(hf, one, 4)), hf16=timed(lambda: theirs(hf16, one, steps), lambda: theirs(hf16, one, 4)),
        **{k: timed(lambda: ct2(o, one, steps), lambda: ct2(o, one, 4)) for k,o in gens.items()},
        hf_many=timed(lambda: theirs(hf, many, 32), lambda: theirs(hf, many, 2), 1), hf_long=timed(lambda: theirs(hf, long, 1), lambda: theirs(hf, long, 1)))
    peers = dict(float32=dict(transformers=secs['hf'], CTranslate2=secs.get('float32')), bfloat16=dict(transformers=secs['hf16']), int8=dict(CTranslate2=secs.get('int8_float32')))
    goals = dict(float32='2.5, 1.5', bfloat16='2.2', int8='1.8')
    for kind in ('float32', 'bfloat16', 'int8'):
        t = time.perf_counter()
        dec = Decoder(model, kind, compile=True)
        ours(dec, one, 4)
        start = time.perf_counter()-t
        s = timed(lambda: ours(dec, one, steps), lambda: ours(dec, one, steps), 3)
        if kind=='float32': same = (ours(dec, one, 32).cpu()==theirs(hf, one, 32).cpu()).float().mean().item()
        need = dec.weight_bytes + 2*sizes['124M'].n_layer*sizes['124M'].n_embd*(n_prompt+steps/2)*(4 if kind=='float32' else 2)
        ratios = {p: o/s for p,o in peers[kind].items() if o}
        table.append({'what': f'one sequence, {n_prompt}+{steps} tokens', 'weights': kind, 'tokens/s': steps/s, **{f'{p}': steps/o for p,o in peers[kind].items() if o},
            'ratio': ', '.join(f'{r:.2f}' for r in ratios.values()), 'goal': goals[kind], 'share of the floor': f'{need/(rate*1e9)/(s/steps):.0%}', 'first start, s': start})
    for name,comp in (('batch of 16, uncompiled', False), ('batch of 16, compiled', True)):
        dec = Decoder(model, 'float32', compile=comp)
        s = timed(lambda: ours(dec, many, 32), lambda: ours(dec, many, 8), 1)
        table.append({'what': f'{name}, {n_prompt}+32 tokens', 'weights': 'float32', 'tokens/s': 16*32/s, 'transformers': 16*32/secs['hf_many'], 'ratio': f"{secs['hf_many']/s:.2f}", 'goal': '2'})
    dec = Decoder(model, 'float32', compile=False)
    s = timed(lambda: ours(dec, long, 1), lambda: ours(dec, long, 1), 2)
    table.append({'what': 'first token of a 512-token prompt', 'weights': 'float32', 'tokens/s': 1/s, 'transformers': 1/secs['hf_long'], 'ratio': f"{secs['hf_long']/s:.2f}", 'goal': '0.9'})
    heads = list(dict.fromkeys(k for r in table for k in r))
    save_table('Greedy text, 124M random weights', [{k: r.get(k, '') for k in heads} for r in table], packages=('torch', 'transformers', 'ctranslate2'),
        note=f'{torch.get_num_threads()} threads. {same:.0%} of 32 greedy tokens are the same as transformers\' in float32. Memory read at {rate:.0f} GB/s (sum of 0.5 GB); the floor of a token is the bytes of weights and cache over that. '
             f'First start: making the decoder and its first four tokens, compilation included unless PyTorch\'s cache on disk has it. Not run on a GPU yet.')

def quality(run):
    "Held-out bits per byte of a trained run with weights of each kind"
    from gpt2repro.cli import load_model, read_documents
    from gpt2repro.evaluate import documents_loss
    from gpt2repro.loss import bits_per_byte
    model, tok = load_model(run, 'cpu')
    docs = read_documents(Path(run)/'shards/valid', tok)[:150]
    rows = []
    for kind in ('float32', 'bfloat16', 'int8'):
        nats, _, n = documents_loss(rounded(model, kind), tok, docs)
        rows.append({'weights': kind, 'bits per byte': f'{bits_per_byte(nats, n):.5f}', 'MB read per token': Decoder(model, kind).weight_bytes/1e6})
    save_table('What smaller weights cost', rows, note=f'{Path(run).name}: {model.cfg.n_params:,} parameters, {len(docs)} held-out documents.')

if __name__=='__main__':
    {'speed': speed, 'quality': quality}[sys.argv[1] if len(sys.argv)>1 else 'speed'](*sys.argv[2:])
