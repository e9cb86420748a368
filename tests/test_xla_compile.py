"""Training steps compiled for TPUs that are not there, each in a process of its own.

Runs in the environment of `make test-xla`
"""

import json
import pytest
from gpt2repro.aot import Verdict, _worker, ask_compiler, compiler_problem
from gpt2repro.cli import main
from gpt2repro.config import size
from gpt2repro.plan import chip_devices, plan

if compiler_problem():
    pytest.skip(f'{compiler_problem()} (make test-xla)', allow_module_level=True)


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    "Function that records a training step once for each size and number of devices"
    folder = tmp_path_factory.mktemp('programs')
    done = {}

    def record(size, devices):
        if (size, devices) not in done:
            done[size, devices] = folder / f'{size}-{devices}'
            _worker(
                'record_to',
                out=str(done[size, devices]),
                what='training',
                size=size,
                batch=8,
                devices=devices,
            )
        return done[size, devices]

    return record


def verdict(program, size, chip, tmp_path):
    devices = chip_devices(chip)[1]
    _worker(
        'compile_to',
        out=str(tmp_path / 'verdict'),
        program=str(program(size, devices)),
        chip=chip.partition('-')[0],
        devices=devices,
    )
    return Verdict(**json.loads((tmp_path / 'verdict').read_text()))


@pytest.mark.parametrize(
    'size,chip', [(s, c) for s in ('tiny', '124M') for c in ('v5e', 'v6e', 'v3', 'v2-8')]
)
def test_the_step_compiles(program, size, chip, tmp_path):
    v = verdict(program, size, chip, tmp_path)
    p = plan(size, chip, batch=8)
    assert v.fits and sum(v.parts.values()) == pytest.approx(v.total_gib)
    if size == '124M':
        assert p.total_gib == pytest.approx(v.total_gib, rel=0.15), (p, v)
        if '-' not in chip:
            assert p.tflop < v.tflop < 1.6 * p.tflop  # the compiler counts the second forward pass too


def test_donation_counts(program, tmp_path):
    "Weights are updated in place: outputs do not take memory of their own"
    v = verdict(program, '124M', 'v5e', tmp_path)
    assert v.parts['arguments'] > 0.46 and v.parts['outputs'] < 0.05, v


def test_the_command(capsys):
    assert main(['plan', '--size', 'tiny', '--chip', 'v5e', '--batch', '4', '--compile', '--json']) == 0
    d = json.loads(capsys.readouterr().out)
    assert (
        d['fits']
        and 0 < d['total_gib'] < 1
        and d['tflop'] > 0
        and set(d['parts']) == {'arguments', 'outputs', 'temporaries', 'code'}
    )


def test_the_token_step_compiles():
    "The step that sampling runs: weights and cache are there once, and the cache is written in place"
    cfg = size('124M')
    weights = 2 * cfg.n_params / 2**30  # bfloat16
    cache = 2 * 2 * cfg.n_layer * cfg.n_ctx * cfg.n_embd / 2**30
    for kw in dict(), dict(top_k=40), dict(batch=4):
        B = kw.get('batch', 1)
        v = ask_compiler('decoding', '124M', **dict(dict(batch=1), **kw))
        assert v.fits and v.parts['arguments'] == pytest.approx(weights + B * cache, rel=0.05), v
        assert v.parts['outputs'] < 0.01 and v.parts['temporaries'] < 0.05, v


def test_reading_a_prompt_compiles():
    v = ask_compiler('decoding', '124M', batch=1, prompt=512)
    assert v.fits and v.total_gib < 0.5, v


@pytest.mark.slow
@pytest.mark.parametrize('top_k', [0, 40])
def test_sampling_from_the_largest_model(top_k):
    "Ten seconds each: the weights are 2.9 GiB, the cache 0.3"
    v = ask_compiler('decoding', '1.5B', chip='v5e', batch=1, top_k=top_k)
    assert v.fits and v.total_gib < 4, v


@pytest.mark.slow
@pytest.mark.parametrize(
    'kw,gib',
    [
        (dict(chip='v5e', batch=8), 13.5),
        (dict(chip='v5e', batch=16, precision='bfloat16'), 13),
        (dict(chip='v2-8', batch=32), 4.5),
    ],
)
def test_the_largest_model(kw, gib):
    "Two minutes and 5 GB of memory each, on two cores"
    v = ask_compiler('training', '1.5B', **kw)
    assert v.fits and v.total_gib <= gib and v.parts['code'] < 0.15, v  # the code of all blocks is there once


@pytest.mark.slow
def test_the_claim_of_2019():
    """1.5B with AdamW in float32 does not fit a TPU core of 2019.

    All in bfloat16, with each block computed again, a batch of one does
    """
    assert not ask_compiler('training', '1.5B', chip='v3', batch=1, optimizer='adamw').fits
    v = ask_compiler('training', '1.5B', chip='v3', batch=1, precision='bfloat16', optimizer='adamw')
    assert v.fits and v.total_gib < 14, v
