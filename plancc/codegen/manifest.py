"""The artifact folder: manifest.json, one program file a class, resolved plan, buffers.

Written whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from plancc.codegen.names import part_text, weight_key
from plancc.codegen.python import SHORT, emit_program
from plancc.dsl.plan import ResolvedPlan, Variant
from plancc.ir.graph import Graph
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Prod, Stage, cuts
from plancc.ir.mesh import World
from plancc.ir.program import (
    Balanced,
    Compute,
    Held,
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Weight,
    produced,
)
from plancc.ir.schedule import merged_order

SCHEMA = "plancc/artifact@1"


def tree_json(tree: LocalTree, names: Mapping[int, str]) -> list[Any]:
    """["leaf", name, size, [parts]] | ["mul", ...] | ["add", ...]; sizes are ints or text over B, T, P."""
    if isinstance(tree, CutLeaf):
        size = tree.size if isinstance(tree.size, int) else str(tree.size)
        parts = [part_text(p, "") for p in tree.parts]
        return ["leaf", names.get(tree.id, f"d{tree.id}"), size, [p.strip("'") for p in parts]]
    return ["mul" if isinstance(tree, Prod) else "add", *(tree_json(k, names) for k in tree.kids)]


def layout_json(layout: Layout, names: Mapping[int, str]) -> list[Any]:
    """One tree a dim."""
    return [tree_json(dim, names) for dim in layout.dims]


def stage_json(stage: Stage) -> dict[str, Any]:
    """Mesh and fixed coordinates."""
    return {"mesh": stage.mesh, "coords": dict(stage.coords)}


def held_json(held: Held, names: Mapping[int, str]) -> dict[str, Any]:
    """Where a value lies and how."""
    return {
        "stage": stage_json(held.stage),
        "dims": layout_json(held.layout, names),
        "dtype": SHORT.get(held.dtype, str(held.dtype)),
    }


def weight_json(program: RankProgram, weight: Weight) -> dict[str, Any]:
    """One row of the weight table."""
    names = program.leaf_names
    return {
        "key": weight_key(program, weight), "fqns": list(weight.fqns), "kind": weight.kind,
        **held_json(weight.held, names),
    }  # fmt: skip


def caches_json(program: RankProgram) -> dict[str, Any]:
    """slot -> how this class holds the keys and values of one attention."""
    out = {}
    for step in program.instructions:
        if isinstance(step, Compute) and step.target == "plancc.cache_append.default":
            found = [held_json(held, program.leaf_names) for held in step.outs]
            out[str(step.args[2])] = found
    return out


def program_json(program: RankProgram, file: str) -> dict[str, Any]:
    """What the runtime needs of one class of ranks."""
    names = program.leaf_names
    return {
        "file": file,
        "name": program.name,
        "mesh": program.stages[0].mesh if program.stages else "",
        "ranks": list(program.ranks),
        "inputs": [held.name for held in program.inputs],
        "weights": [weight_json(program, w) for w in program.weights],
        "outputs": {name: held_json(held, names) for name, held in program.outputs.items()},
        "caches": caches_json(program),
        "stages": [stage.mesh for stage in program.stages],
        "traffic": traffic_json(program),
        **training_json(program),
    }


def training_json(program: RankProgram) -> dict[str, Any]:
    """What only training programs have: their functions, and where reduced gradients lie, by weight key."""
    if not program.sections:
        return {}
    keys = {w.held.name: weight_key(program, w) for w in program.weights}
    names = program.leaf_names
    return {
        "sections": [{"kind": s.kind, "chunk": s.chunk} for s in program.sections],
        "gradients": {keys[n]: held_json(held, names) for n, held in program.gradients.items()},
    }


def traffic_json(program: RankProgram) -> list[dict[str, Any]]:
    """What this class takes from other stages and what it merges; equal rows once, with their number."""
    held = {out.name: out for step in program.instructions for out in produced(step)}
    found: Counter[str] = Counter()
    for step in program.instructions:
        if isinstance(step, Recv):
            row = held_json(step.out, program.leaf_names) | {
                "kind": "receive", "from": stage_json(step.edge.source)
            }  # fmt: skip
        elif isinstance(step, Merge):
            row = held_json(held[step.operand], program.leaf_names) | {
                "kind": "merge", "over": step.part.count, "dtype": SHORT[step.out_rows.dtype]
            }  # fmt: skip
        else:
            continue
        found[json.dumps(row)] += 1
    return [{**json.loads(text), "count": count} for text, count in found.items()]


def write_artifact(
    folder: Path,
    plan: ResolvedPlan,
    world: World,
    sets: Sequence[tuple[Variant, ProgramSet]],
    graph: Graph,
    facts: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write everything aside, then move it into place: the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _fill(aside, plan, world, sets, graph, facts, weights)
        put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`, in place of what is there; of several writers at once the last one wins."""
    while True:
        try:
            os.replace(aside, folder)
            return
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        try:
            os.replace(folder, old / "was")
        except FileNotFoundError:
            pass  # another writer was faster
        finally:
            shutil.rmtree(old)


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors contiguous and each in a storage of its own, as a safetensors file wants them."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        start = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return out


def _fill(aside: Path, plan, world, sets, graph: Graph, facts, weights) -> None:
    from safetensors.torch import save_file

    os.chmod(aside, 0o755)
    programs = []
    for variant, found in sets:
        rows = []
        for number, program in enumerate(found.programs):
            file = f"{found.phase}_v{variant.index}_c{number}.py"
            (aside / file).write_text(emit_program(program, plan.name))
            rows.append(program_json(program, file))
        programs.append(
            {
                "phase": found.phase,
                "variant": variant.index,
                "guard": variant.text,
                "bounds": {k: list(v) for k, v in variant.bounds.items()},
                "microbatches": found.microbatches,
                "owned": ruled_parts(found, "owned"),
                **schedule_json(found),
                **balance_json(found.balance),
                **({"loaded": loaded} if (loaded := ruled_parts(found, "loaded")) else {}),
                **({"turns": found.turns} if found.turns > 1 else {}),
                "classes": rows,
            }
        )
    buffers = {p.value.name: p.data for p in graph.params.values() if p.data is not None}
    if buffers:
        save_file(apart(buffers), str(aside / "buffers.safetensors"))
    if weights is not None:
        save_file(apart(weights), str(aside / "weights.safetensors"))
    (aside / "resolved-plan.json").write_text(json.dumps(plan_json(plan), indent=1, default=str))
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(aside.iterdir())
    }
    manifest = {
        "schema": SCHEMA,
        "plan": plan.name,
        **facts,
        "world": world.size,
        "grids": {
            name: {"axes": [list(a) for a in grid.axes], "ranks": list(grid.ranks)}
            for name, grid in world.grids.items()
        },
        "pools": pools_json(plan, world),
        "nodes": [d // world.per_node for d in world.devices] if world.per_node else [],
        "inputs": {k: list(v) for k, v in plan.inputs.items()},
        "limits": dict(graph.limits),
        "params": params_json(graph),
        "programs": programs,
        "files": hashes,
    }
    text = json.dumps(manifest, indent=1)
    manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))


def pools_json(plan: ResolvedPlan, world: World) -> dict[str, Any]:
    """Each pool: its ranks in the order in which they are taken, `linger` in seconds, grid by variant."""
    rank_of = {device: rank for rank, device in enumerate(world.devices)}
    return {
        mesh.name: {
            "ranks": [rank_of[device] for device in mesh.devices],
            "linger": next((float(s.value) for s in mesh.settings if s.name == "linger"), 0.0),
            "grids": {
                str(v.index): world.names[mesh.name, v.index]
                for v in plan.variants
                if (mesh.name, v.index) in world.names
            },
        }
        for mesh in plan.meshes.values()
        if mesh.is_pool
    }


def schedule_json(programs: ProgramSet) -> dict[str, Any]:
    """The order of actions (kind, chunk, micro-batch): a class runs those of its own chunks, in this order.

    Nothing without a pipeline.
    """
    found = programs.schedule
    if found is None:
        return {}
    order = [[a.kind, a.chunk, a.batch] for a in merged_order(found)]
    return {"schedule": {"name": found.name, "stages": found.stages, "order": order}}


def balance_json(layers: Sequence[Balanced]) -> dict[str, Any]:
    """The expert layers that tables place; nothing without any."""
    rows = [
        {f.name: getattr(one, f.name) for f in fields(one)}
        | {"part": part_text(one.part, "").strip("'")}
        for one in layers
    ]
    return {"balance": rows} if rows else {}


def ruled_parts(programs: ProgramSet, rule: str) -> list[str]:
    """The parts of a rule: the runtime keeps a table for each.

    `owned`: caches are cut along the sequence; `loaded`: rows are shared out by pace.
    """
    found = {
        part_text(part, "").strip("'"): None
        for program in programs.programs
        for step in program.instructions
        for held in produced(step)
        for dim in held.layout.dims
        for leaf in cuts(dim)
        for part in leaf.parts
        if part.rule.startswith(rule)
    }
    return list(found)


def params_json(graph: Graph) -> dict[str, Any]:
    """Every parameter and buffer: names, shape, dtype, and where its data comes from."""
    return {
        name: {
            "fqns": list(param.fqns), "kind": param.kind,
            "shape": [int(s) for s in param.value.shape],
            "dtype": SHORT.get(param.value.dtype, str(param.value.dtype)),
            "stored": param.data is not None,
        }
        for name, param in graph.params.items()
    }  # fmt: skip


def plan_json(plan: ResolvedPlan) -> dict[str, Any]:
    """The resolved plan as plain data (schema plancc/plan@1)."""
    return {
        "schema": "plancc/plan@1",
        "name": plan.name,
        "edition": plan.edition,
        "params": dict(plan.params),
        "facts": dict(plan.facts),
        "inputs": {k: list(v) for k, v in plan.inputs.items()},
        "meshes": {
            m.name: {
                "axes": [[a.name, a.size] for a in m.axes],
                "devices": list(m.devices),
                "budget": m.budget,
            }
            for m in plan.meshes.values()
        },
        "places": [place_json(place) for place in plan.places],
        "files": {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in plan.files.items()
        },
    }


def place_json(place: Any) -> dict[str, Any]:
    """One place: targets, mesh, rules as text, guard, line."""
    return {
        "targets": [
            {"kind": t.kind, "pattern": t.pattern, "within": t.within} for t in place.targets
        ],
        "on": place.mesh,
        "coords": dict(place.coords),
        "rules": [
            {"verb": r.verb, "dims": list(r.dims), "axes": list(r.axes)}
            for r in place.rules
            if hasattr(r, "verb")
        ],
        "when": place.guard.text if place.guard else None,
        "line": str(place.span),
    }
