"""Shapes as factor trees: what each tensor dim is made of, in index order.

A dim is a tree over leaves; a leaf *is* a class of dims (heads of layer 3, ffn, batch ...).
`Prod((heads, head_dim))` is a flattened product, outermost first; `Sum((q, k, v))` a concatenation.
Size-1 dims are `Prod(())`. The frozen result of the `name_dims` pass.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from plancc.ir.graph import Graph, Size


@dataclass(frozen=True, slots=True)
class Leaf:
    """One class of dims. Equal `id` means: the same index range, always cut together."""

    id: int
    size: Size


@dataclass(frozen=True, slots=True)
class Prod:
    """A flattened product, outermost first; no kids: size 1."""

    kids: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """A concatenation of parts."""

    kids: tuple[Tree, ...]


Tree = Leaf | Prod | Sum


def leaves(tree: Tree) -> Iterator[Leaf]:
    """Every leaf occurrence, in index order; its rank in this order is its *position*."""
    if isinstance(tree, Leaf):
        yield tree
    else:
        for kid in tree.kids:
            yield from leaves(kid)


@dataclass(frozen=True, slots=True)
class Operand:
    """How one node sees one value: a label per leaf occurrence.

    `labels[d][p]` names the index of the node's row that the p-th leaf of dim d belongs to.
    The same leaf may carry different labels in different places (a [seq, seq] mask: "q" and "s").
    `arg` locates the operand: ("args", 0) or ("kwargs", "mask") or ("args", 0, 2) inside a list.
    """

    value: str
    arg: tuple[str | int, ...]
    labels: tuple[tuple[str, ...], ...]
    addend: bool = (
        False  # a bias: joins after a contraction, so only one rank of a partial may add it
    )


@dataclass(frozen=True, slots=True)
class Binding:
    """One node's operator row, bound to its operands.

    `whole` labels must not be split here. A label absent from every output is contracted: splitting
    it leaves the outputs partial (a pending sum). `linear` rows let a partial operand pass through.
    `rules` names what lowering must adapt when an operand is local, e.g. "shape:1" (passes/rows).
    `dropped` labels are cut away (slice, select, split): absent from an output, not contracted.
    """

    node: str
    row: str  # the notation, for messages: "... i, o i, o -> ... o"
    operands: tuple[Operand, ...]
    outs: tuple[Operand, ...]
    whole: frozenset[str]
    linear: bool
    rules: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Anchor:
    """A named dim at a module: its leaves (outermost first), and the row label it means
    where one leaf has two (q_seq: "q", kv_seq: "s"); None where there is nothing to tell apart."""

    path: str
    name: str
    leaves: tuple[Leaf, ...]
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What `name_dims` noticed at a node that is no error: a dim left whole, heads not found."""

    path: str
    line: str
    text: str


@dataclass(frozen=True, slots=True)
class NamedGraph:
    """A graph with the factor trees of every value, each node's bound row, and the named dims."""

    graph: Graph
    shapes: Mapping[str, tuple[Tree, ...]]  # value name -> one tree a dim
    bindings: Mapping[str, Binding]  # node name -> binding
    anchors: tuple[Anchor, ...]
    notes: tuple[Note, ...] = ()
    _index: dict[str, _Places] = field(default_factory=dict, init=False, repr=False, compare=False)

    def lookup(self, path: str, name: str) -> tuple[Anchor, ...]:
        """Anchors called `name` at or below `path`; if none, the nearest enclosing module's."""
        if not self._index:
            self._index.update(_places(self.anchors))
        places = self._index.get(name)
        if places is None:
            return ()
        if not path:
            return places.all
        below = places.below(path)
        while not below and path:
            path = path.rpartition(".")[0]
            below = places.at.get(path, ())
        return below

    def names_at(self, path: str) -> tuple[str, ...]:
        """Every dim name that `lookup` would find from `path`, sorted."""
        return tuple(
            sorted(name for name in {a.name for a in self.anchors} if self.lookup(path, name))
        )


@dataclass(frozen=True, slots=True)
class _Places:
    """The anchors of one name: all of them, by path, and in path order for prefix searches."""

    all: tuple[Anchor, ...]
    at: Mapping[str, tuple[Anchor, ...]]
    keys: list[str]
    order: list[int]

    def below(self, path: str) -> tuple[Anchor, ...]:
        first = bisect_left(self.keys, path + ".")
        last = bisect_left(self.keys, path + "/")
        return tuple(self.all[i] for i in sorted(self.order[first:last]))


def _places(anchors: tuple[Anchor, ...]) -> dict[str, _Places]:
    groups: dict[str, list[Anchor]] = {}
    for anchor in anchors:
        groups.setdefault(anchor.name, []).append(anchor)
    found = {}
    for name, group in groups.items():
        at: dict[str, list[Anchor]] = {}
        for anchor in group:
            at.setdefault(anchor.path, []).append(anchor)
        keys = [anchor.path + "." for anchor in group]
        order = sorted(range(len(group)), key=keys.__getitem__)
        found[name] = _Places(
            tuple(group),
            {path: tuple(some) for path, some in at.items()},
            [keys[i] for i in order],
            order,
        )
    return found
