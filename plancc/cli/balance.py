"""How commands tell of the balance of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def balance_text(looks: Sequence[Mapping[str, Any]]) -> str:
    """`fullest rank 1.82 x the mean, now 1.07 (predicted), 3 experts moved`: the worst of some layers."""
    before = max(look["before"] for look in looks)
    after = max(look["after"] for look in looks)
    moved = sum(look["moves"] for look in looks)
    change = f", now {after:.2f} (predicted), {experts(moved)} moved" if moved else ""
    return f"fullest rank {before:.2f} x the mean{change}"


def balance_lines(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a layer: its tokens at the first and the last look, and what moved in between."""
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for look in looks:
        layers.setdefault(look["layer"], []).append(look)
    return [
        f"-- balance {layer}: tokens of the fullest rank {found[0]['tokens']:.2f} x the mean at "
        f"step {found[0]['step']}, {found[-1]['tokens']:.2f} at step {found[-1]['step']}; "
        f"{experts(sum(look['moves'] for look in found))} moved"
        for layer, found in layers.items()
    ]


def experts(count: int) -> str:
    """A number of them."""
    return f"{count} expert{'' if count == 1 else 's'}"
