"""Which functions every actor calls for a phase: as the runner does, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plancc.ir.program import ProgramSet, RankProgram
from plancc.ir.schedule import merged_order
from plancc.runtime.runner import split_batch
from plancc.runtime.training.step import Action
from plancc.runtime.training.step import actions as actions_of
from plancc.simulator.place import Sizes
from plancc.simulator.process import Call, Fact, Slots
from plancc.simulator.script import Script

FUNCTIONS = {"F": "forward", "B": "backward", "I": "backward", "W": "weights"}
Scripts = Mapping[Sizes, Script]
"""The script of one actor for the sizes of each micro-batch."""


def micro_batches(batch: int, tokens: int, past: int, count: int) -> list[Sizes]:
    """The sizes of the micro-batches of a batch: `count` of them, or one a sequence if there are fewer."""
    return [Sizes(hi - lo, tokens, past) for lo, hi in split_batch(batch, count)]


def inference_rounds(
    program: RankProgram, scripts: Scripts, sizes: Sequence[Sizes], steps: int, tellers: int,
    lockstep: bool,
) -> list[Slots]:  # fmt: skip
    """`steps` steps of one actor. A micro-batch goes on once its own last token is there; in `lockstep` once
    those of all are, as `plancc run` does. `tellers` actors give the output; this is one if it has some.
    """
    gives = bool(program.outputs)
    slots: list[list[Call]] = []
    for number, one in enumerate(sizes):
        calls = []
        for step in range(steps):
            waits = range(len(sizes)) if lockstep else (number,)
            needs: tuple[Fact, ...] = (
                tuple(("token", step - 1, other) for other in waits) if step else ()
            )
            tells = (("token", step, number), tellers) if gives else None
            takes = bool(program.inputs)
            calls.append(Call("step", scripts[one], number, step, needs if takes else (), tells))
        slots.append(calls)
    return [slots]


def training_rounds(
    program: RankProgram, programs: ProgramSet, scripts: Scripts, sizes: Sequence[Sizes]
) -> list[Slots]:
    """One training step of one actor: the actions of its schedule, then sums, optimizer, new weights."""
    if not program.sections:
        return []
    todo = rank_actions(program, programs)
    ends = {chunk: at for at, (kind, chunk, _) in enumerate(todo) if kind in ("B", "I")}
    rounds: list[list[list[Call]]] = []
    begun: list[list[Call]] = []
    later: list[list[Call]] = []
    for at, (kind, chunk, batch) in enumerate(todo):
        script = scripts[sizes[batch]]
        name = f"{FUNCTIONS[kind]}_{chunk}"
        begun.append([Call(name, script, batch, last=ends.get(chunk) == at)])
        if kind == "B":  # with the gradients of weights that I leaves to W
            later.append([Call(f"{FUNCTIONS['W']}_{chunk}", script, batch)])
        if batch + 1 < programs.turns and at + 1 < len(todo):
            continue
        rounds += [begun, *([one] for one in later)]
        begun, later = [], []
    whole = scripts[sizes[-1]]
    for name in ("reduce", "optimizer", "refresh"):
        rounds.append([[Call(name, whole)]])
    return rounds  # type: ignore[return-value]


def rank_actions(program: RankProgram, programs: ProgramSet) -> list[Action]:
    """What a rank runs in one step, as the runner orders it."""
    row: dict[str, Any] = {"microbatches": programs.microbatches, "turns": programs.turns}
    if programs.schedule is not None:
        mine = frozenset(section.chunk for section in program.sections)
        order = merged_order(programs.schedule)
        row["schedule"] = {"order": [(a.kind, a.chunk, a.batch) for a in order if a.chunk in mine]}
    sections = [{"kind": s.kind, "chunk": s.chunk} for s in program.sections]
    return actions_of(row, {"sections": sections})


__all__ = ["inference_rounds", "micro_batches", "rank_actions", "training_rounds"]
