"""Stamped layers give the graph that tracing every layer gives; what is not safe is not stamped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_zoo import CAUSAL_CONFIGS, build_causal
from torch import Tensor, nn

from plancc.ir.graph import Graph, Ref
from plancc.ir.interpret import run_graph
from plancc.passes.capture import capture, stamp

LAYERS = 6


def canonical(graph: Graph) -> tuple[Any, ...]:
    """Return a graph with its values numbered in order of appearance."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    def plain(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return "value", number(arg.name)
        return tuple(plain(item) for item in arg) if isinstance(arg, tuple) else arg

    nodes = [
        (
            node.target, plain(node.args), {k: plain(v) for k, v in node.kwargs.items()},
            [(number(out.name), out.shape, out.dtype) for out in node.outs], node.path, node.line,
        )
        for node in graph.nodes
    ]  # fmt: skip
    params = {
        number(name): (param.kind, param.value.shape, param.fqns if param.kind != "const" else ())
        for name, param in graph.params.items()
    }
    return nodes, params, {key: number(value) for key, value in graph.outputs.items()}


def both(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, Graph]:
    """Capture with stamping and without."""
    quick = capture(model)
    monkeypatch.setattr(stamp, "LEAST", 10**9)
    return quick, capture(model)


def stamped(graph: Graph) -> bool:
    """Tell whether a graph was made by stamping."""
    return any(node.name.endswith("_l1") for node in graph.nodes)


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "gemma2", "gpt_neo", "falcon", "bloom", "mixtral", "deepseek_v3", "gpt_oss"],
)
def test_equals_an_ordinary_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, options = CAUSAL_CONFIGS[name]
    options = {key: 10 if key in ("num_hidden_layers", "n_layer") else value
               for key, value in options.items()}  # fmt: skip
    if name == "gpt_neo":
        options |= {"num_layers": 10, "attention_types": [[["global", "local"], 5]]}
    quick, full = both(build_causal(family, options)(), monkeypatch)
    assert stamped(quick) and not stamped(full)
    assert canonical(quick) == canonical(full)


class Layer(nn.Module):
    """A layer with an index, as many have."""

    def __init__(self, index: int, act: Callable[..., Tensor]) -> None:
        super().__init__()
        self.index = index
        self.proj = nn.Linear(8, 8)
        self.register_buffer("shift", torch.full((8,), float(index)))
        self.act = act
        self.notes: list[Tensor] = []

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return self.act(self, self.proj(x) + self.shift, *rest)


class Stack(nn.Module):
    """Embeds and runs layers; `step` says how the root calls one."""

    def __init__(self, act: Callable[..., Tensor], step: Callable[..., Tensor] | None = None):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer(index, act) for index in range(LAYERS))
        self.step = step

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for index, layer in enumerate(self.layers):
            x = self.step(self, index, layer, x) if self.step else layer(x)
        return x


def plain(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
    return torch.tanh(x)


def reads_index(layer: Layer, x: Tensor) -> Tensor:
    return torch.tanh(x) * (layer.index + 1)


def branches_on_index(layer: Layer, x: Tensor) -> Tensor:
    return torch.tanh(x) if layer.index == 4 else torch.relu(x)


def looks_up_index(layer: Layer, x: Tensor) -> Tensor:
    return x * [0.1, 0.2, 0.3, 0.4, 0.5, 0.6][layer.index]


def writes_inside(layer: Layer, x: Tensor) -> Tensor:
    y = x * 2
    y[..., :4].mul_(3.0)
    return y


def scaled(layer: Layer, x: Tensor, factor: float) -> Tensor:
    return x * factor


def writes_its_input(layer: Layer, x: Tensor, kept: Tensor) -> Tensor:
    kept.add_(x)
    return torch.tanh(x)


def call_twice(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    return layer(layer(x)) if index == 2 else layer(x)


def other_argument(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    return layer(x, 0.5 if index % 2 else 2.0)


def skip_one(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    return x if index == 3 else layer(x)


def between(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    return layer(x + index) - x


def writes_result(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    return layer(x).add_(1.0)


def shared_memory(stack: Stack, index: int, layer: Layer, x: Tensor) -> Tensor:
    kept = x * 0
    return layer(x, kept) + kept


CASES = [
    (plain, None, True),
    (reads_index, None, False),
    (branches_on_index, None, False),
    (looks_up_index, None, False),
    (writes_inside, None, True),
    (plain, call_twice, False),
    (scaled, other_argument, False),
    (plain, skip_one, False),
    (plain, between, True),
    (plain, writes_result, False),
    (writes_its_input, shared_memory, False),
]


@pytest.mark.parametrize(
    ("act", "step", "safe"), CASES, ids=[f"{a.__name__}-{s and s.__name__}" for a, s, _ in CASES]
)
def test_only_what_is_safe(act: Any, step: Any, safe: bool) -> None:
    torch.manual_seed(0)
    model = Stack(act, step).eval()
    before = {path: dict(vars(part)) for path, part in model.named_modules()}
    graph = capture(model)
    assert stamped(graph) == safe
    assert before == {path: dict(vars(part)) for path, part in model.named_modules()}
    ids = torch.randint(0, 11, (2, 5))
    with torch.no_grad():
        want = model(ids)
    got = next(iter(run_graph(graph, model.state_dict(), {"ids": ids}).values()))
    torch.testing.assert_close(got, want)


def test_layers_that_differ_are_apart() -> None:
    model = Stack(plain).eval()
    model.layers[2].act = reads_index
    model.layers[4].proj = nn.Linear(8, 8, bias=False)
    groups = stamp.find_groups(model)
    assert [group.paths for group in groups] == [("layers.0", "layers.1", "layers.3", "layers.5")]
    model.layers[0].register_forward_hook(lambda module, args, out: out * 2)
    assert stamp.find_groups(model) == []


def leaks(layer: Layer, x: Tensor) -> Tensor:
    layer.notes.append(x)
    return torch.tanh(x)


def test_a_value_given_away_is_not_lost() -> None:
    model = Stack(leaks, lambda stack, index, layer, x: layer(x) + stack.layers[0].notes[-1]).eval()
    graph = capture(model)
    assert not stamped(graph)
