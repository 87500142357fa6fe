"""`python -m tests.benchmarks [--write]`: run every benchmark; --write puts the tables into README.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.compile_speed import CASES

HERE = Path(__file__).parent
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


def main() -> None:
    """Measure, print, and with --write keep."""
    import torch

    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores.",
        "",
    ]
    lines += [
        "Compilation of three phases (forward, prefill, decode), imports apart, without verify:",
        "",
    ]
    lines += compile_table()
    one = in_process("one_rank")
    lines += [
        "", "One rank, forward of batch 4 x 256 tokens (4 layers, hidden 512), one thread, in turn:", "",
        "| emitted ms | eager ms | median ratio | largest difference |",
        "| --- | --- | --- | --- |",
        f"| {one['emitted'] * 1e3:.1f} | {one['eager'] * 1e3:.1f} | {one['ratio']:.3f} "
        f"| {one['gap']:.1e} |",
    ]  # fmt: skip
    print("\n".join(lines[-4:]))
    if "--write" in sys.argv:
        path = HERE / "README.md"
        text = path.read_text().partition(MARK)[0]
        path.write_text(f"{text}{MARK}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
