"""RankOptimizer: one rank's part of an optimizer step, on its own slices of the parameters.

Gradients come reduced over the ranks. The ranks agree by one sum of two numbers: the square of the
gradient's norm, and whether any gradient anywhere is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from plancc.dsl.errors import Bug
from plancc.runtime.optimizer.owned import Owned, StatePiece, StepReport
from plancc.runtime.optimizer.scale import LossScale
from plancc.runtime.optimizer.schedule import learning_rate
from plancc.runtime.optimizer.spec import OptimizerSpec
from plancc.runtime.optimizer.state import make_optimizer, pieces, restore
from plancc.runtime.optimizer.sums import GradientSums

PRECISIONS = {
    "fp32": (torch.float32,),
    "fp64": (torch.float64,),
    "bf16": (torch.bfloat16, torch.float32),
    "fp16": (torch.float16, torch.float32),
}
_NARROW = (torch.bfloat16, torch.float16)
_NAMED = 5  # parameters that an error names


class NonFinite(ArithmeticError):
    """A gradient is not finite; nothing was changed. `names` are the first such here, or none."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(message)


class RankOptimizer:
    """The optimizer of one rank.

    `sum_all` adds a small float64 tensor up over all ranks; every rank calls `step` alike. Slices
    narrower than float32 have a float32 master here, others are optimized in place. Raises Bug for
    slices that do not fit their ranges, are named twice or have another dtype than `precision`.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        owned: Sequence[Owned],
        *,
        sum_all: Callable[[Tensor], Tensor],
        precision: str = "fp32",
    ) -> None:
        self.spec, self.owned, self.sum_all = spec, {item.name: item for item in owned}, sum_all
        _check(owned, precision)
        self.scale = LossScale(precision == "fp16")
        self.sums = GradientSums()
        # a detached view shares the slice's memory and version, and has a `.grad` of its own
        self.params = {
            item.name: item.tensor.detach().float() if narrow(item) else item.tensor.detach()
            for item in owned if not item.empty
        }  # fmt: skip
        self.optimizer = make_optimizer(spec, self.owned, self.params)

    @property
    def loss_scale(self) -> float:
        """What to multiply the loss by before backward."""
        return self.scale.value

    def accumulate(self, name: str, grad: Tensor) -> None:
        """Add one micro-batch's gradient (not yet reduced) to the sums; float32 or wider."""
        self.sums.add(name, grad)

    def follow(self, name: str, leaf: Tensor) -> RemovableHandle:
        """Move a leaf's `.grad` into the sums whenever autograd has accumulated one."""
        return self.sums.follow(name, leaf)

    def summed(self) -> Mapping[str, Tensor]:
        """Return the sums so far, to be reduced over the ranks; they may be changed in place."""
        return self.sums.sums

    def zero(self) -> None:
        """Forget the sums."""
        self.sums.sums.clear()

    def step(self, step_index: int, grads: Mapping[str, Tensor | None]) -> StepReport:
        """Take one step with gradients that are sums over all ranks, still times `loss_scale`.

        There is one entry a slice; None means that the parameter has no gradient on any rank, and
        is left alone as torch does. The gradients are not changed. Raises NonFinite, on all ranks,
        where a gradient is not finite; in fp16 the step is skipped instead and the scale halved.
        """
        rate, scale = learning_rate(self.spec, step_index), self.scale.value
        found = self._found(grads)
        with torch.no_grad():
            norms = _norms({name: self.owned[name].counted(grad) for name, grad in found.items()})
            norm = self._agree(norms) / scale
            if not math.isfinite(norm):
                self._refuse(norms)
                return StepReport(norm, rate, scale, True)
            clip = self.spec.clip
            factor = min(1.0, clip / (norm + 1e-6)) if clip is not None else 1.0
            self._update(found, rate, factor / scale)
        self.scale.kept()
        return StepReport(norm, rate, scale, False)

    def relocate(self, owned: Sequence[Owned]) -> None:
        """Say which rows of the parameters the slices hold from here on; their tensors stay."""
        if {item.name for item in owned} != self.owned.keys():
            raise Bug("other slices than before")
        self.owned = {item.name: item for item in owned}

    def state_pieces(self) -> list[StatePiece]:
        """List what a checkpoint needs beside the parameters, by parameter and kind.

        These are the tensors themselves: copy or write them before the next step. Where there is
        nothing of a parameter on this rank there is no piece of it.
        """
        scale = [StatePiece("loss_scale", "", self.scale.state(), True)]
        masters = [
            StatePiece("master", name, param, False)
            for name, param in self.params.items() if narrow(self.owned[name])
        ]  # fmt: skip
        found = masters + pieces(self.optimizer, self.params)
        return found + (scale if self.scale.dynamic else [])

    def load_state(self, read: Callable[[str, Owned | None], Tensor | None]) -> None:
        """Take the state of a checkpoint, also of another plan.

        `read(kind, owned)` gives the slice at `owned.ranges` (a number for what is `whole`), or
        None if the checkpoint has no such tensor; `read("loss_scale", None)` the loss scale. For
        a "master" None means: from the parameter as it is now. Raises ValueError for a tensor of
        another shape, or if some kinds of a parameter's state are there and others are not.
        """
        restore(self.optimizer, self.spec, self.owned, self.params, read)
        with torch.no_grad():
            for name, param in self.params.items():
                item = self.owned[name]
                if not narrow(item):
                    continue
                master = read("master", item)
                if master is not None and master.shape != param.shape:
                    raise ValueError(f"master of `{name}`: {tuple(master.shape)}")
                param.copy_(item.tensor if master is None else master)
                item.tensor.detach().copy_(param)
        if self.scale.dynamic:
            state = read("loss_scale", None)
            if state is not None:
                self.scale.load(state)

    def _found(self, grads: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Return the gradients of what is here, or raise Bug where they are not one a slice."""
        if grads.keys() != self.owned.keys():
            wrong = sorted(grads.keys() ^ self.owned.keys())
            raise Bug(f"gradients and slices are not of the same parameters: {wrong[:_NAMED]}")
        found: dict[str, Tensor] = {}
        for name, grad in grads.items():
            if grad is None or name not in self.params:
                continue
            if grad.shape != self.params[name].shape:
                raise Bug(f"gradient of `{name}`: {tuple(grad.shape)}")
            found[name] = grad.detach()
        return found

    def _agree(self, norms: Mapping[str, float]) -> float:
        """Return the norm over all ranks; not finite where any gradient on any rank is not."""
        squares = sum(norm**2 for name, norm in norms.items() if self.owned[name].counts)
        bad = float(not all(math.isfinite(norm) for norm in norms.values()))
        total = self.sum_all(torch.tensor([0.0 if bad else squares, bad], dtype=torch.float64))
        return math.nan if float(total[1]) else math.sqrt(float(total[0]))

    def _refuse(self, norms: Mapping[str, float]) -> None:
        """Halve the loss scale, or raise NonFinite where there is none to halve."""
        if self.scale.dynamic and self.scale.overflowed():
            return
        names = [name for name, norm in norms.items() if not math.isfinite(norm)]
        shown = ", ".join(f"`{name}`" for name in names[:_NAMED]) or "none here, on another rank"
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        least = f", even at a loss scale of {self.scale.value:g}" if self.scale.dynamic else ""
        raise NonFinite(f"gradients are not finite{least}: {shown}{more}", names)

    def _update(self, found: Mapping[str, Tensor], rate: float, factor: float) -> None:
        """Give the scaled gradients to torch's optimizer and copy the masters back."""
        names = list(found)
        if not names:
            return
        exact = [found[name].to(self.params[name].dtype) for name in names]
        if factor != 1.0:
            exact = torch._foreach_mul(exact, factor)
        for name, grad in zip(names, exact, strict=True):
            self.params[name].grad = grad
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for name in names:
            self.params[name].grad = None
        narrowed = [name for name in names if narrow(self.owned[name])]
        if narrowed:
            torch._foreach_copy_(
                [self.owned[name].tensor.detach() for name in narrowed],
                [self.params[name] for name in narrowed],
            )


def _norms(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each gradient, summed in float64; one read-back for all."""
    if not found:
        return {}
    norms = torch._foreach_norm(list(found.values()), 2, dtype=torch.float64)
    return dict(zip(found, torch.stack(norms).tolist(), strict=True))


def narrow(item: Owned) -> bool:
    """Tell whether a slice is too narrow to be optimized itself."""
    return item.tensor.dtype in _NARROW


def _check(owned: Sequence[Owned], precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision `{precision}` is none of {', '.join(PRECISIONS)}")
    if len({item.name for item in owned}) != len(owned):
        raise Bug("a parameter is owned twice")
    for item in owned:
        item.check()
        if item.tensor.dtype not in PRECISIONS[precision]:
            raise Bug(f"`{item.name}` is {item.tensor.dtype} in a run of {precision}")
