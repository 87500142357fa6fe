"""Lark's tree to our own: every rule of plan.lark that builds a node has a method here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lark import Token, Tree

from plancc.dsl import tree as t
from plancc.dsl.source import Source, Span

MAX_DEPTH = 150


class TooDeep(Exception):
    """An expression or block is nested beyond MAX_DEPTH."""

    def __init__(self, span: Span) -> None:
        super().__init__("nested too deeply")
        self.span = span


def build_file(tree: Tree[Token], source: Source) -> t.PlanFile:
    """The syntax tree of a parsed file; TooDeep if it is nested too deeply."""
    builder = _Builder(source)
    header = tree.children[0]
    name, edition = header.children  # type: ignore[union-attr]
    statements = tuple(builder.build(child) for child in tree.children[1:])
    return t.PlanFile(source, builder.word(name), builder.word(edition), statements)


class _Builder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.depth = 0

    # lark children are Trees, Tokens or None, by the rule: `Any` here, checked by tests.

    def build(self, node: Any) -> Any:
        """Build a statement, rule or item."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooDeep(self.span(node))
        method: Callable[[Any], Any] = getattr(self, f"build_{node.data.strip('_')}")
        built = method(node)
        self.depth -= 1
        return built

    def all(self, node: Any) -> tuple[Any, ...]:
        """Build the children of an optional list."""
        if node is None:
            return ()
        return tuple(self.build(child) for child in node.children if child is not None)

    def word(self, token: Any) -> t.Word:
        return t.Word(str(token), self.token_span(token))

    def words(self, node: Any) -> tuple[t.Word, ...]:
        return () if node is None else tuple(self.word(token) for token in node.children)

    def text(self, token: Any) -> t.Word:
        """A string token without its quotes."""
        return t.Word(str(token)[1:-1], self.token_span(token))

    def token_span(self, token: Any) -> Span:
        return Span(self.source, token.line, token.column, token.end_line, token.end_column)

    def span(self, node: Any) -> Span:
        meta = node.meta
        if meta.empty:
            return Span(self.source, 1, 1, 1, 2)
        return Span(self.source, meta.line, meta.column, meta.end_line, meta.end_column)

    def build_import(self, node: Any) -> t.Import:
        path, alias = node.children
        return t.Import(self.text(path), self.word(alias) if alias else None, self.span(node))

    def build_param(self, node: Any) -> t.Param:
        name, default, domain = node.children
        allowed = self.term(domain) if domain is not None else None
        return t.Param(self.word(name), self.term(default), allowed, self.span(node))

    def build_let(self, node: Any) -> t.Let:
        name, value = node.children
        return t.Let(self.word(name), self.term(value), self.span(node))

    def build_require(self, node: Any) -> t.Require:
        condition, message = node.children
        text = self.text(message).text if message is not None else None
        return t.Require(self.term(condition), text, self.span(node))

    def build_cluster(self, node: Any) -> t.ClusterBlock:
        name, *rest = node.children
        items = [self.build(child) for child in rest if child is not None]
        devices = tuple(item for item in items if isinstance(item, t.Devices))
        attrs = tuple(item for item in items if isinstance(item, t.Attr))
        return t.ClusterBlock(self.word(name), devices, attrs, self.span(node))

    def build_devices(self, node: Any) -> t.Devices:
        kind, count, attrs = node.children
        return t.Devices(self.word(kind), self.term(count), self.all(attrs), self.span(node))

    def build_model(self, node: Any) -> t.ModelBlock:
        name, *rest = node.children
        items = [self.build(child) for child in rest if child is not None]
        attrs = tuple(item for item in items if isinstance(item, t.Attr))
        dynamics = tuple(item for item in items if isinstance(item, t.Dynamic))
        dims = tuple(item for item in items if isinstance(item, t.DimName))
        return t.ModelBlock(self.word(name), attrs, dynamics, dims, self.span(node))

    def build_dynamic(self, node: Any) -> t.Dynamic:
        name, bounds = node.children
        return t.Dynamic(self.word(name), self.term(bounds), self.span(node))

    def build_dim(self, node: Any) -> t.DimName:
        name, pattern = node.children
        return t.DimName(self.word(name), self.word(pattern), self.span(node))

    def build_mesh(self, node: Any) -> t.MeshBlock:
        return self.mesh_block("mesh", node)

    def build_pool(self, node: Any) -> t.MeshBlock:
        return self.mesh_block("pool", node)

    def mesh_block(self, keyword: str, node: Any) -> t.MeshBlock:
        name, axes, devices, attrs = node.children
        return t.MeshBlock(
            keyword, self.word(name), self.all(axes), self.span(axes),
            self.all(devices), self.span(devices), self.all(attrs), self.span(node),
        )  # fmt: skip

    def build_axis(self, node: Any) -> t.Attr:
        name, value = node.children
        return t.Attr(self.word(name), self.term(value), None, self.span(node))

    build_option = build_axis

    def build_device_slice(self, node: Any) -> t.DeviceSlice:
        kind, index = node.children
        terms = None
        if index is not None:
            terms = tuple(self.term(child) for child in index.children if child is not None)
        return t.DeviceSlice(self.word(kind), terms, self.span(node))

    def build_place(self, node: Any) -> t.PlaceLine:
        targets, mesh, rules = node.children
        name, coords = None, ()
        if mesh is not None:
            name = self.word(mesh.children[0])
            coords = tuple(self.build(c) for c in mesh.children[1:] if c is not None)
        return t.PlaceLine(self.all(targets), name, coords, self.all(rules), self.span(node))

    def build_module(self, node: Any) -> t.TargetRef:
        token = node.children[0]
        word = self.text(token) if token.type == "STRING" else self.word(token)
        return t.TargetRef("module", word, None, self.span(node))

    def build_op(self, node: Any) -> t.TargetRef:
        name, within = node.children
        inside = self.word(within) if within is not None else None
        return t.TargetRef("op", self.word(name), inside, self.span(node))

    def build_split(self, node: Any) -> t.Rule:
        return self.rule(str(node.data), node, *node.children)

    build_replicate = build_split

    def build_combine(self, node: Any) -> t.Rule:
        name, by, over, options = node.children
        return t.Rule(
            "combine", (self.word(name),), self.word(by), self.words(over),
            self.all(options), self.span(node),
        )  # fmt: skip

    def build_share(self, node: Any) -> t.Rule:
        names, mesh, options = node.children
        source = self.word(mesh)
        return t.Rule("share", self.words(names), source, (), self.all(options), self.span(node))

    def rule(self, verb: str, node: Any, names: Any, over: Any, options: Any) -> t.Rule:
        return t.Rule(
            verb, self.words(names), None, self.words(over), self.all(options), self.span(node)
        )

    def build_when(self, node: Any) -> t.WhenBlock:
        guard, body = node.children
        return t.WhenBlock(self.term(guard), self.all(body), self.span(node))

    def build_comm_edge(self, node: Any) -> t.CommLine:
        a, b, attrs = node.children
        names = (self.word(a), self.word(b))
        kind = "edge" if node.data == "comm_edge" else "both"
        return t.CommLine(kind, names, None, self.all(attrs), self.span(node))

    build_comm_both = build_comm_edge

    def build_comm_over(self, node: Any) -> t.CommLine:
        names, over, attrs = node.children
        return t.CommLine(
            "tensors", self.words(names), self.term(over), self.all(attrs), self.span(node)
        )

    def build_comm_axis(self, node: Any) -> t.CommLine:
        over, attrs = node.children
        return t.CommLine("axis", (), self.term(over), self.all(attrs), self.span(node))

    def build_pipeline_axis(self, node: Any) -> t.PipelineLine:
        over, attrs = node.children
        return t.PipelineLine(self.term(over), (), self.all(attrs), self.span(node))

    def build_pipeline_chain(self, node: Any) -> t.PipelineLine:
        *names, attrs = node.children
        chain = tuple(self.word(name) for name in names)
        return t.PipelineLine(None, chain, self.all(attrs), self.span(node))

    def build_template(self, node: Any) -> t.Template:
        name, params, body = node.children
        return t.Template(self.word(name), self.words(params), self.all(body), self.span(node))

    def build_use(self, node: Any) -> t.Use:
        template, args = node.children
        return t.Use(self.term(template), self.terms(args.children), self.span(node))

    def build_attr(self, node: Any) -> t.Attr:
        name, value, guard = node.children
        when = self.term(guard) if guard is not None else None
        return t.Attr(self.word(name), self.term(value), when, self.span(node))

    def terms(self, nodes: Any) -> tuple[t.Term, ...]:
        return tuple(self.term(node) for node in nodes if node is not None)

    def term(self, node: Any) -> t.Term:
        """Build an expression."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooDeep(self.span(node))
        built = self.one_term(node)
        self.depth -= 1
        return built

    def one_term(self, node: Any) -> t.Term:
        kind, span, kids = str(node.data).strip("_"), self.span(node), node.children
        if kind == "string":
            return t.Term(kind, str(kids[0])[1:-1], (), span)
        if kind in ("int", "float", "quantity"):
            return t.Term(kind, str(kids[0]), (), span)
        if kind == "ref":
            return t.Term(kind, ".".join(str(kid) for kid in kids), (), span)
        if kind in ("binary", "compare"):
            return t.Term(kind, str(kids[1]), (self.term(kids[0]), self.term(kids[2])), span)
        if kind == "call":
            return t.Term(kind, str(kids[0]), self.terms(kids[1].children), span)
        if kind == "option":
            return t.Term(kind, str(kids[0]), (self.term(kids[1]),), span)
        return t.Term(kind, "", self.terms(kids), span)
