"""GPT-2 1.5B through the TPU's own compiler, against the targets: `PJRT_DEVICE=CPU python bench/tpu.py [NAME …]`

Each configuration takes minutes, and about 5 GB of memory (AdamW 20); without a name all are done, one after the other. The last verdicts are kept in tpu.json, so that the table can be made one row at a time.
Nothing here runs on a TPU: the compiler says what would fit."""

import json
import sys
from pathlib import Path
from common import save_table
from gpt2repro.aot import ask_compiler
from gpt2repro.plan import plan

kept = Path(__file__).parent / 'tpu.json'
train = dict(what='training', size='1.5B', chip='v5e')
configs = {  # name -> (arguments, most GiB that it should take; 0: it should not fit)
    'mixed': (dict(train, batch=8), 13.5),
    'mixed-1': (dict(train, batch=1), None),
    'bf16': (dict(train, batch=16, precision='bfloat16'), 13.0),
    'v2-8': (dict(train, chip='v2-8', batch=32), 4.5),
    'adamw-v5e': (dict(train, batch=1, optimizer='adamw'), 0),
    'adamw-bf16-v5e': (dict(train, batch=1, precision='bfloat16', optimizer='adamw'), None),
    'adamw-v3': (dict(train, chip='v3', batch=1, optimizer='adamw'), 0),
    'adamw-bf16-v3': (dict(train, chip='v3', batch=1, precision='bfloat16', optimizer='adamw'), None),
    'adafactor-v3': (dict(train, chip='v3', batch=1), None),
    'greedy': (dict(what='decoding', size='1.5B', chip='v5e', batch=1), 6.0),
    'top-k': (dict(what='decoding', size='1.5B', chip='v5e', batch=1, top_k=40), 6.0),
    'prefill': (dict(what='decoding', size='1.5B', chip='v5e', batch=1, prompt=512), 6.0),
    '124M': (dict(train, size='124M', batch=8), None),
    '124M-v6e': (dict(train, size='124M', chip='v6e', batch=8), None),
    '124M-v3': (dict(train, size='124M', chip='v3', batch=8), None),
    '124M-v2-8': (dict(train, size='124M', chip='v2-8', batch=8), None),
    '124M-fp32': (dict(train, size='124M', batch=8, precision='float32'), None),
    '124M-bf16': (dict(train, size='124M', batch=16, precision='bfloat16'), None),
    '124M-adamw': (dict(train, size='124M', batch=8, optimizer='adamw'), None),
    '124M-none': (dict(train, size='124M', batch=8, remat='none'), None),
    '345M': (dict(train, size='345M', batch=8), None),
    '345M-v6e': (
        dict(train, size='345M', chip='v6e', batch=16),
        None,
    ),  # this and the next: the plan's constants were not fitted to them
    '774M': (dict(train, size='774M', batch=4), None),
}


def program(kw):
    "What is compiled, in words"
    if kw['what'] == 'training':
        return f'{kw["size"]} training'
    if kw.get('prompt'):
        return f'{kw["size"]} prefill, {kw["prompt"]} tokens'
    return f'{kw["size"]} decoding, {"top-k" if kw.get("top_k") else "greedy"}'


def goal(gib):
    if gib is None:
        return ''
    return f'≤ {gib:g} GiB' if gib else 'does not fit'


def row(name, said):
    kw, target = configs[name]
    p = (
        plan(kw['size'], **{k: v for k, v in kw.items() if k not in ('what', 'size')}).total_gib
        if kw['what'] == 'training'
        else ''
    )
    return dict(
        program=program(kw),
        chip=kw['chip'],
        batch=kw['batch'],
        precision=kw.get('precision', 'mixed' if p else 'bfloat16'),
        optimizer=kw.get('optimizer', 'adafactor') if p else '',
        remat=kw.get('remat', 'block') if p else '',
        GiB=f'{said["total_gib"]:.2f}',
        of=f'{said["usable_gib"]:.2f}',
        verdict='fits' if said['fits'] else 'does not fit',
        target=goal(target),
        formula=f'{p:.2f}' if p else '',
        TFLOP=f'{said["tflop"]:.1f}' if said['fits'] else '',
        **{'record s': round(said['record_s']), 'compile s': round(said['compile_s'])},
    )


def table(said):
    save_table(
        'GPT-2 through the TPU compiler',
        [row(k, said[k]) for k in configs if k in said],
        packages=('torch', 'torch_xla', 'jax', 'libtpu'),
        note='GiB for each device, as `libtpu` says it without a TPU; *formula* is `gpt2repro plan`. '
        'Context 1024, no dropout. Nothing here was run on a TPU. Times are of a shared machine.',
    )


if __name__ == '__main__':
    said = json.loads(kept.read_text()) if kept.exists() else {}
    for name in sys.argv[1:] or configs:
        said[name] = dict(args=configs[name][0], **ask_compiler(**configs[name][0]).to_dict())
        kept.write_text(json.dumps(said, indent=1) + '\n')
        print(name, said[name], flush=True)
        table(said)
