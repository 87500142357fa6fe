"""Which places of a plan cover which nodes and parameters of a graph, in plan order.

A place covers a module and all that lies inside it. A pattern is matched from the model's root, or from
the trunk (the wrapper that holds the layer list: `model`, `transformer`), whose name may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from plancc.dsl.pattern import Pattern
from plancc.dsl.plan import Place, ResolvedPlan, Setting, Share, Target, Variant
from plancc.ir.graph import Graph, Node


@dataclass(frozen=True)
class Modules:
    """The module paths of a graph, its trunk, and its layer list."""

    graph: Graph

    @cached_property
    def paths(self) -> frozenset[str]:
        """Every module path, the root included."""
        found = set(self.graph.modules) | {node.path for node in self.graph.nodes} | {""}
        for path in list(found):
            while path:
                path = path.rpartition(".")[0]
                found.add(path)
        return frozenset(found)

    @cached_property
    def layer_list(self) -> str:
        """The outermost module list with most modules inside ("model.layers"), "" if there is none."""
        inside: dict[str, int] = {}
        for path in self.paths:
            parts = path.split(".")
            at = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
            if at:
                outer = ".".join(parts[:at])
                inside[outer] = inside.get(outer, 0) + 1
        return min(inside, key=lambda p: (-inside[p], p.count("."), p)) if inside else ""

    @cached_property
    def wrappers(self) -> tuple[str, ...]:
        """Prefixes of the layer list that a pattern may leave out, longest first."""
        parts = self.layer_list.split(".")[:-1]
        return tuple(".".join(parts[:n]) for n in range(len(parts), 0, -1))

    @cached_property
    def layer_count(self) -> int:
        """How many layers the layer list has."""
        depth = self.layer_list.count(".") + 1
        heads = {p for p in self.paths if p.startswith(self.layer_list + ".")}
        return len({p.split(".")[depth] for p in heads if p.split(".")[depth].isdigit()})

    def layer_index(self, path: str) -> int | None:
        """The layer that `path` lies in, None outside the layer list."""
        head = self.layer_list + "."
        if not self.layer_list or not path.startswith(head):
            return None
        first = path[len(head) :].split(".")[0]
        return int(first) if first.isdigit() else None

    def forms(self, path: str) -> tuple[str, ...]:
        """`path`, and `path` without each wrapper it starts with."""
        short = tuple(path[len(w) + 1 :] for w in self.wrappers if path.startswith(w + "."))
        return (path, *short)

    def matching(self, pattern: str) -> frozenset[str]:
        """The module paths that `pattern` names."""
        compiled = Pattern.parse(pattern)
        return frozenset(p for p in self.paths if any(compiled.matches(f) for f in self.forms(p)))

    def parameters(self, pattern: str) -> frozenset[str]:
        """The value names of parameters whose checkpoint name matches `pattern`."""
        compiled = Pattern.parse(pattern)
        return frozenset(
            name
            for name, param in self.graph.params.items()
            for fqn in param.fqns
            if any(compiled.matches(form) for form in self.forms(fqn))
        )


CACHE = "plancc.cache_append.default"
CANONICAL_OPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("plancc.attention.default",),
    "experts": ("plancc.experts.default",),
    "linear": ("aten.linear.default", "aten.addmm.default"),
    "embedding": ("aten.embedding.default",),
    "matmul": ("aten.matmul.default", "aten.mm.default", "aten.bmm.default"),
    "layer_norm": ("aten.layer_norm.default", "aten.native_layer_norm.default"),
    "rms_norm": ("aten.rms_norm.default", "aten._fused_rms_norm.default"),
    "softmax": ("aten.softmax.int", "aten._softmax.default"),
    "conv": (
        *(f"aten.conv{d}d.{form}" for d in "123" for form in ("default", "padding")),
        "aten.convolution.default",
    ),
    "add": ("aten.add.Tensor", "aten.add.Scalar"),
    "mul": ("aten.mul.Tensor", "aten.mul.Scalar"),
    "gelu": ("aten.gelu.default",),
    "silu": ("aten.silu.default",),
    "relu": ("aten.relu.default",),
    "rope": (),
    "kv_cache": (CACHE,),
}
"""The operators that a word of the language means; rope is written out by models, so nothing is one."""


@dataclass(frozen=True, slots=True)
class Cover:
    """One place that covers a node, and the innermost module it matched (the scope of dim names)."""

    place: Place
    scope: str


def op_matches(place: Place, target: Target, node: Node) -> bool:
    """Whether an `op` target names the operator of `node` (canonical name, or `aten.mm`).

    The KV cache lives where attention runs, unless the place shares another mesh's (`share kv from`).
    """
    if target.pattern == "attention" and (node.target == CACHE or node.role == "attention"):
        return not any(isinstance(rule, Share) for rule in place.rules)
    known = CANONICAL_OPS.get(target.pattern)
    if known is not None:
        return node.target in known
    return node.target == target.pattern or node.target.startswith(target.pattern + ".")


def routes(place: Place) -> bool:
    """Whether a place routes tokens: it then speaks of the experts' own operator, not of the glue around it,
    which stays where the tokens are."""
    return any(isinstance(rule, Setting) and rule.name == "route" for rule in place.rules)


class Matcher:
    """Answers, for a plan and a graph, which places cover a node; caches by module path."""

    def __init__(self, plan: ResolvedPlan, graph: Graph, variant: Variant) -> None:
        self.plan = plan
        self.variant = variant.index
        self.modules = Modules(graph)
        self.places = tuple(
            p for p in plan.places if p.guard is None or variant.guards.get(p.guard.text, True)
        )
        self._sets: dict[str, frozenset[str]] = {}
        self._covers: dict[str, tuple[tuple[Place, Target, str], ...]] = {}

    def module_set(self, pattern: str) -> frozenset[str]:
        """Module paths named by `pattern`, cached."""
        if pattern not in self._sets:
            self._sets[pattern] = self.modules.matching(pattern)
        return self._sets[pattern]

    def _scope(self, target: Target, path: str) -> str | None:
        pattern = target.pattern if target.kind == "module" else target.within
        if pattern is None:
            return path
        matched = self.module_set(pattern)
        while True:
            if path in matched:
                return path
            if not path:
                return None
            path = path.rpartition(".")[0]

    def _candidates(self, path: str) -> tuple[tuple[Place, Target, str], ...]:
        if path not in self._covers:
            found = []
            for place in self.places:
                for target in place.targets:
                    scope = self._scope(target, path)
                    if scope is not None:
                        found.append((place, target, scope))
            self._covers[path] = tuple(found)
        return self._covers[path]

    def covers(self, node: Node) -> tuple[Cover, ...]:
        """The places that cover `node`, in plan order, each once."""
        found: dict[int, Cover] = {}
        for place, target, scope in self._candidates(node.path):
            if routes(place) and node.target not in CANONICAL_OPS["experts"]:
                continue
            if target.kind == "module" or op_matches(place, target, node):
                found.setdefault(id(place), Cover(place, scope))
        return tuple(found.values())

    def path_key(self, node: Node) -> tuple[str, str]:
        """Nodes with equal keys are covered by the same places."""
        ops = any(t.kind == "op" or routes(p) for p, t, _ in self._candidates(node.path))
        return (node.path, f"{node.target} {node.role}" if ops else "")
