"""Identical layers are traced once and stamped out: which are, and the trace that skips the others.

Layers of a list are identical if class, submodules, shapes and every attribute agree, but for an
index of their own, which must not be read (it is poisoned while the first of them is traced). Each
other layer leaves one `plancc::stamp` node for `expand`; any doubt means an ordinary trace.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from plancc.passes.capture.hugging_face import means_mask, same_mask

LEAST = 4
"""Fewer identical layers than this are traced one by one."""
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.Size, bytes)


class Refused(Exception):
    """Stamping would not be safe here; trace every layer."""


class _Poison:
    """Stands for a layer's own index while the layer is traced: any use of it refuses stamping."""

    def _used(self, *args: Any) -> Any:
        raise Refused("a layer reads its own index")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __bool__ = _used
    __int__ = __index__ = __float__ = __str__ = __repr__ = __format__ = __getattr__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _used
    __floordiv__ = __truediv__ = __rfloordiv__ = __rtruediv__ = __neg__ = __pow__ = _used


@dataclass(slots=True)
class Group:
    """Identical layers by path; the first is traced."""

    paths: tuple[str, ...]
    indices: tuple[tuple[str, str], ...]  # (submodule, attribute) that hold the layer's index
    spec: Any = None
    leaves: list[Any] = field(default_factory=list)
    out_spec: Any = None
    outs: list[Any] = field(default_factory=list)
    called: int = 0


_GROUPS: list[Group] = []
"""The groups of the trace that is going on (one at a time: traces hold a lock)."""


def find_groups(model: nn.Module) -> list[Group]:
    """Return the groups of identical layers, at least LEAST in each, none inside another."""
    groups: list[Group] = []
    for path, part in model.named_modules():
        taken = any(path.startswith(f"{layer}.") for group in groups for layer in group.paths)
        if not isinstance(part, nn.ModuleList) or len(part) < LEAST or taken:
            continue
        alike: dict[Any, list[str]] = {}
        indices: dict[str, tuple[tuple[str, str], ...]] = {}
        for index, layer in enumerate(part):
            name = f"{path}.{index}" if path else str(index)
            key, indices[name] = describe(layer, index)
            alike.setdefault(key, []).append(name)
        groups += [
            Group(tuple(names), indices[names[0]])
            for names in alike.values() if len(names) >= LEAST
        ]  # fmt: skip
    return groups


def describe(layer: nn.Module, index: int) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """Return a key that identical layers share, and the attributes equal to the layer's index."""
    parts: list[Any] = []
    own: list[tuple[str, str]] = []
    for path, part in layer.named_modules():
        tensors = [
            (name, item if item is None else (tuple(item.shape), item.dtype, item.requires_grad))
            for held in (part._parameters, part._buffers) for name, item in held.items()
        ]  # fmt: skip
        attributes: list[Any] = []
        for name, value in vars(part).items():
            if name in _OWN:
                continue
            if type(value) is int and value == index:
                own.append((path, name))
                attributes.append((name, "index"))
            else:
                attributes.append((name, freeze(value)))
        hidden = tuple(sorted(part._non_persistent_buffers_set))
        parts.append((path, type(part), tuple(tensors), hidden, tuple(attributes)))
    return tuple(parts), tuple(own)


def freeze(value: Any) -> Any:
    """Return a hashable form of an attribute: by value if plain, else by identity."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple)):
        return type(value), tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return type(value), tuple((freeze(key), freeze(item)) for key, item in value.items())
    if type(value) is functools.partial:
        return functools.partial, freeze((value.func, value.args, value.keywords))
    return "same object", id(value)


@contextmanager
def stamping(model: nn.Module, groups: Sequence[Group]) -> Iterator[None]:
    """Let the first layer of each group be recorded and the others leave a stamp, while inside."""
    modules = dict(model.named_modules())
    saved: list[tuple[dict[str, Any], str, Any]] = []

    def replace(owner: nn.Module, name: str, value: Any) -> None:
        saved.append((vars(owner), name, vars(owner).get(name, saved)))
        vars(owner)[name] = value

    _GROUPS[:] = groups
    try:
        for number, group in enumerate(groups):
            first = modules[group.paths[0]]
            for path, name in group.indices:
                replace(first.get_submodule(path), name, _Poison())
            replace(first, "forward", recording(first.forward, number))
            for position, path in enumerate(group.paths[1:], 1):
                replace(modules[path], "forward", leaving_a_stamp(number, position))
        yield
        if any(group.called != len(group.paths) for group in groups):
            raise Refused("a layer is not called exactly once")
    finally:
        _GROUPS.clear()
        for owner, name, old in reversed(saved):
            if old is saved:
                del owner[name]
            else:
                owner[name] = old


def recording(forward: Any, number: int) -> Any:
    """Return a forward that marks what goes in and out, for the first layer of a group."""

    def record(*args: Any, **kwargs: Any) -> Any:
        group = _GROUPS[number]
        group.called += 1
        if group.called != 1:
            raise Refused("a layer is called twice")
        group.leaves, group.spec = pytree.tree_flatten((args, kwargs))
        marked = mark(group.leaves, number, False)
        args, kwargs = pytree.tree_unflatten(marked, group.spec)
        group.outs, group.out_spec = pytree.tree_flatten(forward(*args, **kwargs))
        if not all(item is None or isinstance(item, Tensor) for item in group.outs):
            raise Refused("a layer returns what is not a tensor")
        return pytree.tree_unflatten(mark(group.outs, number, True), group.out_spec)

    return record


def mark(leaves: Sequence[Any], number: int, out: bool) -> list[Any]:
    """Return the leaves with tensors marked as the inputs or outputs of a group's first layer."""
    marked = list(leaves)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for slot, place in enumerate(places):
        marked[place] = torch.ops.plancc.mark(leaves[place], number, slot, out)
        same_mask(leaves[place], marked[place])
    return marked


def leaving_a_stamp(number: int, position: int) -> Any:
    """Return a forward that emits one stamp node, for the other layers of a group."""

    def stamp(*args: Any, **kwargs: Any) -> Any:
        group = _GROUPS[number]
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if group.called != position or spec != group.spec:
            raise Refused("layers are not called alike, one after the other")
        group.called += 1
        for one, two in zip(leaves, group.leaves, strict=True):
            check_alike(one, two)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        made = iter(torch.ops.plancc.stamp(tensors, number, position))
        outs = [None if item is None else next(made) for item in group.outs]
        return pytree.tree_unflatten(outs, group.out_spec)

    return stamp


def check_alike(one: Any, two: Any) -> None:
    """Refuse unless two arguments are the same to a layer: shape and type, or the same object."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if means_mask(two) and one is not two:
            raise Refused("layers have different masks")
        if one.dtype != two.dtype or exact(one.shape) != exact(two.shape):
            raise Refused("layers have inputs of different shapes")
        if exact(one.stride()) != exact(two.stride()):
            raise Refused("layers have inputs of different layouts")
    elif one is not two and (type(one) is not type(two) or freeze(one) != freeze(two)):
        raise Refused("layers have different arguments")


def exact(sizes: Sequence[Any]) -> tuple[Any, ...]:
    """Return sizes as ints and expressions, so that comparing them makes no guard."""
    return tuple(size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes)


torch.library.define("plancc::mark", "(Tensor x, int group, int slot, bool out) -> Tensor")
torch.library.define("plancc::stamp", "(Tensor[] xs, int group, int position) -> Tensor[]")


@torch.library.register_fake("plancc::mark")
def _(x: Tensor, group: int, slot: int, out: bool) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


@torch.library.register_fake("plancc::stamp")
def _(xs: Sequence[Tensor], group: int, position: int) -> list[Tensor]:
    return [
        torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device=item.device)
        for item in _GROUPS[group].outs if item is not None
    ]  # fmt: skip
