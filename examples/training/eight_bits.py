"""Train the 16-expert model under MA separation, exactly and with gradients in eight bits, over ten seeds.

python examples/training/eight_bits.py            run all (many minutes); write eight_bits.json
python examples/training/eight_bits.py --table    print the table from eight_bits.json only
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pydoc_data.topics
import statistics
import tempfile
import time
from pathlib import Path

import plancc

HERE = Path(__file__).parent
PLAN, STORED = HERE.parent / "ma_separation.plan", HERE / "eight_bits.json"
MODEL = f"{HERE.parent / 'models.py'}:moe"
ARGS = {
    "layers": "2", "hidden": "48", "heads": "6", "experts": "16", "ffn": "32", "vocab": "260",
    "max_len": "64",
}  # fmt: skip
STEPS, LAST, SEEDS = 200, 20, range(10)
LOSSY = ("grad_dtype", "comm grads")


def exact_plan() -> str:
    """The plan without what loses digits."""
    lines = PLAN.read_text().splitlines()
    return "\n".join(x for x in lines if not x.strip().startswith(LOSSY)) + "\n"


def train(folder: Path, seed: int, steps: int) -> tuple[float, ...]:
    """The losses of one run."""
    found = plancc.train(
        folder,
        data=pydoc_data.topics.__file__,
        batch=8,
        seq_len=32,
        lr=3e-3,
        steps=steps,
        seed=seed,
    )
    return tuple(found.losses)


def run(steps: int) -> dict[str, list[list[float]]]:
    """Every run of both plans: losses by seed."""
    out: dict[str, list[list[float]]] = {"exact": [], "eight": []}
    with tempfile.TemporaryDirectory() as aside:
        plain = Path(aside) / "exact.plan"
        plain.write_text(exact_plan())
        for name, plan in (("exact", plain), ("eight", PLAN)):
            plancc.compile(plan, MODEL, Path(aside) / name, model_args=ARGS, for_="train")
        for seed in SEEDS:
            for name in out:
                begin = time.monotonic()
                losses = train(Path(aside) / name, seed, steps)
                out[name].append([round(x, 6) for x in losses])
                print(
                    f"seed {seed} {name}: {losses[-1]:.4f}, {time.monotonic() - begin:.0f} s",
                    flush=True,
                )
    return out


def sign_flips(gaps: list[float]) -> float:
    """The exact p-value of a paired test: how many sign flips give a mean as far from 0."""
    seen = abs(sum(gaps))
    flips = list(itertools.product((1, -1), repeat=len(gaps)))
    return sum(
        abs(sum(s * g for s, g in zip(f, gaps, strict=True))) >= seen - 1e-12 for f in flips
    ) / len(flips)


def table(found: dict[str, list[list[float]]]) -> str:
    """Means and deviations over the seeds, of the mean loss of the last steps."""
    final = {k: [statistics.fmean(x[-LAST:]) for x in rows] for k, rows in found.items()}
    gaps = [b - a for a, b in zip(final["exact"], final["eight"], strict=True)]
    lines = [
        f"| gradients | loss, mean of the last {LAST} steps | deviation over {len(gaps)} seeds |",
        "|---|---|---|",
    ]
    for name, words in (("exact", "float32"), ("eight", "int8, blocks of 128")):
        mean, spread = statistics.fmean(final[name]), statistics.stdev(final[name])
        lines.append(f"| {words} | {mean:.4f} | {spread:.4f} |")
    mean, spread = statistics.fmean(gaps), statistics.stdev(gaps)
    lines.append(f"| difference, by seed | {mean:+.4f} | {spread:.4f} |")
    return "\n".join(lines) + f"\n\nPaired sign-flip test, exact: p = {sign_flips(gaps):.3f}.\n"


def main() -> None:
    """Run, or only print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    if not args.table:
        aside = STORED.with_suffix(".aside")
        aside.write_text(json.dumps({"steps": args.steps, **run(args.steps)}))
        os.replace(aside, STORED)
    found = json.loads(STORED.read_text())
    print(table({k: found[k] for k in ("exact", "eight")}))


if __name__ == "__main__":
    main()
