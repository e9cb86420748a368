"""The recipe of today beside GPT-2's: the same minutes on the same text and machine, in turns

`gpt2repro reproduce` with the recipes `tiny` and `modern`, each from raw text to scores in a folder of its
own. It takes two recipes × rounds × minutes: twenty minutes if nothing is said. Nothing else should run."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from bench.common import environment, parser, save_table
from bench.sample import loaded

goal = 1.50  # bits per byte on held-out documents, for `modern`


def reproduce(recipe, minutes, folder):
    "Scores of a run from scratch, and its seconds"
    verb = 'from gpt2repro.cli import main; raise SystemExit(main())'
    argv = [sys.executable, '-c', verb, 'reproduce', '--recipe', recipe, '--minutes', str(minutes)]
    start = time.perf_counter()
    out = subprocess.run(
        [*argv, '--out', str(folder), '--json'], env=environment(), capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1]), time.perf_counter() - start


def main(argv=None):
    p = parser(__doc__)
    p.add_argument('--minutes', type=float, default=10.0, help='of each run')
    p.add_argument('--rounds', type=int, default=1)
    a = p.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for i in range(a.rounds):
            for recipe in 'tiny', 'modern':
                folder = Path(d, f'{recipe}-{i}')
                scores, seconds = reproduce(recipe, a.minutes, folder)
                log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
                last = [r for r in log if r['kind'] == 'valid'][-1]
                rows.append(
                    {
                        'recipe': recipe,
                        'minutes': f'{seconds / 60:.1f}',
                        'steps': last['step'],
                        'tokens': f'{last["tokens"]:,}',
                        'bits per byte, held-out documents': f'{scores["bpb"]:.3f}',
                        'held-out shards': f'{last["bpb"]:.3f}',
                    }
                )
    save_table(
        f'Then and now: the same {a.minutes:g} minutes',
        rows,
        note=f'`reproduce` from scratch, in turns, one seed, {loaded()}. Goal for modern: {goal:.2f}.',
    )


if __name__ == '__main__':
    main()
