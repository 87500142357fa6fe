"""`python -m tests.benchmarks [compile] [rank] [training] [cores] [published] [model] [--write]`

Runs all parts, or some. --write puts their tables into README.md; the tables of others stay as they are.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import cores, model, published, training
from tests.benchmarks.compile_speed import CASES

HERE = Path(__file__).parent
ROUNDS = 14
MARK = "<!-- written by python -m tests.benchmarks --write -->"


def in_process(module: str, *words: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", *words],
        capture_output=True, text=True, check=True, cwd=HERE.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compile_table() -> list[str]:
    """Seconds per case: the median of three runs."""
    lines = [
        "| case | capture s | lower s | write s | total s | peak MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        runs = sorted(
            (in_process("compile_speed", case) for _ in range(3)), key=lambda r: r["total"]
        )
        mid = runs[1]
        lines.append(
            f"| {case} | {mid['capture']:.2f} | {mid['lower']:.2f} | {mid['write']:.2f} "
            f"| {mid['total']:.2f} | {mid['megabytes']:.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


def compile_section() -> list[str]:
    """Compilation."""
    title = "Compilation of three phases (forward, prefill, decode), imports apart, without verify:"
    return [title, "", *compile_table()]


def rank_section() -> list[str]:
    """One rank against eager torch."""
    one = in_process("one_rank")
    return [
        "One rank, forward of batch 4 x 256 tokens (4 layers, hidden 512), one thread, in turn:", "",
        "| emitted ms | eager ms | median ratio | largest difference |",
        "| --- | --- | --- | --- |",
        f"| {one['emitted'] * 1e3:.1f} | {one['eager'] * 1e3:.1f} | {one['ratio']:.3f} "
        f"| {one['gap']:.1e} |",
    ]  # fmt: skip


def training_section() -> list[str]:
    """Training steps against hand-written torch."""
    lines = [
        training.ABOUT, "",
        "| case | emitted ms | torch ms | median ratio (half of all) | CPU ratio "
        "| collectives | KB sent | loss differs by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for case in training.CASES:
        found: Any = in_process("training", str(ROUNDS), case)
        calls, sent = found["calls"], found["sent"]
        lines.append(
            f"| {case} | {found['ours'] * 1e3:.0f} | {found['theirs'] * 1e3:.0f} "
            f"| {found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}) "
            f"| {found['work']:.2f} | {calls['ours']} : {calls['theirs']} "
            f"| {sent['ours'] / 1e3:.0f} : {sent['theirs'] / 1e3:.0f} | {found['gap']:.0e} |"
        )
        print(lines[-1], flush=True)
    return lines


def published_section() -> list[str]:
    """Published measurements against predictions."""
    return published.section("--write" in sys.argv)


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "compile": compile_section, "rank": rank_section, "training": training_section,
    "cores": cores.section, "published": published_section,
    "model": lambda: model.section("--write" in sys.argv),
}  # fmt: skip


def main() -> None:
    """Measure, print, and with --write keep."""
    import torch

    path = HERE / "README.md"
    text, _, rest = path.read_text().partition(MARK)
    kept = dict(piece.split(" -->", 1) for piece in rest.split("<!-- ")[1:])
    chosen = [name for name in SECTIONS if name in sys.argv] or list(SECTIONS)
    for name in chosen:
        lines = SECTIONS[name]()
        print("\n".join(lines))
        kept[name] = "\n\n" + "\n".join(lines) + "\n\n"
    if "--write" in sys.argv:
        about = f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores."
        pieces = [f"<!-- {name} -->{kept[name]}" for name in SECTIONS if name in kept]
        path.write_text(f"{text}{MARK}\n\n{about}\n\n" + "".join(pieces).rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
