"""Names: what each file declares, and the world that all files of one plan share.

Values are found on demand, so declarations may stand in any order. A declaration that
failed holds POISON: whoever uses it stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from plancc.dsl import tree as t
from plancc.dsl.diagnostics import Report, did_you_mean
from plancc.dsl.plan import Cluster, Mesh
from plancc.dsl.source import Source, Span


class Poison:
    """The value of whatever could not be resolved; already reported."""


POISON: Final = Poison()
UNSET: Final = object()


@dataclass(slots=True)
class Entry:
    """One declared name. `kind`: param let mesh pool template import fact.

    `compute` finds the value on first use.
    """

    kind: str
    name: t.Word
    node: Any
    scope: FileScope
    compute: Callable[[Entry, Env], Any]
    value: Any = UNSET
    busy: bool = False
    used: bool = False


@dataclass(slots=True)
class FileScope:
    """The names of one file; `prefix` is its path for `--set` ("" or "llama.")."""

    source: Source
    prefix: str
    is_root: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    statements: tuple[t.Statement, ...] = ()


@dataclass(slots=True)
class World:
    """Everything the files of one plan share."""

    report: Report
    sets: dict[str, str]
    facts: dict[str, Entry] = field(default_factory=dict)
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    model: tuple[t.ModelBlock, FileScope] | None = None
    cluster_block: tuple[t.ClusterBlock, FileScope] | None = None
    cluster: Cluster | None = None
    meshes: dict[str, Mesh] = field(default_factory=dict)
    dims: dict[str, Span] = field(default_factory=dict)
    sets_used: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    scopes: list[FileScope] = field(default_factory=list)
    broken: bool = False  # a mesh or place failed: who lives where is not fully known


@dataclass(frozen=True, slots=True)
class Env:
    """Where an expression or rule is read.

    `names` maps template parameters to (name, file) of the caller; `axes` are the axis
    names that a rule sees, with their sizes.
    """

    world: World
    file: FileScope
    names: Mapping[str, tuple[str, FileScope]] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)

    def with_axes(self, axes: Mapping[str, Any]) -> Env:
        """The same place, seeing these axes."""
        return Env(self.world, self.file, self.names, axes)

    def rename(self, name: str) -> tuple[str, FileScope]:
        """The name a template parameter stands for, and the file to look it up in."""
        return self.names.get(name, (name, self.file))


def lookup(env: Env, name: str) -> Entry | None:
    """The declaration that a plain or dotted name (`alias.name`) means; marks it used."""
    head, _, rest = name.partition(".")
    head, scope = env.rename(head)
    entry = scope.entries.get(head)
    if entry is None:
        return None
    entry.used = True
    if not rest:
        return entry
    if entry.kind != "import" or not isinstance(entry.value, FileScope):
        return None
    inner = entry.value.entries.get(rest)
    if inner is not None:
        inner.used = True
    return inner


def names_of(env: Env, *kinds: str) -> Iterator[str]:
    """All names of some kinds that can be written here, dotted ones included."""
    for name, entry in env.file.entries.items():
        if entry.kind in kinds:
            yield name
        elif entry.kind == "import" and isinstance(entry.value, FileScope):
            for inner, found in entry.value.entries.items():
                if found.kind in kinds:
                    yield f"{name}.{inner}"


def report_unknown(
    env: Env, what: str, name: str, span: Span, *kinds: str, others: tuple[str, ...] = ()
) -> None:
    """Report P101 for `name`, with the nearest declared name."""
    declared = list(names_of(env, *kinds))
    near = did_you_mean(name, [*declared, *others])
    if near is not None:
        helps = [f"did you mean `{near}`?"]
    else:
        shown = ", ".join((declared or list(others))[:8])
        helps = [f"known here: {shown}"] if shown else []
    env.world.report.error(
        "P101", f"cannot find {what} `{name}`", span, help=helps, fix=near,
        label="not declared" if kinds else "not known",
    )  # fmt: skip
