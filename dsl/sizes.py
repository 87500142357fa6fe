"""Checks of a split against known sizes and the hardware: P303, P308, P601."""

from __future__ import annotations

import math
from collections.abc import Iterable

from plancc.dsl.expressions import value_of
from plancc.dsl.plan import Cluster, Job, Mesh, Place, Target
from plancc.dsl.scope import Env
from plancc.dsl.source import Span
from plancc.dsl.vocabulary import SIZED_DIMS, TENSOR_DIMS
from plancc.dsl.walk import Walk


def check_splits(place: Place, meshes: list[Mesh], env: Env, walk: Walk) -> None:
    """Warn of splits that are uneven, break up kv heads, or cross nodes."""
    for job in place.rules:
        if not isinstance(job, Job) or job.verb != "split" or not job.axes:
            continue
        for mesh in meshes:
            if not set(job.axes) <= {axis.name for axis in mesh.axes}:
                continue
            for dim in job.dims:
                for parts in _part_counts(job, mesh):
                    _check_even(job, dim, parts, place.targets, env)
                    _check_kv(job, dim, parts, env)
            if set(job.dims) & set(TENSOR_DIMS):
                _check_nodes(job, mesh, walk)


def part_sizes(size: int, parts: int) -> list[tuple[int, int]]:
    """How a balanced split cuts `size`: (part size, how many parts), larger ones first."""
    small, larger = divmod(size, parts)
    found = [(small + 1, larger), (small, parts - larger)]
    return [item for item in found if item[1]]


def _part_counts(job: Job, mesh: Mesh) -> list[int]:
    """Into how many parts a job cuts; several where a pool axis can have several sizes."""
    counts = {1}
    for name in job.axes:
        axis = mesh.axis(name)
        sizes = [step for step in axis.steps if step] if axis.steps else [axis.size]
        counts = {count * size for count in counts for size in sizes}
    return sorted(count for count in counts if count > 1)


def _fact(name: str, env: Env) -> tuple[int, Span] | None:
    entry = env.world.facts.get(name)
    value = value_of(entry, env) if entry is not None else None
    return (value, entry.node.span) if entry is not None and isinstance(value, int) else None


def _check_even(job: Job, dim: str, parts: int, targets: Iterable[Target], env: Env) -> None:
    if dim not in SIZED_DIMS or "block" in job.options:
        return
    name = dim
    inside_experts = any("experts" in f"{t.pattern} {t.within}" for t in targets)
    if dim == "ffn" and inside_experts and "expert_ffn" in env.world.facts:
        name = "expert_ffn"
    known = _fact(name, env)
    if known is None or known[0] % parts == 0:
        return
    size = known[0]
    shares = ", ".join(f"{part} on {count}" for part, count in part_sizes(size, parts))
    divisors = [str(n) for n in range(2, min(size, 4096) + 1) if size % n == 0 and n <= parts]
    helps = ["to say that this is meant: (block = balanced)"]
    helps.append(f"for a short last block: (block = ceil({dim} / {' / '.join(job.axes)}))")
    if divisors:
        helps.append(f"sizes that divide {size}: {', '.join(divisors[-8:])}")
    env.world.report.warning(
        "P303", f"{size} {dim} over {parts} devices are uneven: {shares}", job.axis_spans[0],
        label=f"{' x '.join(job.axes)} = {parts}", labels=[(known[1], f"{name} = {size}")],
        help=helps,
    )  # fmt: skip


def _check_kv(job: Job, dim: str, parts: int, env: Env) -> None:
    heads, kv_heads = _fact("heads", env), _fact("kv_heads", env)
    if dim != "heads" or heads is None or kv_heads is None or kv_heads[0] >= heads[0]:
        return
    count = kv_heads[0]
    if count % parts == 0 or (parts < count and heads[0] % parts):
        return
    if parts % count == 0:
        what = f"each kv head is kept by {parts // count} devices"
    elif parts > count:
        what = "some kv heads are kept by several devices"
    else:
        shares = ", ".join(f"{part} on {n}" for part, n in part_sizes(count, parts))
        what = f"whole groups of heads move together: {shares} kv heads"
    env.world.report.warning(
        "P308", f"{count} kv_heads cannot follow {heads[0]} heads over {parts} devices",
        job.axis_spans[0], label=f"{' x '.join(job.axes)} = {parts}",
        labels=[(kv_heads[1], f"kv_heads = {count}")], notes=what,
    )  # fmt: skip


def _check_nodes(job: Job, mesh: Mesh, walk: Walk) -> None:
    """P601, once for each axis of a mesh."""
    cluster = walk.world.cluster
    if cluster is None:
        return
    for name, span in zip(job.axes, job.axis_spans, strict=True):
        axis = mesh.axis(name)
        per_node = _crosses(mesh, name, cluster)
        if axis.steps or per_node is None or (mesh.name, name) in walk.crossing:
            continue
        walk.crossing.add((mesh.name, name))
        inside = math.prod(a.size for a in mesh.axes[mesh.axes.index(axis) + 1 :])
        fits = axis.size <= per_node
        help = f"make `{name}` the last axis" if fits and inside > 1 else (
            "choose devices so that each group lies in one node" if fits
            else f"at most {per_node}"
        )  # fmt: skip
        walk.world.report.warning(
            "P601", f"axis `{name}` of `{mesh.name}` crosses nodes", span,
            label="communicates within each layer, over the slow network", help=help,
            labels=[(axis.span, _axis_label(name, axis.size, inside, per_node))],
        )  # fmt: skip


def _axis_label(name: str, size: int, inside: int, per_node: int) -> str:
    within = f" with {inside} devices inside it" if inside > 1 else ""
    return f"{name} = {size}{within}; a node has {per_node}"


def _crosses(mesh: Mesh, name: str, cluster: Cluster) -> int | None:
    """The devices of a node if some group along the axis spans several nodes, else None."""
    place = next(i for i, axis in enumerate(mesh.axes) if axis.name == name)
    stride = math.prod(axis.size for axis in mesh.axes[place + 1 :])
    size = mesh.axes[place].size
    for start in range(len(mesh.devices)):
        if start // stride % size:
            continue
        members = [mesh.devices[start + i * stride] for i in range(size)]
        nodes = {_node(device, cluster) for device in members}
        known = {per_node for _, _, per_node in nodes if per_node is not None}
        if len(nodes) > 1 and known:
            return min(known)
    return None


def _node(device: int, cluster: Cluster) -> tuple[str, int, int | None]:
    for group in cluster.groups:
        if group.first <= device < group.first + group.count:
            per_node = group.facts.get("per_node")
            number = (device - group.first) // per_node if per_node else 0
            return group.kind, number, per_node
    return "", 0, None
