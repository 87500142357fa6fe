"""The example plans on their models, and plans for encoders with a padding mask."""

from __future__ import annotations

import pytest
import torch
from lowered import captured, explain_failure, lower, prompt, tokens_of_one, tokens_of_ranks
from plans import HEAD, grid

from plancc.runtime.deploy import Deployment
from plancc.runtime.loading import Loaded
from plancc.verification.one_device import greedy_tokens
from plancc.verification.reference import buffers_of, random_params

CASES = {
    "tp8_pp2": ("tp8_pp2.plan", {}, "dense", dict(layers=4)),
    "tp8_pp2-qwen": ("tp8_pp2.plan", {}, "qwen3", {}),
    "dp_tp": ("dp_tp.plan", dict(dp=2, tp=3), "dense", {}),
    "tp3": ("tp.plan", dict(tp=3), "llama", {}),
    "tp6": ("tp.plan", dict(tp=6), "dense", {}),
    "tp12": ("tp.plan", dict(tp=12), "dense", dict(heads=24, hidden=96)),
    "sequence_parallel": ("sequence_parallel.plan", {}, "dense", {}),
    "sequence_parallel-llama": ("sequence_parallel.plan", dict(tp=2), "llama", {}),
    "hetero_pipeline": ("hetero_pipeline.plan", {}, "dense", dict(layers=3, heads=6, hidden=24)),
    "hetero_pipeline-cut": ("hetero_pipeline.plan", dict(cut=3), "dense", dict(layers=5)),
    "expert_parallel": ("expert_parallel.plan", {}, "moe", {}),
    "expert_data_parallel": ("expert_data_parallel.plan", dict(ranks=4), "moe", {}),
    "expert_parallel6": ("expert_parallel.plan", dict(ranks=6), "moe", {}),
    "expert_parallel-mixtral": ("expert_parallel.plan", dict(ranks=3), "mixtral", {}),
    "expert_parallel-qwen": ("expert_parallel.plan", dict(ranks=4), "qwen3_moe", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_example_on_its_models(case: str) -> None:
    """Each example plan is right, and all ranks generate one device's tokens."""
    plan, sets, model, sizes = CASES[case]
    graph = captured(model, tuple(sizes.items()))
    lowered = lower(plan, graph, sets)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    ids = prompt(graph)
    expected = tokens_of_one(graph, ids, 32).tolist()
    for found in tokens_of_ranks(lowered, ids, 32):
        assert found.tokens.tolist() == expected


@pytest.mark.parametrize("tp", [2, 3, 4, 6, 12])
def test_the_encoder_example(tp: int) -> None:
    """BERT with a padding mask, heads that do not divide evenly included."""
    lowered = lower("encoder.plan", captured("bert"), dict(tp=tp))
    result = lowered.verify()
    assert result.ok, explain_failure(result)


PIPELINE = """
place ** on base
place encoder.layer.* { split layers over pp }
place embeddings on base[pp = 0]
place embeddings.word_embeddings { split vocab over tp }
place pooler on base[pp = -1]
place encoder.layer.*.attention { split heads over tp }
place encoder.layer.*.{intermediate,output} { split ffn over tp }
"""
CHAIN = """
place ** on front
place encoder.layer.1, pooler on back
place encoder.layer.*.attention { split heads over tp }
place encoder.layer.*.{intermediate,output} { split ffn over tp }
"""


@pytest.mark.parametrize("micro", [1, 2])
def test_an_encoder_over_pipeline_stages(micro: int) -> None:
    """Every stage reads the mask, which is an input of the model."""
    tail = f"pipeline over base.pp {{ microbatches = {micro} }}\n" if micro > 1 else ""
    plan = HEAD + grid(("pp", 2), ("tp", 3)) + PIPELINE + tail
    result = lower(plan, captured("bert")).verify()
    assert result.ok, explain_failure(result)


def test_an_encoder_over_a_chain_of_meshes() -> None:
    """Both meshes read the mask."""
    plan = HEAD + grid(("tp", 2), name="front") + grid(("tp", 3), name="back", first=2) + CHAIN
    result = lower(plan, captured("bert")).verify()
    assert result.ok, explain_failure(result)


def test_a_batch_of_masked_sentences_by_the_api() -> None:
    """Deployment.forward takes the inputs by name and gives whole outputs."""
    graph = captured("bert")
    lowered = lower("encoder.plan", graph, dict(tp=3))
    source = Loaded(random_params(graph, torch.float32), buffers_of(graph, torch.float32))
    ids, mask = prompt(graph, 3, 7), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    found = Deployment(lowered.artifact, source).forward(input_ids=ids, attention_mask=mask)
    longer = torch.cat([ids, ids[:, :2]], 1), torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)
    again = Deployment(lowered.artifact, source).forward(
        input_ids=longer[0], attention_mask=longer[1]
    )
    first, second = (next(iter(out.values())) for out in (found, again))
    assert torch.allclose(first[0], second[0, :7], atol=1e-5)
    assert torch.allclose(first[1, :4], second[1, :4], atol=1e-5)
    assert not torch.allclose(first[1, 4:], first[0, 4:], atol=1e-3)


def test_generation_by_the_api_is_checked_against_one_device(tmp_path) -> None:
    """compile -> load -> generate gives the tokens of verify.one_device."""
    from lowered import EXAMPLES

    import plancc

    args = dict(layers="2", hidden="32", heads="8", ffn="48", vocab="60", max_len="64")
    spec = f"{EXAMPLES / 'models.py'}:dense"
    built = plancc.compile(
        EXAMPLES / "tp.plan", spec, tmp_path / "out", model_args=args, verify=False
    )
    ids = prompt(built.compiled.graph)
    found = built.load().generate(ids, 32).tokens.tolist()
    assert found == greedy_tokens(built.artifact, spec, args, ids, 32)
