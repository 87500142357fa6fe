"""Anchors: the structural places where classes of dims get their names.

Inputs name batch and seq, the token embedding vocab and hidden, attention heads and its kin, expert
operators experts and ffn; what one weight makes and another contracts is ffn; first match wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from plancc.ir.graph import BATCH, TOKENS, Graph, Node, Value
from plancc.ir.shape import Anchor, Binding, Leaf, Note, Operand, Sum, Tree, leaves

if TYPE_CHECKING:
    from plancc.passes.name_dims import Hint

Shapes = Mapping[str, tuple[Tree, ...]]

PRODUCTS = frozenset(
    f"aten.{op}"
    for op in (
        "linear.default",
        "addmm.default",
        "mm.default",
        "matmul.default",
        "bmm.default",
        "baddbmm.default",
        "einsum.default",
        "conv1d.default",
    )
)
ATTENTION = frozenset(("plancc.attention.default", "aten.scaled_dot_product_attention.default"))
COPIES = frozenset(
    [
        "to",
        "_to_copy",
        "alias",
        "clone",
        "contiguous",
        "detach",
        "dropout",
        "lift_fresh_copy",
        "view",
        "reshape",
        "_unsafe_view",
        "expand",
        "unsqueeze",
        "squeeze",
        "flatten",
        "type_as",
    ]
)


def find_anchors(
    graph: Graph, shapes: Shapes, bindings: Mapping[str, Binding], hints: Sequence[Hint]
) -> tuple[tuple[Anchor, ...], tuple[Note, ...]]:
    """Every named dim of the graph, those of `hints` first, and what could not be named.

    A loss names nothing: a training graph has the dims of its model.
    """
    if graph.results:
        model = tuple(node for node in graph.nodes if node.role != "loss")
        graph = replace(graph, nodes=model, outputs=graph.results)
    work = _Anchors(graph, shapes, bindings)
    work.add_hints(hints)
    work.add_inputs()
    work.add_embeddings()
    for node in graph.nodes:
        work.add_node(node)
    work.add_inner()
    return tuple(work.found.values()), tuple(work.notes)


def unique(found: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """Leaves without repeats, in order."""
    return tuple(dict.fromkeys(found))


def groups(tree: Tree) -> Iterator[tuple[Leaf, ...]]:
    """The dims that a tree concatenates, as leaves; a product with a sum in it, leaf by leaf."""
    if isinstance(tree, Sum):
        for kid in tree.kids:
            yield from groups(kid)
    elif isinstance(tree, Leaf):
        yield (tree,)
    elif any(isinstance(kid, Sum) for kid in tree.kids):
        for kid in tree.kids:
            yield from groups(kid)
    elif tree.kids:
        yield tuple(leaves(tree))


def within(path: str, scope: str) -> bool:
    """Whether a module path is `scope` or below it."""
    return not scope or path == scope or path.startswith(scope + ".")


def common(paths: Iterable[str]) -> str:
    """The lowest module that contains all of `paths`."""
    split = [path.split(".") if path else [] for path in paths]
    shared = []
    for steps in zip(*split, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    return ".".join(shared)


class _Anchors:
    def __init__(self, graph: Graph, shapes: Shapes, bindings: Mapping[str, Binding]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.bindings = bindings
        self.found: dict[tuple[str, str, tuple[Leaf, ...]], Anchor] = {}
        self.named: set[Leaf] = set()
        self.hinted: set[tuple[str, str]] = set()
        self.notes: list[Note] = []
        self.makers = {out.name: node for node in graph.nodes for out in node.outs}
        self.order = {node.name: index for index, node in enumerate(graph.nodes)}
        self.attention: list[Node] = []
        self.unrecognised: list[str] = []

    def add(self, path: str, name: str, found: Iterable[Leaf], label: str | None = None) -> None:
        """Name some leaves at a module."""
        chosen = unique(found)
        if chosen and (path, name) not in self.hinted:
            self.found.setdefault((path, name, chosen), Anchor(path, name, chosen, label))
            self.named.update(chosen)

    def add_hints(self, hints: Sequence[Hint]) -> None:
        """The names that the plan gives."""
        values = {fqn: n for n, p in self.graph.params.items() for fqn in p.fqns}
        for hint in hints:
            self.add(
                hint.path,
                hint.name,
                leaves(self.shapes[values.get(hint.value, hint.value)][hint.dim]),
            )
        self.hinted = {(hint.path, hint.name) for hint in hints}

    def add_inputs(self) -> None:
        """batch, seq and what else the shape of an input tells."""
        for value in self.graph.inputs:
            for name, tree in zip(_input_names(value), self.shapes[value.name], strict=True):
                if name:
                    self.add("", name, leaves(tree))

    def add_embeddings(self) -> None:
        """vocab and hidden of the token embedding: the largest table that a model input indexes."""
        inputs = {value.name for value in self.graph.inputs}
        tables = []
        for node in self.graph.nodes:
            if node.target != "aten.embedding.default":
                continue
            table, index = self.bindings[node.name].operands[:2]
            direct = self.source(index.value) in inputs
            tables.append((direct, self.shapes[table.value], node))
        largest = max((_size(shape[0]) for direct, shape, _ in tables if direct), default=0)
        for direct, (rows, width), _ in tables:
            if direct and _size(rows) == largest:
                self.add("", "vocab", leaves(rows))
                self.add("", "hidden", leaves(width))
        for _, (rows, _), node in tables:
            if not self.named.issuperset(leaves(rows)):
                self.add(node.path, "table", leaves(rows))

    def source(self, value: str) -> str:
        """The value behind copies, casts and views."""
        maker = self.makers.get(value)
        while maker is not None and maker.target.split(".")[1] in COPIES:
            value = next(maker.refs())
            maker = self.makers.get(value)
        return value

    def add_node(self, node: Node) -> None:
        """The names that one operator gives."""
        if node.target in ATTENTION:
            self.add_attention(node)
        elif node.target == "plancc.experts.default":
            self.add_labelled(node, "experts", "E")
            self.add_labelled(node, "ffn", "i")
        elif node.target in ("aten.einsum.default", "aten.bmm.default", "aten.baddbmm.default"):
            self.add_expert_weight(node)
        elif node.target.startswith("aten.conv2d."):
            self.add_patches(node)
        elif node.target.split(".")[1] in ("softmax", "_softmax"):
            self.add_eager_attention(node)

    def add_attention(self, node: Node) -> None:
        """heads, kv_heads, head_dim, v_dim, q_seq, kv_seq."""
        operands = self.bindings[node.name].operands[:3]
        q, k, v = (self.shapes[operand.value] for operand in operands)
        kv = (leaf for leaf in leaves(k[1]) if self.is_made(leaf, operands[1].value, set()))
        self.attention.append(node)
        self.add(node.path, "heads", leaves(q[1]))
        self.add(node.path, "kv_heads", kv)
        self.add(node.path, "head_dim", leaves(q[3]))
        self.add(node.path, "v_dim", leaves(v[3]))
        self.add(node.path, "q_seq", leaves(q[2]), "q")
        self.add(node.path, "kv_seq", leaves(k[2]), "s")

    def is_made(self, leaf: Leaf, value: str, seen: set[str]) -> bool:
        """Whether a weight or input brings the leaf into a value, and not only copies of a dim."""
        node = self.makers.get(value)
        if node is None:
            return True
        if value in seen:
            return False
        seen.add(value)
        for operand in self.bindings[node.name].operands:
            has = any(mine == leaf for mine, _ in self.occurrences(operand))
            if has and (node.target in PRODUCTS or self.is_made(leaf, operand.value, seen)):
                return True
        return False

    def add_labelled(self, node: Node, name: str, label: str) -> None:
        """The leaves under one label of a node."""
        self.add(
            node.path,
            name,
            (
                leaf
                for operand in self.bindings[node.name].operands
                for leaf, mine in self.occurrences(operand)
                if mine == label
            ),
        )

    def occurrences(self, operand: Operand) -> Iterator[tuple[Leaf, str]]:
        """Every leaf occurrence of an operand with its label."""
        for tree, labels in zip(self.shapes[operand.value], operand.labels, strict=True):
            yield from zip(leaves(tree), labels, strict=True)

    def add_expert_weight(self, node: Node) -> None:
        """experts: the leading dim of a 3-D weight."""
        for operand in self.bindings[node.name].operands:
            param = self.graph.params.get(self.source(operand.value))
            if param is None or param.kind != "param" or len(self.shapes[operand.value]) != 3:
                continue
            self.add(node.path, "experts", leaves(self.shapes[operand.value][0]))

    def add_patches(self, node: Node) -> None:
        """hidden and patch_grid of a patch embedding: a convolution of an image input."""
        binding = self.bindings[node.name]
        if self.source(binding.operands[0].value) in {value.name for value in self.graph.inputs}:
            out = self.shapes[node.outs[0].name]
            self.add("" if not self.has("", "hidden") else node.path, "hidden", leaves(out[1]))
            self.add(node.path, "patch_grid", (leaf for tree in out[2:] for leaf in leaves(tree)))

    def has(self, path: str, name: str) -> bool:
        """Whether a name is taken at a module."""
        return any(key[0] == path and key[1] == name for key in self.found)

    def add_eager_attention(self, node: Node) -> None:
        """heads of an attention written out as softmax and matmul, and a note about it."""
        reach = {node.outs[0].name}
        for other in self.graph.nodes[self.order[node.name] + 1 :][:12]:
            refs = list(other.refs())
            if not reach.intersection(refs):
                continue
            if other.target.split(".")[1] in COPIES:
                reach.add(other.outs[0].name)
            elif other.target in PRODUCTS and not any(r in self.graph.params for r in refs):
                batch = {leaf for leaf in self.named if leaf.size == BATCH}
                dims = self.shapes[node.outs[0].name][:-2]
                self.add(
                    node.path,
                    "heads",
                    (leaf for tree in dims for leaf in leaves(tree) if leaf not in batch),
                )
                self.unrecognised.append(node.path)
                self.notes.append(
                    Note(
                        node.path,
                        node.line,
                        (
                            "an attention was not recognised: only `heads` is named, and softmax "
                            "needs its whole dim"
                        ),
                    )
                )
                return

    def add_inner(self) -> None:
        """ffn, latent, hidden and output dims: what weights make and contract."""
        made, used = self.made_and_used()
        outputs = {
            leaf
            for value in self.graph.outputs.values()
            if self.shapes[value]
            for leaf in leaves(self.shapes[value][-1])
        }
        for chosen, nodes in made.items():
            if self.named.intersection(chosen):
                continue
            users = [user for leaf in chosen for user in used.get(leaf, ())]
            scope = common(node.path for node in (*nodes, *users))
            if users and not any(within(scope, path) for path in self.unrecognised):
                name = self.inner_name(scope, users)
                if name == "hidden":
                    self.rename(scope, "hidden", "embed_dim")
                self.add(scope, name, chosen)
            elif not users and outputs.issuperset(chosen):
                self.add(scope, self.output_name(chosen), chosen)

    def output_name(self, chosen: tuple[Leaf, ...]) -> str:
        """What an output dim made by weights is called: vocab if it is as large, else out."""
        sizes = {a.leaves[0].size for a in self.found.values() if a.name == "vocab"}
        return "vocab" if len(chosen) == 1 and chosen[0].size in sizes else "out"

    def rename(self, path: str, old: str, new: str) -> None:
        """Give the anchors called `old` at a module another name."""
        for key in [key for key in self.found if key[:2] == (path, old)]:
            anchor = self.found.pop(key)
            self.found[path, new, anchor.leaves] = replace(anchor, name=new)

    def inner_name(self, scope: str, users: list[Node]) -> str:
        """What a dim is called that weights make and contract inside `scope`."""
        for attention in self.attention:
            if within(scope, attention.path):
                early = all(self.order[u.name] < self.order[attention.name] for u in users)
                return "latent" if early else "ffn"
            if attention.path != scope and any(within(user.path, attention.path) for user in users):
                return "hidden"
        return "ffn"

    def made_and_used(self) -> tuple[dict[tuple[Leaf, ...], list[Node]], dict[Leaf, list[Node]]]:
        """Dims that weights bring in, and leaves that weights contract, with the nodes."""
        made: dict[tuple[Leaf, ...], list[Node]] = {}
        used: dict[Leaf, list[Node]] = {}
        weights = {name for name, param in self.graph.params.items() if param.kind == "param"}
        constant = set(self.graph.params)
        for node in self.graph.nodes:
            refs = list(node.refs())
            if refs and constant.issuperset(refs):
                constant.update(out.name for out in node.outs)
                if weights.intersection(refs):
                    weights.update(out.name for out in node.outs)
            elif node.target in PRODUCTS:
                self.sort_labels(node, weights, constant, made, used)
        return made, used

    def sort_labels(
        self,
        node: Node,
        weights: set[str],
        constant: set[str],
        made: dict[tuple[Leaf, ...], list[Node]],
        used: dict[Leaf, list[Node]],
    ) -> None:
        """Sort the dims of one product's weights into made and contracted ones."""
        binding = self.bindings[node.name]
        active = {
            label
            for op in binding.operands
            if op.value not in constant
            for labels in op.labels
            for label in labels
        }
        kept = {label for out in binding.outs for labels in out.labels for label in labels}
        for operand in binding.operands:
            if operand.value not in weights or operand.addend:
                continue
            for tree, labels in zip(self.shapes[operand.value], operand.labels, strict=True):
                if active.isdisjoint(labels) and kept.issuperset(labels):
                    for group in groups(tree):
                        made.setdefault(group, []).append(node)
                elif active.issuperset(labels) and kept.isdisjoint(labels):
                    for leaf in unique(leaves(tree)):
                        used.setdefault(leaf, []).append(node)


def _input_names(value: Value) -> tuple[str, ...]:
    """A name (or "") for each dim of a model input."""
    rank = len(value.shape)
    if value.dtype.is_floating_point:
        guess = {
            2: ("batch", "hidden"),
            3: ("batch", "seq", "hidden"),
            4: ("batch", "channels", "height", "width"),
        }.get(rank, ("batch",) + ("",) * (rank - 1))
    else:
        guess = ("batch", "seq", *[""] * rank)[:rank] if rank != 1 else ("",)
    symbols = {BATCH: "batch", TOKENS: "seq"}
    return tuple(symbols.get(size, name) for size, name in zip(value.shape, guess, strict=False))


def _size(tree: Tree) -> int:
    if isinstance(tree, Leaf):
        return tree.size if isinstance(tree.size, int) else 0
    total = 0 if isinstance(tree, Sum) else 1
    for kid in tree.kids:
        total = total + _size(kid) if isinstance(tree, Sum) else total * _size(kid)
    return total
