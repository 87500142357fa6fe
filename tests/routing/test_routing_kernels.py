"""One suite for every routing kernel that is present; the others are skipped with the reason.

Where triton is installed and CUDA is not, the suite runs once more in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_oracle import routings, rows_of, summed

import plancc.ops.routing as routing
from plancc.ops.routing import Kernel, available, choose, get
from plancc.ops.routing.plain import sum_by_turns

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RANDOM = settings(max_examples=8 if INTERPRETED else 200, deadline=None, derandomize=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def device_of(kernel: Kernel) -> str:
    return kernel.devices[0] if kernel.devices and not kernel.interpreted else "cpu"


@pytest.fixture(
    params=[
        pytest.param(
            presence.kernel,
            id=presence.kernel.name,
            marks=[pytest.mark.skip(reason=presence.missing)] if presence.missing else [],
        )
        for presence in available()
    ],
    scope="module",
)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kernel there is; missing ones are skipped."""
    return request.param


def tensor(owners: list[list[int]], kernel: Kernel) -> torch.Tensor:
    """Owners [t][k] on the device of the kernel."""
    if not owners:
        return torch.empty(0, 3, dtype=torch.int64, device=device_of(kernel))
    return torch.tensor(owners, dtype=torch.int64, device=device_of(kernel))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@RANDOM
@given(case=routings())
def test_count_and_permute(kernel: Kernel, case: tuple[list[list[int]], int]) -> None:
    owners, n = case
    want = rows_of(owners, n)
    given_owners = tensor(owners, kernel)
    rows, counts = kernel.permute(given_owners, n)
    assert counts.tolist() == [len(part) for part in want]
    assert rows.tolist() == [token for part in want for token in part]
    assert rows.dtype == counts.dtype == torch.int64
    assert torch.equal(kernel.count(given_owners, n), counts)


@RANDOM
@given(
    case=routings(),
    width=st.sampled_from([0, 1, 3, 8, 33]),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_take_and_combine(
    kernel: Kernel,
    case: tuple[list[list[int]], int],
    width: int,
    dtype: torch.dtype,
    weighted: bool,
    seed: int,
) -> None:
    owners, n = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(owners), width, generator=generator).to(device_of(kernel), dtype)
    rows, _ = kernel.permute(tensor(owners, kernel), n)
    taken = kernel.take(x, rows)
    assert torch.equal(taken, x[rows])
    weights = torch.rand(len(rows), generator=generator).to(x.device) if weighted else None
    out = kernel.combine(rows, taken, len(owners), weights)
    assert out.dtype == dtype and out.shape == x.shape
    again = kernel.combine(rows, taken, len(owners), weights)
    assert torch.equal(bits(out), bits(again))
    shares = None if weights is None else weights.double().tolist()
    for column in range(width):
        want = summed(rows.tolist(), taken[:, column].double().tolist(), len(owners), shares)
        error = (out[:, column].double().cpu() - torch.tensor(want, dtype=torch.float64)).abs()
        size = 1.0 + taken[:, column].abs().sum().item()
        assert not len(error) or error.max() <= 16 * torch.finfo(dtype).eps * size


@RANDOM
@given(case=routings(), seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
def test_kernels_agree_bit_by_bit_without_weights(
    kernel: Kernel, case: tuple[list[list[int]], int], seed: int, dtype: torch.dtype
) -> None:
    if kernel.interpreted and dtype == torch.bfloat16:
        dtype = torch.float16  # the interpreter cuts bfloat16 off where devices round
    owners, n = case
    rows, _ = kernel.permute(tensor(owners, kernel), n)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(rows), 5, generator=generator).to(dtype)
    got = kernel.combine(rows, values.to(rows.device), len(owners))
    want = get("plain").combine(rows.cpu(), values, len(owners))
    assert torch.equal(bits(got.cpu()), bits(want))


@RANDOM
@given(case=routings())
def test_combine_of_take_counts_the_ranks_of_each_token(
    kernel: Kernel, case: tuple[list[list[int]], int]
) -> None:
    owners, n = case
    rows, counts = kernel.permute(tensor(owners, kernel), n)
    ones = torch.ones(len(owners), 2, dtype=torch.float64, device=rows.device)
    hosts = kernel.combine(rows, kernel.take(ones, rows), len(owners))[:, 0]
    assert hosts.tolist() == [len(set(row) - {-1}) for row in owners]
    weights = 1 / hosts[rows]
    back = kernel.combine(rows, kernel.take(ones, rows), len(owners), weights)
    assert torch.allclose(back[hosts > 0], ones[hosts > 0])
    assert not back[hosts == 0].any()
    assert int(counts.sum()) == len(rows)


@RANDOM
@given(case=routings(), weighted=st.booleans(), seed=st.integers(0, 1000))
def test_gradients(
    kernel: Kernel, case: tuple[list[list[int]], int], weighted: bool, seed: int
) -> None:
    owners, n = case
    device, generator = device_of(kernel), torch.Generator().manual_seed(seed)
    rows, _ = kernel.permute(tensor(owners, kernel), n)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    x, weights = random(len(owners), 3).requires_grad_(), random(len(rows)).requires_grad_()
    scale, dout = random(len(rows), 3), random(len(owners), 3)
    share = weights if weighted else None
    leaves = [x, weights] if weighted else [x]
    out = kernel.combine(rows, kernel.take(x, rows) * scale, len(owners), share)
    got = torch.autograd.grad(out, leaves, dout)
    factor = scale * weights[:, None] if weighted else scale
    plain = torch.zeros_like(x).index_add(0, rows, x[rows] * factor)
    for one, other in zip(got, torch.autograd.grad(plain, leaves, dout), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_halves_are_added_in_float32(kernel: Kernel, dtype: torch.dtype) -> None:
    values = torch.full((512, 1), 0.01, dtype=dtype, device=device_of(kernel))
    rows = torch.zeros(512, dtype=torch.int64, device=values.device)
    out = kernel.combine(rows, values, 1)
    exact = values.double().sum()
    assert abs(out.double().item() - exact) <= torch.finfo(dtype).eps * exact


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_weights_of_halves_are_not_rounded(kernel: Kernel, dtype: torch.dtype) -> None:
    values = torch.ones(2, 1, dtype=dtype, device=device_of(kernel))
    rows = torch.zeros(2, dtype=torch.int64, device=values.device)
    weights = torch.tensor([1 + 2.0**-13, -1.0], device=values.device)
    assert kernel.combine(rows, values, 1, weights).item() == 2.0**-13


def test_rows_of_whole_numbers_are_taken_too(kernel: Kernel) -> None:
    index = torch.tensor([[3, 1], [0, 2]], device=device_of(kernel))
    rows = torch.tensor([1, 0, 1], device=index.device)
    assert kernel.take(index, rows).tolist() == [[0, 2], [3, 1], [0, 2]]


def test_more_tokens_than_one_block_and_wide_rows(kernel: Kernel) -> None:
    owners = torch.arange(1100, device=device_of(kernel)).remainder(3).view(-1, 1) - 1
    rows, counts = kernel.permute(owners, 2)
    assert counts.tolist() == [367, 366]
    assert torch.equal(rows, torch.cat([(owners[:, 0] == rank).nonzero()[:, 0] for rank in (0, 1)]))
    x = torch.randn(3, 1500, device=rows.device)
    few = torch.tensor([2, 0, 2], device=rows.device)
    assert torch.equal(kernel.take(x, few), x[few])
    want = torch.stack((x[0], torch.zeros_like(x[0]), x[2] + x[2]))
    assert torch.equal(kernel.combine(few, x[few], 3), want)


def test_values_that_are_not_contiguous(kernel: Kernel) -> None:
    x = torch.randn(4, 6, device=device_of(kernel)).t()[::2]
    owners = torch.tensor([[0, 1, 1], [1, 0, 0]], device=x.device).t()
    rows, counts = kernel.permute(owners, 2)
    assert (rows.tolist(), counts.tolist()) == ([0, 1, 2, 0, 1, 2], [3, 3])
    assert torch.equal(kernel.take(x, rows), x[rows])
    assert torch.equal(kernel.combine(rows, x[rows], 3), x + x)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda k, d: k.count(torch.zeros(3, 2, device=d), 2), "owners are int64"),
        (lambda k, d: k.permute(torch.zeros(3, dtype=torch.int64, device=d), 2), "owners are"),
        (lambda k, d: k.count(torch.zeros(3, 1, dtype=torch.int64, device=d), 0), "at least one"),
        (lambda k, d: k.take(torch.zeros(3, device=d), torch.zeros(1, device=d)), "rows of"),
        (lambda k, d: k.take(torch.zeros(3, 1, device=d), torch.zeros(1, device=d)), "rows are"),
        (lambda k, d: k.combine(torch.zeros(2, dtype=torch.int64, device=d),
                                torch.zeros(3, 1, device=d), 4), "2 rows for 3 values"),
        (lambda k, d: k.combine(torch.zeros(2, dtype=torch.int64, device=d),
                                torch.zeros(2, 1, device=d), 4, torch.zeros(3)), "weights"),
        (lambda k, d: k.combine(torch.zeros(2, dtype=torch.int64, device=d),
                                torch.zeros(2, 1, dtype=torch.int64, device=d), 4), "floating"),
    ],
)  # fmt: skip
def test_wrong_calls(kernel: Kernel, call: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(kernel, device_of(kernel))  # type: ignore[operator]


def test_indices_out_of_range_on_the_cpu() -> None:
    kernel = get("plain")
    with pytest.raises(ValueError, match=r"owner 4 is not in -1\.\.3"):
        kernel.count(torch.tensor([[0, 4]]), 4)
    with pytest.raises(ValueError, match=r"owner -2 is not in -1\.\.3"):
        kernel.permute(torch.tensor([[0, -2]]), 4)
    with pytest.raises(ValueError, match=r"row 3 is not in 0\.\.2"):
        kernel.take(torch.zeros(3, 1), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"row -1 is not in 0\.\.2"):
        kernel.combine(torch.tensor([-1]), torch.zeros(1, 1), 3)


def test_other_devices_sum_by_turns_with_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 7, (40,), generator=generator)
    values = torch.randn(40, 3, generator=generator)
    for tokens in (7, 9):
        out = sum_by_turns(rows, values, tokens)
        assert torch.equal(bits(get("plain").combine(rows, values, tokens)), bits(out))


def test_a_large_routing_takes_no_loop_over_tokens() -> None:
    owners = torch.randint(-1, 64, (200_000, 8), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    rows, counts = get("plain").permute(owners, 64)
    assert time.perf_counter() - start < 10  # a loop over tokens and choices takes far longer
    assert int(counts.sum()) == len(rows)


def test_choice() -> None:
    assert choose("cpu", torch.float32) is get("plain")
    assert routing.choose("cpu", torch.int64) is get("plain")
    with pytest.raises(LookupError, match=r"no routing kernel for torch\.complex64 on cpu"):
        choose("cpu", torch.complex64)
    with pytest.raises(LookupError, match="no routing kernel `ptx`: triton, plain"):
        get("ptx")


@pytest.mark.skipif(
    next(p.missing for p in available() if p.kernel.name == "triton") is None,
    reason="triton is present",
)
def test_a_missing_kernel_says_why() -> None:
    with pytest.raises(LookupError, match="routing kernel `triton` is not present: "):
        get("triton")


def test_functions_take_the_best_kernel() -> None:
    owners, x = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1.0], [2.0]])
    rows, counts = routing.permute(owners, 2)
    assert (rows.tolist(), counts.tolist()) == ([0, 0, 1], [1, 2])
    assert routing.count(owners, 2).tolist() == [1, 2]
    assert routing.combine(rows, routing.take(x, rows), 2).tolist() == [[2.0], [2.0]]
    half = torch.tensor([0.5, 0.5, 1.0])
    assert routing.combine(rows, routing.take(x, rows), 2, half).tolist() == [[1.0], [2.0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs on the CUDA device")
@pytest.mark.skipif(find_spec("triton") is None, reason="package `triton` is not installed")
def test_the_suite_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
