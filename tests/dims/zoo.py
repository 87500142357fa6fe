"""Captured and named models of the zoo, each made once a session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import model_zoo
import pytest
from torch import Tensor, nn

from plancc.ir.shape import NamedGraph
from plancc.passes.capture import capture
from plancc.passes.name_dims import name_dims

SIZES = dict(layers=2, hidden=48, heads=6, kv_heads=3, ffn=96, vocab=120, max_len=64)


def examples() -> object:
    """The module examples/models.py."""
    path = Path(__file__).parents[2] / "examples" / "models.py"
    spec = importlib.util.spec_from_file_location("example_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OWN: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: examples().dense(**SIZES),  # type: ignore[attr-defined]
    "moe": lambda: examples().moe(experts=6, **SIZES),  # type: ignore[attr-defined]
}
MODELS: dict[str, Callable[[], nn.Module]] = OWN | model_zoo.ZOO


@cache
def named(name: str) -> tuple[NamedGraph, dict[str, Tensor]]:
    """A model's named graph and its state; skips the test where the model cannot be captured."""
    model = MODELS[name]()
    try:
        graph = capture(model)
    except Exception as failure:
        pytest.skip(f"{name} is not captured: {str(failure)[:200]}")
    return name_dims(graph), dict(model.state_dict())
