"""Torch's own CUDA kernels: `cuda_flash` (FlashAttention 2), `cuda_efficient`, and `fa3`, `fa4`.

FA3 and FA4 replace FA2 behind the same operator for the whole process once torch activates them,
so each of the three flash kernels makes sure, before it runs, that its own is the active one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from plancc.ops.kernels.kernel import Grad, Kernel, Run

HALVES = (torch.bfloat16, torch.float16)
_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
_LSE_ROWS = 32  # cuda_efficient pads the rows of its lse to a multiple of this
_BIAS_COLUMNS = 16  # and reads its bias in vectors: rows start at a multiple of this


def active() -> str | None:
    """Return the flash implementation ("FA3", "FA4") that this process activated, or None."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return current() if current else None


def _probe(*names: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        missing = [name for name in names if not hasattr(torch.ops.aten, name)]
        if missing:
            return f"torch {torch.__version__} has no aten::{missing[0]}"
        return None if torch.cuda.is_available() else "no CUDA device"

    return probe


def _probe_impl(impl: str, capability: tuple[int, ...]) -> Callable[[], str | None]:
    def probe() -> str | None:
        listed = getattr(torch.nn.attention, "list_flash_attention_impls", None)
        if listed is None or impl not in listed():
            return f"torch {torch.__version__} has no {impl} to activate"
        if not torch.cuda.is_available():
            return "no CUDA device"
        major = torch.cuda.get_device_capability()[0]
        if major not in capability:
            return f"{impl} is for compute capability {capability}, not {major}"
        try:
            found = find_spec(_MODULES[impl]) is not None
        except ImportError:
            found = False
        return None if found else f"package `{_MODULES[impl]}` is not installed"

    return probe


def _use(impl: str | None) -> None:
    now = active()
    if now == impl:
        return
    if impl is None:
        torch.nn.attention.restore_flash_attention_impl()
    else:
        torch.nn.attention.activate_flash_attention_impl(impl)


def _flash(impl: str | None) -> Run:
    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        softcap: float,
    ) -> tuple[Tensor, Tensor]:
        _use(impl)
        done = torch.ops.aten._scaled_dot_product_flash_attention.default(
            q, k, v, 0.0, causal, False, scale=scale
        )
        return done[0], done[1]

    return run


def _flash_grad(impl: str | None) -> Grad:
    def grad(
        dout: Tensor,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        softcap: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _use(impl)
        seed = q.new_zeros(2, dtype=torch.uint64)  # of the dropout that there is not
        return torch.ops.aten._scaled_dot_product_flash_attention_backward.default(
            dout, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal,
            seed, seed.new_zeros(()), scale=scale,
        )  # fmt: skip

    return grad


def _efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    done = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        q, k, v, _bias(mask, q, k), True, 0.0, causal, scale=scale
    )
    return done[0], done[1][:, :, : q.shape[2]]


def _efficient_grad(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    lse = F.pad(lse, (0, -lse.shape[2] % _LSE_ROWS), value=float("inf"))
    seed = q.new_zeros((), dtype=torch.int64)
    done = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default(
        dout, q, k, v, _bias(mask, q, k), out, lse, seed, seed, 0.0,
        [True, True, True, False], causal, scale=scale,
    )  # fmt: skip
    return done[0], done[1], done[2]


def _bias(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Return the mask as [B, H, Tq, Tk] in the dtype of q with rows on aligned addresses."""
    if mask is None:
        return None
    queries, keys = q.shape[2], k.shape[2]
    rows = mask.to(q.dtype).expand(*mask.shape[:2], queries, keys)
    rows = F.pad(rows, (0, -keys % _BIAS_COLUMNS)).contiguous()[..., :keys]
    return rows.expand(q.shape[0], q.shape[1], queries, keys)


def _flash_kernel(name: str, impl: str | None, probe: Callable[[], str | None]) -> Kernel:
    return Kernel(
        name,
        devices=("cuda",),
        dtypes=HALVES,
        probe=probe,
        run=_flash(impl),
        grad=_flash_grad(impl),
        causal_alignment="bottom_right",
        native_gqa=True,
        head_dim_multiple=8,
        max_head_dim=256,
    )


CUDA_FLASH = _flash_kernel(
    "cuda_flash",
    None,
    _probe("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
)
FA3 = _flash_kernel("fa3", "FA3", _probe_impl("FA3", (9,)))
FA4 = _flash_kernel("fa4", "FA4", _probe_impl("FA4", (9, 10)))
CUDA_EFFICIENT = Kernel(
    "cuda_efficient",
    devices=("cuda",),
    dtypes=(*HALVES, torch.float32),
    probe=_probe(
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_efficient_attention_backward",
    ),
    run=_efficient,
    grad=_efficient_grad,
    causal_alignment="upper_left",
    supports_mask=True,
    supports_different_v_dim=True,
    head_dim_multiple=8,
)
