"""Linear layers with one output piece cut and another whole (queries, shared keys), taken apart.

What the input owes to a cut piece is summed over ranks, to a whole one complete on each: one
call would mix both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, LocalTree, Prod, Sum, cuts
from plancc.ir.program import Compute, Held, LocalDim
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.segments import Names

LINEAR = "aten.linear.default"
CAT = "aten.cat.default"


def split_mixed(
    entries: Sequence[Entry], helds: dict[str, Held], active: Collection[str], names: Names
) -> list[Entry]:
    """The entries with such layers taken apart; `helds` gains the values that this makes."""
    found: list[Entry] = []
    for stages, step in entries:
        if isinstance(step, Compute) and step.target == LINEAR and step.args[0].name in active:
            found += [(stages, one) for one in _Pieces(step, helds, names).steps()]
        else:
            found.append((stages, step))
    return found


def mixed(tree: LocalTree) -> tuple[tuple[LocalTree, ...], tuple[LocalTree, ...]] | None:
    """The factors before and after a sum of which not all kids are cut alike; None if there is none."""
    kids = (tree,) if isinstance(tree, Sum) else tree.kids if isinstance(tree, Prod) else ()
    for index, kid in enumerate(kids):
        if isinstance(kid, Sum):
            parts = {frozenset(p for leaf in cuts(k) for p in leaf.parts) for k in kid.kids}
            if len(parts) > 1:
                return kids[:index], kids[index + 1 :]
    return None


class _Pieces:
    def __init__(self, step: Compute, helds: dict[str, Held], names: Names) -> None:
        self.step, self.helds, self.names = step, helds, names
        self.made: list[Compute] = []

    def steps(self) -> list[Compute]:
        """The calls in the place of one."""
        out = self.step.outs[0]
        tree = out.layout.dims[-1]
        around = mixed(tree)
        weight = self.helds[self.step.args[1].name]
        if around is None or out.layout.partial or weight.layout.dims[0] != tree:
            return [self.step]
        before, after = around
        kids = (tree if isinstance(tree, Sum) else tree.kids[len(before)]).kids
        x = self.step.args[0]
        weights = self.apart(weight, before, kids, after)
        bias = self.step.args[2] if len(self.step.args) > 2 else None
        biases: Sequence[Held | None] = [None] * len(kids)
        if isinstance(bias, Ref):
            biases = self.apart(self.helds[bias.name], before, kids, after)
        lead = out.layout.dims[:-1]
        parts = []
        for w, b, kid in zip(weights, biases, kids, strict=True):
            layout = Layout((*lead, Prod((*before, kid, *after))))
            args = (x, Ref(w.name), *([Ref(b.name)] if b is not None else []))
            y = self.call(LINEAR, args, self.like(out, layout))
            parts.append(self.shaped(y, (*lead, Prod(before), kid, Prod(after))))
        joined = Layout((*lead, Prod(before), Sum(tuple(kids)), Prod(after)))
        refs = tuple(Ref(part.name) for part in parts)
        whole = self.call(CAT, (refs, len(lead) + 1), self.like(out, joined))
        self.call("aten.reshape.default", (Ref(whole.name), sizes(out.layout.dims)), out)
        return self.made

    def apart(
        self, held: Held, before: tuple, kids: Sequence[LocalTree], after: tuple
    ) -> list[Held]:
        """A weight or bias as one value a piece, cut along its first dim."""
        rest = held.layout.dims[1:]
        wide = self.shaped(held, (Prod(before), Sum(tuple(kids)), Prod(after), *rest))
        outs = tuple(
            self.like(held, Layout((Prod(before), kid, Prod(after), *rest))) for kid in kids
        )
        args = (Ref(wide.name), tuple(LocalDim(kid) for kid in kids), 1)
        self.made.append(
            replace(
                self.step, target="aten.split_with_sizes.default", args=args, kwargs={}, outs=outs
            )
        )
        return [
            self.shaped(one, (Prod((*before, kid, *after)), *rest))
            for one, kid in zip(outs, kids, strict=True)
        ]

    def like(self, held: Held, layout: Layout) -> Held:
        """A new value beside another."""
        made = replace(
            held, name=self.names.fresh(f"{held.name}_piece"), layout=layout,
            stage=self.step.outs[0].stage,
        )  # fmt: skip
        self.helds[made.name] = made
        return made

    def shaped(self, held: Held, dims: tuple[LocalTree, ...]) -> Held:
        out = self.like(held, Layout(dims))
        return self.call("aten.reshape.default", (Ref(held.name), sizes(dims)), out)

    def call(self, target: str, args: tuple[Any, ...], out: Held) -> Held:
        self.made.append(replace(self.step, target=target, args=args, kwargs={}, outs=(out,)))
        return out


def sizes(dims: Sequence[LocalTree]) -> tuple[Any, ...]:
    """Local sizes; those of no dim are 1."""
    return tuple(
        1 if isinstance(d, Prod) and not any(True for _ in cuts(d)) else LocalDim(d) for d in dims
    )
