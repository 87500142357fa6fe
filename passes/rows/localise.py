"""Localise: the call that one rank makes for a node, its arguments adapted by the row's rules.

Sizes come from callbacks, so they may be ints (tests) or expressions of a rank (emitted programs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plancc.dsl.errors import Bug
from plancc.ir.factors import divide
from plancc.ir.graph import Node, Size
from plancc.ir.shape import Binding, Leaf, Operand, Prod, Sum, Tree, leaves
from plancc.passes.rows.call import Call, locate, schema
from plancc.passes.rows.form import bounds, plain

SizeOf = Callable[[Tree, Operand, int], Any]
"""(a dim's tree or a part of it, operand or output, dim) -> the size that is local to the rank."""

Cut = Callable[[Operand, int], bool]

RESHAPE = "aten.reshape.default"
SLICE = "aten.slice.Tensor"
SELECT = "aten.select.int"
SPLIT = "aten.split_with_sizes.default"
SHARD = "plancc.embedding_shard.default"
ROWS = "plancc.cross_entropy_shard.default"
MEAN, EXPERTS = "plancc.partial_mean.default", "plancc.experts.default"


def localise_args(
    node: Node,
    binding: Binding,
    shapes: Mapping[str, tuple[Tree, ...]],
    size_of: SizeOf,
    start_of: SizeOf,
    is_cut: Cut = lambda operand, dim: True,
    is_sized: Cut | None = None,
    full_of: Callable[[Tree], Any] | None = None,
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The target, arguments and keywords of a node on one rank; operands stay Refs by global name.

    `start_of` gives the first global index of the rank's part of a dim; `is_cut` says whether a dim
    of an operand is cut at all (shard kernels are used only where it is), `is_sized` whether its
    sizes are to be written through `size_of` even so; `full_of` gives the global size of a tree.
    """
    work = _Local(
        node, binding, shapes, size_of, start_of, is_cut, is_sized or is_cut, full_of or tree_size
    )
    for rule in binding.rules:
        name, _, argument = rule.partition(":")
        if name in _RULES:
            _RULES[name](work, argument)
        elif name not in _NO_ADAPTION:
            raise Bug(f"no rule `{rule}` (row `{binding.row}`)")
    return work.target, tuple(work.args), work.kwargs


@dataclass
class _Local:
    """A call on its way from global to local."""

    node: Node
    binding: Binding
    shapes: Mapping[str, tuple[Tree, ...]]
    size_of: SizeOf
    start_of: SizeOf
    is_cut: Cut
    is_sized: Cut
    full_of: Callable[[Tree], Any]

    def __post_init__(self) -> None:
        self.target = self.node.target
        self.args = list(self.node.args)
        self.kwargs = dict(self.node.kwargs)

    def become(self, target: str, *args: Any) -> None:
        self.target, self.args, self.kwargs = target, list(args), {}

    def size(self, operand: Operand, dim: int, tree: Tree | None = None) -> Any:
        tree = self.shapes[operand.value][dim] if tree is None else tree
        if next(leaves(tree), None) is None:
            return tree_size(tree)
        return self.size_of(tree, operand, dim)

    def labelled(self, operand: Operand, dim: int, label: str) -> Any:
        """The local size of those leaves of a dim that carry one label."""
        found = zip(leaves(self.shapes[operand.value][dim]), operand.labels[dim], strict=True)
        return self.size(operand, dim, Prod(tuple(leaf for leaf, mine in found if mine == label)))

    def argument(self, name: str) -> Any:
        """The global argument called `name`, or None."""
        return Call(self.node, {}, {}, {}).arg(name)

    def put(self, name: str, value: Any) -> None:
        """Set the argument called `name`."""
        place = locate(self.node, name)
        if place is not None and place[0] == "args":
            self.args[int(place[1])] = value
        else:
            self.kwargs[name] = value

    def any_cut(self, operand: Operand) -> bool:
        return any(self.is_sized(operand, dim) for dim in range(len(operand.labels)))

    def out_shape(self) -> tuple[Any, ...]:
        out = self.binding.outs[0]
        return tuple(self.size(out, dim) for dim in range(len(out.labels)))

    def boundary(self, operand: Operand, dim: int, at: Size) -> Any:
        """The local index of a global one; inside a leaf (which then is whole) they are equal."""
        part = prefix(self.shapes[operand.value][dim], at)
        return at if part is None else self.size(operand, dim, part)


def tree_size(tree: Tree) -> Size:
    """The global size of a tree."""
    if isinstance(tree, Leaf):
        return tree.size
    total: Size = 0 if isinstance(tree, Sum) else 1
    for kid in tree.kids:
        total = total + tree_size(kid) if isinstance(tree, Sum) else total * tree_size(kid)
    return total


def prefix(tree: Tree, at: Size) -> Tree | None:
    """The part of a dim before index `at`; None if `at` lies inside a leaf."""
    if at == 0:
        return Sum(())
    if at == tree_size(tree):
        return tree
    if isinstance(tree, Sum):
        position: Size = 0
        for index, kid in enumerate(tree.kids):
            if position == at:
                return Sum(tree.kids[:index])
            inside, size = at - position, tree_size(kid)
            if isinstance(inside, int) and isinstance(size, int) and inside < size:
                before = prefix(kid, inside)
                return None if before is None else Sum((*tree.kids[:index], before))
            position = position + size
    elif isinstance(tree, Prod) and tree.kids:
        inner = Prod(tree.kids[1:])
        outer = divide(at, tree_size(inner))
        before = None if outer is None else prefix(tree.kids[0], outer)
        return None if before is None else Prod((before, *inner.kids))
    return None


def _shape(work: _Local, argument: str) -> None:
    index = int(argument)
    if index < len(work.args):
        work.args[index] = work.out_shape()
    else:
        fields = schema(work.node.target)
        assert fields is not None
        work.kwargs[fields[index].name] = work.out_shape()


def _reshape(work: _Local, argument: str) -> None:
    work.become(RESHAPE, work.args[0], work.out_shape())


def _slice(work: _Local, argument: str) -> None:
    """`slice:DIM` or, where an index stands for a slice, `slice:DIM,START`."""
    where, _, given = argument.partition(",")
    dim, operand = int(where), work.binding.operands[0]
    if not work.is_sized(operand, dim):
        return
    step = 1 if given else work.argument("step") or 1
    if step != 1:
        start = work.argument("start") or 0
        work.become(SLICE, work.args[0], dim, start, work.size(operand, dim), step)
        return
    size = tree_size(work.shapes[operand.value][dim])
    length = tree_size(work.shapes[work.binding.outs[0].value][dim])
    low, length, _ = bounds(size, int(given) if given else work.argument("start"), length)
    begin, end = work.boundary(operand, dim, low), work.boundary(operand, dim, low + length)
    work.become(SLICE, work.args[0], dim, begin, end)


def _select(work: _Local, argument: str) -> None:
    dim, operand = int(argument), work.binding.operands[0]
    if work.is_sized(operand, dim):
        size = tree_size(work.shapes[operand.value][dim])
        low, _, _ = bounds(size, work.argument("index"), 1)
        work.become(SELECT, work.args[0], dim, work.boundary(operand, dim, low))


def _split(work: _Local, argument: str) -> None:
    dim, operand = int(argument), work.binding.operands[0]
    if work.is_sized(operand, dim):
        sizes = tuple(work.size(out, dim) for out in work.binding.outs)
        work.become(SPLIT, work.args[0], sizes, dim)


def _slice_scatter(work: _Local, argument: str) -> None:
    dim, (base, source) = int(argument), work.binding.operands
    if work.is_sized(base, dim):
        size = tree_size(work.shapes[base.value][dim])
        length = tree_size(work.shapes[source.value][dim])
        low, length, _ = bounds(size, work.argument("start"), length)
        begin, end = work.boundary(base, dim, low), work.boundary(base, dim, low + length)
        work.become(work.target, *work.args[:2], dim, begin, end)


def _squeeze(work: _Local, argument: str) -> None:
    dims = tuple(int(dim) for dim in argument.split(",") if dim)
    work.become("aten.squeeze.dims", work.args[0], dims)


def _repeat(work: _Local, argument: str) -> None:
    """`repeat:NAMES`: the labels of the counts, one an output dim (`-` where there is none)."""
    out = work.binding.outs[0]
    if not work.any_cut(out):
        return
    counts = tuple(
        work.labelled(out, dim, name) for dim, name in enumerate(argument.split(",")) if name != "-"
    )
    single = work.node.target.startswith("aten.repeat_interleave")
    work.args[1] = counts[0] if single else counts


def _mean(work: _Local, argument: str) -> None:
    operand = work.binding.operands[0]
    dims = tuple(int(dim) for dim in argument.split(",") if dim)
    if not any(work.is_cut(operand, dim) for dim in dims):
        return
    count = work.full_of(Prod(tuple(work.shapes[operand.value][dim] for dim in dims)))
    keep = bool(work.argument("keepdim"))
    work.become(MEAN, work.args[0], dims, keep, count)


def _norm(work: _Local, argument: str) -> None:
    """The shape of the last dims, which are whole."""
    out, count = work.binding.outs[0], int(argument)
    first = len(out.labels) - count
    work.put("normalized_shape", tuple(work.size(out, first + i) for i in range(count)))


def _groups(work: _Local, argument: str) -> None:
    work.put("groups", work.labelled(work.binding.operands[0], 1, argument))


def _index_base(work: _Local, argument: str) -> None:
    """The rank's first row of the table, or first expert."""
    operand = next(o for o in work.binding.operands if o.labels[0] == (argument,))
    if work.target == EXPERTS:
        work.kwargs["total"] = work.full_of(work.shapes[operand.value][0])
    if not work.is_cut(operand, 0):
        return
    start = work.start_of(work.shapes[operand.value][0], operand, 0)
    if work.target == "aten.embedding.default":
        padding = work.argument("padding_idx")
        still = () if padding is None or padding < 0 else (padding,)
        work.become(SHARD, work.args[1], work.args[0], start, *still)
    else:
        work.kwargs["first"] = start


def _joined(work: _Local, argument: str) -> None:
    """The part of a cross-entropy that this rank's columns give."""
    logits = work.binding.operands[0]
    last = len(logits.labels) - 1
    if work.is_cut(logits, last) and any(argument == label for label in logits.labels[last]):
        start = work.start_of(work.shapes[logits.value][last], logits, last)
        work.become(ROWS, *work.args[:2], start)


def _q_start(work: _Local, argument: str) -> None:
    """The absolute position of the rank's first query."""
    query, key = work.binding.operands[:2]
    if not work.is_cut(query, 2):
        return
    start = work.start_of(work.shapes[query.value][2], query, 2)
    base: Size = work.argument("q_start")
    if isinstance(base, int) and base < 0:
        base = plain(tree_size(work.shapes[key.value][2]) - tree_size(work.shapes[query.value][2]))
    work.kwargs["q_start"] = start if base == 0 else start + base


_RULES: Mapping[str, Callable[[_Local, str], None]] = {
    "shape": _shape,
    "reshape": _reshape,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "squeeze": _squeeze,
    "slice_scatter": _slice_scatter,
    "repeat": _repeat,
    "mean": _mean,
    "norm": _norm,
    "groups": _groups,
    "index_base": _index_base,
    "joined": _joined,
    "q_start": _q_start,
}
_NO_ADAPTION = frozenset({"factory", "linear", "keys", "append"})
