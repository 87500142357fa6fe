"""Estimate what training keeps on a rank: gradients, optimizer state, activations held by the schedule.

Autograd keeps more than a program's names: every value that a recorded call reads or makes counts as kept
from its forward until the end of its B or W, unless it is computed again. What autograd makes inside one
segment's backward is not seen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from plancc.ir.program import (
    Accumulate,
    Backward,
    Compute,
    Free,
    Held,
    Instruction,
    Leaf,
    ProgramSet,
    RankProgram,
    Recording,
    Release,
    TakeGrad,
    TakeSlice,
    Weight,
    operands,
    produced,
)
from plancc.ir.schedule import merged_order
from plancc.passes.run_programs import SECTIONS, actions
from plancc.passes.value_sizes import held_bytes, layout_elements

MASTER, MOMENTS = 4, 8
"""Bytes an element: the float32 copy of a narrower weight, and Adam's two float32 moments."""
VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "_unsafe_view.default", "transpose.int", "permute.default", "t.default",
        "expand.default", "unsqueeze.default", "squeeze.dim", "squeeze.default", "slice.Tensor",
        "select.int", "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int",
        "detach.default", "alias.default", "narrow.default", "flatten.using_ints",
    )
)  # fmt: skip
"""Operators whose results share the memory of their first operand."""

Env = Mapping[sympy.Symbol, int]


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes at the fullest moment of a step: kept for backwards to come, and beside them."""

    kept: int
    transient: int
    microbatches: int


def gradient_bytes(program: RankProgram, env: Env) -> int:
    """The gradients that add up over the micro-batches: whole ones, or slices (ZeRO-2)."""
    sliced = {s.weight for s in program.instructions if isinstance(s, Accumulate) and s.sliced}
    return sum(
        held_bytes(program.gradients[w.held.name] if w.held.name in sliced else w.held, env)
        for w in trained(program)
    )


def optimizer_bytes(program: RankProgram, env: Env) -> int:
    """Adam's state on the slices that a rank owns, and the slices where they are copies (ZeRO-1, ZeRO-2)."""
    copied = {s.weight for s in program.instructions if isinstance(s, TakeSlice)}
    total = 0
    for weight in trained(program):
        size = weight.held.dtype.itemsize
        each = MOMENTS * max(1, size // 4) + (MASTER if size < 4 else 0)
        each += size if weight.held.name in copied else 0
        total += each * layout_elements(program.gradients[weight.held.name].layout, env)
    return total


def trained(program: RankProgram) -> list[Weight]:
    """The weights of a class that have a gradient."""
    return [w for w in program.weights if w.held.name in program.gradients]


@dataclass
class PartMemory:
    """What one function of a program takes: `kept` stays behind it, `peak` is the most at any moment."""

    kept: int = 0
    peak: int = 0


@dataclass
class _Live:
    """The values that live at one moment, without what shares another's memory."""

    env: Env
    sizes: dict[str, int] = field(default_factory=dict)
    root: dict[str, str] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)

    def add(self, held: Held, of: str | None = None) -> None:
        """A new value; with `of` a view of another."""
        root = self.root.get(of, of) if of is not None else held.name
        assert root is not None
        self.root[held.name] = root
        if root == held.name:
            self.sizes[root] = held_bytes(held, self.env)
        self.users[root] = self.users.get(root, 0) + 1

    def drop(self, name: str) -> None:
        """A name is gone; its memory with the last of its views."""
        root = self.root.pop(name, None)
        if root is not None:
            self.users[root] -= 1
            if not self.users[root]:
                self.sizes.pop(root, None)

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.sizes.values())


def sections_memory(program: RankProgram, env: Env) -> dict[str, PartMemory]:
    """What each function takes, by its name."""
    weights = {w.held.name for w in program.weights}
    outside = weights | {held.name for held in program.inputs}
    kept = crossing(program)
    found = {}
    for at, section in enumerate(program.sections):
        stays = {name for name, maker in kept.items() if maker == at}
        steps = program.section(at)
        found[section.name] = section_memory(section.kind, steps, env, outside, stays, program)
    return found


def crossing(program: RankProgram) -> dict[str, int]:
    """Value -> the function that makes it, for values that a later function uses."""
    maker: dict[str, int] = {}
    found: dict[str, int] = {}
    for at in range(len(program.sections)):
        for step in program.section(at):
            found.update((n, maker[n]) for n in operands(step) if maker.get(n, at) != at)
            maker.update((held.name, at) for held in produced(step))
    return found


def section_memory(
    kind: str, steps: Sequence[Instruction], env: Env, outside: set[str], stays: set[str],
    program: RankProgram,
) -> PartMemory:  # fmt: skip
    """Walk one function: values, and what autograd keeps of recorded calls."""
    live, memory = _Live(env), PartMemory()
    active = {w.held.name for w in trained(program)}
    recorded: set[str] = set()
    dead: set[str] = set()
    on = kind in ("forward", "backward")
    for held in whole_gradients(kind, steps):
        live.add(held)
    for step in steps:
        if isinstance(step, Recording):
            on = step.on
        elif isinstance(step, Free):
            dead.update(step.names)
        elif isinstance(step, Release):
            live.sizes.pop(live.root.get(step.operand, ""), None)
        elif isinstance(step, Backward) and kind == "backward":
            recorded.clear()
        if isinstance(step, (Compute, Leaf)):
            names = [n for n in operands(step) if n not in outside]
            if isinstance(step, Leaf) or (on and active & {*operands(step)}):
                active.update(held.name for held in produced(step))
                recorded.update(live.root.get(n, n) for n in names)
                recorded.update(held.name for held in produced(step))
        for held in produced(step):
            if not isinstance(step, TakeGrad):
                live.add(held, shared(step, outside))
        memory.peak = max(memory.peak, live.total)
        for name in [n for n in dead if live.root.get(n, n) not in recorded and n not in recorded]:
            live.drop(name)
            dead.discard(name)
    if kind == "forward":
        roots = {live.root.get(name, name) for name in stays | recorded}
        memory.kept = sum(live.sizes.get(root, 0) for root in roots)
    return memory


def whole_gradients(kind: str, steps: Iterable[Instruction]) -> list[Held]:
    """Gradients of one micro-batch that are whole until the function scatters them (ZeRO-2)."""
    if kind != "backward":
        return []
    return [s.out for s in steps if isinstance(s, TakeGrad) and not s.sliced]


def shared(step: Instruction, outside: set[str]) -> str | None:
    """The value whose memory the results of an instruction share, if any."""
    if isinstance(step, Leaf):
        name = step.operand
    elif isinstance(step, Compute) and step.target in VIEWS:
        names = operands(step)
        name = names[0] if names else ""
    else:
        return None
    return name or None


def activations(program: RankProgram, programs: ProgramSet, env: Env) -> Activations:
    """The fullest moment of a step: what micro-batches under way keep, and what the running one adds."""
    memory = sections_memory(program, env)
    order = None if programs.schedule is None else merged_order(programs.schedule)
    held: dict[tuple[int, int], int] = {}
    best = Activations(
        0, max((memory[n].peak for n in ("reduce", "refresh") if n in memory), default=0), 0
    )
    for action in actions(program, order, programs.microbatches):
        key = (action.chunk, action.batch)
        part = memory.get(f"{SECTIONS.get(action.kind, 'none')}_{action.chunk}", PartMemory())
        kept = sum(held.values())
        if kept + part.peak > best.kept + best.transient:
            best = Activations(kept, part.peak, len({batch for _, batch in held}))
        if action.kind == "F":
            held[key] = part.kept
        elif action.kind in ("B", "W"):
            held.pop(key, None)
    return best
