"""Every model of the zoo, unedited: the captured graph computes what the model computes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import pytest
import sympy
import torch
from model_zoo import CAUSAL, ZOO, randomise
from torch import Tensor, nn

from plancc.ir.graph import Graph
from plancc.ir.interpret import run_graph
from plancc.models import ModelError
from plancc.passes.capture import capture

REFUSED = {"dbrx": "modeling_dbrx.py"}
"""Models with loops over tensor values: refused, with module and line."""
NO_DOUBLE = {"xglm"}
"""Models that transformers itself cannot run in float64."""
SINGLE_INSIDE = {"gpt_neo", "gptj", "codegen", "bloom", "mpt", "gemma2", "gpt_oss"}
"""Models that compute in float32 somewhere whatever their dtype: 1e-10 is out of reach."""
BOUND = {"falcon_alibi", "bloom", "mpt"}
"""Causal models whose position bias stays a mask operand."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep transformers' advice out of the test log."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def examples(graph: Graph, batch: int, seq: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make inputs: padded in the first row where there is a mask."""
    generator = torch.Generator().manual_seed(batch)
    names = {value.name for value in graph.inputs}
    if "pixel_values" in names:
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator, dtype=dtype)}
    chosen = {"input_ids": torch.randint(3, 100, (batch, seq), generator=generator)}
    if "attention_mask" in names:
        chosen["attention_mask"] = torch.ones(batch, seq, dtype=torch.long)
        chosen["attention_mask"][0, -2:] = 0
    return chosen


def compare(model: nn.Module, graph: Graph, inputs: dict[str, Tensor], tolerance: float) -> None:
    """Run model and graph; outputs must agree relative to the largest value."""
    state = model.state_dict()
    with torch.no_grad():
        want = model(**inputs)
        got = run_graph(graph, state, inputs)
    for name, value in got.items():
        exact = want[name]
        if "attention_mask" in inputs and value.dim() == 3:
            seen = inputs["attention_mask"].bool()
            value, exact = value[seen], exact[seen]
        assert torch.isfinite(value).all()
        error = (value - exact).abs().max() / exact.abs().max()
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("name", [name for name in ZOO if name not in REFUSED])
def test_equals_eager(name: str) -> None:
    model = ZOO[name]()
    single = name in SINGLE_INSIDE | NO_DOUBLE
    dtype = torch.float32 if single else torch.float64
    model = model.to(dtype)
    before = copy.deepcopy(model.config.to_dict())
    graph = capture(model)
    assert model.config.to_dict() == before
    check_form(name, graph)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    for batch, seq in ((2, 7), (3, 11)):
        compare(model, graph, examples(graph, batch, seq, dtype), 1e-5 if single else 1e-10)


def check_form(name: str, graph: Graph) -> None:
    """The graph is in canonical form: attention found, sizes symbolic, every node placed."""
    known = {value.name for value in graph.inputs} | set(graph.params)
    for node in graph.nodes:
        assert set(node.refs()) <= known
        assert known.isdisjoint(value.name for value in node.outs)
        known |= {value.name for value in node.outs}
    targets = [node.target for node in graph.nodes]
    attentions = [node for node in graph.nodes if node.target == "plancc.attention.default"]
    assert len(attentions) == 2
    assert "aten.scaled_dot_product_attention.default" not in targets
    for node in graph.nodes:
        assert node.path in graph.modules
        assert ".py:" in node.line
        for arg in flat((node.args, tuple(node.kwargs.values()), [o.shape for o in node.outs])):
            assert not isinstance(arg, (torch.SymInt, torch.Tensor))
            if isinstance(arg, sympy.Expr):
                assert {symbol.name for symbol in arg.free_symbols} <= {"B", "T"}
    if name in CAUSAL:
        assert all(node.kwargs["causal"] for node in attentions)
        assert all(
            (len(node.args) > 3 and node.args[3] is not None) == (name in BOUND)
            for node in attentions
        )
        assert list(graph.outputs) == ["logits"]
        assert [value.name for value in graph.inputs] == ["input_ids"]


def flat(arg: object) -> Iterator[object]:
    """Give the leaves of nested arguments."""
    if isinstance(arg, (tuple, list)):
        for item in arg:
            yield from flat(item)
    else:
        yield arg


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_module_and_line(name: str) -> None:
    with pytest.raises(ModelError) as refused:
        capture(ZOO[name]())
    assert REFUSED[name] in str(refused.value)
    assert "experts" in str(refused.value)


def test_windows_and_experts_are_options() -> None:
    graph = capture(ZOO["gpt_oss"]())
    first, second = (n for n in graph.nodes if n.target == "plancc.attention.default")
    assert first.kwargs.get("window") == 5 and "window" not in second.kwargs
    assert first.args[4] is not None
    experts = [node for node in graph.nodes if node.target == "plancc.experts.default"]
    assert len(experts) == 2
    assert experts[0].kwargs["transposed"] and experts[0].kwargs["interleaved"]
    assert experts[0].path == "model.layers.0.mlp.experts"


def test_tied_weights_are_one_parameter() -> None:
    graph = capture(ZOO["llama_tied"]())
    tied = [param for param in graph.params.values() if len(param.fqns) > 1]
    assert [set(param.fqns) for param in tied] == [{"model.embed_tokens.weight", "lm_head.weight"}]


def test_padding_mask_as_an_added_input() -> None:
    model = ZOO["mistral"]()
    graph = capture(model, inputs=("input_ids", "attention_mask"))
    node = next(node for node in graph.nodes if node.target == "plancc.attention.default")
    assert node.kwargs["causal"] and node.kwargs["window"] == 5 and len(node.args) == 4
    compare(model, graph, examples(graph, 2, 9, torch.float32), 1e-5)


def test_encoder_decoder() -> None:
    import transformers

    config = transformers.T5Config(
        d_model=48, d_kv=8, d_ff=96, num_layers=2, num_heads=6, vocab_size=120,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = randomise(transformers.T5ForConditionalGeneration(config))
    graph = capture(model)
    attentions = [node for node in graph.nodes if node.target == "plancc.attention.default"]
    assert [node.kwargs.get("causal", False) for node in attentions].count(True) == 2
    ids = torch.randint(3, 100, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    with torch.no_grad():
        want = model(**inputs)
    got = run_graph(graph, model.state_dict(), inputs)
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-5, atol=1e-5)


def test_unknown_argument() -> None:
    with pytest.raises(ModelError, match="has no argument `positions`"):
        capture(ZOO["llama"](), inputs=("input_ids", "positions"))


def test_buffers_without_values_are_refused() -> None:
    real = ZOO["llama"]()
    with torch.device("meta"):
        model = type(real)(real.config)
    with pytest.raises(ModelError, match="on meta"):
        capture(model)
