"""RankProgram -> one readable Python module: `step(r, comm, w, kv, inputs...)`.

Deterministic: the same program gives the same bytes. It calls torch, plancc.ops and `comm` only.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch

from plancc.codegen.names import (
    edge_options,
    function_call,
    part_text,
    plan_line,
    ranks_text,
    rule_word,
    weight_key,
)
from plancc.codegen.routed import RoutedRows
from plancc.codegen.sections import (
    SILENT,
    as_bucket,
    effect,
    kept_values,
    section_results,
    taken,
)
from plancc.dsl.errors import Bug
from plancc.ir.graph import Ref
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, Prod, Stage, Sum
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Await,
    Backward,
    Bucket,
    Collective,
    Compute,
    Free,
    Held,
    Instruction,
    Launch,
    Leaf,
    LocalDim,
    LocalRanges,
    LocalStart,
    Merge,
    Origin,
    RankProgram,
    Recv,
    Send,
    TakeGrad,
    TakeSlice,
    Transfer,
    produced,
)

SHORT: Mapping[torch.dtype, str] = {
    torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "bool",
}  # fmt: skip
INDENT = "    "
FACTORIES = frozenset(
    ["arange", "full", "zeros", "ones", "empty", "eye", "linspace", "scalar_tensor"]
)
"""Operators that make tensors out of nothing: on the rank's own device."""
RESERVED = frozenset(
    {*keyword.kwlist, "r", "comm", "w", "s", "kv", "B", "T", "P", "aten", "ops", "torch", "step"}
)


def emit_program(program: RankProgram, plan_name: str, *, probes: bool = False) -> str:
    """The text of the module that every rank of `program` runs.

    With `probes`, `r.probe(name, value)` follows every value: what verification uses to find the first
    wrong one.
    """
    return _Emitter(program, plan_name, probes).text()


class _Emitter:
    def __init__(self, program: RankProgram, plan_name: str, probes: bool) -> None:
        self.program = program
        self.probes = probes
        self.plan_name = plan_name
        self.mesh = program.stages[0].mesh if program.stages else ""
        self.dims: dict[tuple[Any, ...], str] = {}
        self.dim_lines: list[str] = []
        self.stages: dict[Stage, str] = {}
        self.weights = {w.held.name: weight_key(program, w) for w in program.weights}
        values = {held.name for step in program.instructions for held in produced(step)}
        self.values = values | RESERVED | {held.name for held in program.inputs}
        self.taken = set(self.values)
        self.body: list[str] = []
        self.origin: Origin | None = None
        self.kept: Mapping[str, int] = {}
        self.section = -1
        self.rows = RoutedRows(self)

    def text(self) -> str:
        """The whole module."""
        lines = [
            f'"""{self.plan_name}: {self.program.name}, {self.program.phase}, '
            f'{ranks_text(self.program.ranks)}. Written by plancc."""',
            "", "import torch", "", "from plancc import ops", "", "aten = torch.ops.aten", "", "",
        ]  # fmt: skip
        inputs = "".join(f", {held.name}" for held in self.program.inputs)
        outputs = ", ".join(
            f'"{name}": {self.local(held.name)}' for name, held in self.program.outputs.items()
        )
        if not self.program.sections:
            steps = tuple(enumerate(self.program.instructions))
            return "\n".join(
                [*lines, *self.function(f"step(r, comm, w, kv{inputs})", steps, outputs)]
            )
        self.kept = kept_values(self.program)
        for index, section in enumerate(self.program.sections):
            self.section = index
            steps = tuple(enumerate(self.program.section(index), section.start))
            given = inputs if section.kind == "forward" else ""
            results = section_results(self.program, index)
            found = ", ".join(f'"{name}": {self.local(value)}' for name, value in results.items())
            if index:
                lines += ["", ""]
            kept = "p" if section.kind == "refresh" else "s"
            head = f"{section.name}(r, comm, w, {kept}{given})"
            lines += self.function(head, steps, found)[:-1]
        return "\n".join([*lines, ""])

    def function(
        self, head: str, steps: Sequence[tuple[int, Instruction]], results: str
    ) -> list[str]:
        """The lines of one function; it returns a dict of `results`."""
        self.dims, self.dim_lines, self.stages, self.body, self.origin = {}, [], {}, [], None
        self.taken = set(self.values)
        for held in self.program.inputs:
            if self.kept.get(held.name) == self.section:
                self.line(f"s.{held.name} = {held.name}")
        for at, instruction in steps:
            self.instruction(at, instruction)
        stages = [
            f"{INDENT}{name} = r.stage({s.mesh!r}{''.join(f', {a}={i}' for a, i in s.coords)})"
            for s, name in self.stages.items()
        ]
        return [
            f"def {head}:", f"{INDENT}B, T, P = r.batch, r.tokens, r.past",
            *(INDENT + line for line in self.dim_lines), *stages, *self.body,
            f"{INDENT}return {{{results}}}", "",
        ]  # fmt: skip

    def instruction(self, at: int, instruction: Instruction) -> None:
        """Append the lines of one instruction."""
        if isinstance(instruction, Free):
            self.line(f"del {', '.join(self.local(name) for name in instruction.names)}")
            return
        if not isinstance(instruction, SILENT):
            self.comment(instruction.origin)
        if isinstance(instruction, Compute):
            self.compute(at, instruction)
        elif isinstance(instruction, Collective):
            self.collective(at, instruction)
        elif isinstance(instruction, Merge):
            self.merge(at, instruction)
        elif isinstance(instruction, Bucket):
            self.bucket(at, instruction)
        elif isinstance(instruction, Launch):
            self.launch(at, instruction)
        elif isinstance(instruction, (Send, Recv, Transfer)):
            if instruction.edge.way:
                self.rows.transfer(at, instruction)
            else:
                self.transfer(at, instruction)
        else:
            self.gradient(instruction)
        for held in produced(instruction):
            if self.kept.get(held.name) == self.section:
                self.line(f"s.{held.name} = {held.name}")
        if self.probes:
            for held in produced(instruction):
                self.line(f"r.probe({held.name!r}, {held.name})")

    def line(self, text: str, note: str = "") -> None:
        self.body.append(f"{INDENT}{text:<72}  # {note}" if note else f"{INDENT}{text}")

    def comment(self, origin: Origin) -> None:
        if origin == self.origin:
            return
        self.origin = origin
        where = ", ".join(x for x in (origin.line, plan_line(origin) if origin.span else "") if x)
        path = origin.path or "(root)"
        self.line(f"# -- {path}" + (f"   ({where})" if where else ""))

    def compute(self, at: int, call: Compute) -> None:
        if call.target == "plancc.route.default":
            self.line(self.rows.route(at, call), "which rows go to which rank")
            return
        args = [self.argument(a) for a in call.args]
        args += [f"{k}={self.argument(v)}" for k, v in call.kwargs.items() if k != "device"]
        if call.target.split(".")[1] in FACTORIES:
            args.append("device=r.device")
        outs = ", ".join(held.name for held in call.outs)
        notes = "; ".join(self.note(held) for held in call.outs)
        self.line(f"{outs} = {function_call(call.target, args)}", notes)

    def collective(self, at: int, step: Collective) -> None:
        parts = self.parts(step.parts)
        x, out, move = self.local(step.operand), step.out.name, step.move
        if step.kind == "join_rows":
            call = f"comm.join_rows({x}, {parts}, at={at})"
            self.line(f"{out} = {call}", self.note(step.out))
            return
        if step.kind == "once":
            self.line(f"{out} = comm.once({x}, {parts})", "added by one rank of the sum only")
            return
        assert move is not None
        if step.kind == "all_reduce":
            call = f"comm.all_reduce({x}, {parts}, at={at})"
        elif step.kind == "all_gather":
            dim = self.size(move.before.dims[move.dim], True)
            call = f"comm.all_gather({x}, {move.dim}, {dim}, {parts}, at={at})"
        elif step.kind == "all_to_all":
            dim = self.size(move.before.dims[move.dim], True)
            to = self.size(move.after.dims[move.to_dim], True)
            call = f"comm.all_to_all({x}, {move.dim}, {dim}, {move.to_dim}, {to}, {parts}, at={at})"
        else:
            dim = self.size(move.after.dims[move.dim], True)
            tail = f", at={at}" if step.kind == "reduce_scatter" else ""
            call = f"comm.{step.kind}({x}, {move.dim}, {dim}, {parts}{tail})"
        self.line(f"{out} = {call}", self.note(step.out))

    def gradient(self, step: Any) -> None:
        """What only training has: the begin of a segment, its backward, gradients of weights."""
        if isinstance(step, Leaf):
            self.line(f"{step.out.name} = r.leaf({self.local(step.operand)})", self.note(step.out))
        elif isinstance(step, Backward):
            outs, given, leaves = (
                "(" + "".join(f"{self.local(n)}, " for n in names).rstrip() + ")"
                for names in (step.outs, step.given, step.leaves)
            )
            grads = "".join(f"{held.name}, " for held in step.grads).rstrip()
            call = f"r.backward({outs}, {given}, {leaves})"
            notes = "; ".join(self.note(held) for held in step.grads)
            self.line(f"{grads} = {call}" if grads else call, notes)
        elif isinstance(step, Await):
            outs = "".join(f"{held.name}, " for held in step.outs).rstrip()
            self.line(f"{outs} = r.started.pop({step.handle!r}).wait()")
        elif isinstance(step, (TakeGrad, TakeSlice)):
            self.line(f"{step.out.name} = {taken(step, self.weights)}", self.note(step.out))
        else:
            self.line(effect(step, self.local, self.weights))

    def bucket_call(self, at: int, step: Bucket, given: str) -> str:
        """The call of one move of several values, after `comm.`."""
        dims = ""
        if step.kind != "all_reduce":
            layouts = [m.after if step.kind == "reduce_scatter" else m.before for m in step.moves]
            rows = [
                f"({m.dim}, {self.size(layout.dims[m.dim], True)}), "
                for m, layout in zip(step.moves, layouts, strict=True)
            ]
            dims = f"({''.join(rows).rstrip()}), "
        wire = f", wire={step.wire!r}" if step.wire else ""
        return f"{step.kind}_bucket(({given}), {dims}{self.parts(step.parts)}{wire}, at={at})"

    def bucket(self, at: int, step: Bucket) -> None:
        """One move of several values."""
        outs = "".join(f"{held.name}, " for held in step.outs).rstrip()
        given = "".join(f"{self.local(name)}, " for name in step.operands).rstrip()
        self.line(f"{outs} = comm.{self.bucket_call(at, step, given)}")

    def launch(self, at: int, step: Launch) -> None:
        """A move that runs beside the computation."""
        move, indent = as_bucket(step.step), ""
        given = "".join(f"{self.local(name)}, " for name in move.operands).rstrip()
        if step.takes:
            self.line("if r.last:", "these gradients are complete")
            given = "".join(f"{taken(take, self.weights)}, " for take in step.takes).rstrip()
            indent = INDENT
        call = self.bucket_call(at, move, given)
        self.line(f"{indent}r.started[{step.handle!r}] = comm.start.{call}")

    def merge(self, at: int, step: Merge) -> None:
        heads = self.size(step.out.layout.dims[1], True)
        outs = f"{step.out.name}, {step.out_rows.name}"
        given = f"{self.local(step.operand)}, {self.local(step.rows)}"
        parts, spread = self.parts((step.part,)), self.parts(step.spread)
        call = f"comm.merge({given}, {heads}, {parts}, {spread}, at={at})"
        self.line(f"{outs} = {call}", self.note(step.out))

    def transfer(self, at: int, step: Send | Recv | Transfer) -> None:
        edge = step.edge
        source = f"{self.stage(edge.source)}, {self.sizes(edge.before)}"
        target = f"{self.stage(edge.target)}, {self.sizes(edge.after)}"
        channel = edge_options(edge)
        if isinstance(step, Send):
            text = f"comm.send({self.local(step.operand)}, {source}, {target}{channel}, at={at})"
            self.line(text, f"to {edge.target}")
            return
        self.pause(step)
        if isinstance(step, Recv):
            dtype = self.argument(edge.dtype)
            text = f"{step.out.name} = comm.recv({dtype}, {source}, {target}{channel}, at={at})"
        else:
            operand = self.local(step.operand)
            call = f"comm.transfer({operand}, {source}, {target}{channel}, at={at})"
            text = f"{step.out.name} = {call}"
        self.line(text, f"{self.note(step.out)}  from {edge.source}")

    def pause(self, step: Recv | Transfer) -> None:
        """Let the other micro-batches run before this one waits."""
        if step.pause:
            self.line("yield", "the other micro-batches take their turn")

    def stage(self, stage: Stage) -> str:
        return self.stages.setdefault(stage, f"stage{len(self.stages)}")

    def local(self, name: str) -> str:
        if name in self.weights:
            return f"w[{self.weights[name]!r}]"
        return f"s.{name}" if self.kept.get(name, self.section) != self.section else name

    def argument(self, arg: Any) -> str:
        """One argument as Python text."""
        if isinstance(arg, Ref):
            return self.local(arg.name)
        if isinstance(arg, LocalDim):
            return self.size(arg.tree)
        if isinstance(arg, LocalStart):
            return f"r.start({self.size(arg.tree, True)})"
        if isinstance(arg, LocalRanges):
            return f"r.ranges({self.size(arg.tree, True)})"
        if isinstance(arg, (tuple, list)):
            return "[" + ", ".join(self.argument(a) for a in arg) + "]"
        if isinstance(arg, sympy.Expr):
            return str(arg)
        if isinstance(arg, torch.device):
            return "r.device"
        if isinstance(arg, float):
            return repr(arg) if abs(arg) != float("inf") and arg == arg else f'float("{arg}")'
        if arg is None or isinstance(arg, (bool, int, str)):
            return repr(arg)
        if isinstance(arg, torch.dtype) and arg.is_floating_point:
            return f"r.{SHORT[arg]}"
        if isinstance(arg, (torch.dtype, torch.layout, torch.memory_format)):
            return str(arg)
        raise Bug(f"cannot write argument {arg!r} of type {type(arg).__name__}")

    def sizes(self, layout: Layout) -> str:
        return "(" + "".join(f"{self.size(d, True)}, " for d in layout.dims).rstrip() + ")"

    def size(self, tree: LocalTree, structure: bool = False) -> str:
        """A local size; with `structure` the text is always a Dim, never a bare number."""
        if isinstance(tree, CutLeaf):
            return self.leaf(tree, structure)
        if isinstance(tree, Prod):
            if not tree.kids:
                return "r.one" if structure else "1"
            return " * ".join(self.group(k, structure) for k in tree.kids)
        return " + ".join(self.size(k, structure) for k in tree.kids)

    def group(self, tree: Any, structure: bool) -> str:
        text = self.size(tree, structure)
        return f"({text})" if isinstance(tree, Sum) and len(tree.kids) > 1 else text

    def leaf(self, leaf: CutLeaf, structure: bool) -> str:
        name = self.program.leaf_names.get(leaf.id, f"d{leaf.id}")
        axes = "_".join(self.axis_word(p) for p in leaf.parts)
        key = (name, leaf.size, leaf.parts)
        if not leaf.parts and not structure and isinstance(leaf.size, sympy.Symbol):
            return str(leaf.size)
        if key not in self.dims:
            variable = f"{name}_{axes}" if axes else name
            while variable in self.taken:
                variable += "_"
            self.taken.add(variable)
            self.dims[key] = variable
            parts = f", {self.parts(leaf.parts)}" if leaf.parts else ""
            self.dim_lines.append(f"{variable} = r.dim({name!r}, {leaf.size}{parts})")
        return self.dims[key]

    def axis_word(self, part: Part) -> str:
        plain = part.axis if part.mesh == self.mesh else f"{mesh_of(part.mesh)}_{part.axis}"
        if part.rule == "balanced":
            return plain
        return f"{plain}_{rule_word(part.rule)}"

    def parts(self, parts: Iterable[Part]) -> str:
        texts = [part_text(part, self.mesh) for part in parts]
        return texts[0] if len(texts) == 1 else "(" + ", ".join(texts) + ")"

    def note(self, held: Held) -> str:
        """`f32[B, T, ffn_tp]`, with the pending sum if there is one."""
        shape = ", ".join(self.size(d) for d in held.layout.dims)
        pending = "+".join(self.axis_word(p) for p in held.layout.partial)
        tail = f"  partial over {pending}" if pending else ""
        return f"{SHORT.get(held.dtype, str(held.dtype).removeprefix('torch.'))}[{shape}]{tail}"
