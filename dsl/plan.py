"""ResolvedPlan: what a plan file means once names, parameters, templates and imports are resolved.

Pure data, no torch. Produced by `plancc.dsl.load_plan`; read by the passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plancc.dsl.source import Span


@dataclass(frozen=True, slots=True)
class Expr:
    """An expression that needs run-time inputs (`seq_len > 4096`, `ceil(seq_len / 8)`).

    `tree` is nested tuples: ("int", 3), ("string", "decode"), ("ref", "seq_len"),
    ("binary", "+", a, b), ("negative", a), ("compare", "<=", a, b), ("and", a, b),
    ("or", a, b), ("not", a), ("call", "ceil", (args...)), ("bool", True). A ref is an input
    or an axis of the pool that the rule is on. What needs neither is already folded.
    """

    text: str
    tree: tuple[Any, ...]

    def evaluate(self, env: Mapping[str, Any]) -> Any:
        """The value with inputs from `env` (`seq_len`, `batch`, `tokens`, `phase`)."""
        from plancc.dsl.values import evaluate_tree

        return evaluate_tree(self.tree, env)


@dataclass(frozen=True, slots=True)
class Call:
    """A setting written as a call: `async(depth = 2)`, `int8(block = 128)`."""

    name: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """`name = value [when guard]` on a mesh, pool, place, comm or pipeline.

    Values are int, float, str, bool, tuple, Call, Expr, or range (as ("range", lo, hi, step)).
    Quantities are folded: bytes and counts to int, seconds to float, percent to a float fraction.
    """

    name: str
    value: Any
    guard: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Axis:
    """One mesh axis. `steps` are the sizes a pool axis can take (empty for a fixed axis)."""

    name: str
    size: int
    span: Span
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mesh:
    """A grid of devices: axes from major to minor, `devices` in row-major order of the grid.

    A device is its number in the cluster (0-based over all `devices` lines, in order).
    """

    name: str
    axes: tuple[Axis, ...]
    devices: tuple[int, ...]
    budget: int | None
    settings: tuple[Setting, ...]
    span: Span
    is_pool: bool = False

    def axis(self, name: str) -> Axis:
        """The axis called `name` (KeyError if there is none)."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Target:
    """Who: a module or parameter pattern, or an operator (`op attention in layers.*.self_attn`)."""

    kind: str  # "module" | "op"
    pattern: str  # for op: the operator's name
    within: str | None  # for op: module pattern, or None for everywhere
    span: Span


@dataclass(frozen=True, slots=True)
class Job:
    """`split DIMS over AXES (options)` or `replicate DIMS over AXES`."""

    verb: str  # "split" | "replicate"
    dims: tuple[str, ...]
    axes: tuple[str, ...]
    options: Mapping[str, Any]
    span: Span
    dim_spans: tuple[Span, ...]
    axis_spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Combine:
    """`combine out by logsumexp over sp (tree = [node, pod])`."""

    value: str
    by: str
    axes: tuple[str, ...]
    options: Mapping[str, Any]
    span: Span


@dataclass(frozen=True, slots=True)
class Share:
    """`share kv from base`."""

    values: tuple[str, ...]
    mesh: str
    options: Mapping[str, Any]
    span: Span


@dataclass(frozen=True, slots=True)
class Place:
    """`place TARGETS [on mesh[axis = k]] { rules }`, in the order of the file after expansion.

    `coords` fixes axes of the mesh (negative counts from the end, already normalised to >= 0).
    `guard` is the conjunction of the enclosing `when`s.
    """

    targets: tuple[Target, ...]
    mesh: str | None
    coords: Mapping[str, int]
    rules: tuple[Job | Combine | Share | Setting, ...]
    guard: Expr | None
    span: Span
    mesh_span: Span | None = None


@dataclass(frozen=True, slots=True)
class Comm:
    """Selected traffic and its settings.

    `comm a -> b` (kind "edge"), `a <-> b` ("both"), `grads over m.ax` ("tensors"),
    `over m.ax` ("axis").
    """

    kind: str
    source: str | None
    target: str | None
    tensors: tuple[str, ...]
    mesh: str | None
    axis: str | None
    settings: tuple[Setting, ...]
    guard: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`pipeline over mesh.axis {}` or `pipeline a -> b -> c {}`.

    `schedule` is "table" where the plan writes one: `table` then has one text a pipeline rank, as in
    "F0 F1 B0 B1", and `rows` says where each stands.
    """

    mesh: str | None
    axis: str | None
    chain: tuple[str, ...]
    schedule: str
    microbatches: int
    settings: tuple[Setting, ...]
    span: Span
    virtual: int = 1
    table: tuple[str, ...] = ()
    rows: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """`devices h100[40] { per_node = 8; memory = 80GB; link = 450GB/s; flops = ... }`."""

    kind: str
    first: int
    count: int
    facts: Mapping[str, Any]  # per_node:int, memory:int bytes, link:float bytes/s, flops:float ...
    span: Span


@dataclass(frozen=True, slots=True)
class Cluster:
    """The hardware; `facts` holds `network` (bytes/s) and what else the block states."""

    name: str
    groups: tuple[DeviceGroup, ...]
    facts: Mapping[str, Any]
    span: Span

    @property
    def size(self) -> int:
        """How many devices there are."""
        return sum(group.count for group in self.groups)


@dataclass(frozen=True, slots=True)
class DimRule:
    """A dim that the plan names: dim `index` of the parameters that match `pattern`."""

    name: str
    pattern: str
    index: int
    span: Span


@dataclass(frozen=True, slots=True)
class Variant:
    """One region of the guards: inside it every guard of the plan has one fixed truth value.

    `bounds` gives for each input its inclusive (lo, hi), `phase` one of forward, prefill,
    decode, train, or None (all). `guards` maps a guard's text to its truth here.
    """

    index: int
    text: str  # "4097 <= seq_len <= 16384", "always"
    bounds: Mapping[str, tuple[int, int]]
    phase: str | None
    guards: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """The whole plan.

    `facts` is the model block (layers, heads, mode ...) without the inputs; `inputs` holds
    the ranges of seq_len, batch, tokens (lo == hi where the plan fixes one).
    """

    name: str
    edition: int
    source_name: str
    params: Mapping[str, Any]
    cluster: Cluster | None
    model_name: str | None
    facts: Mapping[str, Any]
    fact_spans: Mapping[str, Span]
    inputs: Mapping[str, tuple[int, int]]
    meshes: Mapping[str, Mesh]  # meshes and pools, in order
    places: tuple[Place, ...]
    comms: tuple[Comm, ...]
    pipelines: tuple[Pipeline, ...]
    variants: tuple[Variant, ...]
    files: Mapping[str, str]  # name -> text of every plan file read (hashes, messages)
    dims: tuple[DimRule, ...] = ()  # dims that the model block names itself
