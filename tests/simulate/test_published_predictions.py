"""Predictions of published measurements: the page says what is stored, and what is stored comes out again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.benchmarks import published
from tests.benchmarks.__main__ import HERE

TOLD = "python -m tests.benchmarks published --write rewrites both"


def stored() -> dict[str, Any]:
    """What the command last found."""
    found: dict[str, Any] = json.loads(published.STORED.read_text())
    return found


def test_the_page_says_what_is_stored() -> None:
    section = (HERE / "README.md").read_text().split("<!-- published -->", 1)[1].split("<!-- ")[0]
    assert section.strip() == "\n".join(published.tables(stored())), TOLD


@pytest.mark.parametrize(("name", "number"), [("megatron_selene", 1), ("mosaic_fsdp", 41)])
def test_rows_come_out_as_stored(name: str, number: int) -> None:
    (found,) = published.predictions(name, [number])
    assert found == pytest.approx(stored()[name][number], rel=2e-3), TOLD


def test_every_row_has_its_plan() -> None:
    """Each published row names a plan that is there, with micro-batches that make up its batch."""
    for name in published.SETS:
        rows = published.published(name)["rows"]
        assert len(rows) == len(stored()[name])
        for row in rows:
            plan, sets = published.plan_of(row)
            assert (published.HERE / "plans" / f"{plan}.plan").is_file()
            ranks = row.get("dp", row["devices"])
            assert int(sets["batches"]) * row["micro_batch"] * ranks == row["global_batch"]


def test_errors_and_order_by_hand() -> None:
    """Two of three pairs stand right; of the one model's pair the pace is predicted the wrong way round."""
    rows = [
        {"model": "a", "seconds": 1.0, "global_batch": 8, "devices": 8},
        {"model": "a", "seconds": 2.0, "global_batch": 8, "devices": 8},
        {"model": "b", "seconds": 4.0, "global_batch": 8, "devices": 8},
    ]
    seconds = [3.0, 2.5, 5.0]
    assert published.order(rows, seconds) == (2, 3, 0, 1)
    assert published.errors(rows, seconds) == pytest.approx([200.0, 25.0, 25.0])
    assert (
        published.summary("t", rows, seconds)
        == "| t | 3 | 83.3 % | +25.0 to +200.0 % | 2 of 3 | 0 of 1 |"
    )


def test_pace_counts_sequences_a_device() -> None:
    """Twice the devices and the time of a quarter more: slower a device, however large the batch."""
    rows = [
        {"model": "a", "seconds": 4.0, "global_batch": 8, "devices": 8},
        {"model": "a", "seconds": 5.0, "global_batch": 16, "devices": 16},
    ]
    assert published.order(rows, [4.0, 4.5]) == (1, 1, 1, 1)
    assert published.order(rows, [4.0, 3.5]) == (0, 1, 0, 1)
