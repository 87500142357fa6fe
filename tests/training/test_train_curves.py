"""Training on real text: losses fall, and are the same under every plan, backend and resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import artifact, tensors, train

from plancc.runtime.artifact import load_artifact

CLOSE = 1e-9
SLOW = pytest.mark.slow
PAIRS = [
    ("tp2", "dp2"),
    ("tp3", "pp3"),
    ("zero3", "zero2"),
    pytest.param("pp3", "dp2_tp2", marks=SLOW),
    pytest.param("zero1", "tp2", marks=SLOW),
    pytest.param("tp2", "zero3", marks=SLOW),
    pytest.param("fsdp", "pp3", marks=SLOW),
]
MIXED = [
    ("dp2_tp2", "bf16"),
    ("pp3", "fp16"),
    *(
        pytest.param(name, precision, marks=SLOW)
        for name in ("alone", "zero2", "zero3")
        for precision in ("bf16", "fp16")
    ),
]
RESUMED = [
    "tp3", "dp2", "pp3", "zero2", *(pytest.param(n, marks=SLOW) for n in ("dp2_tp2", "zero1", "fsdp"))
]  # fmt: skip
STEPS = 70
FEW = ["tp2", "tp3", "dp2", "dp2_tp2", "pp3"]


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The largest relative difference of two curves of one length."""
    assert len(a) == len(b)
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def curve() -> tuple[float, ...]:
    """One device, float64."""
    losses = train("alone", steps=STEPS, clip=1.0).losses
    assert isinstance(losses, tuple) and len(losses) == STEPS
    return losses


def test_the_loss_falls(curve: tuple[float, ...]) -> None:
    """From about what chance gives (log 260 = 5.6, and what random logits add) to far below."""
    first, last = sum(curve[:5]) / 5, sum(curve[-5:]) / 5
    assert 5 < first < 8 and last < 3 and math.isfinite(last)


@pytest.mark.parametrize(
    "name", [*FEW, "zero1", "zero3", pytest.param("zero2", marks=SLOW), "fsdp"]
)
def test_every_plan_gives_the_same_curve(name: str, curve: tuple[float, ...]) -> None:
    """float64: the same but for the order of sums."""
    assert apart(curve, train(name, steps=STEPS, clip=1.0).losses) < CLOSE


@pytest.mark.parametrize("name", ["tp2", "dp2", "pp3"])
def test_float32_curves_stay_close(name: str, curve: tuple[float, ...]) -> None:
    """float32: within 1e-3 over all steps (rounding grows as training amplifies it)."""
    assert apart(curve, train(name, steps=STEPS, clip=1.0, precision="fp32").losses) < 1e-3


@pytest.mark.parametrize("name", ["tp2", "dp2"])
def test_processes_give_the_same_curve(name: str, curve: tuple[float, ...]) -> None:
    """gloo against one device."""
    found = train(name, steps=STEPS, clip=1.0, backend="gloo")
    assert apart(curve, found.losses) < CLOSE


@pytest.mark.parametrize("name", RESUMED)
def test_resume_is_bit_exact(name: str, tmp_path: Path) -> None:
    """The same losses, weights and optimizer states, bit by bit."""
    usual = {"schedule": "cosine", "warmup": 3, "weight_decay": 0.1, "clip": 0.5}
    whole = train(name, steps=12, checkpoint=tmp_path / "a", **usual)
    half = train(name, steps=12, checkpoint=tmp_path / "b", every=7, **usual)
    assert half.losses == whole.losses
    again = train(name, resume=tmp_path / "b" / "step-00000007", checkpoint=tmp_path / "c")
    assert again.outcome.steps == 12 and again.losses == whole.losses[7:]
    expected, found = tensors(tmp_path / "a"), tensors(tmp_path / "c")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_another_plan_goes_on(
    first: str, second: str, tmp_path: Path, curve: tuple[float, ...]
) -> None:
    """Saved under one plan, resumed under another: the curve of a run without a break."""
    train(first, steps=20, clip=1.0, checkpoint=tmp_path)
    found = train(second, resume=tmp_path, steps=40)
    assert apart(curve[20:40], found.losses) < CLOSE


def test_resume_between_backends(tmp_path: Path, curve: tuple[float, ...]) -> None:
    """Saved by threads, resumed by processes, and back."""
    train("dp2", steps=10, clip=1.0, checkpoint=tmp_path)
    second = train("tp2", resume=tmp_path, steps=20, backend="gloo")
    third = train("dp3", resume=tmp_path, steps=30)
    assert apart(curve[10:30], second.losses + third.losses) < CLOSE


@pytest.mark.parametrize(("name", "precision"), MIXED)
def test_mixed_precision_learns(
    name: str, precision: str, tmp_path: Path, curve: tuple[float, ...]
) -> None:
    """Within 5 % of float64 on average over the last steps; float32 masters are saved and resumed."""
    found = train(name, steps=40, clip=1.0, precision=precision, checkpoint=tmp_path, every=30)
    exact, near = sum(curve[30:40]), sum(found.losses[30:40])
    assert abs(near - exact) / exact < 0.05
    saved = tensors(tmp_path)
    assert (
        saved["model/norm.weight"].dtype
        is {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    )
    assert saved["optim/norm.weight/master"].dtype is torch.float32
    assert ("loss_scale" in saved) is (precision == "fp16")
    again = train(name, resume=tmp_path / "step-00000030", precision=precision)
    assert again.losses == found.losses[30:]


def test_masters_begin_exact(tmp_path: Path) -> None:
    """The first weights of a bf16 run are those of the float32 run, rounded; masters keep all."""
    one = train("alone", steps=1, precision="bf16", lr=1e-30, checkpoint=tmp_path / "a")
    two = train("alone", steps=1, precision="fp32", lr=1e-30, checkpoint=tmp_path / "b")
    assert one.weights == two.weights == "seed"
    narrow, wide = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    name = "layers.0.mlp.up_proj.weight"
    assert torch.equal(narrow[f"optim/{name}/master"], wide[f"model/{name}"])
    assert torch.equal(narrow[f"model/{name}"], wide[f"model/{name}"].bfloat16())


def test_seed_decides_weights_and_data() -> None:
    """Another seed, another curve; the same one, the same curve."""
    first = train("tp2", steps=3, seed=5).losses
    assert first == train("tp2", steps=3, seed=5).losses
    assert first != train("tp2", steps=3).losses


def test_epochs_end_with_the_data(tmp_path: Path) -> None:
    """Every plan ends after the same number of steps."""
    text = tmp_path / "small.txt"
    text.write_text("\n\n".join(f"line {i} of a small text, {i * i}" for i in range(60)))
    ran = [train(name, data=text, epochs=2, batch=4) for name in ("alone", "dp2", "pp3")]
    assert len({run.outcome.steps for run in ran}) == 1 and ran[0].outcome.steps > 5
    assert apart(ran[0].losses, ran[1].losses) < CLOSE


def test_exported_weights_start_a_new_run(tmp_path: Path) -> None:
    """--export gives a file that --weights takes."""
    from safetensors.torch import load_file

    done = train("dp2", steps=2, precision="fp32", export=tmp_path / "w.safetensors")
    assert done.outcome.checkpoint is None and list(tmp_path.iterdir()) == [
        tmp_path / "w.safetensors"
    ]
    held = load_file(tmp_path / "w.safetensors")
    params = load_artifact(artifact("dp2")).manifest["params"].values()
    assert held.keys() == {row["fqns"][0] for row in params if row["kind"] == "param"}


@pytest.mark.parametrize("name", ["alone", "dp2", "zero2", "pp3"])
def test_rounds_of_micro_batches_change_nothing(name: str, curve: tuple[float, ...]) -> None:
    """The same batch in two rounds of smaller micro-batches."""
    assert apart(train(name, steps=5, clip=1.0, accumulate=2).losses, curve[:5]) < CLOSE
