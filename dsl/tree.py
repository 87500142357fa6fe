"""The syntax tree of a plan file: what was written, before any name is looked up.

Every node has a span. Names keep theirs as `Word`s, since messages point at names.
"""

from __future__ import annotations

from dataclasses import dataclass

from plancc.dsl.source import Source, Span


@dataclass(frozen=True, slots=True)
class Word:
    """A name, or the text of a string or pattern."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Term:
    """An expression. `text` is the literal, name or operator.

    Kinds: int float quantity string true false ref binary negative compare and or not
    call (args, where an `option` has its name as text) list range (lo, hi, step).
    """

    kind: str
    text: str
    args: tuple[Term, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Attr:
    """`name = value [when guard]`; also an axis `name = value` and an option."""

    name: Word
    value: Term
    guard: Term | None
    span: Span


@dataclass(frozen=True, slots=True)
class Import:
    """`import "path" as alias`."""

    path: Word
    alias: Word | None
    span: Span


@dataclass(frozen=True, slots=True)
class Param:
    """`param name = default in domain`."""

    name: Word
    default: Term
    domain: Term | None
    span: Span


@dataclass(frozen=True, slots=True)
class Let:
    """`let name = expr`."""

    name: Word
    value: Term
    span: Span


@dataclass(frozen=True, slots=True)
class Require:
    """`require expr else "message"`."""

    condition: Term
    message: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Devices:
    """`devices kind[count] { ... }`."""

    kind: Word
    count: Term
    attrs: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ClusterBlock:
    """`cluster name { devices ...; network = ... }`."""

    name: Word
    devices: tuple[Devices, ...]
    attrs: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Dynamic:
    """`seq_len in 1..4096` in a model block."""

    name: Word
    bounds: Term
    span: Span


@dataclass(frozen=True, slots=True)
class DimName:
    """`dim inner = layers.*.mixer.in_proj.weight[0]` in a model block."""

    name: Word
    pattern: Word
    span: Span


@dataclass(frozen=True, slots=True)
class ModelBlock:
    """`model name { ... }`."""

    name: Word
    attrs: tuple[Attr, ...]
    dynamics: tuple[Dynamic, ...]
    dims: tuple[DimName, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class DeviceSlice:
    """`kind`, `kind[i]` (one index) or `kind[lo:hi:step]`."""

    kind: Word
    index: tuple[Term, ...] | None
    span: Span


@dataclass(frozen=True, slots=True)
class MeshBlock:
    """`mesh name[axes] on devices { ... }`, or `pool`."""

    keyword: str
    name: Word
    axes: tuple[Attr, ...]
    axes_span: Span
    devices: tuple[DeviceSlice, ...]
    devices_span: Span
    attrs: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class TargetRef:
    """A module pattern, or an operator with an optional pattern."""

    kind: str
    pattern: Word
    within: Word | None
    span: Span


@dataclass(frozen=True, slots=True)
class Rule:
    """`split`, `replicate`, `combine` or `share` inside a place."""

    verb: str
    names: tuple[Word, ...]
    by: Word | None
    over: tuple[Word, ...]
    options: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class PlaceLine:
    """`place targets on mesh[coords] { rules }`."""

    targets: tuple[TargetRef, ...]
    mesh: Word | None
    coords: tuple[Attr, ...]
    rules: tuple[Rule | Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class WhenBlock:
    """`when guard { ... }`."""

    guard: Term
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class CommLine:
    """`comm ...`; kind is edge, both, tensors or axis; `over` is the ref after `over`."""

    kind: str
    names: tuple[Word, ...]
    over: Term | None
    attrs: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class PipelineLine:
    """`pipeline over mesh.axis { }` or `pipeline a -> b { }`."""

    over: Term | None
    chain: tuple[Word, ...]
    attrs: tuple[Attr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Template:
    """`template name(params) { body }`."""

    name: Word
    params: tuple[Word, ...]
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Use:
    """`use template(args)`."""

    template: Term
    args: tuple[Term, ...]
    span: Span


Statement = (
    Import | Param | Let | Require | ClusterBlock | ModelBlock | MeshBlock | PlaceLine
    | WhenBlock | CommLine | PipelineLine | Template | Use
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A whole file."""

    source: Source
    name: Word
    edition: Word
    statements: tuple[Statement, ...]
