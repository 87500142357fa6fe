"""Compressed traffic at run time: messages and sums in a wire type, and what that lost.

A sum over ranks travels twice, in the wire type: every rank's part for each, then the summed parts; sums are
float32. With error feedback what a step lost is added to the next one's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from plancc.ops.wire import ErrorFeedback, WireType, wire_type
from plancc.runtime.hierarchy import spans
from plancc.runtime.transport import Group, Transport


@cache
def read_wire(text: str) -> WireType:
    """Read `bf16`, `int8/128` or `int8/128/feedback`."""
    name, *rest = text.split("/")
    options: dict[str, object] = {"block": int(rest[0])} if rest else {}
    if "feedback" in rest:
        options["error_feedback"] = True
    return wire_type(name, options)


class Wires:
    """The compression of one rank: residuals and measured errors, by wire type and place."""

    def __init__(self) -> None:
        self.kept: dict[str, ErrorFeedback] = {}

    def of(self, text: str) -> ErrorFeedback:
        """What belongs to one wire type."""
        if text not in self.kept:
            self.kept[text] = ErrorFeedback(read_wire(text))
        return self.kept[text]

    def errors(self) -> dict[str, float]:
        """Wire type -> mean relative error of all that was sent in it so far."""
        found = {}
        for text, kept in self.kept.items():
            means = [x for x in kept.mean_errors().values() if x == x]
            if means:
                found[text] = sum(means) / len(means)
        return found

    def message(self, text: str, key: str, x: Tensor) -> Tensor:
        """The bytes that travel for `x`."""
        kept = self.of(text)
        return kept.wire.to_bytes(kept.compress(key, x.contiguous()))


def opened(text: str, message: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor that a message holds."""
    wire = read_wire(text)
    return wire.unpack(wire.from_bytes(message, torch.Size(shape).numel()), shape, dtype)


def message_bytes(text: str, shape: Sequence[int]) -> int:
    """The size of the message for a tensor of `shape`."""
    return read_wire(text).nbytes(torch.Size(shape).numel())


def block_of(text: str) -> int:
    """The elements of a block of a wire type: 1 where it has none."""
    return max(1, read_wire(text).block)


def whole_blocks(count: int, block: int) -> int:
    """`count` elements and the zeros behind them, up to a whole number of blocks."""
    return -(-count // block) * block


def block_spans(count: int, block: int, ranks: int) -> list[tuple[int, int]]:
    """The ranges of `count` elements, in whole blocks, that each of `ranks` ranks adds up."""
    return [(a * block, b * block) for a, b in spans(count // block, ranks)]


def sums_of(
    transport: Transport, wires: Wires, text: str, xs: Sequence[Tensor], group: Group, at: int
) -> tuple[Tensor, ...]:
    """The sums of `xs` over the group, the same on all its ranks.

    Blocks begin where tensors begin, and ranks share the work by blocks: what a tensor becomes does not
    depend on what travels beside it, so weights that other axes replicate stay equal there.
    """
    block = block_of(text)
    flat = torch.cat([padded(x, block) for x in xs])
    cuts = block_spans(flat.numel(), block, len(group))
    part = scattered_sum(transport, wires, text, [flat[a:b] for a, b in cuts], group, at)
    mine = wires.message(text, f"{at} sum", part)
    sizes = [(message_bytes(text, (b - a,)),) for a, b in cuts]
    found = transport.all_gather(mine, group, sizes, at)
    pieces = [opened(text, m, (b - a,), flat.dtype) for m, (a, b) in zip(found, cuts, strict=True)]
    return unpadded(torch.cat(pieces), [tuple(x.shape) for x in xs], block)


def scattered_sum(
    transport: Transport, wires: Wires, text: str, parts: Sequence[Tensor], group: Group, at: int
) -> Tensor:
    """The sum over the group of what its ranks have for this one; parts[i] goes to group[i]."""
    own = parts[group.index(transport.rank)]
    messages = [
        wires.message(text, f"{at} to {rank}", part)
        for rank, part in zip(group, parts, strict=True)
    ]
    shapes = [(message_bytes(text, own.shape),)] * len(group)
    found = transport.all_to_all(messages, group, shapes, at)
    exact = torch.promote_types(own.dtype, torch.float32)
    total = torch.zeros(own.shape, dtype=exact, device=own.device)
    for message in found:
        total += opened(text, message, own.shape, exact)
    return total.to(own.dtype)


def scattered_sums(
    transport: Transport, wires: Wires, text: str, shares: Sequence[Sequence[Tensor]], group: Group,
    at: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`scattered_sum` of several tensors: shares[i] are those for group[i]."""
    block = block_of(text)
    parts = [torch.cat([padded(x, block) for x in row]) for row in shares]
    total = scattered_sum(transport, wires, text, parts, group, at)
    own = shares[group.index(transport.rank)]
    return unpadded(total, [tuple(x.shape) for x in own], block)


def padded(x: Tensor, block: int) -> Tensor:
    """`x` flat, with zeros up to a whole number of blocks."""
    flat = x.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block))


def unpadded(flat: Tensor, shapes: Sequence[tuple[int, ...]], block: int) -> tuple[Tensor, ...]:
    """The tensors of `shapes` that lie one after the other, each in whole blocks."""
    counts = [torch.Size(shape).numel() for shape in shapes]
    pieces = flat.split([whole_blocks(count, block) for count in counts])
    return tuple(
        piece[:count].view(shape)
        for piece, count, shape in zip(pieces, counts, shapes, strict=True)
    )
