"""Which recipes each instruction of a program stands for: calls, their gradients, and copies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plancc.codegen.sections import as_bucket
from plancc.ir.instruction import Collective, Compute, Held, Merge
from plancc.ir.program import Instruction, RankProgram, operands
from plancc.ir.recorded import Accumulate, Backward, Bucket, Launch, Leaf, Restore, Store
from plancc.passes.rows.table import USER_ROWS
from plancc.simulator.costs import cost_of
from plancc.simulator.expert_layers import EXPERTS, GATE_UP, INDEX, ExpertLayers, all_values, chosen
from plancc.simulator.recipes import (
    First,
    Form,
    Number,
    Operand,
    OwnExperts,
    Pieces,
    Recipe,
    Recipes,
    Sizes,
)
from plancc.simulator.recorded_calls import LATER, WEIGHT, Tape
from plancc.simulator.routing import Routing

CACHE = "plancc.cache_append.default"
POSITIONED = ("attention", "scaled_dot_product")
"""Operators to which it matters where a range begins."""


class StepRecipes:
    """The recipes of a program: `steps` has those of each instruction, `late` those of W actions by chunk."""

    def __init__(self, program: RankProgram, routing: Routing, several: bool) -> None:
        self.layers = ExpertLayers(program)
        self.sizes = Sizes(self.layers, routing)
        self.helds: Mapping[str, Held] = {held.name: held for held in all_values(program)}
        self.recipes = Recipes(self.sizes, self.helds)
        self.tape = Tape(program, several)
        self.calls: dict[int, int] = {}
        self.steps: list[tuple[int, ...]] = []
        for at, step in enumerate(program.instructions):
            self.steps.append(self.recipes_of(at, step))
        self.late = self.late_recipes(program)

    def recipes_of(self, at: int, step: Instruction) -> tuple[int, ...]:
        """The recipes of one instruction, in the order of its kernels."""
        if isinstance(step, Compute):
            return self.compute(at, step)
        if isinstance(step, Backward):
            return self.backward(at)
        if isinstance(step, Leaf):
            self.recipes.forms[step.out.name] = self.recipes.forms.get(step.operand)
            return ()
        if isinstance(step, Accumulate):
            return self.accumulate(at, step)
        if isinstance(step, (Store, Restore)):
            target, source = (
                (step.weight, step.operand)
                if isinstance(step, Store)
                else (step.operand, step.source)
            )
            given = self.recipes.operand(source), self.recipes.of(self.helds[target])
            return (self.recipes.step("step.copy", given[:1], given[1:]),)
        return self.move(step)

    def compute(self, at: int, step: Compute) -> tuple[int, ...]:
        """A call; its results lie in memory as its row says."""
        cost, forms = cost_of(step.target), self.recipes.forms
        assert cost is not None
        args = step.args[:2] if step.target == CACHE else step.args  # every layer has another slot
        starts = any(word in step.target for word in POSITIONED)
        extra: list[tuple[str, Any]] = []
        own = USER_ROWS.get(step.target.rpartition(".")[0])
        if own is not None:
            extra.append(("row", own.notation))
        recipe = Recipe(
            step.target,
            tuple(self.recipes.argument(arg, starts) for arg in args),
            tuple((k, self.recipes.argument(arg, starts)) for k, arg in step.kwargs.items()
                  if k not in ("home", "target", "parts", "layer")),
            tuple(self.recipes.of(held) for held in step.outs),
            tuple(extra),
            self.routed(step) if step.target in EXPERTS else None,
        )  # fmt: skip
        found = self.calls[at] = self.recipes.add(recipe)
        for place, held in enumerate(step.outs):
            if cost.lies == "view":
                forms[held.name] = ("view", found, place)
            elif cost.lies in ("like", "first"):
                forms[held.name] = self.like(step, recipe.outs[place], cost.lies == "first")
        return (found,)

    def like(self, step: Compute, out: Operand, first: bool) -> Form:
        """The form of a result whose dims lie as those of the `first` operand, or the first of its shape."""
        for name in operands(step):
            operand = self.recipes.operand(name)
            if first or operand.dims == out.dims:
                return operand.form and ("dense", *operand.form[1:])
        return None

    def routed(self, step: Compute) -> Number:
        """The rows that the experts of a call get."""
        index, weight = self.helds[step.args[INDEX].name], self.helds[step.args[GATE_UP].name]
        layer = self.layers.by_name.get(index.name)
        if layer is not None:
            return self.sizes.routed(layer)
        own = OwnExperts(
            step.origin.path, index.layout.dims[0], chosen(index), weight.layout.dims[0]
        )
        return self.sizes.routed(own)

    def backward(self, at: int) -> tuple[int, ...]:
        """The gradients of the recorded calls, the last first, and sums of those of several uses."""
        segment = self.tape.segments[at]
        found = [self.gradient(one.at, one.needs) for one in segment.calls]
        for name in (*segment.sums, *segment.adds):
            found.append(self.recipes.step("step.add", (self.recipes.of(self.helds[name]),), ()))
        return tuple(found)

    def gradient(self, at: int, needs: tuple[bool, ...], late: bool = False) -> int:
        """The recipe of the gradients of a call."""
        forward = self.calls[at]
        target = self.recipes.found[forward].target
        return self.recipes.add(Recipe(target, gradient_of=forward, needs=needs, late=late))

    def late_recipes(self, program: RankProgram) -> dict[int, tuple[int, ...]]:
        """Chunk -> the gradients of weights that its backwards leave to W actions."""
        chunks: list[int] = []
        for at, section in enumerate(program.sections):
            chunks += [section.chunk] * len(program.section(at))
        found: dict[int, list[int]] = {}
        for segment in self.tape.segments.values():
            for one in segment.calls:
                call = program.instructions[one.at]
                if isinstance(call, Compute) and call.target == LATER and one.needs[WEIGHT]:
                    mine = found.setdefault(chunks[one.at], [])
                    mine.append(self.gradient(one.at, one.needs, late=True))
        return {chunk: tuple(mine) for chunk, mine in found.items()}

    def accumulate(self, at: int, step: Accumulate) -> tuple[int, ...]:
        """A gradient that is added to another, or the first one: then it is copied, a slice just kept."""
        given = self.recipes.operand(step.operand)
        if self.tape.accumulates[at]:
            return (self.recipes.step("step.add", (given,), ()),)
        return () if step.sliced else (self.recipes.step("step.copy", (given,), (given,)),)

    def move(self, step: Instruction) -> tuple[int, ...]:
        """What is copied on the rank itself for a move."""
        if isinstance(step, Collective):
            return self.local_move(step)
        if isinstance(step, Merge):
            ins = self.recipes.operand(step.operand), self.recipes.operand(step.rows)
            made = self.recipes.of(step.out), self.recipes.of(step.out_rows)
            return (self.recipes.step("step.merge", ins, made, ranks=step.part.count),)
        if isinstance(step, Launch):
            bucket = as_bucket(step.step)
            taken = [take.out for take in step.takes]
            return self.packing(bucket, taken or [self.helds[name] for name in bucket.operands])
        if isinstance(step, Bucket):
            return self.packing(step, [self.helds[name] for name in step.operands])
        return ()

    def local_move(self, step: Collective) -> tuple[int, ...]:
        """Moves without communication: a share of a dim, and an addend that only one rank adds."""
        given, out = self.recipes.operand(step.operand), self.recipes.of(step.out)
        if step.kind == "once":
            self.recipes.forms[step.out.name] = given.form
            first = Number(self.sizes.number(First(step.parts)))
            return (self.recipes.step("step.once", (), (out,), first=first),)
        if step.kind != "shard" or step.move is None:
            return ()
        tree = self.sizes.plain(step.move.after.dims[step.move.dim])
        pieces = Number(self.sizes.number(Pieces(tree)))
        found = self.recipes.step("step.shard", (given,), (out,), pieces=pieces)
        self.recipes.forms[step.out.name] = ("view", found, 0)
        return (found,)

    def packing(self, step: Bucket, ins: Sequence[Held]) -> tuple[int, ...]:
        """A bucket's copies."""
        given, got = ([self.recipes.of(held) for held in found] for found in (ins, step.outs))
        return (self.recipes.step("step.pack", given, got, kind=step.kind, wire=step.wire),)
