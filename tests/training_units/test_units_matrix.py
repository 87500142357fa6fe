"""The acceptance matrix in training: the loss and every gradient of every plan equal one device's."""

from __future__ import annotations

import pytest
from lowered import captured
from plans import matrix, written
from pools import PoolPlan, overlap, pool_model
from test_example_plans import CASES as EXAMPLES
from unit_checks import train

from tests.model_zoo import ZOO
from tests.test_architectures import UNSUPPORTED, plan_text

MATRIX = matrix()
POOLS = {
    "tree": PoolPlan(),
    "flat": PoolPlan(combine=""),
    "one_level": PoolPlan(combine="combine out by logsumexp over sp"),
    "balanced": PoolPlan(jobs=("split kv_seq over sp",)),
    "zigzag": PoolPlan(jobs=("split kv_seq over sp (layout = zigzag)",)),
    "chunks": PoolPlan(comm=overlap(depth=2, batches=2)),
    "chunks_in_zigzag": PoolPlan(
        jobs=("split kv_seq over sp (layout = zigzag)",), comm=overlap(depth=2, batches=3)
    ),
    "shared_keys": PoolPlan(share="share kv from base"),
    "heads_first": PoolPlan(
        devices=8, per_node=4, axes="hp = 2, sp = 0..4",
        jobs=("split heads over hp", "split kv_seq over sp (block = ceil(seq_len / sp))"),
    ),
}  # fmt: skip
ARCHITECTURES = [f"{name}-tp{size}" for name in ZOO for size in (2, 3) if name not in UNSUPPORTED]


@pytest.mark.parametrize("case", MATRIX)
def test_a_plan_of_the_matrix(case: str) -> None:
    """Tensor, data, sequence, pipeline and expert parallel, uneven and replicated heads."""
    text, model, sizes = MATRIX[case]
    train(written(text, model), captured(model, sizes))


@pytest.mark.parametrize("case", EXAMPLES)
def test_an_example(case: str) -> None:
    """Each example plan on its models."""
    plan, sets, model, sizes = EXAMPLES[case]
    train(plan, captured(model, tuple(sizes.items())), sets)


@pytest.mark.parametrize("tp", [2, 3, 12])
def test_the_encoder_example(tp: int) -> None:
    """BERT with a padding mask; its loss is the mean square of what it gives."""
    train("encoder.plan", captured("bert"), {"tp": tp})


@pytest.mark.parametrize("model", ["dense", "gpt_oss", "mistral"])
@pytest.mark.parametrize("case", POOLS)
def test_an_attention_pool(case: str, model: str) -> None:
    """Keys split over a pool: merges, zigzag, chunks; attention sinks and windows."""
    train(POOLS[case].text(), pool_model(model))


def test_the_fa_pool_example() -> None:
    """8 base ranks and 0..32 of the pool, four variants."""
    lowered, variants = train("fa_pool.plan", pool_model("llama8"), {"long": 4})
    assert lowered.artifact.world == 40 and len(variants) == 4


@pytest.mark.parametrize("case", ["gpt_bigcode-tp3", "falcon_mqa-tp2", "falcon-tp6", "phi3-tp6"])
def test_a_fused_projection_of_split_and_whole_heads(case: str) -> None:
    """Queries are split, the key and value heads that several ranks share are whole."""
    name, _, size = case.rpartition("-tp")
    train(plan_text(captured(name), int(size)), captured(name))


@pytest.mark.slow
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_an_architecture(case: str) -> None:
    """Tiny models straight from transformers at TP 2 and 3."""
    name, _, size = case.rpartition("-tp")
    train(plan_text(captured(name), int(size)), captured(name))
