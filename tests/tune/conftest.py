"""The tiny model, captured once, and files written for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_cluster import MODEL, TINY

from plancc.ir.graph import Graph

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def graph() -> Graph:
    """The tiny dense model."""
    from plancc.models import load_model
    from plancc.passes.capture import capture

    return capture(load_model(MODEL, TINY).module)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plan, or a cluster into clusters/ beside it."""

    def write(text: str | dict[str, Any], name: str = "p.plan") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write
