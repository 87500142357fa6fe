"""The text of emitted training programs: golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lowered import captured, lower
from plans import HEAD, LLAMA, grid, stages, tp, written

GOLDEN = Path(__file__).parents[1] / "golden" / "emit"
ONE_LAYER = (("layers", 1),)
DATA = "place ** on base { split batch over dp }\n"
PROGRAMS = {
    "training_tensor_parallel": (tp(2), ONE_LAYER, "train_v0_c0.py"),
    "training_second_stage": (
        HEAD + grid(("dp", 2), ("pp", 2)) + DATA + stages(LLAMA, 2, 2), (), "train_v0_c1.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_of_a_training_program(name: str, golden: Callable[[Path, str], None]) -> None:
    """Forward, backward and reduction as readable Python: module path, model line, plan line."""
    text, sizes, file = PROGRAMS[name]
    lowered = lower(written(text, "dense"), captured("dense", sizes), phases=("train",))
    golden(GOLDEN / f"{name}.txt", (lowered.artifact.folder / file).read_text())
