"""GPT-2 1.5B and smaller through the TPU's own compiler: memory against the targets and the plan's formula

`PJRT_DEVICE=CPU python -m bench.tpu [NAME …]` in the environment of `make test-xla`. Each configuration takes
minutes and about 5 GB of memory (AdamW 20); without a name all are done, one after the other. The last
verdicts are kept in bench/tpu.json, so the table can be made one row at a time. The peer is the formula of
`gpt2repro plan`. Nothing here runs on a TPU: the compiler says what would fit."""

import json
from bench.common import folder, parser, save_table
from gpt2repro.aot import ask_compiler
from gpt2repro.plan import plan

kept = folder / 'tpu.json'
train = dict(what='training', size='1.5B', chip='v5e')
decode = dict(what='decoding', size='1.5B', chip='v5e', batch=1)
small = dict(train, size='124M', batch=8)
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
    'greedy': (decode, 6.0),
    'top-k': (dict(decode, top_k=40), 6.0),
    'prefill': (dict(decode, prompt=512), 6.0),
    '124M': (small, None),
    '124M-v6e': (dict(small, chip='v6e'), None),
    '124M-v3': (dict(small, chip='v3'), None),
    '124M-v2-8': (dict(small, chip='v2-8'), None),
    '124M-fp32': (dict(small, precision='float32'), None),
    '124M-bf16': (dict(small, batch=16, precision='bfloat16'), None),
    '124M-adamw': (dict(small, optimizer='adamw'), None),
    '124M-none': (dict(small, remat='none'), None),
    '345M': (dict(train, size='345M', batch=8), None),
    # the plan's constants were not fitted to these two
    '345M-v6e': (dict(train, size='345M', chip='v6e', batch=16), None),
    '774M': (dict(train, size='774M', batch=4), None),
}


def target_of(gib):
    if gib is None:
        return ''
    return f'≤ {gib:g} GiB' if gib else 'does not fit'


def program(kw):
    "What is compiled, in words"
    if kw['what'] == 'training':
        return f'{kw["size"]} training'
    if kw.get('prompt'):
        return f'{kw["size"]} prefill, {kw["prompt"]} tokens'
    return f'{kw["size"]} decoding, {"top-k" if kw.get("top_k") else "greedy"}'


def row(name, said):
    "The table's row for a configuration and what the compiler said"
    kw, target = configs[name]
    training = kw['what'] == 'training'
    about = dict(program=program(kw), chip=kw['chip'], batch=kw['batch'])
    formula = ''
    if training:
        asked = {k: v for k, v in kw.items() if k not in ('what', 'size')}
        formula = f'{plan(kw["size"], **asked).total_gib:.2f}'
    return dict(
        **about,
        precision=kw.get('precision', 'mixed' if training else 'bfloat16'),
        optimizer=kw.get('optimizer', 'adafactor') if training else '',
        remat=kw.get('remat', 'block') if training else '',
        GiB=f'{said["total_gib"]:.2f}',
        of=f'{said["usable_gib"]:.2f}',
        verdict='fits' if said['fits'] else 'does not fit',
        target=target_of(target),
        formula=formula,
        TFLOP=f'{said["tflop"]:.1f}' if said['fits'] else '',
        **{'record s': round(said['record_s']), 'compile s': round(said['compile_s'])},
    )


def save(said):
    save_table(
        'GPT-2 through the TPU compiler',
        [row(k, said[k]) for k in configs if k in said],
        packages=('torch', 'torch_xla', 'jax', 'libtpu'),
        note='GiB for each device, as `libtpu` says it without a TPU; *formula* is `gpt2repro plan`. '
        'Context 1024, no dropout. Nothing here was run on a TPU. Times are of a shared machine.',
    )


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('name', nargs='*', help='of a configuration: ' + ', '.join(configs))
    names = p.parse_args(argv).name
    for name in names:
        if name not in configs:
            p.error(f'no configuration {name!r}; known: {", ".join(configs)}')
    said = json.loads(kept.read_text(encoding='utf-8')) if kept.exists() else {}
    for name in names or configs:
        args = configs[name][0]
        said[name] = dict(args=args, **ask_compiler(**args).to_dict())
        kept.write_text(json.dumps(said, indent=1) + '\n', encoding='utf-8')
        print(name, said[name], flush=True)
        save(said)


if __name__ == '__main__':
    main()
