"""8 bits with block scales: bounded errors, exact where they can be, and nothing hidden."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ops.wire import (
    PEAKS,
    decode,
    encode,
    encoded_bytes,
    relative_error,
    wire_type,
)

NAN, INF = float("nan"), float("inf")
RANDOM = settings(max_examples=200, deadline=None, derandomize=True)
EPS = torch.finfo(torch.float32).eps
SLACK = 1 + 4 * 127 * EPS  # the division and the product are rounded too


@st.composite
def tensors(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """A tensor of any shape, dtype and magnitude, and a block size."""
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    block = draw(st.sampled_from([1, 2, 7, 128]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    power = draw(st.integers(-140, 100)) if dtype != torch.float16 else draw(st.integers(-20, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**power
    if draw(st.booleans()):
        x = x * torch.randint(0, 2, shape, generator=generator)
    return x.to(dtype), block


@RANDOM
@given(case=tensors())
def test_int8_is_off_by_half_a_scale_at_most(case: tuple[torch.Tensor, int]) -> None:
    x, block = case
    payload, scales = encode(x, block)
    assert payload.dtype == torch.int8 and payload.shape == (x.numel(),)
    assert scales.dtype == torch.float32 and len(scales) == -(-x.numel() // block)
    assert payload.numel() + 4 * scales.numel() == encoded_bytes(x.numel(), block)
    back = decode(payload, scales, x.shape, torch.float64, block)
    bound = scales.double().repeat_interleave(block)[: x.numel()].reshape(x.shape) / 2 * SLACK
    assert ((x.double() - back).abs() <= bound).all()
    assert not back[x == 0].any()
    peak = x.double().abs().amax().item() if x.numel() else 0.0
    assert not len(scales) or scales.max().item() <= max(peak / 127 * (1 + EPS), 2.0**-126)


@RANDOM
@given(case=tensors(), kind=st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]))
def test_fp8_is_off_by_a_rounding_of_the_type(
    case: tuple[torch.Tensor, int], kind: torch.dtype
) -> None:
    x, block = case
    payload, scales = encode(x, block, kind)
    assert payload.dtype == kind and payload.element_size() == 1
    back = decode(payload, scales, x.shape, torch.float64, block)
    scale = scales.double().repeat_interleave(block)[: x.numel()].reshape(x.shape)
    info = torch.finfo(kind)
    bound = torch.maximum(x.double().abs() * info.eps / 2, scale * info.tiny * info.eps / 2)
    assert ((x.double() - back).abs() <= bound * (1 + 1e-5) + scale * 1e-5).all()


@pytest.mark.parametrize("power", [-100, -3, 0, 5, 90])
def test_exact_for_what_the_type_holds(power: int) -> None:
    whole = torch.arange(-127, 128).double() * 2.0**power
    assert torch.equal(decode(*encode(whole, 255), (255,), torch.float64, 255), whole)
    x = whole.float().reshape(5, 51)
    parts = encode(x, 255)
    assert torch.equal(decode(*parts, (5, 51), block=255), x)
    again = encode(decode(*parts, (5, 51), block=255), 255)
    assert torch.equal(parts[0], again[0]) and torch.equal(parts[1], again[1])


@pytest.mark.parametrize("dtype", PEAKS)
def test_zeros_and_nothing(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (3, 0), (300,)):
        zeros = torch.zeros(shape)
        payload, scales = encode(zeros, 128, dtype)
        assert torch.equal(decode(payload, scales, shape), zeros)
        assert torch.isfinite(scales).all()


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", PEAKS)
def test_a_block_that_is_not_finite_is_nan_and_the_others_are_not_touched(
    wrong: float, dtype: torch.dtype
) -> None:
    x = torch.ones(10)
    x[5] = wrong
    payload, scales = encode(x, 4, dtype)
    back = decode(payload, scales, (10,), block=4)
    assert torch.isnan(back).tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert torch.equal(back[:4], x[:4]) and torch.equal(back[8:], x[8:])
    assert not payload[4:8].float().any()


def test_more_than_float32_holds_is_not_hidden() -> None:
    back = decode(*encode(torch.tensor([1e300, 1.0], dtype=torch.float64), 2), (2,), block=2)
    assert torch.isnan(back).all()


def test_wrong_calls() -> None:
    for x, block, dtype in (
        (torch.zeros(3, dtype=torch.int64), 4, torch.int8),
        (torch.zeros(3), 0, torch.int8),
        (torch.zeros(3), 4, torch.bfloat16),
    ):
        with pytest.raises(ValueError, match="no blocks of"):
            encode(x, block, dtype)
    payload, scales = encode(torch.zeros(300))
    with pytest.raises(ValueError, match=r"300 values in blocks of 128 with 3 scales .* \[299\]"):
        decode(payload, scales, (299,))
    with pytest.raises(ValueError, match="blocks of 64 with 3 scales"):
        decode(payload, scales, (300,), block=64)


def test_wire_types() -> None:
    assert wire_type("bf16").dtype == torch.bfloat16
    assert wire_type("int8").block == 128
    fp8 = wire_type("fp8", {"block": 64, "error_feedback": True})
    assert (fp8.dtype, fp8.block, fp8.error_feedback) == (torch.float8_e4m3fn, 64, True)
    assert wire_type("fp8_e5m2", {}).dtype == torch.float8_e5m2
    for name, options, text in (
        ("tf32", {}, "no values travel as tf32: fp64, fp32"),
        ("int4", {}, "no values travel as int4"),
        ("bf16", {"block": 4}, "bf16 takes no block"),
        ("int8", {"blocks": 4}, "int8 takes no blocks"),
        ("int8", {"block": 0}, "int8 in blocks of 0"),
        ("int8", {"block": True}, "int8 in blocks of True"),
        ("int8", {"error_feedback": 1}, "error_feedback = 1"),
    ):
        with pytest.raises(ValueError, match=text):
            wire_type(name, options)


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16", "fp16", "fp8", "fp8_e5m2", "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 7), (129,)])
def test_every_wire_type_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    wire = wire_type(name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parts = wire.pack(x)
    back = wire.unpack(parts, shape)
    assert back.dtype == torch.float32 and back.shape == x.shape
    assert relative_error(x, back) <= {"fp8_e5m2": 0.15, "fp8": 0.07}.get(name, 0.02)
    assert name not in ("fp32", "fp64") or torch.equal(back, x)
    message = wire.to_bytes(parts)
    assert message.dtype == torch.uint8
    assert message.numel() == wire.nbytes(x.numel())
    assert message.numel() == sum(part.numel() * part.element_size() for part in parts)
    other = wire.from_bytes(message, x.numel())
    assert torch.equal(wire.unpack(other, shape), back)
    with pytest.raises(ValueError, match="are not the"):
        wire.from_bytes(torch.zeros(message.numel() + 1, dtype=torch.uint8), x.numel())


def test_bytes() -> None:
    assert encoded_bytes(0) == 0
    assert encoded_bytes(128) == 132
    assert encoded_bytes(129) == 137
    assert encoded_bytes(10, 4) == 22
    assert wire_type("fp8", {"block": 4}).nbytes(10) == 22
    assert wire_type("bf16").nbytes(10) == 20


def test_relative_error() -> None:
    x = torch.tensor([3.0, 4.0])
    assert relative_error(x, x).item() == 0
    assert relative_error(x, torch.zeros(2)).item() == 1
    assert relative_error(torch.zeros(2), torch.zeros(2)).item() == 0
    assert relative_error(torch.zeros(2), x).item() == INF
    assert relative_error(torch.zeros(0), torch.zeros(0)).item() == 0
