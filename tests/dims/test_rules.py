"""Rules, speed and phases: what lowering relies on beyond single rows."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zoo
from zoo import named

from plancc.ir.graph import PAST, TOKENS, Graph, Node, Ref, Value
from plancc.ir.shape import Leaf, Prod, Sum
from plancc.passes.capture import capture
from plancc.passes.derive_phases import derive_phase
from plancc.passes.name_dims import name_dims
from plancc.passes.rows import localise
from plancc.passes.rows.localise import prefix

README = Path(localise.__file__).parent / "README.md"


def test_the_readme_lists_every_rule() -> None:
    section = README.read_text().partition("## Rules")[2].partition("## Adding")[0]
    listed = set(re.findall(r"^\| `([a-z_]+)", section, re.MULTILINE))
    assert listed == set(localise._RULES) | localise._NO_ADAPTION


def test_every_rule_of_the_zoo_is_known() -> None:
    for name in ("llama", "gpt2", "falcon", "bert", "t5", "deepseek_v3", "gpt_oss"):
        for binding in named(name)[0].bindings.values():
            for rule in binding.rules:
                assert rule.partition(":")[0] in {*localise._RULES, *localise._NO_ADAPTION}


def test_prefixes_of_trees() -> None:
    q, k, half = Leaf(0, 6), Leaf(1, 3), Leaf(2, 4)
    dim = Sum((Prod((q, half)), Prod((k, half)), k))
    assert prefix(dim, 0) == Sum(())
    assert prefix(dim, 24) == Sum((Prod((q, half)),))
    assert prefix(dim, 36) == Sum((Prod((q, half)), Prod((k, half))))
    assert prefix(dim, 39) == dim
    assert prefix(dim, 5) is None and prefix(dim, 12) is None
    assert prefix(Prod((Sum((q, k)), half)), 24) == Prod((Sum((q,)), half))
    assert prefix(Sum((Leaf(3, PAST), Leaf(4, TOKENS))), PAST) == Sum((Leaf(3, PAST),))


def stamped(graph: Graph, layers: int) -> Graph:
    """A graph with its layer 1 repeated until it has `layers` layers."""
    blocks: dict[str, list[Node]] = {"before": [], "1": [], "after": []}
    for node in graph.nodes:
        layer = re.match(r"layers\.(\d)", node.path)
        kind = layer[1] if layer else ("after" if blocks["1"] else "before")
        blocks["before" if kind == "0" else kind].append(node)
    params = dict(graph.params)
    nodes = blocks["before"] + blocks["1"]
    first_in, last = _residual(blocks)
    for i in range(2, layers):
        names = {o.name: f"{o.name}_{i}" for n in blocks["1"] for o in n.outs} | {
            name: f"{name}_{i}" for name in graph.params if "layers_1_" in name
        }
        for name in list(names):
            if name in graph.params:
                old = graph.params[name]
                params[names[name]] = replace(
                    old,
                    value=replace(old.value, name=names[name]),
                    fqns=tuple(f.replace("layers.1.", f"layers.{i}.") for f in old.fqns),
                )
        source = last if i == 2 else f"{last}_{i - 1}"
        nodes += [_renamed(n, names | {first_in: source}, i) for n in blocks["1"]]
    ending = {last: f"{last}_{layers - 1}"}
    nodes += [_renamed(n, ending, None) for n in blocks["after"]]
    return replace(graph, nodes=tuple(nodes), params=params)


def _residual(blocks: dict[str, list[Node]]) -> tuple[str, str]:
    inside = {o.name for n in blocks["1"] for o in n.outs}
    before = [o.name for n in blocks["before"] for o in n.outs]
    first = next(r for n in blocks["1"] for r in n.refs() if r in before and r not in inside)
    after = next(r for n in blocks["after"] for r in n.refs() if r in inside)
    return first, after


def _renamed(node: Node, names: dict[str, str], layer: int | None) -> Node:
    def rename(arg):
        if isinstance(arg, Ref):
            return Ref(names.get(arg.name, arg.name))
        return tuple(map(rename, arg)) if isinstance(arg, tuple) else arg

    def value(old: Value) -> Value:
        return replace(old, name=names.get(old.name, old.name))

    suffix = "" if layer is None else f"_{layer}"
    path = node.path if layer is None else node.path.replace("layers.1", f"layers.{layer}")
    return replace(
        node,
        name=node.name + suffix,
        path=path,
        args=rename(node.args),
        kwargs={k: rename(v) for k, v in node.kwargs.items()},
        outs=tuple(map(value, node.outs)),
    )


def test_eighty_layers_are_named_at_once() -> None:
    graph = stamped(capture(zoo.examples().dense(**zoo.SIZES)), 80)
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        found = name_dims(graph)
        best = min(best, time.perf_counter() - start)
    assert len(graph.nodes) > 2000
    assert len(found.lookup("", "heads")) == 80
    assert [a.path for a in found.lookup("layers.79", "ffn")] == ["layers.79.mlp"]
    assert best < 1.0, f"{best:.2f} s"
    start = time.perf_counter()
    for node in graph.nodes:
        found.lookup(node.path, "heads")
        found.lookup(node.path, "hidden")
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("name", ["dense", "llama", "qwen3_moe", "gpt2"])
def test_decode_is_named_like_forward(name: str) -> None:
    forward, _ = named(name)
    decode = name_dims(derive_phase(forward, "decode"))
    (kv,) = {a.leaves[0].size for a in decode.anchors if a.name == "kv_seq"}
    assert kv == PAST + TOKENS
    for wanted in ("heads", "kv_heads", "ffn", "vocab", "hidden", "experts"):
        assert [a.path for a in decode.anchors if a.name == wanted] == [
            a.path for a in forward.anchors if a.name == wanted
        ]
    attention = next(
        decode.bindings[n.name]
        for n in decode.graph.nodes
        if n.target.startswith("plancc.attention")
    )
    assert {"q", "s", "d"} <= attention.whole and not {"b", "k", "g", "e"} & attention.whole
    cache = next(n for n in decode.graph.nodes if "cache_append" in n.target)
    keys = decode.shapes[cache.outs[0].name]
    assert keys[1] == decode.shapes[next(cache.refs())][1]
