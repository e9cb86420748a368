"Runs that are killed again and again, and losses that a refactoring does not move"

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch

golden = Path(__file__).parent / 'assets/golden_losses.json'
timing = {'tokens_per_s', 'peak_share', 'seconds', 'left_s', 'memory', 'peak_memory'}


def kill_runs(home, kills, seed):
    """Run `home/killed` to its end with `kills` SIGKILLs on the way, half of them while a checkpoint is
    written. PyTorch is imported once: each go is a fork. Prints what each kill met"""
    import signal
    import torch._dynamo
    import torch.distributed.fsdp
    from gpt2repro.backend import matmul_peak
    from gpt2repro.config import GPT2Config, OptimConfig
    from gpt2repro.model import GPT2
    from gpt2repro.train import make_optimizer, train

    torch.set_num_threads(1)
    matmul_peak(torch.device('cpu'), torch.float32)
    make_optimizer(
        GPT2(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9)), OptimConfig(), 9
    )  # all that is imported late is there
    run = home / 'killed'
    rng = random.Random(seed)
    parts = lambda: list((run / 'checkpoints').glob('.part-*'))
    newest = lambda: max((o.name for o in (run / 'checkpoints').glob('step-*')), default='')

    def go():
        if pid := os.fork():
            return pid
        try:
            train(None, run, device='cpu', watch=[])
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)

    for i in range(kills):
        before = newest()
        pid = go()
        end = time.time() + 20
        while newest() <= before and time.time() < end:
            time.sleep(0.002)  # it has got on
        time.sleep(rng.uniform(0, 0.06))
        end = time.time() + 20
        while i % 2 and time.time() < end:  # stopped with a checkpoint half written, and killed as it is
            while not parts() and time.time() < end:
                time.sleep(0.0005)
            os.kill(pid, signal.SIGSTOP)
            if parts():
                break
            os.kill(pid, signal.SIGCONT)
        torn = len(parts())
        n = len(list((run / 'checkpoints').glob('step-*')))
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            print(json.dumps(dict(ended=status)), flush=True)
            return
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(json.dumps(dict(torn=torn, checkpoints=n)), flush=True)
    print(json.dumps(dict(ended=os.waitpid(go(), 0)[1])), flush=True)


def records(run):
    return [json.loads(l) for l in (run / 'log.jsonl').read_text().splitlines()]


def lasting(run):
    return [{k: v for k, v in r.items() if k not in timing} for r in records(run) if r['kind'] != 'event']


def final(run):
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted((run / 'checkpoints').iterdir())[-1].glob('*.safetensors')
    }


def test_twenty_kills(tmp_path):
    """20 SIGKILLs at random moments, half of them aimed at a checkpoint being written; then the
    weights, the optimizer's state and the log are those of the run that nothing interrupted"""
    from gpt2repro.config import DataConfig, GPT2Config, OptimConfig, RunConfig
    from gpt2repro.shards import write_shards
    from gpt2repro.tokenizer import SentencePiece
    from gpt2repro.train import longer, open_run, train

    rng = random.Random(0)
    docs = [
        ' '.join(rng.choices('the cat sat on a mat and saw how one dog ran past it'.split(), k=30)) + '.'
        for _ in range(300)
    ]
    tok = SentencePiece.train(docs, vocab_size=320)
    tok.save(tmp_path / 'tokenizer')
    for name, part in dict(train=docs[:270], valid=docs[270:]).items():
        write_shards(part, tok, tmp_path / 'shards' / name, workers=1)
    cfg = RunConfig(
        model=GPT2Config(vocab_size=320, n_ctx=16, n_embd=24, n_layer=2, n_head=3),
        data=DataConfig(source=str(tmp_path)),
        batch_tokens=8 * 16,
        micro_batch=4,
        max_steps=800,
        log_every=3,
        eval_every=12,
        eval_batches=1,
        sample_every=200,
        save_every=4,
        keep=2,
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
    )

    def undisturbed(cfg):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run = train(cfg, tmp_path / 'whole', device='cpu', watch=[])
        torch.set_num_threads(threads)
        return run

    def killed(cfg, times):
        open_run(cfg, tmp_path / 'killed')
        out = subprocess.run(
            [sys.executable, __file__, tmp_path, str(times), '1'],
            env={**os.environ, 'GPT2REPRO_QUIET': '1', 'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=300,
        )
        kills = [json.loads(l) for l in out.stdout.splitlines()]
        assert kills[-1] == dict(ended=0) and len(kills) == times + 1, (kills, out.stderr)
        return kills

    whole = undisturbed(cfg)
    kills = killed(cfg, 20)
    assert sum(k.get('torn', 0) > 0 for k in kills) >= 5, kills
    assert final(tmp_path / 'killed') == final(whole)
    assert lasting(tmp_path / 'killed') == lasting(whole)  # no gap, nothing twice, every figure the same
    assert [r['step'] for r in records(whole) if r['kind'] == 'train'] == [*range(3, 800, 3), 800]
    assert records(tmp_path / 'killed')[-1]['what'] == 'end'

    more = longer(cfg, 860, 'linear')  # both go on from the last rate, down to 0; one is killed on the way
    undisturbed(more)
    killed(more, 4)
    assert final(tmp_path / 'killed') == final(whole)
    assert lasting(tmp_path / 'killed') == lasting(whole)
    rates = [r['lr'] for r in lasting(whole) if r['kind'] == 'train' and r['step'] >= 800]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == 0 and rates == sorted(rates, reverse=True)
    assert sum(r.get('what') == 'resume' for r in records(tmp_path / 'killed')) >= 15


def losses(name):
    "Twenty steps in float64 on text that counts"
    from gpt2repro.config import GPT2Config, OptimConfig, RunConfig
    from gpt2repro.model import GPT2
    from gpt2repro.train import fit, make_optimizer

    optim = dict(
        adafactor=OptimConfig(lr=3e-2, warmup_steps=3),
        adamw=OptimConfig(name='adamw', lr=3e-3, weight_decay=0.1, warmup_steps=3),
    )[name]
    cfg = RunConfig(
        model=GPT2Config(vocab_size=97, n_ctx=16, n_embd=24, n_layer=2, n_head=3).no_dropout(),
        batch_tokens=8 * 16,
        micro_batch=4,
        max_steps=20,
        optim=optim,
    )
    torch.manual_seed(0)
    model = GPT2(cfg.model).double()

    def counting(step):
        x = (torch.arange(17) + torch.tensor([[37 * step + 11 * b] for b in range(8)])) % 97
        return x[:, :-1], x[:, 1:]

    return [
        round(float(l), 9)
        for _, l, _ in fit(model, make_optimizer(model, optim, 20), counting, cfg, torch.device('cpu'))
    ]


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_golden_losses(name):
    "Within 1e-6; where they are meant to change, `python tests/test_train.py golden` writes them anew"
    got = losses(name)
    want = json.loads(golden.read_text())[name]
    assert len(got) == 20 and got[-1] < got[0] - 0.1
    for i, (a, b) in enumerate(zip(got, want)):
        assert abs(a - b) < 1e-6, (i, a, b)


def test_memory_is_kept():
    """Blocks of 64 MiB, one after the other: outside the system supplies their pages each time; while
    memory is kept, once they have found their place, not any more; afterwards it has them back"""
    import platform
    import resource
    from gpt2repro.backend import retain_heap

    if platform.libc_ver()[0] != 'glibc':
        pytest.skip('not glibc')

    def faults(n=3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(n):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    outside = faults()
    with retain_heap(torch.device('cpu')):
        faults(9)
        inside = faults()
    after = faults(1)
    assert inside < outside / 10 and after > 0.9 * outside / 3, (
        outside,
        inside,
        after,
    )  # the last: every page of one block


if __name__ == '__main__':
    if sys.argv[1:] == ['golden']:
        golden.write_text(json.dumps({k: losses(k) for k in ('adafactor', 'adamw')}, indent=1) + '\n')
    else:
        kill_runs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
