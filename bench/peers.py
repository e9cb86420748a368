"The peers that benchmarks compare with, and our side of each comparison: models, steps, texts"

import numpy as np
import torch
from gpt2repro.backend import autocast, compile_model
from gpt2repro.config import sizes
from gpt2repro.generation import samples
from gpt2repro.loss import lm_loss
from gpt2repro.model import GPT2
from gpt2repro.optimize import optimize_model
from gpt2repro.tokenizer import Tokenizer


def random_model(size, device):
    "Our GPT-2 with random weights and no dropout, for writing and scoring"
    torch.manual_seed(0)
    return GPT2(sizes[size].no_dropout()).eval().to(device)


def hf_config(cfg):
    "The settings of transformers' GPT-2 of our model's shape, without dropout"
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=cfg.vocab_size,
        bos_token_id=cfg.vocab_size - 1,
        eos_token_id=cfg.vocab_size - 1,
        n_positions=cfg.n_ctx,
        n_embd=cfg.n_embd,
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        use_cache=False,
    )


def hf_model(cfg):
    "transformers' GPT-2 of our model's shape, random weights, ready to train"
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(hf_config(cfg)).train()


def hf_copy(folder, dtype, device):
    "transformers' GPT-2 with the weights that `save_pretrained` wrote into `folder`"
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)


# a training step


def our_loss(cfg, device, compile=True):
    "A function (x, y) -> loss, and its parameters"
    model = optimize_model(GPT2(cfg).to(device))
    loss = lambda x, y: lm_loss(model, x, y)
    return compile_model(loss, device) if compile else loss, list(model.parameters())


def hf_loss(cfg, device, compile=True):
    hf = hf_model(cfg).to(device)
    loss = lambda x: hf(x, labels=x).loss
    if compile:
        loss = compile_model(loss, device)
    return lambda x, y: loss(x), list(hf.parameters())


losses = {'gpt2repro': our_loss, 'transformers': hf_loss}


def training_step(name, cfg, device, dtype, B, T, compile=True):
    "A function that does one whole step of one of `losses`: forward, backward, fused AdamW"
    torch.manual_seed(0)
    loss_fn, params = losses[name](cfg, device, compile)
    opt = torch.optim.AdamW(params, lr=1e-5, fused=True)
    ids = torch.randint(cfg.vocab_size, (B, T + 1), device=device)
    x = ids[:, :-1].contiguous()
    y = ids[:, 1:].contiguous()

    def step():
        with autocast(device, dtype):
            loss = loss_fn(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()

    return step


# greedy text


class Numbers(Tokenizer):
    "A tokenizer whose text is ids in figures: models with random weights need no other"

    kind = 'numbers'

    def __init__(self, vocab_size):
        self.token_bytes = [b' %d' % i for i in range(vocab_size)]
        self.eot = vocab_size - 1

    def encode_np(self, text):
        return np.array([int(w) for w in text.split()], dtype=np.uint32)


def prompts_of(rows):
    "The text of rows of ids for `Numbers`"
    return [' '.join(map(str, r)) for r in rows]


def our_text(model, rows, steps, weights=None):
    "`steps` ids after each of `rows`, as `generate` makes them; a model, or a `Decoder` made of one"
    tok = Numbers(model.cfg.vocab_size)
    out = samples(
        model,
        tok,
        prompts_of(rows),
        steps,
        temperature=0,
        min_new_tokens=steps,
        batch_size=len(rows),
        weights=weights,
        seed=0,
    )
    return [s.ids for s in out]


def hf_text(hf, rows, steps):
    x = torch.tensor(rows, device=hf.device)
    out = hf.generate(
        x,
        attention_mask=torch.ones_like(x),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        use_cache=True,
        pad_token_id=hf.config.vocab_size - 1,
        eos_token_id=hf.config.vocab_size - 1,
    )
    return out[:, x.shape[1] :].tolist()


def ct2_text(generator, rows, steps):
    out = generator.generate_batch(
        [[f'<{i}>' for i in r] for r in rows],
        max_length=steps,
        min_length=steps,
        beam_size=1,
        sampling_topk=1,
        include_prompt_in_result=False,
        max_batch_size=64,
    )
    return [o.sequences_ids[0] for o in out]


def ct2_model(folder, kind):
    "CTranslate2's generator from our checkpoint, through a token list of its own (no tokenizer is needed)"
    import ctranslate2
    from ctranslate2.converters import transformers as tr

    class Words:
        unk_token, bos_token, eos_token = '<0>', '<50256>', '<50256>'

        def get_vocab(self):
            return {f'<{i}>': i for i in range(50257)}

    class Converter(tr.TransformersConverter):
        def load_tokenizer(self, *a, **kw):
            return Words()

    out = f'{folder}/ct2-{kind}'
    Converter(str(folder)).convert(out, quantization=kind, force=True)
    threads = torch.get_num_threads()
    return ctranslate2.Generator(out, device='cpu', compute_type=kind, inter_threads=1, intra_threads=threads)
