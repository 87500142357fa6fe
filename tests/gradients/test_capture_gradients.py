"""Gradients through captured graphs equal those of the eager modules: detach, no_grad, real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plancc.ir.graph import Graph
from plancc.ir.interpret import run_graph
from plancc.models import ModelError
from plancc.passes.capture import capture
from plancc.passes.capture.dropout import dropout_in
from plancc.passes.capture.gradients import DETACH
from tests.model_zoo import ZOO

WIDTH = 6
SINGLE = ("gpt_neo", "gptj", "bloom", "codegen", "gemma2", "mpt", "xglm", "ernie4_5_moe")
"""Their own code takes scores to float32, whatever the dtype of the model; plancc does not."""


class Base(nn.Module):
    """Two linear layers and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("freq", torch.linspace(0.1, 1.0, WIDTH))


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y.detach() * y) + torch.sigmoid(y).detach()


class DetachedInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y * 2
        z.detach_()
        return self.b(z * y)


class DetachedWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x @ self.a.weight.detach().T) * self.a(x)


class NoGrad(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.no_grad():
            share = torch.softmax(self.b(y), -1)
            turned = y[..., :3].repeat(1, 1, 2)
        return self.b(y) * share + turned


class GradInside(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.no_grad():
            z = self.b(y)
            with torch.enable_grad():
                w = self.b(y) * z
        return w + z


class Rope(Base):
    @torch.no_grad()
    def angles(self, x: Tensor) -> Tensor:
        spots = torch.arange(x.shape[1], dtype=self.freq.dtype)
        with torch.autocast("cpu", enabled=False):
            return torch.outer(spots, self.freq).cos()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.angles(x))


class FrozenPart(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
            y.mul_(2)
        return self.b(y)


class Layers(nn.Module):
    """Enough identical layers to be traced once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NoGrad() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Written(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) * 1.5
        with torch.no_grad():
            y.mul_(2)
        return self.b(y)


def gradients(out: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a fixed weighting of `out`, zeros where none arrives."""
    dout = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    found = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def check(module: nn.Module, graph: Graph, inputs: dict[str, Tensor], bound: float) -> None:
    """Compare outputs and every parameter gradient of a graph with those of its module."""
    leaves = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}
    with torch.enable_grad():
        raw = module(**inputs)
        want = raw if isinstance(raw, Tensor) else raw[next(iter(raw.keys()))]
        state = module.state_dict(keep_vars=True)
        moved = {
            fqn: param.data.to(next(module.parameters()).dtype)
            for param in graph.params.values()
            if param.data is not None and param.value.dtype.is_floating_point
            for fqn in param.fqns if fqn not in state
        }  # fmt: skip
        got = run_graph(graph, state | moved, inputs)[next(iter(graph.outputs))]
        torch.testing.assert_close(got, want, rtol=bound, atol=bound)
        one, two = gradients(want, leaves), gradients(got, leaves)
    assert any(bool(grad.any()) for grad in one.values())
    for name, grad in one.items():
        size = float(grad.abs().max()) + 1e-30
        assert float((two[name] - grad).abs().max()) <= bound * max(size, 1.0), name


CLASSES = [
    Detached, DetachedInPlace, DetachedWeight, NoGrad, GradInside, Rope, FrozenPart, Layers,
]  # fmt: skip


@pytest.mark.parametrize("frontend", ["export", "fx"])
@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_stop_where_the_model_stops_them(
    kind: Callable[[], nn.Module], frontend: str
) -> None:
    torch.manual_seed(0)
    module = kind().double()
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    if frontend == "fx" and kind is Rope:
        pytest.skip("torch.fx follows no size")
    graph = capture(module, {"x": x}, frontend=frontend)
    check(module, graph, {"x": x}, 1e-12)
    cuts = [node for node in graph.nodes if node.target == DETACH]
    assert bool(cuts) == (kind is not Rope)
    assert all(node.line.startswith("test_capture_gradients.py:") for node in cuts)


def test_a_write_that_gradients_would_not_see_is_refused() -> None:
    with pytest.raises(ModelError, match="under no_grad"):
        capture(Written(), {"x": torch.randn(2, 4, WIDTH)})


def double(module: nn.Module) -> nn.Module:
    """The model in float64; torch's grouped product of experts has none."""
    for part in module.modules():
        if hasattr(part, "config"):
            part.config._experts_implementation = "eager"
    return module.double()


def example(name: str, graph: Graph) -> dict[str, Tensor]:
    """Seeded inputs of a model of the zoo."""
    torch.manual_seed(1)
    made: dict[str, Tensor] = {}
    for value in graph.inputs:
        if value.name == "pixel_values":
            made[value.name] = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        elif value.name == "attention_mask":
            made[value.name] = torch.ones(2, 9, dtype=torch.long)
        else:
            made[value.name] = torch.randint(3, 100, (2, 9))
    return made


@pytest.mark.parametrize("name", [name for name in ZOO if name != "dbrx"])
def test_gradients_of_an_architecture(name: str) -> None:
    torch.set_num_threads(1)
    module = ZOO[name]() if name == "xglm" else double(ZOO[name]())  # xglm runs in no float64
    graph = capture(module)
    check(module, graph, example(name, graph), 1e-5 if name in SINGLE else 1e-10)


def test_dropout_is_told() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout, self.dropout_path, self.p = 0.1, 0.0, 0.5

    model = nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.0), Attention(), nn.Dropout2d(0.3))
    assert dropout_in(model) == [("0", 0.2), ("2.attention_dropout", 0.1), ("3", 0.3)]
