"""The one interface of attention kernels: declared properties and the guards that hold for all.

A raw kernel (`run`, `grad`) sees only inputs that its properties allow: never an empty tensor,
never a causal call that is not square, masks only as additive floats. `Kernel` pads, repeats
heads and repairs around it, so that callers see one behaviour: out 0 and lse -inf for a row
without a visible key, lse in natural log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NEG_INF = float("-inf")
LN2 = math.log(2.0)
Run = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float, float], tuple[Tensor, Tensor]]
Grad = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One attention kernel; `devices` is empty for any, `probe` says why it is not present."""

    name: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    probe: Callable[[], str | None]
    run: Run  # (q, k, v, mask, causal, scale, softcap) -> (out, lse in lse_base)
    grad: Grad | None  # (dout, out, lse, then as run) -> (dq, dk, dv)
    lse_base: Literal["e", "2"] = "e"
    causal_alignment: Literal["upper_left", "bottom_right", "none"] = "none"
    supports_empty: bool = False
    supports_different_v_dim: bool = False
    supports_mask: bool = False
    supports_softcap: bool = False
    native_gqa: bool = False
    head_dim_multiple: int = 1
    max_head_dim: int = 0

    @property
    def supports_backward(self) -> bool:
        """True when `backward` works."""
        return self.grad is not None

    def lacks(
        self,
        device: str,
        dtype: torch.dtype,
        *,
        mask: bool = False,
        softcap: bool = False,
        backward: bool = False,
        head_dim: int = 0,
    ) -> str | None:
        """Say which of the needs the declared properties do not meet, or None."""
        if self.devices and device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes:
            return f"has no {str(dtype).removeprefix('torch.')}"
        if mask and not self.supports_mask:
            return "takes no mask"
        if softcap and not self.supports_softcap:
            return "has no softcap"
        if backward and not self.supports_backward:
            return "has no backward"
        if self.max_head_dim and head_dim > self.max_head_dim:
            return f"has heads up to {self.max_head_dim} wide, not {head_dim}"
        return None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        mask: Tensor | None = None,
        causal_square: bool = False,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return out [B, H, Tq, Dv] and lse [B, H, Tq] (natural log, at least float32), no graph.

        q [B, H, Tq, D], k [B, K, Tk, D], v [B, K, Tk, Dv]; `mask` is additive and broadcasts to
        [B, H, Tq, Tk]; `causal_square` hides key j from query i < j and needs Tq == Tk. Raises
        ValueError where the properties do not allow the call.
        """
        self._check(q, k, v, mask, causal_square, softcap)
        with torch.no_grad():
            if not (q.numel() and k.numel() and v.numel()):
                return empty(q, v.shape[3])
            case = self._fit(q, k, v, mask, causal_square)
            out, lse = self.run(*case, scale, softcap)
            out = out[..., : v.shape[3]]
            if self.lse_base == "2":
                lse = lse * LN2
            if case[3] is not None:
                dead = (case[3] == NEG_INF).all(-1)
                out, lse = out.masked_fill(dead.unsqueeze(-1), 0), lse.masked_fill(dead, NEG_INF)
            return out, lse

    def backward(
        self,
        dout: Tensor,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        mask: Tensor | None = None,
        causal_square: bool = False,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return this block's share of dq, its dk and dv, given the *merged* out and lse.

        Raises ValueError as `forward`, and for a kernel without a backward.
        """
        self._check(q, k, v, mask, causal_square, softcap)
        if self.grad is None:
            raise ValueError(f"kernel `{self.name}` has no backward")
        with torch.no_grad():
            if not (q.numel() and k.numel() and v.numel()):
                return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            case = self._fit(q, k, v, mask, causal_square)
            # exp(score - lse) of a row that sees nothing: -inf - 0 is safe, -inf - -inf is not
            lse = lse.masked_fill(lse == NEG_INF, 0.0)
            lse = (lse / LN2 if self.lse_base == "2" else lse).contiguous()
            width = case[2].shape[3]
            dout, out = _widen(dout.to(q.dtype), width), _widen(out.to(q.dtype), width)
            dq, dk, dv = self.grad(dout, out, lse, *case, scale, softcap)
            dk, dv = _fold(dk, k.shape[1]), _fold(dv, v.shape[1])
            return dq[..., : q.shape[3]], dk[..., : k.shape[3]], dv[..., : v.shape[3]]

    def _check(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, square: bool, softcap: float
    ) -> None:
        lack = self.lacks(
            q.device.type, q.dtype, mask=mask is not None, softcap=softcap != 0.0,
            head_dim=max(q.shape[3], v.shape[3]),
        )  # fmt: skip
        if lack:
            raise ValueError(f"kernel `{self.name}` {lack}")
        if not q.dtype == k.dtype == v.dtype:
            raise ValueError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: one dtype")
        heads, groups = q.shape[1], k.shape[1]
        if k.shape[1:3] != v.shape[1:3] or q.shape[3] != k.shape[3]:
            raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} do not fit")
        if heads and (not groups or heads % groups):
            raise ValueError(f"{heads} heads are no multiple of {groups} KV heads")
        if square and q.shape[2] != k.shape[2]:
            raise ValueError(f"a causal square of {q.shape[2]} queries and {k.shape[2]} keys")
        if mask is not None and not mask.is_floating_point():
            raise ValueError(f"kernels take additive float masks, not {mask.dtype}")

    def _fit(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
        """Bring the inputs into the form that the raw kernel takes, without changing the result."""
        groups = q.shape[1] // k.shape[1]
        if groups > 1 and not self.native_gqa:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        width, v_width = q.shape[3], v.shape[3]
        if not self.supports_different_v_dim:
            width = v_width = max(width, v_width)
        many = self.head_dim_multiple
        width, v_width = width + -width % many, v_width + -v_width % many
        q, k, v = _widen(q, width), _widen(k, width), _widen(v, v_width)
        if mask is not None:
            mask = mask[(None,) * (4 - mask.dim())]
            if causal:
                mask, causal = mask.masked_fill(_future(q.shape[2], q.device), NEG_INF), False
        return q, k, v, mask, causal


def empty(q: Tensor, v_dim: int) -> tuple[Tensor, Tensor]:
    """Return the neutral result for q [B, H, Tq, D]: out [B, H, Tq, v_dim] of 0, lse of -inf."""
    exact = torch.promote_types(q.dtype, torch.float32)
    return q.new_zeros((*q.shape[:3], v_dim)), q.new_full(q.shape[:3], NEG_INF, dtype=exact)


def _future(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad the head dim with zeros, and make it contiguous: kernels ignore its stride silently."""
    if x.shape[3] < width:
        return F.pad(x, (0, width - x.shape[3]))
    return x if x.stride(3) == 1 else x.contiguous()


def _fold(grad: Tensor, heads: int) -> Tensor:
    return grad if grad.shape[1] == heads else grad.unflatten(1, (heads, -1)).sum(2)
