"""The `flash_attn` kernel: the package flash-attn 2.8, where it is installed (`plancc[gpu]`)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from plancc.ops.kernels.cuda import HALVES
from plancc.ops.kernels.kernel import Kernel

_MODULE = "flash_attn.flash_attn_interface"  # layout [B, T, H, D]; lse [B, H, T]
_EVERYWHERE = (-1, -1)  # no window


def _probe() -> str | None:
    if find_spec("flash_attn") is None:
        return "package `flash-attn` is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        module = import_module(_MODULE)
    except ImportError as broken:
        return f"package `flash-attn` does not load: {broken}"
    wanted = ("_flash_attn_forward", "_flash_attn_backward")
    missing = [name for name in wanted if not hasattr(module, name)]
    return f"package `flash-attn` has no {missing[0]}" if missing else None


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = import_module(_MODULE)._flash_attn_forward(
        q, k, v, 0.0, scale, causal, *_EVERYWHERE, softcap, None, False
    )
    return out.transpose(1, 2), lse


def _grad(
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
    dout, out, q, k, v = (x.transpose(1, 2) for x in (dout, out, q, k, v))
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    import_module(_MODULE)._flash_attn_backward(
        dout, q, k, v, out, lse, dq, dk, dv, 0.0, scale, causal, *_EVERYWHERE, softcap, None, False
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


FLASH_ATTN = Kernel(
    "flash_attn",
    devices=("cuda",),
    dtypes=HALVES,
    probe=_probe,
    run=_run,
    grad=_grad,
    causal_alignment="bottom_right",
    supports_softcap=True,
    native_gqa=True,
    head_dim_multiple=8,
    max_head_dim=256,
)
