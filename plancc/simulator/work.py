"""FLOPs and bytes of every local instruction of a program, as a function of a rank's place in a step.

Equal calls on equal layouts are one recipe, so the layers of a model are worked out once; places with the
same sizes share their results. What operators cost is in `costs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plancc.ir.instruction import Compute
from plancc.ir.program import RankProgram
from plancc.simulator.costs import cost_of
from plancc.simulator.errors import SimulateError
from plancc.simulator.forms import Work
from plancc.simulator.local_call import Call, Local, contiguous, dense, run_view, tensors
from plancc.simulator.place import Place
from plancc.simulator.recipes import Number, Operand, Recipe
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.step_recipes import StepRecipes

Works = tuple[Work, ...]


class NoCost(SimulateError):
    """Operators of which nobody knows what they cost: each with its module and line of the model."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The work of a program for given sizes: of each instruction, and of the W action of each chunk."""

    works: list[Works]
    later: dict[int, Works]


class ProgramWork:
    """What the instructions of one program do on a rank.

    `batches` is the number of micro-batches of a training step: with more than one, gradients add up.
    Raises NoCost for operators that neither the table nor the user knows.
    """

    def __init__(self, program: RankProgram, routing: Routing = EVEN, batches: int = 1) -> None:
        problems = list(unknown_operators(program))
        if problems:
            raise NoCost(problems)
        self.recipes = StepRecipes(program, routing, batches > 1)
        self._known: dict[tuple[Any, ...], _Found] = {}

    def works(self, place: Place) -> list[Works]:
        """One entry for each instruction, in order: its kernels; () for what does no local work.

        Places of the same sizes share the list: it is not to be changed.
        """
        return self._of(place).works

    def later(self, place: Place) -> Mapping[int, Works]:
        """Chunk -> what its W actions do: gradients of weights that its backward leaves for later.

        Where backwards are not split, a B does that too, at its end.
        """
        return self._of(place).later

    def _of(self, place: Place) -> _Found:
        values = self.recipes.sizes.values(place)
        found = self._known.get(values)
        if found is None:
            each = Evaluation(values).run(self.recipes.recipes.found)
            joined = {
                steps: tuple(work for at in steps for work in each[at])
                for steps in {*self.recipes.steps, *self.recipes.late.values()}
            }
            found = self._known[values] = _Found(
                [joined[steps] for steps in self.recipes.steps],
                {chunk: joined[steps] for chunk, steps in self.recipes.late.items()},
            )
        return found


def unknown_operators(program: RankProgram) -> Iterator[str]:
    """A line for each operator without a cost, where it is called first."""
    seen: set[str] = set()
    for step in program.instructions:
        if isinstance(step, Compute) and step.target not in seen and cost_of(step.target) is None:
            seen.add(step.target)
            where = f"module `{step.origin.path or 'the root'}`, {step.origin.line}"
            yield f"nobody knows what the operator `{step.target}` costs ({where})"


class Evaluation:
    """Recipes with the sizes of one place; `calls` are those evaluated so far (None for gradients)."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self.calls: list[Call | None] = []

    def run(self, recipes: Sequence[Recipe]) -> list[Works]:
        """The kernels of each recipe."""
        return [self.kernels(recipe) for recipe in recipes]

    def kernels(self, recipe: Recipe) -> Works:
        """Those of one recipe; the recipes that it refers to come before it."""
        cost = cost_of(recipe.target)
        assert cost is not None
        if recipe.gradient_of is not None:
            call = self.calls[recipe.gradient_of]
            assert call is not None
            self.calls.append(None)
            return (cost.late if recipe.late else cost.backward)(replace(call, needs=recipe.needs))
        call = self.call(recipe)
        if cost.lies == "view":
            outs, aliases = run_view(call)
            call = replace(call, outs=outs, aliases=aliases)
        elif cost.lies == "share" and call.extra["pieces"] < 2:
            share = replace(call.outs[0], strides=call.ins[0].strides)
            call = replace(call, outs=(share,), aliases=True)
        self.calls.append(call)
        return cost.forward(call)

    def call(self, recipe: Recipe) -> Call:
        """The call with numbers for sizes."""
        args = tuple(self.number(arg) for arg in recipe.args)
        kwargs = {name: self.number(arg) for name, arg in recipe.kwargs}
        return Call(
            recipe.target, args, kwargs, tuple(tensors((args, tuple(kwargs.values())))),
            tuple(self.local(out) for out in recipe.outs),
            routed=None if recipe.routed is None else self.values[recipe.routed.at],
            extra={name: self.number(arg) for name, arg in recipe.extra},
        )  # fmt: skip

    def number(self, arg: Any) -> Any:
        """An argument with its value."""
        if isinstance(arg, Number):
            return self.values[arg.at]
        if isinstance(arg, Operand):
            return self.local(arg)
        return tuple(self.number(item) for item in arg) if isinstance(arg, tuple) else arg

    def local(self, operand: Operand) -> Local:
        """A tensor on the rank."""
        shape = tuple(self.values[at] for at in operand.dims)
        if operand.form is None:
            return Local(shape, contiguous(shape), operand.dtype)
        how, maker, place = operand.form
        made = self.calls[maker]
        assert made is not None
        strides = made.outs[place].strides
        return Local(shape, dense(shape, strides) if how == "dense" else strides, operand.dtype)
