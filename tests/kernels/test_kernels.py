"""Choosing kernels by what they declare, refusing the rest, and calls as the signatures say."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from attention_oracle import NEG_INF

from plancc.ops import kernels
from plancc.ops.blocks import Block, attend_block, attend_blocks
from plancc.ops.kernels import KERNELS, available, choose, get
from plancc.ops.kernels.__main__ import main
from plancc.ops.kernels.cuda import CUDA_EFFICIENT, CUDA_FLASH
from plancc.ops.kernels.kernel import Kernel
from plancc.ops.kernels.package import FLASH_ATTN
from plancc.ops.kernels.reference import MATH

Q, KV = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
PLACE = {"scale": 0.3, "q_start": 0, "k_start": 0, "causal": True}


def test_choice_follows_the_properties() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert choose("cpu", dtype).name == "cpu_flash"
        assert choose("cpu", dtype, mask=True, backward=True).name == "cpu_flash"
        assert choose("cpu", dtype, softcap=True).name == "math"


def test_what_no_kernel_offers_is_an_error_with_reasons() -> None:
    with pytest.raises(LookupError, match=r"cpu_flash: has no int8.*cuda_flash.*math: has no int8"):
        choose("cpu", torch.int8)
    with pytest.raises(LookupError, match="no kernel `best`: cpu_flash"):
        get("best")


def test_a_missing_kernel_says_why() -> None:
    for presence in available():
        if presence.missing:
            with pytest.raises(LookupError, match="is not present"):
                get(presence.kernel.name)
        else:
            assert get(presence.kernel.name) is presence.kernel


def test_an_activated_fa3_takes_the_place_of_torch_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = tuple(kernels.Presence(kernel, None) for kernel in KERNELS)
    monkeypatch.setattr(kernels, "available", lambda: everything)
    kernels._choose.cache_clear()
    half = ("cuda", torch.bfloat16)
    try:
        assert kernels._choose(*half, False, False, False, 64, None).name == "cuda_flash"
        assert kernels._choose(*half, False, False, False, 64, "FA3").name == "fa3"
        assert kernels._choose(*half, True, False, False, 64, None).name == "cuda_efficient"
        assert kernels._choose(*half, False, True, False, 64, None).name == "flash_attn"
        assert kernels._choose("cuda", torch.float64, False, False, False, 64, None) is MATH
    finally:
        kernels._choose.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((Q, KV.double(), KV.double(), None, False), "one dtype"),
        ((Q[:, :3], KV, KV, None, False), "no multiple"),
        ((Q, KV[..., :4], KV, None, False), "do not fit"),
        ((Q, KV, KV, torch.ones(5, 5, dtype=torch.bool), False), "additive float"),
        ((Q, KV[:, :, :3], KV[:, :, :3], None, True), "causal square of 5"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments: tuple, words: str) -> None:
    *tensors, mask, square = arguments
    for presence in available():
        if not presence.missing and "cpu" in (presence.kernel.devices or ("cpu",)):
            with pytest.raises(ValueError, match=words):
                presence.kernel.forward(*tensors, scale=0.3, mask=mask, causal_square=square)


def test_a_named_kernel_is_never_replaced() -> None:
    with pytest.raises(ValueError, match="`cpu_flash` has no softcap"):
        attend_block(Q, KV, KV, softcap=2.0, kernel="cpu_flash", **PLACE)
    forward_only = Kernel("once", (), (torch.float32,), lambda: None, MATH.run, None)
    q = Q.clone().requires_grad_()
    out, _ = attend_blocks(
        q, [Block(KV, KV, (range(5),))], scale=0.3, causal=False, kernel=forward_only
    )
    with pytest.raises(ValueError, match="`once` has no backward"):
        out.sum().backward()


def test_gradients_are_never_lost_in_silence() -> None:
    q = Q.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="attend_blocks"):
        attend_block(q, KV, KV, **PLACE)
    mask = torch.zeros(5, 5, requires_grad=True)
    with pytest.raises(ValueError, match="masks get no gradient"):
        attend_blocks(q, [Block(KV, KV, (range(5),), mask=mask)], scale=0.3, causal=False)
    with pytest.raises(ValueError, match="no blocks"):
        attend_blocks(q, [], scale=0.3, causal=False)
    with pytest.raises(ValueError, match="5 keys at 4 positions"):
        attend_blocks(q, [Block(KV, KV, (range(4),))], scale=0.3, causal=False)


@pytest.mark.parametrize("base", ["e", "2"])
def test_the_base_of_a_kernel_stays_inside(base: str) -> None:
    """A kernel that speaks base 2 (flashinfer's default) gives the same lse and gradients."""
    factor = 1.0 if base == "e" else 1 / kernels.kernel.LN2

    def run(*case):
        out, lse = MATH.run(*case)
        return out, lse * factor

    def grad(dout, out, lse, *case):
        return MATH.grad(dout, out, lse / factor, *case)

    other = Kernel("other", (), MATH.dtypes, lambda: None, run, grad, lse_base=base)
    out, lse = other.forward(Q, KV, KV, scale=0.3)
    want, want_lse = MATH.forward(Q, KV, KV, scale=0.3)
    assert torch.allclose(out, want, atol=1e-6) and torch.allclose(lse, want_lse, atol=1e-6)
    got = other.backward(out, out, lse, Q, KV, KV, scale=0.3)
    for one, two in zip(got, MATH.backward(out, out, lse, Q, KV, KV, scale=0.3), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("kernel", [CUDA_FLASH, CUDA_EFFICIENT], ids=lambda k: k.name)
@pytest.mark.parametrize("masked", [False, True])
def test_cuda_calls_fit_the_signatures(kernel: Kernel, masked: bool) -> None:
    """Without a GPU: shapes on the meta device, through the operators' own schemas."""
    if masked and not kernel.supports_mask:
        pytest.skip("takes no mask")
    q = torch.empty(2, 8, 37, 60, dtype=torch.bfloat16, device="meta")
    k = torch.empty(2, 2, 41, 60, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(2, 1, 37, 41, dtype=torch.bfloat16, device="meta") if masked else None
    case = kernel._fit(q, k, k, mask, False)
    out, lse = kernel.run(*case, 0.1, 0.0)
    assert out.shape == (2, 8, 37, 64) and lse.shape == (2, 8, 37) and lse.dtype == torch.float32
    grads = kernel.grad(out, out, lse, *case, 0.1, 0.0)
    assert [grad.shape for grad in grads] == [x.shape for x in case[:3]]


def test_flash_attn_is_called_as_its_version_2_8_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's signatures, computed by the reference kernel."""
    module = ModuleType("flash_attn.flash_attn_interface")

    def flip(*tensors):
        return [x.transpose(1, 2) for x in tensors]

    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    ):  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right) == (0.0, -1, -1)
        assert alibi_slopes is None and return_softmax is False
        out, lse = MATH.run(*flip(q, k, v), None, causal, softmax_scale, softcap)
        return out.transpose(1, 2), lse, None, None

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        dout, q, k, v, out = flip(dout, q, k, v, out)
        done = MATH.grad(dout, out, softmax_lse, q, k, v, None, causal, softmax_scale, softcap)
        for target, grad in zip((dq, dk, dv), done, strict=True):
            assert target.is_contiguous()
            target.copy_(grad.transpose(1, 2))

    module._flash_attn_forward = _flash_attn_forward
    module._flash_attn_backward = _flash_attn_backward
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    case = (Q, KV, KV, None, True, 0.3, 2.0)
    out, lse = FLASH_ATTN.run(*case)
    want, want_lse = MATH.run(*case)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)
    for got, exact in zip(
        FLASH_ATTN.grad(out, out, lse, *case), MATH.grad(out, out, lse, *case), strict=True
    ):
        assert torch.equal(got, exact)


def test_a_sink_alone_is_nothing_seen() -> None:
    sinks = torch.tensor([0.5, 1.0, NEG_INF, 0.0])
    out, lse = attend_block(Q, KV[:, :, :0], KV[:, :, :0], sinks=sinks, **PLACE)
    assert (out == 0).all() and torch.equal(lse[0, :, 0], sinks)


def test_the_table_names_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    text = capsys.readouterr().out
    for presence in available():
        (line,) = [row for row in text.splitlines() if row.split()[0] == presence.kernel.name]
        assert ("skipped: " + presence.missing if presence.missing else "lse base") in line
