"A variant goes through everything that a GPT-2 goes through: a run, its checkpoints, text, scores, export"

import random
import pytest
import torch
from gpt2repro.checkpoint import load_model
from gpt2repro.config import DataConfig, OptimConfig, RunConfig, VariantConfig, to_dict
from gpt2repro.decode import Decoder
from gpt2repro.evaluate import documents_loss
from gpt2repro.generation import generate, samples
from gpt2repro.look import inspect
from gpt2repro.serve.batcher import Batcher, Job
from gpt2repro.shards import write_shards
from gpt2repro.tokenizer import SentencePiece, load_tokenizer
from gpt2repro.train import read_run, train
from gpt2repro.variants import build_model

parts = dict(
    modern=dict(n_kv_head=2),
    own=dict(mlp='relu2', tied=False, soft_cap=10.0, norm='layer', bias=True),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp('data')
    rng = random.Random(0)
    words = 'the cat sat on a mat and saw how one dog ran past it'.split()
    docs = [' '.join(rng.choices(words, k=30)) + '.' for _ in range(200)]
    tok = SentencePiece.train(docs, vocab_size=320)
    tok.save(home / 'tokenizer')
    for name, part in dict(train=docs[:180], valid=docs[180:]).items():
        write_shards(part, tok, home / 'shards' / name, workers=1)
    return home


def settings(data, name, **kw):
    shape = dict(vocab_size=320, n_ctx=32, n_embd=32, n_layer=2, n_head=4)
    return RunConfig(
        model=VariantConfig(**shape, **parts[name]),
        data=DataConfig(source=str(data)),
        optim=OptimConfig(name='muon', lr=5e-3, adamw_lr=1e-2, warmup_steps=5),
        init='zero',
        batch_tokens=256,
        micro_batch=4,
        log_every=5,
        eval_every=10,
        eval_batches=2,
        sample_every=20,
        save_every=10,
        **dict(max_steps=20) | kw,
    )


@pytest.fixture(scope='module', params=parts)
def whole(request, data, tmp_path_factory):
    "A run that nothing interrupted"
    return train(settings(data, request.param), tmp_path_factory.mktemp('runs') / request.param, 'cpu', [])


def weights(run, step=20):
    return (run / f'checkpoints/step-{step:08}/model.safetensors').read_bytes()


def test_a_run_goes_on_to_the_same_bits(whole, data, tmp_path):
    run = tmp_path / 'run'
    cfg = settings(data, whole.name)
    o = cfg.optim.replace(schedule_steps=20)
    train(cfg.replace(max_steps=10, optim=o), run, 'cpu', [])
    train(cfg.replace(optim=o), run, 'cpu', [])
    assert weights(run) == weights(whole)
    a, b = ((r / 'checkpoints/step-00000020/optimizer.safetensors').read_bytes() for r in (run, whole))
    assert a == b


def test_settings_are_read_back(whole, data):
    assert read_run(whole).model == settings(data, whole.name).model
    assert to_dict(read_run(whole))['model']['mlp'] == dict(modern='swiglu', own='relu2')[whole.name]


def test_it_writes_what_the_plain_model_writes(whole):
    "Greedy text through the decoder, and token by token through the model without a cache"
    model, tok = load_model(whole, 'cpu')
    ids = [tok.eot, *tok.encode('the cat')]
    prompt = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0, -1, : tok.vocab_size].argmax()))
    want = tok.decode(ids[prompt : ids.index(tok.eot, 1) if tok.eot in ids[1:] else None])
    for kw in dict(), dict(weights='float32'):
        assert generate(model, tok, 'the cat', max_new_tokens=12, temperature=0, **kw) == [want]
    alone = generate(model, tok, 'a dog', max_new_tokens=8, seed=1)
    assert generate(model, tok, ['a dog', 'the cat sat on'], max_new_tokens=8, seed=1)[:1] == alone


def test_checkpoints_open_in_transformers_or_say_why_not(whole):
    transformers = pytest.importorskip('transformers')
    last = whole / 'checkpoints/step-00000020'
    if whole.name == 'own':
        with pytest.raises(ValueError, match='does not recognize this architecture'):
            transformers.AutoModelForCausalLM.from_pretrained(last)
        assert 'no class of transformers has a model with norm=layer, mlp=relu2' in (
            last / 'config.json'
        ).read_text(encoding='utf-8')
        return
    theirs = transformers.AutoModelForCausalLM.from_pretrained(last)
    tok = transformers.AutoTokenizer.from_pretrained(last)
    model, ours = load_model(whole, 'cpu')
    ids = torch.tensor([ours.encode('the cat sat on a mat')])
    assert tok('the cat sat on a mat', add_special_tokens=False).input_ids == ids[0].tolist()
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-5)


def test_scores_are_those_of_the_logits(whole):
    "Windows side by side, in blocks of the vocabulary, with a soft cap"
    model, tok = load_model(whole, 'cpu')
    text = 'the cat sat on a mat and saw'
    nats, tokens, _ = documents_loss(model, tok, [text])
    ids = torch.tensor([tok.eot, *tok.encode(text), tok.eot])
    with torch.no_grad():
        logp = model(ids[None, :-1])[0].log_softmax(-1)
    want = -logp.gather(1, ids[1:, None]).sum().item()
    assert tokens == len(ids) - 1 and nats == pytest.approx(want, rel=1e-5)


def test_fine_tuning_takes_the_parts_with_it(whole, data, tmp_path):
    from gpt2repro.config import recipe
    from gpt2repro.reproduce import fine_tuning_config

    cfg = fine_tuning_config(recipe('finetune'), str(whole), str(data))
    assert cfg.model == read_run(whole).model
    cfg = cfg.replace(max_steps=25, batch_tokens=256, data=cfg.data.replace(source=str(data)))
    run = train(cfg, tmp_path / 'tuned', 'cpu', [])
    assert (run / 'checkpoints').is_dir()


def test_2019_is_refused(data):
    for kw in dict(init='connor_june'), dict(table_pdrop=0.1):
        with pytest.raises(ValueError, match='is of GPT-2 as it was in 2019'):
            settings(data, 'modern').replace(**kw)


@pytest.mark.parametrize('name', parts)
def test_a_variant_is_served_and_says_what_it_cannot(data, name):
    "Texts that come together are those of `samples`; the inspector reads GPT-2 only"
    tok = load_tokenizer(data / 'tokenizer')
    torch.manual_seed(0)
    model = build_model(settings(data, name).model).eval()
    jobs = [
        Job(ids=tok.encode(text), max_tokens=6, seed=i) for i, text in enumerate(['the cat', 'a dog ran'])
    ]
    batcher = Batcher(Decoder(model), tok, rows=2)
    for job in jobs:
        batcher.add(job)
    written = dict.fromkeys(jobs, '')
    while batcher.busy:
        for job, piece in batcher.turn():
            written[job] += piece.text
    for i, text in enumerate(['the cat', 'a dog ran']):
        assert written[jobs[i]] == samples(model, tok, text, 6, seed=i)[0].text
    with pytest.raises(ValueError, match='only a GPT-2 can be looked into'):
        inspect(model, tok, 'the cat')
