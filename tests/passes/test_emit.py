"""The text of emitted programs: golden files, and the same bytes in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lowered import captured, lower
from plans import LLAMA, experts, three, tp, written

GOLDEN = Path(__file__).parents[1] / "golden" / "emit"
PROGRAMS = {
    "tensor_parallel": (tp(2), "dense", "forward_v0_c0.py"),
    "pipeline_second_stage": (three(LLAMA, 1, 2, 2, 1), "dense", "decode_v0_c1.py"),
    "experts": (experts(4, "moe"), "moe", "prefill_v0_c0.py"),
}
SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
from lowered import captured, lower
from plans import LLAMA, three, written
found = lower(written(three(LLAMA, 2, 2, 2, 2), "dense"), captured("dense"))
found.artifact.folder.rename(sys.argv[1])
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_of_a_program(name: str, golden: Callable[[Path, str], None]) -> None:
    """Readable Python: module path, model line and plan line at each step."""
    text, model, file = PROGRAMS[name]
    folder = lower(written(text, model), captured(model)).artifact.folder
    golden(GOLDEN / f"{name}.txt", (folder / file).read_text())


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Two processes with other hash seeds write the same artifact, byte for byte."""
    here = Path(__file__).parents[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tmp_path / seed, here, here / "equivalence"],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    assert [process.wait(120) for process in running] == [0, 0]
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / seed).iterdir()} for seed in ("1", "2")
    )
    assert len(first) > 8
    names = ("resolved-plan.json", "manifest.json")  # these hold the path of the plan file
    assert {k: v for k, v in first.items() if k not in names} == {
        k: v for k, v in second.items() if k not in names
    }
