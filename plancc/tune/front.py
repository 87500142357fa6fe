"""The front of time against memory: settings that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto(items: Iterable[T], costs: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other is as good as in everything and better than in something.

    Less is better. In ascending order of their costs; of items with equal costs only the first.
    """
    found: list[tuple[tuple[float, ...], T]] = []
    for cost, item in sorted(((costs(item), item) for item in items), key=lambda pair: pair[0]):
        if not any(all(a <= b for a, b in zip(held, cost, strict=True)) for held, _ in found):
            found.append((cost, item))
    return [item for _, item in found]
