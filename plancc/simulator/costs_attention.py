"""Costs of attention: only (query, key) pairs that causality and windows leave visible are counted.

Q K^T and P V take 2 D and 2 Dv FLOPs a pair. The backward recomputes Q K^T and makes dV, dP, dQ and dK: five
products in place of two, 2.5 times the forward (FlashAttention-2, Dao 2023, section 4.1). Keys and values are
read once, as many heads as there are, and only those that some query sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.simulator.costs_memory import EXACT, Works, moved, sizes
from plancc.simulator.forms import Work
from plancc.simulator.local_call import Call, Local

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Seen:
    """The visible pairs of one head and sequence, and how many keys some query sees."""

    pairs: int
    keys: int


def seen(queries: int, keys: Ranges, start: int, causal: bool, window: int) -> Seen:
    """What queries at positions `start` .. see of the keys at the positions `keys`.

    With `causal` a query sees keys up to its own position, with `window` only those less than `window`
    away from it.
    """
    if queries <= 0:
        return Seen(0, 0)
    pairs = found = 0
    for lo, hi in keys:
        upto = ramps(queries, start, lo, hi) if causal else queries * (hi - lo)
        if not causal and window:
            upto = ramps(queries, start + window - 1, lo, hi)
        pairs += upto - (ramps(queries, start - window, lo, hi) if window else 0)
        first = max(lo, start - window + 1) if window else lo
        last = start + queries - 1 + (0 if causal else window - 1)
        end = min(hi, last + 1) if causal or window else hi
        found += max(0, end - first)
    return Seen(pairs, found)


def ramps(queries: int, start: int, lo: int, hi: int) -> int:
    """The pairs in which a key of lo .. hi - 1 is at most at `start` + i, for i below `queries`."""
    return ramp(start + 1 - lo, queries) - ramp(start + 1 - hi, queries)


def ramp(first: int, count: int) -> int:
    """The sum of max(0, first + i) for i below `count`."""
    if first < 0:
        first, count = 0, count + first
    return count * first + count * (count - 1) // 2 if count > 0 else 0


def visible(call: Call) -> Seen:
    """What a call sees: `plancc::attention`, the same over ranges of keys, or torch's own."""
    q, k, _ = operands(call)
    queries, total = q.shape[2], k.shape[2]
    if call.target.startswith("aten."):
        return seen(queries, ((0, total),), 0, bool(call.arg("is_causal", False)), 0)
    keys: Ranges = call.arg("keys") or () if "over_keys" in call.target else ((0, total),)
    start = int(call.arg("q_start", -1))
    start = total - queries if start < 0 else start
    return seen(queries, keys, start, bool(call.arg("causal", False)), int(call.arg("window", 0)))


def operands(call: Call) -> tuple[Local, Local, Local]:
    """q, k and v."""
    names = ("query", "key", "value") if call.target.startswith("aten.") else ("q", "k", "v")
    q, k, v = (call.arg(name) for name in names)
    return q, k, v


def shape_of(call: Call, found: Seen) -> tuple[int, ...]:
    """(batch, heads, queries, keys that are seen, head_dim)."""
    q, _, _ = operands(call)
    return *q.shape[:3], found.keys, q.shape[3]


def given(call: Call, found: Seen) -> int:
    """Bytes read: q, visible keys and values, and whatever else there is (a mask, sinks)."""
    _, k, v = operands(call)
    rest = sum(x.nbytes for x in call.ins) - k.nbytes - v.nbytes
    total = max(1, k.shape[2])
    return rest + (k.nbytes + v.nbytes) * found.keys // total


def logsumexps(call: Call) -> int:
    """Bytes of the logsumexp of every query and head."""
    q, _, _ = operands(call)
    return q.shape[0] * q.shape[1] * q.shape[2] * EXACT


def attention(call: Call) -> Works:
    """The forward; the logsumexp is written too, also where it is no result of the call."""
    q, _, v = operands(call)
    found = visible(call)
    flops = 2 * q.shape[0] * q.shape[1] * found.pairs * (q.shape[3] + v.shape[3])
    written = sizes(call.outs) + (logsumexps(call) if len(call.outs) == 1 else 0)
    if not flops:
        return moved(call, 0, written)
    return (
        Work("attention", flops, given(call, found), written, call.dtype, shape_of(call, found)),
    )


def attention_back(call: Call) -> Works:
    """The backward: reads out, its gradient and the logsumexp too, writes gradients of q, k and v."""
    if not any(call.needs):
        return ()
    out = call.outs[0].size
    return backward(call, 2 * out + logsumexps(call))


def backward_call(call: Call) -> Works:
    """`attention_over_keys_backward`: dout, out and logsumexp are operands."""
    return backward(call, 0)


def backward(call: Call, more: int) -> Works:
    """Five products over the visible pairs; `more` bytes are read beside the operands."""
    q, k, v = operands(call)
    found = visible(call)
    each = 2 * q.shape[0] * q.shape[1] * found.pairs
    flops = each * (3 * q.shape[3] + 2 * v.shape[3])
    written = q.size + k.size + v.size
    if not flops:
        return moved(call, 0, written)
    read = given(call, found) + more
    return (Work("attention", flops, read, written, call.dtype, shape_of(call, found)),)
