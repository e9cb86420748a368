"""Every dialect of a GPT-2 checkpoint that people have, against transformers' logits: formats, prefixes,
the tied tensors, fields of config.json; and the files that no model of ours can be made of"""

import json
import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import pytest
import torch
from safetensors.torch import save_file
from gpt2repro.checkpoint import find_model
from gpt2repro.weights import from_pretrained, hf_config, save_pretrained
from gpt2repro.config import GPT2Config
from gpt2repro.model import GPT2
from gpt2repro.tokenizer import GPT2BPE, byte_alphabet
from test_cli import command, fails

hf = pytest.importorskip('transformers')

V, T, C = 61, 16, 24
shape = dict(vocab_size=V, n_positions=T, n_embd=C, n_layer=2, n_head=3)
matrices = 'c_attn.weight', 'c_proj.weight', 'c_fc.weight'
x = torch.arange(14).reshape(1, 14) * 7 % V


@pytest.fixture(scope='module')
def theirs():
    torch.manual_seed(0)
    m = hf.GPT2LMHeadModel(hf.GPT2Config(**shape)).eval()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return m


@pytest.fixture(scope='module')
def weights(theirs):
    "Names without a prefix -> tensors, in transformers' layout"
    return {n.removeprefix('transformer.'): t.clone() for n, t in theirs.transformer.state_dict().items()}


def logits(model):
    with torch.no_grad():
        out = model(x)
    return getattr(out, 'logits', out)


def write(folder, sd, config=None, kind='safetensors'):
    "A Hugging Face folder with these tensors, in any of the formats"
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config or dict(model_type='gpt2', **shape)))
    sd = {n: t.contiguous().clone() for n, t in sd.items()}
    names = list(sd)
    if kind == 'safetensors':
        save_file(sd, folder / 'model.safetensors')
    elif kind == 'bin':
        torch.save(sd, folder / 'pytorch_model.bin')
    elif kind == 'pt':
        torch.save(dict(model=sd, step=3), folder / 'weights.pt')
        return folder / 'weights.pt'
    elif kind == 'legacy pt':
        torch.save(sd, folder / 'weights.pth', _use_new_zipfile_serialization=False)
        return folder / 'weights.pth'
    else:
        end = 'safetensors' if kind == 'safetensors in parts' else 'bin'
        name = 'model' if end == 'safetensors' else 'pytorch_model'
        where = {}
        for i in range(2):
            file = f'{name}-0000{i + 1}-of-00002.{end}'
            part = {n: sd[n] for n in names[i::2]}
            save_file(part, folder / file) if end == 'safetensors' else torch.save(part, folder / file)
            where |= dict.fromkeys(part, file)
        (folder / f'{name}.{end}.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))
    return folder


kinds = 'safetensors', 'safetensors in parts', 'bin', 'bin in parts', 'pt', 'legacy pt'
prefixes = (
    '',
    'transformer.',
    'module.',
    '_orig_mod.',
    'model.',
    'model.transformer.',
    '_forward_module.',
    '_orig_mod.module.transformer.',
    'module._orig_mod.',
    '_forward_module._orig_mod.model.transformer.',
    '_fsdp_wrapped_module.',
)


@pytest.mark.parametrize('kind', kinds)
def test_formats_and_prefixes(kind, theirs, weights, tmp_path):
    for i, prefix in enumerate(prefixes):
        sd = {prefix + n: t for n, t in weights.items()}
        head = prefix.removesuffix('transformer.') + 'lm_head.weight'
        masks = {f'{prefix}h.0.attn.bias': torch.ones(1, 1, T, T, dtype=torch.uint8)}
        masks |= {f'{prefix}h.1.attn.masked_bias': torch.tensor(-1e4)}
        tied = sd | {head: weights['wte.weight']}
        alone = {n: t for n, t in tied.items() if not n.endswith('wte.weight')}
        for j, variant in enumerate((sd, tied, alone, tied | masks)):
            where = write(tmp_path / f'{i}-{j}', variant, kind=kind)
            got = from_pretrained(find_model(where))
            torch.testing.assert_close(logits(got), logits(theirs), rtol=0, atol=1e-5)


def test_wrapped_blocks_linear_layout_and_dtypes(theirs, weights, tmp_path):
    "torch.compile around each block; matrices as nn.Linear has them; other floating-point types"
    blocks = {n.replace('h.1.', 'h.1._orig_mod.'): t for n, t in weights.items()}
    linear = {n: t.T if n.endswith(matrices) else t for n, t in weights.items()}
    double = {n: t.double() for n, t in weights.items()}
    for i, sd in enumerate((blocks, linear, double)):
        got = from_pretrained(write(tmp_path / str(i), sd))
        torch.testing.assert_close(logits(got), logits(theirs), rtol=0, atol=1e-5)
    for dtype in torch.float16, torch.bfloat16:
        got = from_pretrained(write(tmp_path / str(dtype), {n: t.to(dtype) for n, t in weights.items()}))
        for n, t in got.state_dict().items():
            want = weights[n].to(dtype).float()
            assert torch.equal(t, want.T if n.endswith(matrices) else want)


same_function = [
    dict(activation_function='gelu_pytorch_tanh'),
    dict(activation_function='gelu_fast'),
    dict(activation_function='gelu'),
    dict(layer_norm_epsilon=0.1),
    dict(n_inner=4 * C),
    dict(reorder_and_upcast_attn=True),
    dict(attn_pdrop=0.5, resid_pdrop=0.0, initializer_range=9.0),
    dict(n_embd=None, hidden_size=C),
    dict(n_layer=None, num_hidden_layers=2, n_head=None, num_attention_heads=3),
    dict(n_positions=None, max_position_embeddings=T, n_ctx=5),
    dict(rotary=True),
    dict(tie_word_embeddings=False),
]


@pytest.mark.parametrize('change', same_function, ids=lambda o: '-'.join(o))
def test_fields_that_are_honoured(change, theirs, weights, tmp_path, capsys):
    config = {k: v for k, v in (dict(model_type='gpt2', **shape) | change).items() if v is not None}
    folder = write(tmp_path / 'm', weights | {'lm_head.weight': weights['wte.weight']}, config)
    want = hf.GPT2LMHeadModel(hf.GPT2Config.from_pretrained(folder)).eval()
    want.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(logits(from_pretrained(folder)), logits(want), rtol=0, atol=1e-5)
    assert ('rotary' in capsys.readouterr().err) == ('rotary' in change)


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(activation_function='relu'), "activation_function='relu'"),
        (dict(activation_function='quick_gelu'), "activation_function='quick_gelu'"),
        (dict(activation_function=None), 'activation_function is null'),
        (dict(activation_function=['gelu']), 'activation_function is ["gelu"]'),
        (dict(scale_attn_weights=False), 'scale_attn_weights=False'),
        (dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True'),
        (dict(add_cross_attention=True), 'add_cross_attention=True'),
        (dict(is_encoder_decoder=True), 'is_encoder_decoder=True'),
        (dict(n_inner=3 * C), f'n_inner={3 * C}'),
        (dict(hidden_size=2 * C), f'hidden_size={2 * C}'),
        (dict(layer_norm_epsilon=0), 'layer_norm_epsilon=0'),
        (dict(layer_norm_epsilon='1e-5'), 'layer_norm_epsilon'),
        (dict(layer_norm_epsilon=None), 'layer_norm_epsilon is null'),
        (dict(n_embd=None), 'n_embd is null'),
        (dict(n_head=5), 'n_head=5'),
        (dict(tie_word_embeddings=False), 'tie_word_embeddings=False'),
        (dict(quantization_config=dict(bits=4)), 'quantization_config'),
        (dict(pruned_heads={'0': [1]}), 'pruned_heads'),
        (dict(vocab_size=V + 3), f'({V + 3}, {C})'),
        (dict(n_layer=1), 'extra tensor h.1.'),
    ],
    ids=str,
)
def test_fields_that_are_refused_by_name(change, words, weights, tmp_path):
    folder = write(tmp_path / 'm', weights, dict(model_type='gpt2', **shape) | change)
    with pytest.raises(ValueError) as e:
        from_pretrained(folder)
    assert words in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('kind', ['safetensors', 'bin', 'pt'])
def test_tensors_that_are_refused_by_name(kind, weights, tmp_path):
    w = 'h.1.mlp.c_fc.weight'
    for i, (change, words) in enumerate(
        [
            ({w: weights[w].int()}, f'tensor {w} is of torch.int32'),
            ({w: weights[w].to(torch.complex64)}, f'tensor {w} is of torch.complex64'),
            ({w: weights[w].double() * 1e300}, f'tensor {w} has values that are not finite'),
            ({'lm_head.weight': weights['wte.weight'] + 1}, 'extra tensor lm_head.weight'),
            ({'lm_head.bias': torch.zeros(V)}, 'extra tensor lm_head.bias'),
            ({'score.weight': torch.zeros(2, C)}, 'extra tensor score.weight'),
            ({'module.wte.weight': weights['wte.weight']}, 'tensor wte.weight is there twice'),
        ]
    ):
        where = write(tmp_path / str(i), weights | change, kind=kind)
        with pytest.raises(ValueError) as e:
            from_pretrained(where)
        assert words in str(e.value) and '\n' not in str(e.value)


def test_files_that_hold_no_model(weights, tmp_path):
    config = tmp_path / 'config.json'
    config.write_text(json.dumps(dict(model_type='gpt2', **shape)))
    for i, content in enumerate(([1], 3, None, {}, dict(a=1), dict(model=3), dict(state_dict=dict(a='b')))):
        torch.save(content, f := tmp_path / f'{i}.bin')
        with pytest.raises(ValueError, match='no weights of a GPT-2'):
            from_pretrained(f)
    for i, data in enumerate((b'', b'PK', b'\x80\x04garbage', bytes(range(256)) * 8, b'\x80\x02}q\x01.')):
        (f := tmp_path / f'damaged{i}.pt').write_bytes(data)
        with pytest.raises(ValueError):
            from_pretrained(f)
    config.unlink()
    torch.save(weights, f := tmp_path / 'alone.pt')
    with pytest.raises(ValueError, match='need the config.json'):
        from_pretrained(f)
    (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map={'a': '../x.bin'})))
    config.write_text(json.dumps(hf_config(GPT2Config())))
    with pytest.raises(ValueError, match='parts outside its folder'):
        from_pretrained(tmp_path)


def test_a_grown_table_goes_round(theirs, weights, tmp_path):
    "Padding to a multiple of 64 is read, written, and read by transformers, row by row"
    grown = torch.cat([weights['wte.weight'], torch.randn(3, C)])
    folder = write(
        tmp_path / 'a',
        weights | {'wte.weight': grown},
        dict(model_type='gpt2', **shape) | dict(vocab_size=64),
    )
    ours = from_pretrained(folder)
    again = hf.GPT2LMHeadModel.from_pretrained(save_pretrained(ours, tmp_path / 'b')).eval()
    assert torch.equal(again.transformer.wte.weight, grown)
    torch.testing.assert_close(logits(again)[..., :V], logits(theirs), rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def nanogpt(tmp_path_factory):
    "nanoGPT's ckpt.pt of bytes with a padded table, a tokenizer elsewhere, and a text"
    out = tmp_path_factory.mktemp('nanogpt')
    torch.manual_seed(0)
    c = GPT2Config(vocab_size=320, n_ctx=16, n_embd=16, n_layer=1, n_head=2, activation_function='gelu')
    sd = {f'_orig_mod.transformer.{n}': t for n, t in GPT2(c).state_dict().items()}
    args = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, bias=True, vocab_size=320, dropout=0.0)
    (out / 'out').mkdir()
    torch.save(dict(model=sd, model_args=args, optimizer=dict(state={}), iter_num=3), out / 'out/ckpt.pt')
    GPT2BPE({**{a: i for i, a in enumerate(byte_alphabet())}, '<|endoftext|>': 256}, []).save(out / 'tok')
    (out / 'text.txt').write_text('\n\n'.join(f'{i} cats sat on {i * 7} mats' for i in range(90)))
    return out


def test_every_verb_takes_a_ckpt(nanogpt):
    ckpt, tok, run = nanogpt / 'out/ckpt.pt', nanogpt / 'tok', nanogpt / 'run'
    fails('name its folder with --tokenizer', 'sample', ckpt, 'ab', '--device', 'cpu')
    for model in ckpt, ckpt.parent:
        s, out, err = command(
            'sample', model, 'ab', '--tokenizer', tok, '--max-new-tokens', 3, '--device', 'cpu'
        )
        assert s == 0 and out.startswith('ab'), err
    small = 'max_steps=2 batch_tokens=64 micro_batch=4 eval_every=2 save_every=2 sample_every=2 dtype=float32'
    words = ['--data', nanogpt / 'text.txt', *small.split(), 'optim.warmup_steps=1', '--device', 'cpu']
    fails('name its folder with --tokenizer', 'train', run, '--from', ckpt, *words)
    s, _, err = command('train', run, '--from', ckpt, '--tokenizer', tok, *words)
    assert s == 0, err
    got = from_pretrained(find_model(run))
    assert got.cfg.vocab_size == 320 and got.cfg.activation_function == 'gelu'
    assert command('sample', run, 'ab', '--max-new-tokens', 3, '--device', 'cpu')[0] == 0
    for model, more in (run, []), (ckpt, ['--tokenizer', tok, '--data', run]):
        s, out, err = command('evaluate', model, *more, '--json', '--device', 'cpu')
        assert s == 0 and json.loads(out)['heldout']['bpb'] > 0, err


def test_training_refuses_a_vocabulary_that_is_too_small(nanogpt):
    "By name, before the first step; a larger one is said to be one, and the run can be sampled"
    data = nanogpt / 'prepared'
    made = command('prepare', nanogpt / 'text.txt', '--out', data, '--tokenizer', nanogpt / 'tok')
    assert made[0] == 0, made
    words = '--data', data, 'n_layer=1', 'n_embd=16', 'n_head=2', 'n_ctx=16', 'batch_tokens=64'
    words = *words, 'micro_batch=4', 'dtype=float32', 'max_steps=1', 'warmup_steps=1', '--device', 'cpu'
    fails('vocab_size=200 is smaller than the 257', 'train', nanogpt / 'a', *words, 'vocab_size=200')
    s, _, err = command('train', nanogpt / 'b', *words, 'vocab_size=999')
    assert s == 0 and 'vocab_size=999, but the tokenizer' in err and 'model.vocab_size=257' in err
    s, _, err = command('sample', nanogpt / 'b', 'ab', '--max-new-tokens', 3, '--device', 'cpu')
    assert s == 0 and 'are never drawn' in err
