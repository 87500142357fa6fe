"""Train the 16-expert model under MA separation, exactly and with gradients in eight bits, over ten seeds.

python examples/training/eight_bits.py            run what eight_bits.json lacks; write all files
python examples/training/eight_bits.py --draw     write eight_bits.svg and the table of README.md only
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from curves import TEXT, facts

from plancc.show.plot import Axis, Chart, Line, picture

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
PLAN, STORED = EXAMPLES / "ma_separation.plan", HERE / "eight_bits.json"
PICTURE, PAGE = HERE / "eight_bits.svg", HERE / "README.md"
BEGIN, END = "<!-- eight bits -->", "<!-- end of eight bits -->"
SIZES = "layers=2 hidden=48 heads=6 experts=16 ffn=32 vocab=260 max_len=64"
USUAL = ("--batch", "8", "--seq-len", "32", "--lr", "3e-3", "--precision", "fp32")
STEPS, LAST, SEEDS = 200, 20, range(10)
NAMES = {"exact": ("float32", "#555555"), "eight": ("int8, blocks of 128", "#B30000")}
"""Of each plan's gradients: how they travel, and the colour."""
LOSSY = ("grad_dtype", "comm grads")


def exact_plan() -> str:
    """The plan without what loses digits."""
    lines = PLAN.read_text().splitlines()
    return "\n".join(x for x in lines if not x.strip().startswith(LOSSY)) + "\n"


def train(name: str, seed: int, steps: int) -> list[float]:
    """The losses of one run of the command line."""
    with tempfile.TemporaryDirectory() as aside:
        plan, log = Path(aside) / PLAN.name, Path(aside) / "log.jsonl"
        plan.write_text(exact_plan() if name == "exact" else PLAN.read_text())
        words = [sys.executable, "-m", "plancc", "train", str(plan)]
        words += ["--model", f"{EXAMPLES / 'models.py'}:moe"]
        for text in SIZES.split():
            words += ["--model-arg", text]
        words += ["--data", str(TEXT), *USUAL, "--seed", str(seed), "--steps", str(steps)]
        subprocess.run(
            [*words, "--log", str(log)], cwd=EXAMPLES.parent, check=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return [round(json.loads(row)["loss"], 6) for row in log.read_text().splitlines()]


def stored(steps: int) -> dict[str, Any]:
    """The runs that are there already, measured as others would be now."""
    now = {"steps": steps, "facts": facts()}
    if not STORED.exists():
        return {**now, **{name: {} for name in NAMES}}
    found: dict[str, Any] = json.loads(STORED.read_text())
    if {name: found[name] for name in now} != now:
        raise SystemExit(f"{STORED.name} holds runs of another kind ({found['steps']} steps)")
    return found


def stored_text(found: dict[str, Any]) -> str:
    """eight_bits.json, one line a run."""
    lines = ["{", f'"steps": {found["steps"]},', f'"facts": {json.dumps(found["facts"])},']
    for name in NAMES:
        seeds = sorted(found[name], key=int)
        runs = ",\n".join(f'"{seed}": {json.dumps(found[name][seed])}' for seed in seeds)
        lines.append(f'"{name}": {{\n{runs}\n}}{"," if name == "exact" else ""}')
    return "\n".join([*lines, "}"]) + "\n"


def keep(found: dict[str, Any]) -> None:
    """Write eight_bits.json, whole or not at all."""
    aside = STORED.with_suffix(".aside")
    aside.write_text(stored_text(found))
    os.replace(aside, STORED)


def measure(steps: int, jobs: int) -> None:
    """Run what is missing, `jobs` at a time; each run is kept once it has ended."""
    found = stored(steps)
    missing = [(s, n) for s in SEEDS for n in NAMES if str(s) not in found[n]]

    def work(seed: int, name: str) -> tuple[int, str, list[float], float]:
        begin = time.monotonic()
        return seed, name, train(name, seed, steps), time.monotonic() - begin

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work, *one) for one in missing]
        try:
            for done in concurrent.futures.as_completed(waiting):
                seed, name, losses, seconds = done.result()
                found[name][str(seed)] = losses
                keep(found)
                print(f"seed {seed} {name}: {losses[-1]:.4f}, {seconds:.0f} s", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def sign_flips(gaps: list[float]) -> float:
    """The exact p-value of a paired test: how many sign flips give a mean as far from 0."""
    seen = abs(sum(gaps))
    flips = list(itertools.product((1, -1), repeat=len(gaps)))
    return sum(
        abs(sum(s * g for s, g in zip(f, gaps, strict=True))) >= seen - 1e-12 for f in flips
    ) / len(flips)


def runs_of(found: dict[str, Any], name: str) -> list[list[float]]:
    """The losses of a plan's runs, by seed."""
    return [found[name][str(seed)] for seed in SEEDS]


def table(found: dict[str, Any]) -> str:
    """Means and deviations over the seeds, of the mean loss of the last steps."""
    final = {name: [statistics.fmean(x[-LAST:]) for x in runs_of(found, name)] for name in NAMES}
    gaps = [b - a for a, b in zip(final["exact"], final["eight"], strict=True)]
    lines = [
        f"| gradients | loss, mean of the last {LAST} of {found['steps']} steps "
        f"| standard deviation over {len(gaps)} seeds |",
        "| --- | --- | --- |",
    ]
    for name, (words, _) in NAMES.items():
        mean, spread = statistics.fmean(final[name]), statistics.stdev(final[name])
        lines.append(f"| {words} | {mean:.4f} | {spread:.4f} |")
    mean, spread = statistics.fmean(gaps), statistics.stdev(gaps)
    lines.append(f"| difference, by seed | {mean:+.4f} | {spread:.4f} |")
    more = sum(gap > 0 for gap in gaps)
    flips, p = 2 ** len(gaps), sign_flips(gaps)
    lines += [
        "",
        f"Paired test over all {flips:,} sign flips of the differences: p = {p:.2g}. The loss with eight "
        f"bits is the larger one for {more} of {len(gaps)} seeds.",
    ]
    return "\n".join(lines)


def page_text(found: dict[str, Any], page: str) -> str:
    """README.md with the table written from the stored losses."""
    now = found["facts"]
    what = (
        f"`ma_separation.plan` with {SIZES}, {' '.join(USUAL)}, on the same text; Python "
        f"{now['python']}, torch {now['torch']}, {now['machine']}, `--backend local`, one thread."
    )
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{what}\n\n{END}{after}"


def mean_curve(rows: list[list[float]]) -> list[float]:
    """The mean over the runs, step by step."""
    return [statistics.fmean(step) for step in zip(*rows, strict=True)]


def picture_text(found: dict[str, Any]) -> str:
    """eight_bits.svg: every run and the means; below them the differences by seed, over `LAST` steps."""
    styles = {"exact": (5, 0.35), "eight": (1.2, 1)}
    rows = {name: runs_of(found, name) for name in NAMES}
    means = [
        curve(mean_curve(rows[name]), f"gradients in {words}", colour, *styles[name])
        for name, (words, colour) in NAMES.items()
    ]
    apart = [
        [b - a for a, b in zip(one, other, strict=True)]
        for one, other in zip(rows["exact"], rows["eight"], strict=True)
    ]
    red = NAMES["eight"][1]
    gaps = [curve(smooth(gap), "", red, 0.8, 0.35) for gap in apart]
    gaps.append(curve(smooth(mean_curve(apart)), "", red, 2, 1))
    steps = Axis("step", ticks=[(n, str(n)) for n in (1, *range(50, found["steps"] + 1, 50))])
    ticks = [(v / 40, f"{v / 40:+.3f}" if v else "0") for v in range(-2, 3)]
    charts = [
        Chart(f"loss by step, mean over {len(SEEDS)} seeds", means, x=steps, y=Axis(low=1, high=6.2)),
        Chart(
            f"int8 less float32, mean of the {LAST} steps so far (thin: each seed)", gaps, x=steps,
            y=Axis(low=-0.05, high=0.05, ticks=ticks), height=160,
        ),
    ]  # fmt: skip
    return picture(charts)


def curve(values: list[float], name: str, colour: str, width: float, opacity: float) -> Line:
    """A line through one value a step."""
    return Line(name, list(enumerate(values, 1)), colour, width, opacity=opacity)


def smooth(values: list[float]) -> list[float]:
    """The mean of the last `LAST` values, of fewer at the beginning."""
    return [statistics.fmean(values[max(0, i - LAST) : i]) for i in range(1, len(values) + 1)]


def main() -> None:
    """Run what is missing unless told only to draw; write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="draw the stored losses again")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    args = parser.parse_args()
    if not args.draw:
        measure(args.steps, args.jobs)
    found = json.loads(STORED.read_text())
    PICTURE.write_text(picture_text(found))
    PAGE.write_text(page_text(found, PAGE.read_text()))


if __name__ == "__main__":
    main()
