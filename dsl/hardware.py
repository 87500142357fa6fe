"""Hardware: the cluster block, meshes and pools on its devices, and their checks (P2xx)."""

from __future__ import annotations

import math
from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import describe, evaluate, whole_number
from plancc.dsl.plan import Axis, Cluster, DeviceGroup, Mesh, Setting
from plancc.dsl.scope import POISON, Entry, Env, Poison, World
from plancc.dsl.settings import read_facts, read_settings
from plancc.dsl.tree import DeviceSlice, MeshBlock
from plancc.dsl.vocabulary import COUNT, Kind

LOCAL = "local"  # the device kind of plans without a cluster: as many devices as asked for
MAX_DEVICES = 2**17


def resolve_cluster(world: World) -> Cluster | None:
    """The cluster of the plan, if it has one."""
    if world.cluster_block is None:
        return None
    block, scope = world.cluster_block
    env = Env(world, scope)
    groups: list[DeviceGroup] = []
    first = 0
    for devices in block.devices:
        count = whole_number(devices.count, env, "the number of devices", minimum=1)
        facts = read_facts(devices.attrs, "devices", env)
        if isinstance(count, int) and count > MAX_DEVICES:
            world.report.error("P110", f"{count} devices are too many", devices.count.span)
        elif any(group.kind == devices.kind.text for group in groups):
            world.report.error(
                "P102", f"`{devices.kind.text}` is declared twice", devices.kind.span
            )
        # A kind that failed is kept, empty: slices of it then stay silent.
        good = isinstance(count, int) and count <= MAX_DEVICES
        size = count if isinstance(count, int) and good else 0
        groups.append(DeviceGroup(devices.kind.text, first, size, facts, devices.span))
        first += size
    facts = read_facts(block.attrs, "cluster", env)
    return Cluster(block.name.text, tuple(groups), facts, block.span)


def mesh_entry(entry: Entry, env: Env) -> Mesh | Poison:
    """The mesh or pool of a declaration, or POISON if it is wrong."""
    node: MeshBlock = entry.node
    axes = _axes(node, env)
    ranged = {axis.name: COUNT for axis in axes if axis.steps}
    sizes = {name: Kind("a pool size", ("int",), minimum=0) for name in ranged}
    settings = read_settings(node.attrs, node.keyword, env, sizes)
    wanted = math.prod(axis.size for axis in axes)
    if wanted > MAX_DEVICES:
        env.world.report.error("P110", f"{wanted} devices are too many", node.axes_span)
        return POISON
    devices = _devices(node, wanted, env)
    if isinstance(devices, Poison) or len(axes) != len(node.axes):
        return POISON
    good = _check_size(node, axes, wanted, len(devices), env)
    good = _check_ranged(node, bool(ranged), env) and good
    _check_twice(node, devices, env)
    _check_steps(node, axes, settings, env)
    if not good:
        return POISON
    budget = next((s.value for s in settings if s.name == "budget" and s.guard is None), None)
    return Mesh(
        node.name.text, axes, devices, budget, settings,
        node.name.span.to(node.axes_span), node.keyword == "pool",
    )  # fmt: skip


def _axes(node: MeshBlock, env: Env) -> tuple[Axis, ...]:
    axes: dict[str, Axis] = {}
    for attr in node.axes:
        name = attr.name.text
        if name in axes:
            env.world.report.error(
                "P102", f"axis `{name}` is declared twice", attr.name.span,
                labels=[(axes[name].span, "first axis")],
            )  # fmt: skip
            continue
        value = evaluate(attr.value, env)
        if isinstance(value, v.Range) and value.lo >= 0 and value.hi >= 1:
            steps = tuple(range(value.lo, min(value.hi, MAX_DEVICES) + 1, value.step))
            axes[name] = Axis(name, steps[-1], attr.span, steps)
        elif v.kind_of(value) == "int" and 1 <= value <= MAX_DEVICES:
            axes[name] = Axis(name, value, attr.span)
        elif value is not POISON:
            env.world.report.error(
                "P110", f"axis `{name}` cannot have size {describe(value)}", attr.value.span,
                label="expected a number from 1, or a range in a pool",
            )  # fmt: skip
    return tuple(axes.values())


def _devices(node: MeshBlock, wanted: int, env: Env) -> tuple[int, ...] | Poison:
    """The device numbers of the device set, in the order written."""
    found: list[int] = []
    for part in node.devices:
        numbers = _slice(part, wanted, env)
        if isinstance(numbers, Poison):
            return POISON
        found.extend(numbers)
    return tuple(found)


def _slice(part: DeviceSlice, wanted: int, env: Env) -> range | Poison:
    cluster, kind = env.world.cluster, part.kind.text
    group = next((g for g in cluster.groups if g.kind == kind), None) if cluster else None
    if cluster is None and kind == LOCAL:
        return _indices(part, 0, None, wanted, env)
    if group is not None:
        if group.count == 0:
            return POISON
        return _indices(part, group.first, group.count, group.count, env)
    kinds = [g.kind for g in cluster.groups] if cluster else [LOCAL]
    near = did_you_mean(kind, kinds)
    help = f"did you mean `{near}`?" if near else f"known kinds: {', '.join(kinds)}"
    if cluster is None and near is None:
        help = f"declare a `cluster`, or use `{LOCAL}`, which has as many devices as are asked for"
    env.world.report.error(
        "P101", f"cannot find devices `{kind}`", part.kind.span, label="not declared", help=help,
        fix=near,
    )  # fmt: skip
    return POISON


def _indices(
    part: DeviceSlice, first: int, count: int | None, default: int, env: Env
) -> range | Poison:
    """The numbers of `kind[lo:hi:step]`; `count` is None where devices have no end."""
    if part.index is None:
        return range(first, first + default)
    numbers = [whole_number(term, env, "a device index") for term in part.index]
    if any(isinstance(number, Poison) for number in numbers):
        return POISON
    bounds = [number for number in numbers if isinstance(number, int)]
    lo = bounds[0]
    hi = bounds[1] if len(bounds) > 1 else lo + 1
    step = bounds[2] if len(bounds) > 2 else 1
    if hi > MAX_DEVICES or (count is not None and hi > count):
        size = f"has {count}" if count is not None else f"ends at {MAX_DEVICES}"
        env.world.report.error(
            "P202", f"`{part.kind.text}[{lo}:{hi}]` goes beyond the cluster", part.span,
            label=f"`{part.kind.text}` {size} devices",
        )  # fmt: skip
        return POISON
    if lo >= hi or step < 1:
        env.world.report.error("P202", "this slice holds no devices", part.span)
        return POISON
    return range(first + lo, first + hi, step)


def _check_size(node: MeshBlock, axes: tuple[Axis, ...], wanted: int, given: int, env: Env) -> bool:
    if wanted == given:
        return True
    product = " x ".join(f"{axis.name} {axis.size}" for axis in axes)
    count = "1 device" if given == 1 else f"{given} devices"
    env.world.report.error(
        "P201", f"{node.keyword} `{node.name.text}` needs {wanted} devices but is given {given}",
        node.axes_span, label=f"{product} = {wanted}", labels=[(node.devices_span, count)],
    )  # fmt: skip
    return False


def _check_ranged(node: MeshBlock, ranged: bool, env: Env) -> bool:
    if ranged == (node.keyword == "pool"):
        return True
    what = "a mesh has fixed axes" if ranged else "a pool needs an axis with a range"
    help = "write `pool`" if ranged else "write `mesh`, or a range such as sp = 0..32 step 8"
    env.world.report.error("P110", what, node.axes_span, help=help)
    return False


def _check_twice(node: MeshBlock, devices: tuple[int, ...], env: Env) -> None:
    seen: set[int] = set()
    twice = next((d for d in devices if d in seen or seen.add(d)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        env.world.report.error(
            "P205", f"{node.keyword} `{node.name.text}` names a device twice", node.devices_span,
            label=f"device {twice} of the cluster",
        )  # fmt: skip


def _check_steps(
    node: MeshBlock, axes: tuple[Axis, ...], settings: tuple[Setting, ...], env: Env
) -> None:
    """P403: every size that a pool sets must be a step of its axis."""
    values = {attr.span: attr.value.span for attr in node.attrs}
    for axis in axes:
        for setting in settings:
            if not axis.steps or setting.name != axis.name or setting.value in axis.steps:
                continue
            step = min(axis.steps, key=lambda s: (abs(s - setting.value), -s))
            env.world.report.error(
                "P403", f"`{axis.name} = {setting.value}` is not a step of the pool",
                values[setting.span], label=f"not in {step_text(axis)}",
                labels=[(axis.span, "declared here")], help=f"the nearest step is {step}",
            )  # fmt: skip


def step_text(axis: Axis) -> str:
    """The range of a pool axis as written."""
    gap = axis.steps[1] - axis.steps[0] if len(axis.steps) > 1 else 1
    return f"{axis.steps[0]}..{axis.size}" + (f" step {gap}" if gap != 1 else "")


def check_budgets(world: World) -> None:
    """P203 and P204: budgets against the memory of the devices, alone and added up."""
    if world.cluster is None:
        return
    memory: dict[int, int] = {}
    for group in world.cluster.groups:
        if "memory" in group.facts:
            memory.update({group.first + i: group.facts["memory"] for i in range(group.count)})
    meshes = [mesh for mesh in world.meshes.values() if mesh.budget is not None]
    for mesh in meshes:
        _check_budget(mesh, memory, world)
    _check_shared(meshes, memory, world)


def _check_budget(mesh: Mesh, memory: dict[int, int], world: World) -> None:
    assert mesh.budget is not None
    least = min((memory[d] for d in mesh.devices if d in memory), default=None)
    if least is not None and mesh.budget > least:
        span = next(s.span for s in mesh.settings if s.name == "budget")
        world.report.error(
            "P203", f"the budget of `{mesh.name}` exceeds the memory of its devices", span,
            label=f"a device has {v.size_text(least)}",
        )  # fmt: skip


def _check_shared(meshes: list[Mesh], memory: dict[int, int], world: World) -> None:
    holders: dict[int, list[Mesh]] = {}
    for mesh in meshes:
        for device in mesh.devices:
            holders.setdefault(device, []).append(mesh)
    reported: set[tuple[str, ...]] = set()
    for device, sharing in sorted(holders.items()):
        names = tuple(mesh.name for mesh in sharing)
        total = sum(mesh.budget or 0 for mesh in sharing)
        worst = any((m.budget or 0) > memory.get(device, total) for m in sharing)
        if len(names) < 2 or names in reported or total <= memory.get(device, total) or worst:
            continue
        reported.add(names)
        spans = [next(s.span for s in m.settings if s.name == "budget") for m in sharing]
        listed = " and ".join(f"`{name}`" for name in names)
        world.report.error(
            "P204", f"{listed} share devices and promise {v.size_text(total)} on each",
            spans[-1], label=f"a device has {v.size_text(memory[device])}",
            labels=[(span, f"and {v.size_text(m.budget or 0)} here")
                    for span, m in zip(spans[:-1], sharing[:-1], strict=True)],
        )  # fmt: skip


def axis_values(mesh: Mesh | None) -> dict[str, Any]:
    """What the axis names of a mesh mean inside its rules."""
    if mesh is None:
        return {}
    return {
        axis.name: v.Dynamic(("ref", axis.name)) if axis.steps else axis.size for axis in mesh.axes
    }
