"""A small model and a short way to compile it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import plancc
from examples.models import dense as factory

HEAD = "mesh base[tp = 3] on local\nplace ** on base\n"
ARGS = {"layers": 2, "hidden": 48, "heads": 4, "ffn": 96, "vocab": 256, "max_len": 64}


def dense(**changes: int) -> nn.Module:
    """A dense model of two layers, hidden 48."""
    return factory(**{**ARGS, **changes})


def compiled(
    folder: Path, text: str, model: nn.Module | None = None, *, verify: bool = False
) -> plancc.Built:
    """`text` (a plan without its first line) compiled with a model (`dense()`) under `folder`."""
    plan = folder / "t.plan"
    plan.write_text(f"plan t, edition 1\n{text}")
    return plancc.compile(plan, model or dense(), folder / "out", verify=verify)
