"""`comm` and `pipeline` lines: what traffic they select, with the checks of one line."""

from __future__ import annotations

from plancc.dsl import tree as t
from plancc.dsl.placing import mode
from plancc.dsl.plan import Call, Comm, Pipeline, Setting
from plancc.dsl.schedules import read_schedule
from plancc.dsl.scope import Env, report_unknown
from plancc.dsl.settings import read_settings
from plancc.dsl.vocabulary import TENSOR_CLASSES, WIRE_TYPES
from plancc.dsl.walk import Context, Walk, find_axis, find_mesh, note_guards


def resolve_comm(node: t.CommLine, context: Context, walk: Walk) -> Comm | None:
    """One comm line; None if it names what is not there (reported)."""
    env = context.env
    settings = read_settings(node.attrs, "comm", env)
    note_guards(walk, node.attrs, settings, context.guard)
    if node.kind in ("edge", "both"):
        ends = [find_mesh(name, env) for name in node.names]
        _warn_lossy(node, settings, env, walk)
        if ends[0] is None or ends[1] is None:
            return None
        a, b = ends[0].name, ends[1].name
        return Comm(node.kind, a, b, (), None, None, settings, context.guard, node.span)
    assert node.over is not None
    for name in node.names:
        if name.text not in TENSOR_CLASSES:
            report_unknown(env, "tensor", name.text, name.span, others=TENSOR_CLASSES)
    found = find_axis(node.over, env)
    if found is None:
        return None
    mesh, axis = found
    names = tuple(name.text for name in node.names)
    return Comm(node.kind, None, None, names, mesh.name, axis, settings, context.guard, node.span)


def _warn_lossy(node: t.CommLine, settings: tuple[Setting, ...], env: Env, walk: Walk) -> None:
    """P505: a lossy type on a forward edge changes what an inference computes."""
    values = {attr.span: attr.value.span for attr in node.attrs}
    for setting in settings:
        wire = setting.value.name if isinstance(setting.value, Call) else setting.value
        if setting.name == "dtype" and WIRE_TYPES.get(wire) and mode(env) == "infer":
            walk.world.report.warning(
                "P505", f"values travel as {wire} while inferring", values[setting.span],
                label="loses digits",
                notes="results then differ from one device by more than rounding",
            )  # fmt: skip


def resolve_pipeline(node: t.PipelineLine, context: Context, walk: Walk) -> Pipeline | None:
    """One pipeline line; None if its axis or meshes are wrong (reported)."""
    env = context.env
    settings = read_settings(node.attrs, "pipeline", env)
    note_guards(walk, node.attrs, settings, context.guard)
    chain: tuple[str, ...] = ()
    mesh_name, axis_name = None, None
    if node.over is not None:
        found = find_axis(node.over, env)
        if found is None:
            return None
        mesh, axis_name = found
        mesh_name, stages = mesh.name, mesh.axis(axis_name).size
    else:
        meshes = [find_mesh(name, env) for name in node.chain]
        if any(mesh is None for mesh in meshes):
            return None
        chain = tuple(mesh.name for mesh in meshes if mesh is not None)
        if not _chain_ok(node, chain, walk):
            return None
        stages = len(chain)
    for other in walk.pipelines:
        if (other.mesh, other.axis, other.chain) == (mesh_name, axis_name, chain):
            walk.world.report.error(
                "P102", "this pipeline is declared twice", node.span,
                labels=[(other.span, "first declaration")],
            )  # fmt: skip
    stated = read_schedule(node, settings, stages, env)
    if stated is None:
        return None
    pipeline = Pipeline(
        mesh_name, axis_name, chain, stated.schedule, stated.microbatches, settings, node.span,
        stated.virtual, stated.table, stated.rows,
    )  # fmt: skip
    _check_one_virtual(pipeline, walk)
    return pipeline


def _check_one_virtual(pipeline: Pipeline, walk: Walk) -> None:
    """P509 for virtual stages on two axes of one mesh."""
    for other in walk.pipelines:
        if min(other.virtual, pipeline.virtual) > 1 and other.mesh == pipeline.mesh:
            walk.world.report.error(
                "P509", f"mesh `{pipeline.mesh}` has two pipelines with virtual stages",
                pipeline.span, labels=[(other.span, "the first")],
            )  # fmt: skip


def _chain_ok(node: t.PipelineLine, chain: tuple[str, ...], walk: Walk) -> bool:
    for place, name in enumerate(chain):
        if name in chain[:place]:
            walk.world.report.error(
                "P102", f"`{name}` is two stages of one pipeline", node.chain[place].span,
                labels=[(node.chain[chain.index(name)].span, "first stage")],
            )  # fmt: skip
            return False
    return True
