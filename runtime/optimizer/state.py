"""Torch's optimizer over slices: built for speed, its state listed and restored tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.optimizer.owned import Owned, StatePiece
from plancc.runtime.optimizer.spec import ONE_DIM, OptimizerSpec, accepted_options, optimizer_class

_FUSED = {name: {"cpu", "cuda"} for name in ("adam", "adamw", "sgd")}
_WHOLE = ("step", "mu_product", "eta", "mu")  # numbers that all slices of a parameter share


def make_optimizer(
    spec: OptimizerSpec, owned: Mapping[str, Owned], params: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """Return torch's optimizer of the params, in two groups: with and without weight decay."""
    decayed = [p for name, p in params.items() if decays(spec, owned[name])]
    others = [p for name, p in params.items() if not decays(spec, owned[name])]
    accepted, options = accepted_options(spec.name), spec.options()
    if "weight_decay" in accepted:
        options["weight_decay"] = 0.0
    groups: list[dict[str, Any]] = [{"params": others}]
    if "weight_decay" in accepted:
        groups.append({"params": decayed, "weight_decay": spec.weight_decay})
    else:
        groups[0]["params"] = list(params.values())
    kinds = {p.device.type for p in params.values()}
    if "fused" in accepted and kinds and kinds <= _FUSED.get(spec.name.lower(), {"cpu"}):
        options["fused"] = True
    elif "foreach" in accepted and kinds == {"cuda"}:
        options["foreach"] = True
    return optimizer_class(spec.name)(groups, lr=spec.lr, **options)


def decays(spec: OptimizerSpec, item: Owned) -> bool:
    """Tell whether a parameter gets weight decay."""
    if ONE_DIM in spec.no_decay and len(item.shape) <= 1:
        return False
    return not any(fnmatchcase(item.name, pattern) for pattern in spec.no_decay)


def pieces(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> list[StatePiece]:
    """List the optimizer's state; a parameter that was never stepped has none."""
    return [
        StatePiece(kind, name, value, kind in _WHOLE)
        for name, param in params.items()
        for kind, value in sorted(optimizer.state.get(param, {}).items())
        if isinstance(value, Tensor)
    ]


def restore(
    optimizer: torch.optim.Optimizer,
    spec: OptimizerSpec,
    owned: Mapping[str, Owned],
    params: Mapping[str, Tensor],
    read: Callable[[str, Owned | None], Tensor | None],
) -> None:
    """Fill the optimizer's state from `read`; ValueError where it is not a whole one."""
    patterns: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, param in params.items():
        key = (param.dtype, param.device)
        if key not in patterns:
            patterns[key] = pattern(spec, param)
        state: dict[str, Tensor] = {}
        for kind, like in patterns[key].items():
            value = read(kind, owned[name])
            if value is None:
                continue
            shape = like.shape if kind in _WHOLE else param.shape
            if value.numel() != shape.numel() or (kind not in _WHOLE and value.shape != shape):
                raise ValueError(f"{kind} of `{name}`: {tuple(value.shape)}, not {tuple(shape)}")
            copy = torch.empty_like(param if kind not in _WHOLE else like, dtype=like.dtype)
            state[kind] = copy.copy_(value.reshape(shape))
        missing = sorted(patterns[key].keys() - state.keys())
        if state and missing:
            raise ValueError(f"`{name}` has {', '.join(sorted(state))} but no {', '.join(missing)}")
        if state:
            optimizer.state[param] = state


def pattern(spec: OptimizerSpec, param: Tensor) -> dict[str, Tensor]:
    """Return the state that one step gives a parameter of this dtype and device, by kind."""
    trial = torch.ones(2, dtype=param.dtype, device=param.device)
    whole = Owned("", trial, (2, 1), ())
    optimizer = make_optimizer(spec, {"": whole}, {"": trial})
    trial.grad = torch.ones_like(trial)
    optimizer.step()
    held = optimizer.state.get(trial, {})
    return {kind: value for kind, value in held.items() if isinstance(value, Tensor)}
