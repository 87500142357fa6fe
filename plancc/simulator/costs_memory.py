"""Costs of operators that the memory's bandwidth bounds: what each reads and writes, forward and backward.

Gradients are counted as autograd computes them, one kernel for each operand that has one.
"""

from __future__ import annotations

from plancc.runtime.wires import read_wire
from plancc.simulator.forms import Work
from plancc.simulator.local_call import Call, Local

Works = tuple[Work, ...]
EXACT = 4
"""Bytes of a float32: of logsumexps, of the exact part of a loss, of sums of coded values."""


def moved(call: Call, read: int, written: int) -> Works:
    """One kernel that moves bytes; none where there are none."""
    return (Work("memory", 0, read, written, call.dtype),) if read or written else ()


def nothing(call: Call) -> Works:
    """No work at all."""
    return ()


def touched(call: Call) -> Works:
    """Every operand is read once, every result written."""
    return moved(call, sum(x.nbytes for x in call.ins), sizes(call.outs))


def made(call: Call) -> Works:
    """Results are written, nothing is read."""
    return moved(call, 0, sizes(call.outs))


def copied_second(call: Call) -> Works:
    """`copy`: the second operand takes the place of the first."""
    return moved(call, call.ins[1].nbytes, sizes(call.outs))


def copied(call: Call) -> Works:
    """A copy, where the results are not views of the operand."""
    return () if call.aliases else touched(call)


def looked_up(call: Call) -> Works:
    """Only the elements that are picked are read, and the indices."""
    return moved(call, sizes(call.outs) + indices(call), sizes(call.outs))


def looked_up_shard(call: Call) -> Works:
    """`embedding_shard`: the look-up, and a kernel that zeroes the rows of other shards."""
    size = sizes(call.outs)
    if not call.ins[1].shape[0]:
        return made(call)
    return (*moved(call, size + call.ins[0].nbytes, size), *moved(call, size, size))


def targeted(call: Call) -> Works:
    """`nll_loss` reads one column of each row: that of its target."""
    targets = call.ins[1]
    picked = targets.elements * call.ins[0].dtype.itemsize
    return moved(call, picked + targets.nbytes, sizes(call.outs))


def appended(call: Call) -> Works:
    """`cache_append` writes the new keys and values; into an empty cache they are put as they are."""
    new, whole = call.ins[:2], call.outs[:2]
    if new[0].shape == whole[0].shape:
        return ()
    size = sizes(new)
    return moved(call, sum(x.nbytes for x in new), size)


def log_probabilities(call: Call) -> Works:
    """Cross entropy: log softmax in float32, in chunks, of which the target's column is picked."""
    logits, targets = call.ins[0], call.ins[1]
    exact = logits.elements * max(EXACT, logits.dtype.itemsize)
    return moved(call, logits.nbytes + targets.nbytes, exact + sizes(call.outs))


def log_sums(call: Call) -> Works:
    """A shard's cross entropy: the largest logits, log softmax in float32, its largest, and a look-up."""
    logits, targets = call.ins[0], call.ins[1]
    exact = logits.elements * max(EXACT, logits.dtype.itemsize)
    return (
        *moved(call, logits.nbytes, 0),
        *moved(call, logits.nbytes, exact),
        *moved(call, exact + targets.nbytes, sizes(call.outs)),
    )


def sizes(found: tuple[Local, ...]) -> int:
    """Bytes that are written to make these."""
    return sum(x.size for x in found)


def indices(call: Call) -> int:
    """Bytes of the whole numbers among the operands."""
    return sum(x.nbytes for x in call.ins if not x.dtype.is_floating_point)


# backward


def wanted(call: Call) -> list[Local]:
    """The operands that have a gradient."""
    return [x for x, need in zip(call.ins, call.needs, strict=True) if need]


def summed(call: Call, x: Local) -> Works:
    """The sum over the dims along which an operand was broadcast."""
    out = call.outs[0]
    return moved(call, out.size, x.size) if x.elements != out.elements else ()


def passed(call: Call) -> Works:
    """`add`: the gradient is that of the result, summed where an operand was broadcast."""
    return tuple(work for x in wanted(call) for work in summed(call, x))


def passed_negative(call: Call) -> Works:
    """`sub`: as `add`, but that of the second operand is negated."""
    found = passed(call)
    if len(call.ins) > 1 and call.needs[1]:
        found += moved(call, call.outs[0].size, call.outs[0].size)
    return found


def scaled(call: Call) -> Works:
    """One kernel that needs the gradient only."""
    return tuple(work for x in wanted(call) for work in moved(call, call.outs[0].size, x.size))


def mapped(call: Call) -> Works:
    """Elementwise: each gradient takes that of the result and the other operands (or the only one)."""
    found: list[Work] = []
    out = call.outs[0]
    for at, x in enumerate(call.ins):
        if call.needs[at]:
            others = [y for i, y in enumerate(call.ins) if i != at] or [x]
            found += moved(call, out.size + sum(y.nbytes for y in others), out.size)
            found += summed(call, x)
    return tuple(found)


def reread(call: Call) -> Works:
    """One kernel: the gradients of the results and all operands are read, gradients written."""
    found = wanted(call)
    if not found:
        return ()
    return moved(
        call, sizes(call.outs) + sum(x.nbytes for x in call.ins), sum(x.size for x in found)
    )


def scattered(call: Call) -> Works:
    """The gradient of a look-up: zeros, to which rows are added."""
    found = sum(x.size for x in wanted(call))
    if not found:
        return ()
    out = call.outs[0].size
    return (*moved(call, 0, found), *moved(call, 2 * out + indices(call), out))


def unviewed(call: Call) -> Works:
    """The gradient of a view is a view, of a copy a copy.

    Of expanded dims it is a sum, of a slice zeros with the slice written into them, of a split a
    concatenation.
    """
    if not wanted(call):
        return ()
    x, out = call.ins[0], sizes(call.outs)
    if len(call.outs) > 1:
        return moved(call, out, x.size)
    if call.outs[0].elements < x.elements:
        return (*moved(call, 0, x.size), *moved(call, out, out))
    if call.outs[0].elements > x.elements or not call.aliases:
        return moved(call, out, x.size)
    return ()


def softmax_again(call: Call) -> Works:
    """Cross entropy: a softmax in float32, scaled, less the targets, rounded to the logits' type."""
    if not call.needs[0]:
        return ()
    logits, targets = call.ins[0], call.ins[1]
    exact = logits.elements * max(EXACT, logits.dtype.itemsize)
    found = (
        *moved(call, logits.nbytes, exact),
        *moved(call, exact + targets.nbytes + sizes(call.outs), exact),
    )
    return found if exact == logits.size else (*found, *moved(call, exact, logits.size))


# what instructions do that are no calls


def added(call: Call) -> Works:
    """A gradient that is added to another in place."""
    return moved(call, 2 * call.ins[0].size, call.ins[0].size)


def emptied(call: Call) -> Works:
    """An addend that only the first rank adds: zeros on the others."""
    return () if call.extra["first"] else made(call)


def share(call: Call) -> Works:
    """A rank's share of a dim: a view where it is one range, else its ranges put together."""
    size = sizes(call.outs)
    return () if call.aliases else moved(call, size, size)


def packed(call: Call) -> Works:
    """A bucket: operands are put one behind the other; what was gathered is put together again.

    With a wire type what is sent is coded, and what comes is decoded and added in float32; a sum for
    all ranks is gathered in the wire type too (plancc.runtime.wires).
    """
    kind, wire = call.extra["kind"], call.extra["wire"]
    given, got = sizes(call.ins), sizes(call.outs)
    found = moved(call, given, given)
    if kind == "all_gather":
        found += moved(call, got, got)
    if wire:
        elements = sum(x.elements for x in call.ins)
        sent, exact = read_wire(wire).nbytes(elements), elements * EXACT
        found += (*moved(call, given, sent), *moved(call, sent + exact, exact))
        if kind == "all_reduce":
            found += (*moved(call, sent, given), *moved(call, given, given))
    return found


def merged(call: Call) -> Works:
    """Partial attention [B, H, T, D] with its logsumexp: made one in float32, and the shares merged."""
    out, rows = call.ins
    kept, kept_rows = call.outs
    width = rows.dtype.itemsize
    whole = (out.elements + rows.elements) * width
    share = (kept.elements + kept_rows.elements) * width
    ranks = int(call.extra["ranks"])
    return (
        *moved(call, out.nbytes + rows.nbytes, whole),
        *moved(call, ranks * share, kept.size + kept_rows.size),
    )
