"""What each knob of sampling does to a trained model's text, for the lesson nbs/41_sampling.ipynb: `python bench/sample_knobs.py RUN` writes bench/sample_knobs.json.
Measured on beginnings from the run's held-out documents; the same numbers for the documents themselves stand beside them"""

import json
import sys
from pathlib import Path
import numpy as np
from common import machine, versions
from gpt2repro.cli import load_model, read_documents
from gpt2repro.generation import samples
from gpt2repro.rules import distinct
from gpt2repro.sample import token_view

n_prompt, n_new = 16, 80


def repeated(ids, n=4):
    "Share of the n-grams that stood in the text before"
    return 1 - distinct(ids, n)


def loops(ids, most=25):
    "Does the text end in a circle: three rounds of at most `most` tokens?"
    return any(
        len(ids) >= 3 * k and ids[-k:] == ids[-2 * k : -k] == ids[-3 * k : -2 * k] for k in range(1, most + 1)
    )


def measure(ids, logprobs):
    return dict(
        distinct2=np.mean([distinct(o, 2) for o in ids]),
        repeated4=np.mean([repeated(o) for o in ids]),
        loops=np.mean([loops(o) for o in ids]),
        bits=-np.mean([x for o in logprobs for x in o]) / np.log(2),
    )


def main(run):
    model, tok = load_model(run, 'cpu')
    docs = [
        d
        for d in (tok.encode(o) for o in read_documents(Path(run) / 'shards/valid', tok))
        if len(d) > n_prompt + n_new
    ][:32]
    prompts = [tok.decode(d[:n_prompt]) for d in docs]
    real = [d[n_prompt : n_prompt + n_new] for d in docs]
    prose = max(
        range(len(docs)), key=lambda i: np.mean([c.isalpha() for c in prompts[i] + tok.decode(real[i])])
    )  # to be shown: the most letters
    own = [[-o['bits'] * np.log(2) for o in token_view(model, tok, p, r)] for p, r in zip(prompts, real)]
    seen = {}

    def write(**kw):
        if (key := str(kw)) not in seen:
            seen[key] = fresh(**kw)
        return seen[key]

    def fresh(**kw):
        out = samples(model, tok, prompts, n_new, seed=0, batch_size=32, min_new_tokens=n_new, **kw)
        return measure([s.ids for s in out], [s.logprobs for s in out]), out

    rounded = lambda d: {k: round(float(v), 4) for k, v in d.items()}
    curves = {}
    greedy = write(temperature=0)[1]
    for name, kw in {
        'all tokens': {},
        'top-k 40': dict(top_k=40),
        'top-p 0.9': dict(top_p=0.9),
        'min-p 0.1': dict(min_p=0.1),
    }.items():
        curves[name] = [
            dict(temperature=t, **rounded(write(temperature=t, **kw)[0]))
            for t in (0.2, 0.5, 0.8, 1.0, 1.2, 1.5)
        ]
    knobs = {
        'top_k': [dict(value=k, **rounded(write(top_k=k)[0])) for k in (1, 2, 5, 10, 40, 200)],
        'top_p': [dict(value=p, **rounded(write(top_p=p)[0])) for p in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)],
    }
    cures = {
        name: rounded(write(temperature=0, **kw)[0])
        for name, kw in {
            'greedy': {},
            'repetition penalty 1.2': dict(repetition_penalty=1.2),
            'frequency penalty 0.5': dict(frequency_penalty=0.5),
            'presence penalty 0.5': dict(presence_penalty=0.5),
            'no 4-gram twice': dict(no_repeat_ngram=4),
        }.items()
    }
    rounds = {}  # mean probability of the tokens of round 1, 2, … of texts that go round
    for s in greedy:
        k = next((k for k in range(1, 26) if s.ids[-k:] == s.ids[-2 * k : -k] == s.ids[-3 * k : -2 * k]), 0)
        if not k:
            continue
        start = next(
            i for i in range(len(s.ids)) if all(s.ids[j] == s.ids[j + k] for j in range(i, len(s.ids) - k))
        )
        for r, i in enumerate(range(start, len(s.ids) - k + 1, k)):
            rounds.setdefault(r + 1, []).append(float(np.exp(np.mean(s.logprobs[i : i + k]))))
    log = [json.loads(l) for l in (Path(run) / 'log.jsonl').read_text(encoding='utf-8').splitlines()]
    out = dict(
        parameters=model.cfg.n_params,
        tokens=max(o['tokens'] for o in log if 'tokens' in o),
        bits_per_byte=round([o['bpb'] for o in log if o['kind'] == 'valid'][-1], 3),
        n_prompt=n_prompt,
        n_new=n_new,
        texts=len(docs),
        made_with=f'{machine()}; {versions("torch")}',
        real=rounded(measure(real, own)),
        curves=curves,
        knobs=knobs,
        cures=cures,
        rounds=[
            dict(round=r, p=round(float(np.mean(v)), 4), texts=len(v))
            for r, v in sorted(rounds.items())
            if r <= 8 and len(v) >= 4
        ],
        examples={
            n: write(**kw)[1][prose].text[:300]
            for n, kw in {
                'greedy': dict(temperature=0),
                'temperature 0.7, top-k 40': dict(temperature=0.7, top_k=40),
                'temperature 1': {},
                'temperature 1.5': dict(temperature=1.5),
            }.items()
        },
        prompt=prompts[prose],
    )
    (Path(__file__).parent / 'sample_knobs.json').write_text(
        json.dumps(out, indent=1, ensure_ascii=False) + '\n'
    )
    print(json.dumps({k: out[k] for k in ('real', 'cures', 'rounds')}))


if __name__ == '__main__':
    main(sys.argv[1])
