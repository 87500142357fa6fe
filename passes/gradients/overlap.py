"""Start collectives before their results are needed: gathers some layers ahead, gradients when complete.

`split params ... over dp (prefetch = n)`, or `comm params over m.dp { overlap = async(depth = n) }`, gathers
weights n layers ahead; `comm grads over m.dp { overlap = async(bucket = b) }` sums each bucket during the
backward. Started collectives run beside the others, in the order in which they start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from plancc.dsl.plan import Call, ResolvedPlan
from plancc.ir.layout import Part, Stage
from plancc.ir.program import (
    Accumulate,
    Await,
    Backward,
    Bucket,
    Collective,
    Held,
    Launch,
    TakeGrad,
    operands,
)
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.segments import Names

Wish = Callable[[Stage, tuple[Part, ...]], int]
"""(stage, parts of a collective) -> how many to start ahead, 0 for none."""


def wishes(plan: ResolvedPlan, tensors: str) -> Mapping[tuple[str, str], int]:
    """(mesh, axis) -> depth, of the comm lines that overlap `params` or `grads`; 1 where none is given."""
    found = {}
    for comm in plan.comms:
        for setting in comm.settings:
            value = setting.value
            named = comm.kind == "tensors" and tensors in comm.tensors
            if named and setting.name == "overlap" and isinstance(value, Call):
                found[str(comm.mesh), str(comm.axis)] = int(value.options.get("depth", 1))
    return found


def is_gather(entry: Entry, weights: Mapping[str, Held]) -> bool:
    """Whether an entry gathers stored weights."""
    step = entry[1]
    if not isinstance(step, (Collective, Bucket)) or step.kind != "all_gather":
        return False
    return all(name in weights for name in operands(step))


def prefetch(
    entries: Sequence[Entry], weights: Mapping[str, Held], wish: Wish, names: Names
) -> list[Entry]:
    """Start each gathering of weights where that of `wish` layers before it is awaited."""
    queues: dict[Stage, list[int]] = {}
    for index, entry in enumerate(entries):
        step = entry[1]
        if is_gather(entry, weights) and wish(entry[0][0], step.parts):  # type: ignore[union-attr]
            queues.setdefault(entry[0][0], []).append(index)
    starts: dict[int, list[Entry]] = {}
    waits: dict[int, Entry] = {}
    for stage, found in queues.items():
        for place, index in enumerate(found):
            step = entries[index][1]
            assert isinstance(step, (Collective, Bucket))
            depth = wish(stage, step.parts)
            handle = names.fresh("gather")
            at = found[max(0, place - depth)]
            starts.setdefault(at, []).append(((stage,), Launch(handle, step, stage)))
            waits[index] = ((stage,), Await(handle, outs_of(step), stage))
    out: list[Entry] = []
    for index, entry in enumerate(entries):
        out += starts.get(index, ())
        out.append(waits.get(index, entry))
    return out


def delay_scatters(entries: Sequence[Entry], wish: Wish, names: Names) -> list[Entry]:
    """Let the scattering of a layer's gradients run until that of the next one starts."""
    waiting: dict[Stage, tuple[Entry, list[Entry]]] = {}
    takers = {step.operand: entry for entry in entries if isinstance(step := entry[1], Accumulate)}
    delayed: set[int] = set()
    out: list[Entry] = []

    def settle(stage: Stage) -> None:
        wait, sums = waiting.pop(stage)
        out.append(wait)
        out.extend(sums)

    for entry in entries:
        stages, step = entry
        if id(entry) in delayed:
            continue
        scatter = isinstance(step, (Collective, Bucket)) and step.kind == "reduce_scatter"
        if not scatter or not wish(stages[0], step.parts):  # type: ignore[union-attr]
            out.append(entry)
            continue
        assert isinstance(step, (Collective, Bucket))
        sums = [takers[held.name] for held in outs_of(step) if held.name in takers]
        if len(sums) < len(outs_of(step)):
            out.append(entry)
            continue
        delayed.update(id(one) for one in sums)
        handle = names.fresh("scatter")
        out.append((stages, Launch(handle, step, stages[0])))
        if stages[0] in waiting:
            settle(stages[0])
        waiting[stages[0]] = ((stages, Await(handle, outs_of(step), stages[0])), sums)
    for stage in list(waiting):
        settle(stage)
    return out


def early_buckets(
    backward: Sequence[Entry], reduce: Sequence[Entry], wish: Wish, names: Names
) -> tuple[list[Entry], list[Entry]]:
    """Start the buckets of gradients in the backward of the last micro-batch, once they are complete."""
    takes = {s.out.name: s for _, s in reduce if isinstance(s, TakeGrad) and not s.sliced}
    done = last_touched(backward)
    starts: dict[int, list[Entry]] = {}
    gone: set[str] = set()
    rest: list[Entry] = []
    for stages, step in reduce:
        mine = isinstance(step, Bucket) and set(step.operands) <= set(takes)
        if not isinstance(step, Bucket) or not mine or not wish(stages[0], step.parts):
            rest.append((stages, step))
            continue
        found = tuple(takes[name] for name in step.operands)
        handle = names.fresh("bucket")
        at = max(done.get(take.weight, -1) for take in found)
        if at < 0:
            rest.append((stages, step))
            continue
        starts.setdefault(at, []).append((stages, Launch(handle, step, stages[0], found)))
        rest.append((stages, Await(handle, step.outs, stages[0])))
        gone.update(step.operands)
    back: list[Entry] = []
    for index, entry in enumerate(backward):
        back += [entry, *starts.get(index, ())]
    kept = [e for e in rest if not (isinstance(e[1], TakeGrad) and e[1].out.name in gone)]
    return back, kept


def last_touched(backward: Iterable[Entry]) -> dict[str, int]:
    """Weight -> the last entry of the backward that may add to its gradient."""
    found: dict[str, int] = {}
    for index, (_, step) in enumerate(backward):
        if isinstance(step, Backward):
            found.update(dict.fromkeys(step.weights, index))
        elif isinstance(step, Accumulate):
            found[step.weight] = index
    return found


def outs_of(step: Collective | Bucket) -> tuple[Held, ...]:
    """The results of a move."""
    return step.outs if isinstance(step, Bucket) else (step.out,)
