"""Why the reproduction of 2019 fell short: all that differs between its recipe and this project's is a switch

nbs/43_why_2019_fell_short.ipynb draws the records in bench/why2019; `make why2019` makes what is missing."""

import re
import torch
from gpt2repro.config import GPT2Config, recipe
from gpt2repro.config2019 import treated_as_2019
from gpt2repro.experiments.design import Design, cells_of, in_order, python_docs
from gpt2repro.utils import reference_data

shapes = {'1M': (4, 128, 4), '3M': (6, 192, 6), '10M': (8, 320, 10), '30M': (7, 576, 9), '85M': (12, 768, 12)}
shapes = {k: dict(zip(('n_layer', 'n_embd', 'n_head', 'n_ctx'), (*v, 128))) for k, v in shapes.items()}
shapes['0.1M'] = dict(n_layer=2, n_embd=32, n_head=2, n_ctx=32)
# Both ends are read off the recipes. Adafactor is the paper's at both ends (`preset=paper`), so one detail of
# 2019 is left out: its code counts steps from 0 and decays weights before the update.
ours, of2019, adam2019 = recipe('1.5B'), recipe('connor2019-1.5B'), recipe('connor2019-117M').optim


def rate(r, **changes):
    "A recipe's schedule, its warm-up the same share of a run, some of its settings changed"
    warmup = lambda n: max(1, round(n * r.optim.warmup_steps / r.max_steps))
    schedule = {k: getattr(r.optim, k) for k in ('lr', 'schedule', 'final')} | dict(warmup_steps=warmup)
    return {f'optim.{k}': v for k, v in (schedule | changes).items()}


def adamw(lr, **changes):
    "AdamW with an absolute rate; the schedule keeps its shape"
    return {f'optim.{k}': v for k, v in (dict(name='adamw', lr=lr, beta1=0.9) | changes).items()}


def wikitext2():
    "Articles of WikiText-2, each from its title on, where `GPT2REPRO_TEST_DATA` has it"
    files = [reference_data('wikitext2') / f'wiki.{k}.tokens' for k in ('train', 'valid')]
    split = lambda text: [a for a in re.split(r'(?m)^(?= = [^=\n]+ = $)', text) if a.strip()]
    return [split(f.read_text(encoding='utf-8')) for f in files] if files[0].exists() else None


rates = dict(ours=rate(ours), paper={'optim.lr': 1e-2, 'optim.schedule': 'paper'}) | {'2019': rate(of2019)}
# its 300,000 steps, stopped where the run ends
rates['2019 cut'] = rate(of2019, warmup_steps=of2019.optim.warmup_steps, schedule_steps=of2019.max_steps)
rates |= {f'2019 at {x:g}': rate(of2019, lr=x) for x in (5e-4, 1e-3, 3e-3, 4e-3, 1e-2, 3e-2)}  # another peak
adam = {'adamw 2019': adamw(adam2019.lr, beta2=adam2019.beta2, eps=adam2019.eps)}
decay = {k: {'optim.weight_decay': of2019.optim.weight_decay, 'optim.decay': k} for k in ('all', 'matrices')}
# dropout on the sum of the embeddings, in attention, on the residual branches, on the embedding tables
places = 'model.embd_pdrop', 'model.attn_pdrop', 'model.resid_pdrop', 'table_pdrop'
dropout = dict(none=(0, 0, 0, 0), sum=(0.1, 0.1, 0.1, 0), tables=(0, 0.1, 0.1, 0.1))
switches = dict(
    lr=rates,
    optimizer={'adafactor': {}} | adam | {f'adamw {x:g}': adamw(x) for x in (1e-3, 3e-3, 1e-2)},
    # the scale of the 1.5B of 2019 is 1/√L, as `connor_june` has it for every depth
    init={k: {'init': v} for k, v in dict(openai='openai', june='connor_june', july='connor_july').items()},
    dropout={k: dict(zip(places, v)) for k, v in dropout.items()},
    sampler={k: {'sampler': k} for k in ('windows', 'stitch2019')},
    text={'raw': {}, 'nfkc': {}},
    decay={'none': {'optim.weight_decay': 0}} | decay,
    clip={'1': {'optim.clip': ours.optim.clip}, 'none': {'optim.clip': of2019.optim.clip}},
)
levels = (
    'ours adafactor openai none windows raw none 1',
    '2019 adafactor june tables stitch2019 nfkc all none',
)
ends = {v.split()[0]: dict(zip(switches, v.split())) for v in levels}
groups = cells_of("""
ends: 2019; ours; 2019, lr=ours
few: @ends; ours, lr=2019; 2019, optimizer=adamw 2019
seven: @few; ours, dropout=tables; ours, init=july
both: 2019, lr=ours, dropout=none
strong: @seven; 2019, dropout=none; 2019, init=openai; @both; ours, optimizer=adamw 2019
strong: 2019, optimizer=adamw 0.001; ours, optimizer=adamw 0.001; ours, init=june
ours1: ours, dropout=sum; ours, sampler=stitch2019; ours, text=nfkc; ours, decay=all; ours, clip=none
weak: @ours1; 2019, sampler=windows; 2019, text=raw; 2019, decay=none; 2019, clip=1; 2019, dropout=sum
weak: 2019, init=july
corners: ours, lr=2019, init=july; ours, lr=2019, dropout=tables; ours, init=july, dropout=tables
corners: ours, lr=2019, init=july, dropout=tables
ladder: 2019, lr=2019 at 0.001; 2019, lr=2019 at 0.003; 2019, lr=2019 at 0.01; 2019, lr=2019 at 0.03
cut: 2019, lr=2019 cut; 2019, lr=paper; ours, lr=paper; ours, lr=2019 cut
sums: 2019, lr=2019 at 0.0005; 2019, lr=2019 at 0.004
tuning: ours, optimizer=adamw 0.001; ours, optimizer=adamw 0.003; ours, optimizer=adamw 0.01
whole: ours, lr=2019; ours
""")
order = """strong; ends steps=250; few seeds=1; ours1; seven+both seeds=1; few seeds=2; ours1 seeds=1;
ends size=3M; strong+ours1 seeds=1,2; tuning+cut+corners+ladder; ends steps=250,2000,4000; weak;
few seeds=0,1 size=3M; few corpus=wikitext2; weak seeds=1,2; ends size=10M; few seeds=2 size=3M;
few seeds=1,2 corpus=wikitext2; cut+ladder+corners seeds=1,2; ends seeds=1,2 size=10M;
whole size=0.1M steps=1000,4000,16000,300000; strong+weak seeds=3,4; strong seeds=0,1,2 size=3M;
few seeds=0,1,2 size=10M; ends steps=16000; few seeds=0,1,2 size=3M corpus=wikitext2; sums seeds=0,1,2;
ends seeds=1,2 steps=250,2000,4000; both steps=16000,4000; seven+both seeds=0,1,2 size=10M"""
gpu = '; few seeds=0,1,2 size=30M steps=8000; few seeds=0,1,2 size=85M steps=32000'
costs = {s: (f'ours, {s}={x}', 'ours') for s, x in ends['2019'].items() if x != ends['ours'][s]}
design = Design(
    bases=ends,
    switches=switches,
    sizes={k: GPT2Config(vocab_size=2048, **v).no_dropout() for k, v in shapes.items()},
    runs=in_order(order + gpu * torch.cuda.is_available(), groups),
    corpora={'python-docs': python_docs, 'wikitext2': wikitext2},
    texts={'raw': None, 'nfkc': treated_as_2019},
    questions={'What does each choice of 2019 cost?': costs},
    recorded=('optim', 'init', 'table_pdrop'),
)
