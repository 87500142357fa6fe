"""Types in which tensors travel: plain floats, and 8 bits with a float32 scale for each block.

8-bit types lose information: `ErrorFeedback` adds what one step lost to the next (Seide et al.
2014, Karimireddy et al. 2019), and measures it. Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PEAKS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
BLOCK = 128
_TINY = torch.finfo(torch.float32).tiny
_FLOATS = {
    "fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
_EIGHTS = {
    "int8": torch.int8, "fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
_SCALE_BYTES = 4


def encode(x: Tensor, block: int = BLOCK, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Return the payload [n] of `dtype` and the float32 scales [ceil(n / block)] of x, flattened.

    A block of consecutive elements has the scale max|x| / peak of the type, and its values are
    rounded to multiples of the scale (int8) or to the type; the last block may be short. A block
    with an inf or NaN has no finite scale and decodes to NaN everywhere: nothing is hidden, and
    nothing waits. Raises ValueError for a tensor or type of another kind and for an empty block.
    """
    if dtype not in PEAKS or not x.is_floating_point() or block < 1:
        raise ValueError(f"no blocks of {block} of {dtype} for a tensor of {x.dtype}")
    exact = x.detach().reshape(-1).to(torch.promote_types(x.dtype, torch.float32))
    blocks = _blocks(exact, block)
    # from the smallest normal number on, dividing by a scale is safe and loses no digits
    scales = (blocks.abs().amax(1) / PEAKS[dtype]).to(torch.float32).clamp(min=_TINY)
    wrong = ~torch.isfinite(scales).unsqueeze(1)  # 0 times inf or NaN will be NaN
    values = (blocks / scales.unsqueeze(1).to(blocks.dtype)).masked_fill(wrong, 0.0)
    values = values.round() if dtype == torch.int8 else values
    return values.reshape(-1)[: exact.numel()].to(dtype), scales


def decode(
    payload: Tensor,
    scales: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    block: int = BLOCK,
) -> Tensor:
    """Return the tensor of `shape` and `dtype` that `encode` with the same `block` gave.

    |x - decoded| is at most half a scale for int8. Raises ValueError where the sizes do not fit.
    """
    size = torch.Size(shape).numel()
    if payload.numel() != size or scales.numel() != -(-size // block):
        raise ValueError(
            f"{payload.numel()} values in blocks of {block} with {scales.numel()} scales are "
            f"not a tensor {list(shape)}"
        )
    exact = torch.promote_types(dtype, torch.float32)
    blocks = _blocks(payload.reshape(-1).to(exact), block)
    values = blocks * scales.reshape(-1, 1).to(exact)
    return values.reshape(-1)[:size].reshape(shape).to(dtype)


def encoded_bytes(elements: int, block: int = BLOCK) -> int:
    """Return the bytes of `elements` encoded values: one each, and a scale for each block."""
    return elements + _SCALE_BYTES * -(-elements // block)


def relative_error(x: Tensor, y: Tensor) -> Tensor:
    """Return [] float32: |x - y| / |x| in the Euclidean norm, 0 where x and y are both 0."""
    x, y = (one.detach().to(torch.promote_types(one.dtype, torch.float32)) for one in (x, y))
    lost, whole = (x - y).norm(), x.norm()
    return torch.where(lost == 0, lost, lost / whole).to(torch.float32)


def _blocks(flat: Tensor, block: int) -> Tensor:
    padding = -flat.numel() % block
    return torch.nn.functional.pad(flat, (0, padding)).reshape(-1, block)


@dataclass(frozen=True, slots=True)
class WireType:
    """How values travel: as `dtype`, in blocks of `block` with a scale each (0: without scales)."""

    name: str
    dtype: torch.dtype
    block: int = 0
    error_feedback: bool = False

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the flat tensors that travel for x: values, and scales where there are blocks."""
        if not self.block:
            return (x.detach().reshape(-1).to(self.dtype),)
        return encode(x, self.block, self.dtype)

    def unpack(
        self, parts: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the tensor of `shape` and `dtype` from what `pack` gave."""
        if not self.block:
            (flat,) = parts
            return flat.reshape(shape).to(dtype)
        payload, scales = parts
        return decode(payload, scales, shape, dtype, self.block)

    def nbytes(self, elements: int) -> int:
        """Return the bytes that travel for `elements` values."""
        if self.block:
            return encoded_bytes(elements, self.block)
        return elements * self.dtype.itemsize

    def to_bytes(self, parts: Sequence[Tensor]) -> Tensor:
        """Return one flat uint8 tensor with all that `pack` gave: one message instead of two."""
        return torch.cat([part.reshape(-1).view(torch.uint8) for part in parts])

    def from_bytes(self, message: Tensor, elements: int) -> tuple[Tensor, ...]:
        """Return what `pack` gave for `elements` values from its `to_bytes`.

        Raises ValueError for a message of another size.
        """
        if message.dtype != torch.uint8 or message.numel() != self.nbytes(elements):
            raise ValueError(
                f"{message.numel()} of {message.dtype} are not the {self.nbytes(elements)} bytes "
                f"of {elements} values in {self.name}"
            )
        end = elements * self.dtype.itemsize
        payload = message[:end].clone().view(self.dtype)  # a copy starts at a whole word
        if not self.block:
            return (payload,)
        return payload, message[end:].clone().view(torch.float32)


def wire_type(name: str, options: Mapping[str, object] | None = None) -> WireType:
    """Return the wire type `name` of a plan, with `block` and `error_feedback` from its options.

    8-bit types travel in blocks (128 unless told); the others take no options. Raises ValueError
    for an unknown type or option.
    """
    given = dict(options or {})
    known = {"block", "error_feedback"} if name in _EIGHTS else set()
    if name not in _FLOATS and name not in _EIGHTS:
        raise ValueError(f"no values travel as {name}: {', '.join((*_FLOATS, *_EIGHTS))}")
    if set(given) - known:
        raise ValueError(f"{name} takes no {', '.join(sorted(set(given) - known))}")
    if name in _FLOATS:
        return WireType(name, _FLOATS[name])
    block, feedback = given.get("block", BLOCK), given.get("error_feedback", False)
    if type(block) is not int or block < 1:
        raise ValueError(f"{name} in blocks of {block}: a number from 1")
    if type(feedback) is not bool:
        raise ValueError(f"{name} with error_feedback = {feedback}: true or false")
    return WireType(name, _EIGHTS[name], block, feedback)


@dataclass(slots=True)
class ErrorFeedback:
    """What compression lost of each tensor so far (float32, to be added to the next), and how much.

    Without `wire.error_feedback` nothing is kept but the measured errors.
    """

    wire: WireType
    residuals: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)  # [2] float64: sum, steps

    def compress(self, key: str, x: Tensor) -> tuple[Tensor, ...]:
        """Return `wire.pack` of x plus the residual of `key`, and keep what that lost.

        Where x is not finite the old residual stays: the step is lost, not the ones after it.
        Raises ValueError when `key` had another shape.
        """
        exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        old = self.residuals.get(key) if self.wire.error_feedback else None
        if old is not None:
            if old.shape != x.shape:
                raise ValueError(f"{key} had the shape {list(old.shape)}, now {list(x.shape)}")
            exact = exact + old
        parts = self.wire.pack(exact)
        sent = self.wire.unpack(parts, x.shape, exact.dtype)
        if self.wire.error_feedback:
            lost = exact - sent
            kept = torch.zeros_like(lost) if old is None else old.to(lost.dtype)
            self.residuals[key] = torch.where(torch.isfinite(lost), lost, kept)
        step = torch.stack((relative_error(exact, sent), torch.ones((), device=x.device))).double()
        step = torch.where(torch.isfinite(step[0]), step, torch.zeros_like(step))
        self.errors[key] = self.errors[key] + step if key in self.errors else step
        return parts

    def mean_error(self, key: str) -> float:
        """Return the mean relative error of the finite steps of `key` so far, NaN without any."""
        total, steps = self.errors[key].tolist()
        return total / steps if steps else float("nan")

    def mean_errors(self) -> dict[str, float]:
        """Return `mean_error` of every key, in order of their names."""
        return {key: self.mean_error(key) for key in sorted(self.errors)}

    def state(self) -> dict[str, Tensor]:
        """Return all state as plain tensors: `residual/<key>` and `error/<key>`."""
        kept = {f"residual/{key}": value for key, value in sorted(self.residuals.items())}
        return kept | {f"error/{key}": value for key, value in sorted(self.errors.items())}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, and forget the rest; raises ValueError for other names."""
        residuals: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        for name, value in state.items():
            kind, _, key = name.partition("/")
            if kind not in ("residual", "error") or not key:
                raise ValueError(f"`{name}` is no state of error feedback")
            (residuals if kind == "residual" else errors)[key] = value.clone()
        self.residuals, self.errors = residuals, errors
