"""The repository's own example models, both frontends, and how graphs say where nodes come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plancc.ir.interpret import run_graph
from plancc.models import ModelError, load_model
from plancc.passes.capture import capture

MODELS = Path(__file__).parents[2] / "examples" / "models.py"
TINY = {"layers": "2", "hidden": "48", "heads": "6", "ffn": "96", "vocab": "120", "max_len": "64"}


def build(factory: str, **args: str) -> nn.Module:
    """Load an example model with real, seeded weights."""
    torch.manual_seed(0)
    module = load_model(f"{MODELS}:{factory}", TINY | args).module
    module.to_empty(device="cpu")
    fresh = load_model(f"{MODELS}:{factory}", TINY | args).module
    for (_, real), (_, kept) in zip(module.named_buffers(), fresh.named_buffers(), strict=True):
        real.copy_(kept)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15)
    return module.double()


@pytest.mark.parametrize("frontend", ["export", "fx"])
@pytest.mark.parametrize(
    ("factory", "args"),
    [("dense", {}), ("dense", {"kv_heads": "3"}), ("moe", {"experts": "6"})],
)
def test_equals_eager(factory: str, args: dict[str, str], frontend: str) -> None:
    model = build(factory, **args)
    graph = capture(model, frontend=frontend)
    assert list(graph.outputs) == ["logits"]
    assert graph.limits == {"T": 64}
    for batch, seq in ((2, 7), (1, 1), (3, 64)):
        ids = torch.randint(0, 120, (batch, seq))
        with torch.no_grad():
            want, got = model(ids), run_graph(graph, model.state_dict(), {"input_ids": ids})
        torch.testing.assert_close(got["logits"], want, rtol=1e-10, atol=1e-10)


def test_nodes_know_module_and_line() -> None:
    graph = capture(load_model(f"{MODELS}:dense", TINY))
    source = MODELS.read_text().splitlines()
    found = {node.path: node for node in graph.nodes}
    node = found["layers.1.self_attn.q_proj"]
    name, line = node.line.split(":")
    assert name == "models.py" and "self.q_proj(x)" in source[int(line) - 1]
    attention = next(n for n in graph.nodes if n.target == "plancc.attention.default")
    assert attention.path == "layers.0.self_attn"
    assert attention.kwargs == {"scale": 8**-0.5, "causal": True}
    assert graph.modules["layers.1.mlp"] == "MLP"


def test_frontends_agree() -> None:
    loaded = load_model(f"{MODELS}:dense", TINY)
    one, two = capture(loaded), capture(loaded, frontend="fx")
    assert [(n.target, n.path, n.outs[0].shape) for n in one.nodes] == [
        (n.target, n.path, n.outs[0].shape) for n in two.nodes
    ]


class Branching(nn.Module):
    """Does what no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, ids):
        x = self.embed(ids)
        return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize("frontend", ["export", "fx"])
def test_branches_on_values_are_refused(frontend: str) -> None:
    with pytest.raises(ModelError) as refused:
        capture(Branching(), frontend=frontend)
    assert "test_examples.py:" in str(refused.value)


def test_the_model_is_left_as_it_was() -> None:
    model = build("dense").train()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    capture(model)
    assert model.training and model.layers[0].training
    assert before == {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
