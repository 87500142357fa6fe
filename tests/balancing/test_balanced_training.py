"""Training whose experts move and have copies: losses, weights and optimizer state as on one device."""

from __future__ import annotations

import functools
import pydoc_data.topics
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from balanced_plans import plan

import plancc

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "models.py") + ":moe"
ARGS = {
    "layers": "2", "hidden": "16", "heads": "4", "kv_heads": "2", "ffn": "8", "experts": "8",
    "vocab": "260", "max_len": "32",
}  # fmt: skip
ALONE = "plan alone, edition 1\nmesh base[x = 1] on local\nplace ** on base\n"
_ASIDE = tempfile.TemporaryDirectory()


@functools.cache
def artifact(text: str) -> Path:
    """The model compiled for training under a plan."""
    folder = Path(tempfile.mkdtemp(dir=_ASIDE.name))
    (folder / "inline.plan").write_text(text)
    plancc.compile(
        folder / "inline.plan", MODEL, folder / "artifact", model_args=ARGS, for_="train",
        verify=False,
    )  # fmt: skip
    return folder / "artifact"


def train(text: str, **wanted: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Six steps in float64; the run and its rows."""
    rows: list[dict[str, Any]] = []
    usual = {
        "data": pydoc_data.topics.__file__, "batch": 4, "seq_len": 16, "lr": 1e-2,
        "precision": "fp64", "steps": 6, "clip": 0.5, "weight_decay": 0.1,
    }  # fmt: skip
    if "resume" in wanted:
        usual = {"steps": 6}
    found = plancc.train(artifact(text), on_row=rows.append, **{**usual, **wanted})
    return found, rows


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole."""
    from plancc.runtime.checkpoint import Checkpoint
    from plancc.runtime.weights import whole

    found = Checkpoint.open(folder)
    return {name: found.read(name, whole(found.shape(name))) for name in found.names()}


EVERY2 = "balance = dynamic(every = 2, tolerance = 0%)"
PLANS = {
    "moves": plan(EVERY2, mode="train"),
    "copies": plan("", spare=4, mode="train"),
    "both": plan(EVERY2, spare=4, mode="train"),
    "all": plan(EVERY2, spare=24, mode="train"),
    "cut": plan(EVERY2, spare=2, ep=2, tp=2, mode="train"),
    "zero1": plan(EVERY2, spare=2, ep=2, tp=2, zero=True, mode="train"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_same_run(name: str, tmp_path: Path) -> None:
    """Losses, gradient norms, weights and optimizer state are those of one device."""
    _, want = train(ALONE, checkpoint=str(tmp_path / "one"))
    _, rows = train(PLANS[name], checkpoint=str(tmp_path / "many"))
    for a, b in zip(want, rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-8)
    changes = [change for row in rows for change in row.get("balance", ())]
    assert len(changes) == (0 if name == "copies" else 6)
    if name in ("moves", "both", "cut"):
        assert sum(change["moves"] for change in changes) > 0
    one, many = (tensors(next((tmp_path / n).glob("step*"))) for n in ("one", "many"))
    assert one.keys() == many.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, many[key], rtol=1e-7, atol=1e-9), key


def test_resumed(tmp_path: Path) -> None:
    """A run that goes on has the tables with which it stopped; another plan begins its own."""
    _, want = train(PLANS["both"], checkpoint=str(tmp_path / "whole"))
    train(PLANS["both"], checkpoint=str(tmp_path / "first"), steps=3)
    saved = next((tmp_path / "first").glob("step*"))
    _, rest = train(PLANS["both"], resume=str(saved), checkpoint=str(tmp_path / "second"))
    _, other = train(ALONE, resume=str(saved))
    for a, b, c in zip(want[3:], rest, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
        assert c["loss"] == pytest.approx(a["loss"], rel=1e-9)
    assert [look["step"] for row in rest for look in row.get("balance", ())] == [4, 4, 6, 6]


def test_assigned_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that take one row and three of four change nothing."""
    from plancc.runtime.balance.paces import Paces, part_key

    def note(self: Paces, part: Any, seconds: list[float], tokens: list[float]) -> None:
        self.newest[part_key(part)] = (3.0, 1.0)

    monkeypatch.setattr(Paces, "note", note)
    text = plan(EVERY2, spare=4, mode="train").replace(
        "over rep", "over rep (assign = least_loaded)"
    )
    _, want = train(ALONE)
    _, rows = train(text)
    for a, b in zip(want, rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-8)
