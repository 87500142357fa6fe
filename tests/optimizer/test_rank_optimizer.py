"""Optimizer steps on slices over fake ranks against plain torch on one device."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from plancc.dsl.errors import Bug
from plancc.runtime.optimizer import (
    NonFinite,
    OptimizerSpec,
    Owned,
    RankOptimizer,
    StepReport,
    learning_rate,
)
from tests.optimizer.fake_ranks import (
    SHAPES,
    Plain,
    Ranks,
    Together,
    gradients,
    place,
    resumed,
    saved,
    weights,
)

SPECS = [
    OptimizerSpec("adamw", 0.01, weight_decay=0.1, clip=3.0, schedule="cosine", warmup=2, steps=6),
    OptimizerSpec("adam", 0.02, betas=(0.8, 0.9), eps=1e-6),
    OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.01, clip=0.5),
    OptimizerSpec("sgd", 0.1),
    *(OptimizerSpec(name, 0.01) for name in ("rmsprop", "adagrad", "adadelta", "adamax", "nadam",
                                             "radam", "asgd", "rprop")),
]  # fmt: skip


@pytest.mark.parametrize("world", [1, 3, 4, 11])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}{spec.clip or ''}")
def test_slices_train_as_one_device(spec: OptimizerSpec, world: int) -> None:
    ranks, plain = Ranks(spec, world, "fp64", torch.float64), Plain(spec, torch.float64)
    for index in range(4):
        grads = gradients(index)
        norm, reports = plain.step(index, grads), ranks.step(index, grads)
        for report in reports:
            assert isinstance(report, StepReport), report
            assert report.grad_norm == pytest.approx(norm, rel=1e-12)
            assert report.lr == learning_rate(spec, index) and not report.skipped
        for name, param in plain.params.items():
            torch.testing.assert_close(ranks.whole(name), param.detach(), rtol=0, atol=1e-12)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    spec = OptimizerSpec(weight_decay=0.5)
    ranks, plain = Ranks(spec, 3, "fp64", torch.float64), Plain(spec, torch.float64)
    for index in range(2):
        grads = gradients(index) | {"up": None}
        plain.step(index, grads)
        ranks.step(index, grads)
    for name, param in plain.params.items():
        torch.testing.assert_close(ranks.whole(name), param.detach(), rtol=0, atol=1e-12)
    assert torch.equal(ranks.whole("up"), weights(torch.float64)["up"])


def test_gradients_and_leaves_are_not_touched() -> None:
    leaf = torch.ones(2, 3, requires_grad=True)
    owned = [Owned("w", leaf, (2, 3), (((0, 2),), ((0, 3),)))]
    rank = RankOptimizer(OptimizerSpec(clip=0.1), owned, sum_all=lambda x: x)
    grad = torch.ones(2, 3)
    rank.step(0, {"w": grad})
    assert torch.equal(grad, torch.ones(2, 3)) and leaf.grad is None and leaf.requires_grad
    assert not leaf.detach().eq(1).any()


@pytest.mark.parametrize("world", [1, 4])
def test_bfloat16_has_float32_masters(world: int) -> None:
    spec = OptimizerSpec("adamw", 1e-4, weight_decay=0.01)
    ranks, plain = Ranks(spec, world, "bf16", torch.bfloat16), Plain(spec, torch.float32)
    with torch.no_grad():
        for name, param in plain.params.items():
            param.copy_(weights(torch.bfloat16)[name])
    for index in range(30):
        grads = {name: grad.bfloat16() for name, grad in gradients(index % 3).items()}
        plain.step(index, grads)
        ranks.step(index, grads)
    for name, param in plain.params.items():
        held = ranks.whole(name)
        assert torch.equal(held, held.bfloat16().double())
        torch.testing.assert_close(held, param.detach().bfloat16().double(), rtol=1e-2, atol=1e-6)
        total = torch.full(SHAPES[name], math.nan, dtype=torch.float64)
        for rank, owned in zip(ranks.ranks, ranks.owned, strict=True):
            for piece in rank.state_pieces():
                if (piece.kind, piece.name) == ("master", name):
                    place(total, next(x for x in owned if x.name == name), piece.tensor)
        torch.testing.assert_close(total, param.detach().double(), rtol=1e-6, atol=1e-6)
    assert not torch.equal(ranks.whole("up"), weights(torch.bfloat16)["up"].double())


def test_micro_batches_sum_in_float32() -> None:
    leaf = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    rank = RankOptimizer(OptimizerSpec(), [Owned("w", leaf, (4,), (((0, 4),),))],
                         sum_all=lambda x: x, precision="bf16")  # fmt: skip
    handle = rank.follow("w", leaf)
    for _ in range(400):
        (leaf * torch.tensor(1.0, dtype=torch.bfloat16)).sum().backward()
        assert leaf.grad is None
    rank.accumulate("w", torch.full((4,), 0.5, dtype=torch.bfloat16))
    assert rank.summed()["w"].dtype == torch.float32
    assert torch.equal(rank.summed()["w"], torch.full((4,), 400.5))
    rank.zero()
    assert not rank.summed()
    handle.remove()
    leaf.sum().backward()
    assert leaf.grad is not None and not rank.summed()
    given = torch.ones(4)
    rank.accumulate("w", given)
    rank.accumulate("w", given)
    assert torch.equal(given, torch.ones(4))


def test_overflow_halves_the_scale_everywhere_and_recovers() -> None:
    spec = OptimizerSpec("adamw", 1e-3, clip=1.0)
    ranks, plain = Ranks(spec, 3, "fp16", torch.float16), Plain(spec, torch.float32)
    with torch.no_grad():
        for name, param in plain.params.items():
            param.copy_(weights(torch.float16)[name])
    before = ranks.whole("embed")
    bad = gradients(0)
    bad["embed"][0, 0] = math.inf  # lies on rank 0 alone
    for report in ranks.step(0, bad):
        assert report.skipped and report.scale == 2.0**16 and not math.isfinite(report.grad_norm)
    assert torch.equal(ranks.whole("embed"), before)
    assert all(rank.loss_scale == 2.0**15 for rank in ranks.ranks)
    for rank in ranks.ranks:
        assert all(piece.kind in ("master", "loss_scale") for piece in rank.state_pieces())
    for index in range(1, 4):
        grads = {name: grad / 4096 for name, grad in gradients(index).items()}
        norm = plain.step(index, grads)
        scaled = {name: grad * ranks.ranks[0].loss_scale for name, grad in grads.items()}
        for report in ranks.step(index, scaled):
            assert not report.skipped and report.grad_norm == pytest.approx(norm, rel=1e-3)
    for name, param in plain.params.items():
        want = param.detach().half().double()
        torch.testing.assert_close(ranks.whole(name), want, rtol=2e-3, atol=1e-4)


def test_the_scale_grows_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plancc.runtime.optimizer.scale.GROWTH", 3)
    ranks = Ranks(OptimizerSpec(), 1, "fp16", torch.float16)
    small = {name: grad * 1e-3 for name, grad in gradients(0).items()}
    for index in range(6):
        ranks.step(index, small)
    assert ranks.ranks[0].loss_scale == 2.0**18
    bad = gradients(0) | {"norm": torch.full((6,), math.nan)}
    for _ in range(28):
        assert ranks.step(6, bad)[0].skipped
    (error,) = ranks.step(6, bad)
    assert isinstance(error, NonFinite) and error.names == ("norm",)
    assert "loss scale of 0.000976562" in str(error)


@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16),
])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_every_rank(
    precision: str, dtype: torch.dtype, value: float
) -> None:
    ranks = Ranks(OptimizerSpec(), 3, precision, dtype)
    ranks.step(0, gradients(0))
    before = {name: ranks.whole(name) for name in SHAPES}
    bad = gradients(1)
    bad["embed"][9, 0] = value  # on the last rank
    first, _, last = ranks.step(1, bad)
    assert isinstance(first, NonFinite) and first.names == () and "another rank" in str(first)
    assert isinstance(last, NonFinite) and last.names == ("embed",) and "`embed`" in str(last)
    assert all(torch.equal(ranks.whole(name), old) for name, old in before.items())


@pytest.mark.parametrize("spec", [*SPECS, OptimizerSpec("nadam", 0.01, clip=0.1)],
                         ids=lambda spec: f"{spec.name}{spec.clip or ''}")  # fmt: skip
@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16),
    ("fp16", torch.float16),
])  # fmt: skip
def test_resume_is_bit_exact_and_goes_to_other_slices(
    spec: OptimizerSpec, precision: str, dtype: torch.dtype
) -> None:
    ranks = Ranks(spec, 3, precision, dtype)
    for index in range(3):
        ranks.step(index, gradients(index))
    if precision == "fp16":
        ranks.step(3, gradients(3) | {"norm": torch.full((6,), math.inf)})
    checkpoint, tensors = saved(ranks), {name: ranks.whole(name) for name in SHAPES}
    same, other = (resumed(ranks, checkpoint, tensors, world) for world in (3, 4))
    assert same.ranks[0].loss_scale == ranks.ranks[0].loss_scale
    for index in range(4, 7):
        for one in (ranks, same, other):
            assert not any(isinstance(x, Exception) for x in one.step(index, gradients(index)))
    for name in SHAPES:
        assert torch.equal(same.whole(name), ranks.whole(name))
        torch.testing.assert_close(
            other.whole(name), ranks.whole(name),
            rtol=1e-12 if precision == "fp64" else 1e-2, atol=1e-12 if precision == "fp64" else 1e-3,
        )  # fmt: skip
    for key, value in saved(ranks).items():
        assert torch.equal(saved(same)[key], value)


def test_state_of_another_shape_or_with_gaps_is_refused() -> None:
    ranks = Ranks(OptimizerSpec(), 1, "bf16", torch.bfloat16)
    (rank,) = ranks.ranks
    with pytest.raises(ValueError, match="exp_avg of `embed`"):
        rank.load_state(lambda kind, item: torch.zeros(() if kind == "step" else 3))
    with pytest.raises(ValueError, match="`embed` has step but no exp_avg, exp_avg_sq"):
        rank.load_state(lambda kind, item: torch.zeros(()) if kind == "step" else None)
    with pytest.raises(ValueError, match="master of `embed`"):
        rank.load_state(lambda kind, item: torch.zeros(3) if kind == "master" else None)


def test_a_master_that_is_not_there_comes_from_the_parameter() -> None:
    ranks = Ranks(OptimizerSpec(), 1, "bf16", torch.bfloat16)
    for item in ranks.owned[0]:
        item.tensor.fill_(2.0)
    ranks.ranks[0].load_state(lambda kind, item: None)
    assert all(bool((p.tensor == 2).all()) for p in ranks.ranks[0].state_pieces())


def test_nothing_owned_takes_part_in_the_sum() -> None:
    together = Together(2)
    item = Owned("w", torch.ones(2), (2,), (((0, 2),),))
    none = Owned("w", torch.ones(0), (2,), (((2, 2),),))
    spec = OptimizerSpec("sgd", 1.0, clip=1.0)
    one, two, = (RankOptimizer(spec, [x], sum_all=partial(together.sum_all, rank))
                 for rank, x in enumerate((item, none)))  # fmt: skip
    work = [
        partial(one.step, 0, {"w": torch.full((2,), 3.0)}),
        partial(two.step, 0, {"w": none.tensor}),
    ]
    reports = together.run(work)
    assert [r.grad_norm for r in reports] == pytest.approx([math.sqrt(18)] * 2)
    assert RankOptimizer(spec, [], sum_all=lambda x: x).step(0, {}).grad_norm == 0.0


def test_what_does_not_fit_is_a_bug() -> None:
    ok = Owned("w", torch.ones(2), (4,), (((0, 2),),))
    sum_all = lambda x: x  # noqa: E731
    for wrong in (
        [ok, ok],
        [Owned("w", torch.ones(2), (4,), (((0, 3),),))],
        [Owned("w", torch.ones(2), (1,), (((0, 2),),))],
        [Owned("w", torch.ones(2).half(), (4,), (((0, 2),),))],
        [Owned("w", torch.ones(2).long(), (4,), (((0, 2),),))],
    ):
        with pytest.raises(Bug):
            RankOptimizer(OptimizerSpec(), wrong, sum_all=sum_all)
    with pytest.raises(ValueError, match="fp32, fp64, bf16, fp16"):
        RankOptimizer(OptimizerSpec(), [ok], sum_all=sum_all, precision="half")
    rank = RankOptimizer(OptimizerSpec(), [ok], sum_all=sum_all)
    for grads in ({}, {"w": torch.ones(2), "x": torch.ones(2)}, {"w": torch.ones(3)}):
        with pytest.raises(Bug):
            rank.step(0, grads)


def test_weight_decay_by_name_and_by_dims() -> None:
    shapes = {"a.weight": (2, 2), "a.bias": (2,), "embed.weight": (2, 2)}
    for no_decay in (("1d",), ("1d", "embed.*"), ()):
        owned = [Owned(name, torch.ones(shape), shape, tuple(((0, n),) for n in shape))
                 for name, shape in shapes.items()]  # fmt: skip
        spec = OptimizerSpec("adamw", 0.1, weight_decay=0.5, no_decay=no_decay)
        rank = RankOptimizer(spec, owned, sum_all=lambda x: x)
        rank.step(0, {name: torch.zeros(shape) for name, shape in shapes.items()})
        spared = {"a.bias"} if no_decay else set()
        spared |= {"embed.weight"} if len(no_decay) > 1 else set()
        for item in owned:
            assert bool(item.tensor.eq(1).all()) == (item.name in spared)
