"""passes/README.md: the pipeline table, written from the passes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from plancc.compiler import PIPELINE

README = Path(__file__).parents[2] / "passes" / "README.md"
BEGIN, END = "<!-- pipeline -->", "<!-- end of pipeline -->"


def table() -> str:
    """One row a pass: its name, what it does, the file."""
    rows = ["| pass | does | file |", "| --- | --- | --- |"]
    for step in PIPELINE:
        cls = type(step)
        text = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{step.name}` | {text} | `{Path(inspect.getfile(cls)).name}` |")
    return "\n".join(rows)


def test_every_pass_has_a_file_of_its_name() -> None:
    for step in PIPELINE:
        assert Path(inspect.getfile(type(step))).stem == step.name.replace("-", "_")


def test_table_is_in_step(golden: Callable[[Path, str], None]) -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    golden(README, f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
