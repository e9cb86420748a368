"The plan's memory against the measured peak of training steps on this machine, each in a process of its own: `python bench/plan.py` (on a CUDA GPU it measures that)"

import json
import subprocess
import sys
from common import save_table
from gpt2repro.plan import plan

configs = [
    dict(size='124M', batch=2),
    dict(size='124M', batch=2, precision='float32'),
    dict(size='124M', batch=2, remat='none'),
    dict(size='124M', batch=1, optimizer='adamw'),
    dict(size='124M', batch=4, precision='float32', remat='none'),
]

code = """
import json, resource, sys, torch
from gpt2repro.aot import step_config
from gpt2repro.backend import get_device, retain_heap, peak_memory, seed_all
from gpt2repro.model import GPT2
from gpt2repro.train import fit, make_optimizer
kw = json.loads(sys.argv[1])
dev = get_device()
def rss(): return 0 if dev.type=='cuda' else int(open('/proc/self/statm').read().split()[1])*resource.getpagesize()
cfg = step_config(kw['size'], kw['batch'], kw.get('precision', 'mixed'), kw.get('optimizer', 'adafactor'))
ids = torch.randint(cfg.model.vocab_size, (kw['batch'], cfg.model.n_ctx+1))
before = rss()
model = GPT2(cfg.model, remat=kw.get('remat', 'block')).to(dev)
opt = make_optimizer(model, cfg.optim, cfg.max_steps)
steps = fit(model, opt, lambda s: (ids[:, :-1].contiguous(), ids[:, 1:].contiguous()), cfg, dev)
with retain_heap(dev):
    for _ in range(2): float(next(steps)[1])
print(json.dumps(dict(device=dev.type, gib=(peak_memory(dev)-before)/2**30)))
"""

if __name__ == '__main__':
    rows = []
    for kw in configs:
        p = subprocess.run([sys.executable, '-c', code, json.dumps(kw)], capture_output=True, text=True)
        if p.returncode:
            sys.exit(p.stderr[-2000:])
        got = json.loads(p.stdout.splitlines()[-1])
        want = plan(chip='CPU' if got['device'] == 'cpu' else 'H100', **kw)
        rows.append(
            dict(
                size=kw['size'],
                batch=kw['batch'],
                precision=want.precision,
                optimizer=want.optimizer,
                remat=want.remat,
                **{
                    'measured GiB': got['gib'],
                    'plan GiB': want.total_gib,
                    'off %': 100 * (want.total_gib / got['gib'] - 1),
                },
            )
        )
        print(rows[-1], {k: round(v, 2) for k, v in want.parts.items()}, flush=True)
    save_table(
        'The plan against measured memory',
        rows,
        note='Peak of the process over what it took before the model was built; two steps as `gpt2repro '
        'train` does them, context 1024.',
    )
