"""The functions of a training program: what passes between them and what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plancc.codegen.names import weight_key
from plancc.dsl.errors import Bug
from plancc.ir.program import (
    Accumulate,
    Await,
    Bucket,
    Collective,
    RankProgram,
    Recording,
    Release,
    Restore,
    Store,
    TakeGrad,
    TakeSlice,
    operands,
    produced,
)

SILENT = (TakeGrad, TakeSlice, Recording, Store, Release, Restore, Await)
"""Instructions of no module: no comment says where they come from."""


def taken(step: TakeGrad | TakeSlice, keys: Mapping[str, str]) -> str:
    """What a gradient, or a rank's slice of a weight, is read from."""
    key = keys[step.weight]
    if isinstance(step, TakeSlice):
        return f"p[{key!r}]"
    return f"r.gradient_slice({key!r})" if step.sliced else f"r.gradient(w[{key!r}])"


def as_bucket(step: Collective | Bucket) -> Bucket:
    """A single move as a bucket of one."""
    if isinstance(step, Bucket):
        return step
    assert step.move is not None
    return Bucket(step.kind, (step.operand,), (step.out,), (step.move,), step.parts, step.origin)


def effect(step: Any, local: Callable[[str], str], keys: Mapping[str, str]) -> str:
    """The line of a training instruction that gives no value."""
    if isinstance(step, Accumulate):
        if step.sliced:
            return f"r.accumulate_slice({keys[step.weight]!r}, {local(step.operand)})"
        return f"r.accumulate({local(step.weight)}, {local(step.operand)})"
    if isinstance(step, Store):
        return f"r.store({local(step.weight)}, {local(step.operand)})"
    if isinstance(step, Release):
        return f"r.release({local(step.operand)})"
    if isinstance(step, Restore):
        return f"r.restore({local(step.operand)}, {local(step.source)})"
    if isinstance(step, Recording):
        return f"r.record({step.on})"
    raise Bug(f"no line for a {type(step).__name__}")


def kept_values(program: RankProgram) -> dict[str, int]:
    """Value -> section that makes it, for values that a later section uses: they are kept in `s`.

    Inputs that a backward uses (to compute something again) are kept by the first section.
    """
    maker: dict[str, int] = {}
    found: dict[str, int] = {}
    for index, section in enumerate(program.sections):
        if section.kind == "backward":
            maker.update((held.name, 0) for held in program.inputs)
        for step in program.section(index):
            for name in operands(step):
                if maker.get(name, index) != index:
                    found[name] = maker[name]
            maker.update((held.name, index) for held in produced(step))
    return found


def section_results(program: RankProgram, index: int) -> dict[str, str]:
    """What a section returns: outputs of the model, or the gradients of the weights by their keys."""
    if program.sections[index].kind == "reduce":
        keys = {w.held.name: weight_key(program, w) for w in program.weights}
        return {keys[name]: held.name for name, held in program.gradients.items()}
    made = {held.name for step in program.section(index) for held in produced(step)}
    return {name: held.name for name, held in program.outputs.items() if held.name in made}
