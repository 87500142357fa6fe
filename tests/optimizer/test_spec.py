"""OptimizerSpec and the learning rates of its schedules."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim import lr_scheduler

from plancc.runtime.optimizer import OptimizerSpec, SpecError, learning_rate


@pytest.mark.parametrize(("field", "value", "words"), [
    ("name", "adamm", "torch.optim has no `adamm`; there are adadelta, adagrad, adam"),
    ("name", "Muon", "needs whole matrices"),
    ("name", "lbfgs", "loss several times"),
    ("name", 3, "not a string"),
    ("lr", 0, r"not in \(0, inf\)"),
    ("lr", "1e-3", "not a finite number"),
    ("lr", float("nan"), "not a finite number"),
    ("lr", True, "not a finite number"),
    ("betas", (0.9,), "not a pair"),
    ("betas", (0.9, 1.0), r"not in \[0, 1\)"),
    ("eps", -1.0, "not in"),
    ("weight_decay", -0.1, "not in"),
    ("momentum", 0.9, "`adamw` takes none"),
    ("clip", 0.0, r"not in \(0, inf\)"),
    ("schedule", "cosin", "none of constant, linear, cosine, wsd"),
    ("warmup", -1, "not a number of steps"),
    ("warmup", 1.5, "not a number of steps"),
    ("steps", True, "not a number of steps"),
    ("min_lr", 1.1, r"not in \[0, 1\]"),
    ("decay", 0.0, r"not in \(0, 1\]"),
    ("no_decay", ["1d"], "not a tuple"),
])  # fmt: skip
def test_errors_name_the_field(field: str, value: object, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        OptimizerSpec(**{field: value})
    assert caught.value.field == field and str(caught.value).startswith(f"{field}: ")


def test_errors_of_several_fields() -> None:
    for field, given in (
        ("steps", {"schedule": "cosine"}),
        ("warmup", {"steps": 5, "warmup": 6}),
        ("betas", {"name": "sgd", "betas": (0.9, 0.99)}),
        ("weight_decay", {"name": "rprop", "weight_decay": 0.1}),
    ):
        with pytest.raises(SpecError) as caught:
            OptimizerSpec(**given)
        assert caught.value.field == field


def test_json_round_trip() -> None:
    spec = OptimizerSpec("sgd", 0.1, momentum=0.9, clip=1, schedule="wsd", warmup=2, steps=9,
                         no_decay=("1d", "*.bias"))  # fmt: skip
    assert OptimizerSpec.from_json(spec.to_json()) == spec
    assert OptimizerSpec.from_json(json.loads(spec.to_json())) == spec
    adam = OptimizerSpec("AdamW", betas=(0.9, 0.95))
    assert OptimizerSpec.from_json(adam.to_json()) == adam
    assert OptimizerSpec.from_json("{}") == OptimizerSpec()
    with pytest.raises(SpecError, match="did you mean `warmup`"):
        OptimizerSpec.from_json('{"warmups": 3}')
    with pytest.raises(SpecError, match="not a JSON object"):
        OptimizerSpec.from_json("[1]")


def rates(make: object, count: int) -> list[float]:
    """The rates that a scheduler of torch gives, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_are_those_of_torch(schedule: str, warmup: int) -> None:
    steps, least = 20, 0.1

    def falling(optimizer: torch.optim.Optimizer) -> object:
        length = steps - warmup
        if schedule == "linear":
            return lr_scheduler.LinearLR(optimizer, 1.0, least, length)
        if schedule == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, length, 0.3 * least)
        return lr_scheduler.ConstantLR(optimizer, 1.0, length)

    spec = OptimizerSpec(lr=0.3, schedule=schedule, warmup=warmup, steps=steps, min_lr=least)
    got = [learning_rate(spec, step) for step in range(steps + 1)]
    assert got[warmup:] == pytest.approx(rates(falling, steps + 1 - warmup), rel=1e-9)
    if warmup:
        climb = rates(lambda o: lr_scheduler.LinearLR(o, 1 / warmup, 1.0, warmup - 1), warmup)
        assert got[:warmup] == pytest.approx(climb, rel=1e-9)


def test_wsd_and_the_ends() -> None:
    spec = OptimizerSpec(lr=1.0, schedule="wsd", warmup=2, steps=12, decay=0.5, min_lr=0.5)
    got = [learning_rate(spec, step) for step in range(14)]
    assert got[:7] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert got[12] == got[13] == 0.5 and got[9] == pytest.approx(0.75)
    all_warm = OptimizerSpec(schedule="cosine", warmup=3, steps=3)
    assert learning_rate(all_warm, 2) == 1e-3 and learning_rate(all_warm, 3) == 0.0
    with pytest.raises(ValueError, match="no step -1"):
        learning_rate(spec, -1)
