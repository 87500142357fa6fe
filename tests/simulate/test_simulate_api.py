"""`plancc.simulate` and `plancc.verify` from Python: what they are called stays what they are."""

from __future__ import annotations

from pathlib import Path

import plancc

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGS = {"layers": "1", "hidden": "32", "heads": "4", "ffn": "64", "vocab": "60", "max_len": "64"}


def test_a_plan_file_and_what_was_compiled_of_it_give_the_same_rows(tmp_path: Path) -> None:
    """Twice each: importing a module must not take the place of a function."""
    plan, model = EXAMPLES / "tp.plan", f"{EXAMPLES / 'models.py'}:dense"
    built = plancc.compile(plan, model, tmp_path / "tp", model_args=ARGS, verify=False)
    assert plancc.verify(built).ok
    assert plancc.verify(built).ok
    cluster = EXAMPLES / "clusters" / "dgx_a100_16.json"
    asked = {"cluster": cluster, "batch": [1, 2], "seq_len": 32, "timelines": False}
    first = plancc.simulate(built, **asked)
    again = plancc.simulate(plan, model, model_args=ARGS, **asked)
    assert first.rows == again.rows and len(first.rows) == 4
    assert first.timelines == ()
    assert any("TPOT" in text for text in first.assumptions)
