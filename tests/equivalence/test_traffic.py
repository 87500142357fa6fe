"""How often a block communicates, and how many bytes, as counted by the transports."""

from __future__ import annotations

from collections import Counter

import pytest
from lowered import Lowered, captured, lower
from plans import HEAD, LLAMA, chain, dp_tp, experts, grid, sequence, three, tp, written
from predicted import LOCAL, predicted_bytes

from plancc.ir.program import Collective, Transfer

TP, SEQUENCE = tp(2), sequence(2)
DP = HEAD + grid(("dp", 4)) + "place ** on base { split batch over dp }\n"


def in_block(lowered: Lowered, block: str, phase: str = "forward") -> Counter[str]:
    """Collectives of one block by kind, each group's counted once."""
    found: Counter[str] = Counter()
    for _, step in lowered.compiled.unit(phase).instructions:
        if isinstance(step, Collective) and step.kind not in LOCAL:
            found[step.kind] += f".{block}." in f".{step.origin.path}."
        elif isinstance(step, Transfer):
            found["transfer"] += f".{block}." in f".{step.origin.path}."
    return +found


@pytest.mark.parametrize(
    "model", ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe"]
)
def test_a_tensor_parallel_block_has_two_all_reduces(model: str) -> None:
    """One behind attention, one behind the mlp or the experts; in every phase."""
    lowered = lower(written(TP, model), captured(model))
    for phase in ("forward", "prefill", "decode"):
        assert in_block(lowered, "h.1" if model == "gpt2" else "layers.1", phase) == {
            "all_reduce": 2
        }


@pytest.mark.parametrize("model", ["dense", "llama", "qwen3", "gpt2"])
def test_a_sequence_parallel_block_has_two_gathers_and_two_scatters(model: str) -> None:
    """Megatron sequence parallelism: the same bytes in four halves."""
    lowered = lower(written(SEQUENCE, model), captured(model))
    found = in_block(lowered, "h.1" if model == "gpt2" else "layers.1")
    assert found == {"all_gather": 2, "reduce_scatter": 2}


def test_a_parallel_residual_block_has_one_all_reduce() -> None:
    """The sums of attention and mlp are added before they are reduced."""
    lowered = lower(written(TP, "phi"), captured("phi"))
    assert in_block(lowered, "layers.0") == {"all_reduce": 1}


@pytest.mark.parametrize("model", ["dense", "moe", "mixtral", "gpt2"])
def test_data_parallelism_has_none(model: str) -> None:
    """Nothing is sent where every rank has its own sequences."""
    found = lower(DP, captured(model)).verify()
    assert found.ok
    assert all(not v.collectives and not any(v.bytes.values()) for v in found.variants)


def test_data_parallelism_adds_none_to_tensor_parallelism() -> None:
    """dp x tp communicates as tp does."""
    lowered = lower(written(dp_tp(2, 2), "llama"), captured("llama"))
    assert in_block(lowered, "layers.1") == {"all_reduce": 2}


def test_a_stage_boundary_is_one_transfer() -> None:
    """Pipelines send the hidden state once, and nothing else."""
    for text in (three(LLAMA, 1, 2, 2, 1), chain(2, 3)):
        found = lower(written(text, "llama"), captured("llama")).verify().variants[0].collectives
        assert found == {"all_reduce": 5, "transfer": 1}


def test_experts_on_an_axis_of_their_own() -> None:
    """One all-reduce for attention, one for the experts' sum; tokens are already everywhere."""
    lowered = lower(written(experts(4, "moe"), "moe"), captured("moe"))
    found = in_block(lowered, "layers.0")
    assert found["all_reduce"] == 2 and set(found) <= {"all_reduce", "transfer"}


BYTES = {
    "tp3": (tp(3), "qwen3"), "sequence3": (sequence(3), "llama"), "dp_tp": (dp_tp(3, 2), "gpt2"),
    "chain": (chain(2, 3), "dense"), "stages": (three(LLAMA, 2, 2, 2, 3), "dense"),
    "experts": (experts(4, "moe"), "moe"), "tp12": (tp(12), "dense"),
}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
def test_transports_count_the_bytes_that_layouts_predict(case: str) -> None:
    """Every verb moves what its layouts say, in every phase."""
    text, model = BYTES[case]
    lowered = lower(written(text, model), captured(model))
    result = lowered.verify()
    for unit, variant in zip(lowered.compiled.units, result.variants, strict=True):
        assert dict(variant.bytes) == predicted_bytes(lowered, unit)
        assert any(variant.bytes.values())


def test_bytes_of_a_block_by_hand() -> None:
    """tp 2, batch 4 x 12, hidden 32, float64: five all-reduces of 4*12*32*8 bytes on two ranks."""
    result = lower(written(TP, "dense"), captured("dense")).verify()
    assert result.variants[0].bytes == {"all_reduce": 5 * 2 * 4 * 12 * 32 * 8}
