"""A call as one rank makes it, with numbers for all sizes: what costs are worked out from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import torch

from plancc.ops import experts, linear_later, resolve
from plancc.passes.rows.call import schema

SHORT: Mapping[torch.dtype, str] = {
    torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip
SIGNATURES: Mapping[str, Callable[..., Any]] = {
    "plancc.linear_later.default": linear_later,
    "plancc.placed_experts.default": experts,
}
"""Operators that only programs have, and whose arguments they take."""


@dataclass(frozen=True, slots=True)
class Local:
    """A tensor on a rank: shape, strides (in elements) and dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of a tensor of this shape with memory of its own: what it takes to write it."""
        return self.elements * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the elements that lie in memory: expanded dims (of stride 0) count once."""
        found = self.dtype.itemsize
        for size, stride in zip(self.shape, self.strides, strict=True):
            found *= size if stride or not size else 1
        return found


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """What the experts of a rank get: rows that come, choices made of them, and experts in use."""

    rows: float
    picks: float
    used: float


@dataclass(frozen=True, slots=True)
class Call:
    """One call: `ins` are its tensors in the order of the schema, lists flattened, absent ones left out.

    `args` and `kwargs` are those of the instruction with a Local for each tensor and numbers for sizes.
    `needs` says, for a backward, which of `ins` have a gradient. `aliases`: the results share the memory
    of an operand. `routed` is given for experts.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ins: tuple[Local, ...]
    outs: tuple[Local, ...]
    needs: tuple[bool, ...] = ()
    aliases: bool = False
    routed: ExpertRows | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument called `name` in the operator's schema, or its default there, or `default`."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = parameters(self.target)
        if name in names and list(names).index(name) < len(self.args):
            return self.args[list(names).index(name)]
        found = names.get(name)
        return default if found is None else found

    @property
    def dtype(self) -> str:
        """The short name of what it computes in: the first floating type of results, then of operands."""
        found = [x.dtype for x in (*self.outs, *self.ins)]
        floats = [d for d in found if d.is_floating_point]
        one = next(iter(floats or found), None)
        return "" if one is None else SHORT.get(one, str(one).removeprefix("torch."))

    def dim(self, name: str = "dim", default: int = -1) -> int:
        """The dim argument `name`, not negative, for the first operand."""
        return int(self.arg(name, default)) % max(1, len(self.ins[0].shape))


@cache
def parameters(target: str) -> Mapping[str, Any]:
    """The parameters of an operator in order, with their defaults (None: there is none)."""
    fields = schema(target) if target not in SIGNATURES else None
    if fields is not None:
        return {one.name: one.default for one in fields}
    function: Callable[..., Any] = SIGNATURES.get(target) or resolve(target)
    return {
        name: None if one.default is inspect.Parameter.empty else one.default
        for name, one in inspect.signature(function).parameters.items()
    }


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor that lies in memory row by row."""
    return in_order(shape, range(len(shape)))


def in_order(shape: Sequence[int], order: Iterable[int]) -> tuple[int, ...]:
    """The strides of a dense tensor whose dims lie in memory in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(list(order)):
        strides[dim] = step
        step *= max(1, shape[dim])
    return tuple(strides)


def dense(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of a new tensor whose dims lie in memory in the order of those of another."""
    return in_order(shape, sorted(range(len(shape)), key=lambda dim: (-strides[dim], dim)))


def tensors(arg: Any) -> Iterator[Local]:
    """The tensors inside nested arguments."""
    if isinstance(arg, Local):
        yield arg
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from tensors(item)


def run_view(call: Call) -> tuple[tuple[Local, ...], bool]:
    """What torch makes of a call that may be a view: its results, and whether they share memory."""
    made: list[torch.Tensor] = []

    def real(arg: Any) -> Any:
        if isinstance(arg, Local):
            made.append(torch.empty_strided(arg.shape, arg.strides, dtype=arg.dtype, device="meta"))
            return made[-1]
        if isinstance(arg, (tuple, list)):
            return [real(item) for item in arg]
        return torch.device("meta") if isinstance(arg, torch.device) else arg

    args = [real(arg) for arg in call.args]
    found = resolve(call.target)(*args, **{name: real(arg) for name, arg in call.kwargs.items()})
    outs = [found] if isinstance(found, torch.Tensor) else list(found)
    memory = made[0].untyped_storage()._cdata
    shared = all(out.untyped_storage()._cdata == memory for out in outs)
    return tuple(Local(tuple(o.shape), o.stride(), o.dtype) for o in outs), shared
