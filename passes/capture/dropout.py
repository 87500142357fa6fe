"""Dropout that a model asks for in training; capture traces in evaluation mode, without any."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def dropout_in(module: nn.Module) -> list[tuple[str, float]]:
    """List (path, p) of each dropout with p > 0: modules, and floats of modules by their name.

    A float counts if its name speaks of dropout or drop path ("self_attn.attention_dropout").
    """
    found: list[tuple[str, float]] = []
    for path, part in module.named_modules():
        if isinstance(part, _DropoutNd):
            found.append((path, float(part.p)))
            continue
        for name, value in vars(part).items():
            if type(value) is float and ("dropout" in name or name.startswith("drop_")):
                found.append((f"{path}.{name}" if path else name, value))
    return [(path, p) for path, p in found if p > 0]
