"""The `cpu_flash` kernel: torch's flash attention for the CPU and its blockwise backward.

It dies of SIGFPE on empty tensors, ignores the stride of the head dim, gives lse 0 to a row that
sees nothing and aligns `is_causal` upper left: the guards in `Kernel` keep all of that away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plancc.ops.kernels.kernel import Kernel

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


def _probe() -> str | None:
    missing = [name for name in (_FORWARD, _BACKWARD) if not hasattr(torch.ops.aten, name)]
    return f"torch {torch.__version__} has no aten::{missing[0]}" if missing else None


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    return getattr(torch.ops.aten, _FORWARD).default(
        q, k, v, 0.0, causal, attn_mask=_typed(mask, q.dtype), scale=scale
    )


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
    return getattr(torch.ops.aten, _BACKWARD).default(
        dout, q, k, v, out, lse, 0.0, causal, attn_mask=_typed(mask, q.dtype), scale=scale
    )


def _typed(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Masks have the dtype of q; float32 is taken too, and keeps a fine bias fine."""
    if mask is None or mask.dtype == torch.float32:
        return mask
    return mask.to(dtype)


CPU_FLASH = Kernel(
    "cpu_flash",
    devices=("cpu",),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    probe=_probe,
    run=_run,
    grad=_grad,
    causal_alignment="upper_left",
    supports_mask=True,
    native_gqa=True,
)
