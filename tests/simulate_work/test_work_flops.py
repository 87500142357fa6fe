"""FLOPs against torch's own counter: on one device, over ranks, forward and backward; faults are seen."""

from __future__ import annotations

import pytest
import torch
from lowered import dense
from model_zoo import ZOO
from torch import Tensor, nn
from work_cases import ONE, TENSOR, compiled, counted, of_ranks, products, squares, total

from plancc.simulator import costs_products
from plancc.simulator.place import Sizes

MODELS = ["llama", "llama_tied", "qwen3", "gpt2", "gemma2", "phi3", "bloom", "t5", "bert"]
SIX = (("heads", 6), ("hidden", 48), ("ffn", 96))
BATCH, TOKENS = 4, 7


def ids() -> Tensor:
    return torch.randint(60, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def everything(model: nn.Module, **options: bool) -> int:
    return sum(counted(model, ids(), **options).values())


@pytest.mark.parametrize("name", MODELS)
def test_one_device_counts_what_torch_counts(name: str) -> None:
    """All products, and attention if nothing were hidden: to the last FLOP."""
    found = compiled(ONE, name)
    sizes = Sizes(BATCH, TOKENS)
    whole = total(found, sizes, lambda work: products(work) + squares(work))
    assert whole == everything(ZOO[name]())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_count_what_torch_counts(name: str) -> None:
    """On one rank every choice is made there, whatever the router says."""
    model = ZOO[name]()
    model.set_experts_implementation("eager")
    found = compiled(ONE, name)
    whole = total(found, Sizes(BATCH, TOKENS), lambda work: products(work) + squares(work))
    assert whole == everything(model)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gemma2"])
def test_training_counts_what_torch_counts(name: str) -> None:
    """Two products for each of the forward; plain attention has four in place of flash's five."""
    found = compiled(ONE, name, (), "train")
    works = next(iter(of_ranks(found, Sizes(BATCH, TOKENS)).values()))
    attention = sum(map(squares, works)) // 2  # it is there once forward, once backward
    assert sum(map(products, works)) + 3 * attention == everything(ZOO[name](), backward=True)


@pytest.mark.parametrize("phase", ["forward", "train"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_ranks_together_do_the_work_of_one(ranks: int, phase: str) -> None:
    """Every product is split over tp, evenly or not: nothing is done twice."""
    plan, sizes = TENSOR.format(tp=ranks), Sizes(BATCH, TOKENS)
    whole = total(compiled(plan, "dense", SIX, phase), sizes, lambda work: work.flops)
    assert whole == total(compiled(ONE, "dense", SIX, phase), sizes, lambda work: work.flops)
    assert total(compiled(plan, "dense", SIX), sizes, products) < whole


def test_uneven_heads_over_three_ranks() -> None:
    """8 heads on 3 ranks: 2, 3 and 3 of them, and so is the work of their attention."""
    found = of_ranks(compiled(TENSOR.format(tp=3)), Sizes(BATCH, TOKENS))
    each = [sum(w.flops for w in works if w.kind == "attention") for works in found.values()]
    assert [3 * one for one in each] == [2 * each[2], 3 * each[2], 3 * each[2]]
    assert {w.shape[1] for w in found[0] if w.kind == "attention"} == {2}


PLANS = {
    "zero bubble": ("mesh base[pp = 2] on local\nplace ** on base\n"
                    "place layers.* { split layers over pp }\nplace embed_tokens on base[pp = 0]\n"
                    "place norm, lm_head on base[pp = -1]\npipeline over base.pp "
                    "{ schedule = zero_bubble; microbatches = 2 }\n"),
    "zero 3": "model m { mode = train }\nmesh base[dp = 2] on local\nplace ** on base { split batch over dp; "
              "split params, grads, optim over dp }\n",
    "sequence": "mesh base[sp = 3] on local\nplace ** on base { split seq over sp }\n",
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_training_plans_do_the_work_of_one(name: str) -> None:
    """Pipelines, sharded state and sequences that are cut compute what one device computes."""
    sizes = Sizes(BATCH, TOKENS)
    whole = total(compiled(ONE, "dense", SIX, "train"), sizes, lambda work: work.flops)
    assert (
        total(compiled(PLANS[name], "dense", SIX, "train"), sizes, lambda work: work.flops) == whole
    )


def test_recomputing_adds_the_forward_of_what_is_recomputed() -> None:
    """All layers again, but neither the embedding nor the head."""
    again = f"{ONE}place layers.* {{ recompute = full }}\n"
    sizes = Sizes(BATCH, TOKENS)
    more = total(compiled(again, "dense", SIX, "train"), sizes, products)
    plain = total(compiled(ONE, "dense", SIX, "train"), sizes, products)
    head = 2 * BATCH * TOKENS * 48 * 60
    assert more - plain == total(compiled(ONE, "dense", SIX), sizes, products) - head


FAULTS = {
    "a dim is forgotten": lambda b, m, n, k: (b, m, 1, k),
    "an addition is not counted": lambda b, m, n, k: (b, m, n, k / 2),
    "heads are forgotten": lambda b, m, n, k: (b, m, n // 6, k),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with torch fails where a product's shape is wrong."""
    real = costs_products.product

    def wrong(shape, read, written, dtype):
        return real(FAULTS[fault](*shape), read, written, dtype)

    monkeypatch.setattr(costs_products, "product", wrong)
    with pytest.raises(AssertionError):
        test_one_device_counts_what_torch_counts("llama")


def test_a_backward_without_its_second_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over ranks of a training step falls short of torch's count."""
    monkeypatch.setattr(costs_products, "two_products", costs_products.one_product)
    sizes = Sizes(BATCH, TOKENS)
    short = total(compiled(ONE, "dense", SIX, "train"), sizes, products)
    model = dense(**dict(SIX)).train()
    mm = sum(n for op, n in counted(model, ids(), backward=True).items() if "bmm" not in str(op))
    assert short < mm
