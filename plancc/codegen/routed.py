"""The lines of routed rows: which tokens go to which ranks of experts, and the way there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plancc.codegen.names import edge_options
from plancc.ir.program import Compute, LocalStart, Recv, Send, Transfer

if TYPE_CHECKING:
    from plancc.codegen.python import _Emitter


class RoutedRows:
    """Writes them through the emitter of a program."""

    def __init__(self, emitter: _Emitter) -> None:
        self.emitter = emitter

    def route(self, at: int, call: Compute) -> str:
        """The line that works out the rows for each rank."""
        index, weight, experts = call.args
        out = call.outs[0].name
        assert isinstance(experts, LocalStart)
        home, target = (self.emitter.stage(call.kwargs[key]) for key in ("home", "target"))
        parts = self.parts(call.kwargs["parts"])
        dim = self.emitter.size(experts.tree, True)
        chosen = f"{self.emitter.argument(index)}, {self.emitter.argument(weight)}"
        return f"{out} = comm.route({chosen}, {home}, {target}, {dim}, {parts}, at={at})"

    def parts(self, parts: tuple) -> str:
        """Parts as a tuple, also where there is none or one."""
        texts = "".join(f"{self.emitter.parts((part,))}, " for part in parts)
        return f"({texts.rstrip()})"

    def transfer(self, at: int, step: Send | Recv | Transfer) -> None:
        """Counts, rows to their experts, or results back."""
        if isinstance(step, (Send, Transfer)):
            self.give(at, step)
        if isinstance(step, (Recv, Transfer)):
            self.emitter.pause(step)
            self.take(at, step)

    def give(self, at: int, step: Send | Transfer) -> None:
        """The source's side."""
        edge, emitter = step.edge, self.emitter
        operand = emitter.local(step.operand)
        channel = edge_options(edge)
        if edge.way == "counts":
            text = f"comm.announce({operand}{channel}, at={at})"
        else:
            verb = "dispatch" if edge.way == "scatter" else "give_back"
            route = emitter.local(edge.routes[0])
            text = f"comm.{verb}({operand}, {route}{channel}, at={at})"
        emitter.line(text, f"to {edge.target}")

    def take(self, at: int, step: Recv | Transfer) -> None:
        """The target's side."""
        edge, emitter = step.edge, self.emitter
        channel = edge_options(edge)
        if edge.way == "counts":
            home, target = emitter.stage(edge.source), emitter.stage(edge.target)
            call = f"comm.arrivals({home}, {target}, {self.parts(edge.parts)}{channel}, at={at})"
            emitter.line(f"{step.out.name} = {call}", f"how many rows come from {edge.source}")
            return
        verb = "collect" if edge.way == "scatter" else "combine"
        tail = "".join(f"{emitter.size(dim)}, " for dim in edge.after.dims[1:]).rstrip()
        dtype, route = emitter.argument(edge.dtype), emitter.local(edge.routes[1])
        call = f"comm.{verb}({dtype}, ({tail}), {route}{channel}, at={at})"
        emitter.line(f"{step.out.name} = {call}", f"{emitter.note(step.out)}  from {edge.source}")
