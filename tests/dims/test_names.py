"""The names that anchors give, in every model of the zoo, and what must never be one class."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import prod
from typing import Any

import model_zoo
import pytest
import sympy
import zoo
from zoo import MODELS, named

from plancc.ir.graph import BATCH, TOKENS, Graph, Value
from plancc.ir.shape import Leaf, NamedGraph, Sum, Tree
from plancc.passes.capture import capture
from plancc.passes.name_dims import Hint, name_dims

# heads, kv_heads (0: a single one, which has no name), ffn sizes: where they are not 6, 3, {96}
HEADS = {"codegen": 4, "bloom": 6}
KV_HEADS = {
    "gpt_bigcode": 0,
    "falcon_mqa": 0,
    "codegen": 4,
    "starcoder2": 3,
    **dict.fromkeys(
        (
            "phi",
            "gpt2",
            "gpt_neox",
            "gpt_neo",
            "gptj",
            "opt",
            "bloom",
            "falcon_alibi",
            "mpt",
            "persimmon",
            "biogpt",
            "xglm",
            "deepseek_v2",
            "deepseek_v3",
            *model_zoo.ENCODERS,
        ),
        6,
    ),
}
FFN: dict[str, frozenset[int]] = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "gpt_oss"), frozenset({32})),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe"), frozenset({32, 96})),
    "ernie4_5_moe": frozenset({32, 64, 96}),
    **dict.fromkeys(("bloom", "falcon", "falcon_mqa", "falcon_alibi", "mpt"), frozenset({192})),
}


def size(leaves_: tuple[Leaf, ...]) -> int:
    return prod(leaf.size for leaf in leaves_)  # type: ignore[misc]


def sizes(graph: NamedGraph, name: str) -> set[int]:
    return {size(anchor.leaves) for anchor in graph.anchors if anchor.name == name}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_is_named(name: str) -> None:
    graph, _ = named(name)
    kv = KV_HEADS.get(name, 3)
    assert sizes(graph, "heads") == {HEADS.get(name, 6)}
    assert sizes(graph, "kv_heads") == ({kv} if kv else set())
    assert sizes(graph, "ffn") == FFN.get(name, {96})
    assert sizes(graph, "hidden") == {48}
    assert name == "vit" or sizes(graph, "vocab") == {120}
    layers = {a.path for a in graph.anchors if a.name == "heads"}
    assert len(layers) == (1 if name == "albert" else 2)
    assert not [note for note in graph.notes if "not recognised" in note.text]


@pytest.mark.parametrize("name", list(MODELS))
def test_no_class_has_two_meanings(name: str) -> None:
    """No false merge: a named class has one name, and one of one layer is not that of another."""
    graph, _ = named(name)
    alike = [
        {"batch"},
        {"q_seq", "kv_seq", "seq", "patch_grid"},
        {"heads", "kv_heads"},
        {"head_dim", "v_dim"},
        {"hidden"},
        {"embed_dim"},
        {"vocab"},
        {"ffn"},
        {"experts"},
        {"latent"},
        {"out"},
        {"table"},
        {"channels"},
        {"height"},
        {"width"},
    ]
    names: dict[Leaf, set[str]] = defaultdict(set)
    paths: dict[Leaf, set[str]] = defaultdict(set)
    for anchor in graph.anchors:
        for leaf in anchor.leaves:
            names[leaf].add(anchor.name)
            if anchor.name in ("heads", "ffn", "experts", "latent"):
                paths[leaf].add(anchor.path)
    assert [both for both in names.values() if not any(both <= group for group in alike)] == []
    shared_bias = ("t5", "mpnet", "bloom", "falcon_alibi", "mpt")
    assert name in shared_bias or [p for p in paths.values() if len(p) > 1] == []


def static(graph: Graph, sizes: dict[sympy.Symbol, int]) -> Graph:
    """The graph with its symbols replaced by numbers."""

    def fixed(arg: Any) -> Any:
        if isinstance(arg, sympy.Expr):
            number = arg.subs(sizes)
            return int(number) if number.is_Integer else float(number)
        return tuple(map(fixed, arg)) if isinstance(arg, (tuple, list)) else arg

    def value(old: Value) -> Value:
        return replace(old, shape=fixed(old.shape))

    nodes = tuple(
        replace(
            node,
            args=fixed(node.args),
            outs=tuple(map(value, node.outs)),
            kwargs={key: fixed(arg) for key, arg in node.kwargs.items()},
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes, inputs=tuple(map(value, graph.inputs)))


def signature(graph: NamedGraph) -> list[Any]:
    """Weight shapes as trees with classes numbered as they come: sizes do not matter."""
    numbers: dict[int, int] = {}

    def shown(tree: Tree) -> Any:
        if isinstance(tree, Leaf):
            return numbers.setdefault(tree.id, len(numbers))
        return (isinstance(tree, Sum), *map(shown, tree.kids))

    weights = [name for name, param in graph.graph.params.items() if param.kind == "param"]
    return [[shown(tree) for tree in graph.shapes[name]] for name in weights]


@pytest.mark.parametrize("batch, tokens", [(8, 8), (2, 64), (64, 64), (7, 5)])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_equal_sizes_merge_nothing(kind: str, batch: int, tokens: int) -> None:
    """hidden = ffn = vocab = heads * head_dim, all else 8: same classes as with distinct sizes."""
    equal: dict[str, Any] = dict(
        layers=2, hidden=64, heads=8, kv_heads=4, ffn=64, vocab=64, max_len=64
    )
    distinct = equal | dict(hidden=96, ffn=80, vocab=112, heads=6, kv_heads=3)
    if kind == "moe":
        equal, distinct = equal | dict(experts=8), distinct | dict(experts=5)
    make = getattr(zoo.examples(), kind)
    fixed = {BATCH: batch, TOKENS: tokens}
    wanted = signature(name_dims(capture(make(**distinct))))
    assert signature(name_dims(static(capture(make(**equal)), fixed))) == wanted
    assert signature(name_dims(capture(make(**equal)))) == wanted


def test_fused_weights() -> None:
    shown = {}
    for name, parameter in (
        ("gpt2", "transformer.h.0.attn.c_attn.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("falcon", "transformer.h.0.self_attention.query_key_value.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
    ):
        graph, _ = named(name)
        value = next(n for n, p in graph.graph.params.items() if parameter in p.fqns)
        trees = graph.shapes[value]
        shown[parameter.rpartition(".")[0].rpartition(".")[2], name] = max(
            map(_text, trees), key=len
        )
    assert shown == {
        ("c_attn", "gpt2"): "((6 8) + (6 8) + (6 8))",
        ("qkv_proj", "phi3"): "((3 2 (4 + 4)) + (3 (4 + 4)) + (3 8))",
        ("query_key_value", "gpt_neox"): shown["query_key_value", "gpt_neox"],
        ("query_key_value", "falcon"): "(3 (2 + () + ()) (4 + 4))",
        ("gate_up_proj", "phi3"): "(96 + 96)",
    }
    assert shown["query_key_value", "gpt_neox"].startswith("(6 (")


def _text(tree: Tree) -> str:
    from single import show

    return show(tree)


def test_lookup_goes_down_then_up() -> None:
    graph, _ = named("llama")
    heads = graph.lookup("model.layers.1", "heads")
    assert [anchor.path for anchor in heads] == ["model.layers.1.self_attn"]
    assert len(graph.lookup("", "heads")) == 2
    assert graph.lookup("model.layers.1.self_attn.q_proj", "heads") == heads
    assert graph.lookup("model.layers.1", "hidden") == graph.lookup("", "hidden")
    assert [a.path for a in graph.lookup("lm_head", "vocab")] == ["lm_head"]
    assert [a.path for a in graph.lookup("model.embed_tokens", "vocab")] == [""]
    assert graph.lookup("model", "nothing") == ()
    assert "ffn" in graph.names_at("model.layers.0.mlp")
    assert "ffn" not in graph.names_at("model.layers.0.self_attn")


def test_names_of_layer_10_are_not_those_of_layer_1() -> None:
    graph = name_dims(capture(zoo.examples().dense(**zoo.SIZES | dict(layers=11))))
    assert [a.path for a in graph.lookup("layers.1", "heads")] == ["layers.1.self_attn"]
    assert len(graph.lookup("layers", "heads")) == 11


def test_tied_head_finds_vocab() -> None:
    graph, _ = named("llama_tied")
    assert graph.lookup("lm_head", "vocab") == graph.lookup("model.embed_tokens", "vocab")


def test_query_and_key_positions_have_labels() -> None:
    graph, _ = named("llama")
    (q,), (kv,) = (graph.lookup("model.layers.0", name) for name in ("q_seq", "kv_seq"))
    assert (q.label, kv.label) == ("q", "s") and q.leaves == kv.leaves


def test_a_plan_names_a_dim_itself() -> None:
    graph = named("llama")[0].graph
    hint = Hint("model.layers.0.mlp", "width", "model.layers.0.mlp.up_proj.weight", 0)
    found = name_dims(graph, [hint])
    assert (
        found.lookup("model.layers.0", "width")[0].leaves
        == found.lookup("model.layers.0", "width")[0].leaves
    )
    assert sizes(found, "width") == {96}
    with pytest.raises(KeyError):
        name_dims(graph, [Hint("", "x", "no.such.weight", 0)])


def test_an_unrecognised_attention_is_noted() -> None:
    import torch
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                f(x).view(*x.shape[:2], 4, 6).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            scores = (q @ k.transpose(-1, -2)).cumsum(-1).softmax(-1)
            return (scores @ v).transpose(1, 2).flatten(2)

    graph = name_dims(capture(Plain(), {"x": torch.randn(3, 5, 24)}))
    assert any("not recognised" in note.text for note in graph.notes)
    assert sizes(graph, "heads") == {4}
