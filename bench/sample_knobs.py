"""What each knob of sampling does to a trained model's text, for the lesson nbs/41_sampling.ipynb

Repetition, variety and surprise of continuations of held-out documents against temperature, top-k, top-p,
min-p and the penalties; the peers are the documents themselves. Writes bench/sample_knobs.json. Some five
minutes on two cores for a run of the recipe `tiny`."""

import json
from pathlib import Path
from bench.common import folder, machine, parser, versions
import numpy as np
from gpt2repro.batches import read_documents
from gpt2repro.checkpoint import load_model
from gpt2repro.generation import samples
from gpt2repro.rules import distinct
from gpt2repro.sample import token_view

n_prompt = 16
n_new = 80
longest = 25  # tokens of a loop
families = {
    'all tokens': {},
    'top-k 40': dict(top_k=40),
    'top-p 0.9': dict(top_p=0.9),
    'min-p 0.1': dict(min_p=0.1),
}
temperatures = (0.2, 0.5, 0.8, 1.0, 1.2, 1.5)
penalties = {
    'greedy': {},
    'repetition penalty 1.2': dict(repetition_penalty=1.2),
    'frequency penalty 0.5': dict(frequency_penalty=0.5),
    'presence penalty 0.5': dict(presence_penalty=0.5),
    'no 4-gram twice': dict(no_repeat_ngram=4),
}
shown = {
    'greedy': dict(temperature=0),
    'temperature 0.7, top-k 40': dict(temperature=0.7, top_k=40),
    'temperature 1': {},
    'temperature 1.5': dict(temperature=1.5),
}


def repeated(ids, n=4):
    "Share of the n-grams that stood in the text before"
    return 1 - distinct(ids, n)


def period(ids):
    "Tokens of the loop in which a text ends, three rounds at least; 0: none"
    for k in range(1, longest + 1):
        if len(ids) >= 3 * k and ids[-k:] == ids[-2 * k : -k] == ids[-3 * k : -2 * k]:
            return k
    return 0


def measure(ids, logprobs):
    "Means over texts"
    return dict(
        distinct2=np.mean([distinct(o, 2) for o in ids]),
        repeated4=np.mean([repeated(o) for o in ids]),
        loops=np.mean([period(o) > 0 for o in ids]),
        bits=-np.mean([x for o in logprobs for x in o]) / np.log(2),
    )


def four_digits(d):
    return {k: round(float(v), 4) for k, v in d.items()}


class Texts:
    "Beginnings and ends of held-out documents, and continuations under any rules, each made once"

    def __init__(self, run):
        self.model, self.tok = load_model(run, 'cpu')
        docs = [self.tok.encode(o) for o in read_documents(Path(run) / 'shards/valid', self.tok)]
        docs = [d for d in docs if len(d) > n_prompt + n_new][:32]
        self.prompts = [self.tok.decode(d[:n_prompt]) for d in docs]
        self.real = [d[n_prompt : n_prompt + n_new] for d in docs]
        self.made = {}

    def write(self, **rules):
        "Texts of one set of rules"
        key = str(rules)
        if key not in self.made:
            self.made[key] = samples(
                self.model,
                self.tok,
                self.prompts,
                n_new,
                seed=0,
                batch_size=32,
                min_new_tokens=n_new,
                **rules,
            )
        return self.made[key]

    def numbers(self, **rules):
        out = self.write(**rules)
        return four_digits(measure([s.ids for s in out], [s.logprobs for s in out]))

    def numbers_of_real(self):
        pairs = zip(self.prompts, self.real)
        seen = [token_view(self.model, self.tok, p, r) for p, r in pairs]
        return four_digits(measure(self.real, [[-o['bits'] * np.log(2) for o in view] for view in seen]))

    def most_prose(self):
        "Number of the document with the most letters, which is shown"
        letters = lambda i: np.mean([c.isalpha() for c in self.prompts[i] + self.tok.decode(self.real[i])])
        return max(range(len(self.real)), key=letters)


def rounds_of(texts):
    "Mean probability of the tokens of round 1, 2, … of texts that end in a loop"
    rounds = {}
    for s in texts:
        k = period(s.ids)
        if not k:
            continue
        n = len(s.ids)
        looping = lambda i: all(s.ids[j] == s.ids[j + k] for j in range(i, n - k))
        start = next(i for i in range(n) if looping(i))
        for r, i in enumerate(range(start, n - k + 1, k)):
            rounds.setdefault(r + 1, []).append(float(np.exp(np.mean(s.logprobs[i : i + k]))))
    return [
        dict(round=r, p=round(float(np.mean(v)), 4), texts=len(v))
        for r, v in sorted(rounds.items())
        if r <= 8 and len(v) >= 4
    ]


def all_numbers(run):
    texts = Texts(run)
    lines = (Path(run) / 'log.jsonl').read_text(encoding='utf-8').splitlines()
    log = [json.loads(l) for l in lines]
    curve = lambda kw: [dict(temperature=t, **texts.numbers(temperature=t, **kw)) for t in temperatures]
    knob = lambda name, values: [dict(value=v, **texts.numbers(**{name: v})) for v in values]
    at = texts.most_prose()
    return dict(
        parameters=texts.model.cfg.n_params,
        tokens=max(o['tokens'] for o in log if 'tokens' in o),
        bits_per_byte=round([o['bpb'] for o in log if o['kind'] == 'valid'][-1], 3),
        n_prompt=n_prompt,
        n_new=n_new,
        texts=len(texts.real),
        made_with=f'{machine()}; {versions("torch")}',
        real=texts.numbers_of_real(),
        curves={name: curve(kw) for name, kw in families.items()},
        knobs={
            'top_k': knob('top_k', (1, 2, 5, 10, 40, 200)),
            'top_p': knob('top_p', (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)),
        },
        cures={name: texts.numbers(temperature=0, **kw) for name, kw in penalties.items()},
        rounds=rounds_of(texts.write(temperature=0)),
        examples={name: texts.write(**kw)[at].text[:300] for name, kw in shown.items()},
        prompt=texts.prompts[at],
    )


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('run', help='folder of a trained run')
    out = all_numbers(p.parse_args(argv).run)
    text = json.dumps(out, indent=1, ensure_ascii=False) + '\n'
    (folder / 'sample_knobs.json').write_text(text, encoding='utf-8')
    print(json.dumps({k: out[k] for k in ('real', 'cures', 'rounds')}))


if __name__ == '__main__':
    main()
