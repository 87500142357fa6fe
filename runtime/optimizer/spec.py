"""OptimizerSpec: which optimizer of torch, with which numbers; checked when it is made.

Only optimizers that treat every number of a parameter alone are taken: a rank sees slices, and an
optimizer that looks at whole matrices would silently do something else.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

SCHEDULES = ("constant", "linear", "cosine", "wsd")
ONE_DIM = "1d"
_WHOLE = {
    "Adafactor": "keeps sums over rows and columns of whole matrices",
    "Muon": "needs whole matrices",
    "LBFGS": "evaluates the loss several times in a step",
    "SparseAdam": "takes sparse gradients only",
}
_OPTIONAL = ("betas", "eps", "momentum")


class SpecError(ValueError):
    """A field of an OptimizerSpec is wrong; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}")


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer and its schedule; every field is checked, SpecError names the wrong one.

    `name` is a class of torch.optim in any case; None for betas, eps, momentum is that class's own
    default. `clip` is the greatest global gradient norm. The schedule climbs for `warmup` of
    `steps` steps, then falls to `min_lr` (a share of lr); "wsd" stays, and falls over the last
    `decay` share of the steps. `no_decay` lists which parameters get no weight decay: patterns of
    names, and "1d" for all with at most one dim.
    """

    name: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float = 0.0
    momentum: float | None = None
    clip: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    steps: int = 0
    min_lr: float = 0.0
    decay: float = 0.2
    no_decay: tuple[str, ...] = (ONE_DIM,)

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_schedule(self)
        accepted = accepted_options(self.name)
        given = [name for name in _OPTIONAL if getattr(self, name) is not None]
        for field in (*given, *(["weight_decay"] if self.weight_decay else [])):
            if field not in accepted:
                raise SpecError(field, f"`{self.name}` takes none")

    def options(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's class, without lr and weight decay."""
        given = {name: getattr(self, name) for name in _OPTIONAL}
        return {name: value for name, value in given.items() if value is not None}

    def to_json(self) -> str:
        """Return the spec as one JSON object."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | Mapping[str, Any]) -> OptimizerSpec:
        """Read what `to_json` wrote, or such a mapping; fields left out have their defaults."""
        data = json.loads(text) if isinstance(text, str) else dict(text)
        if not isinstance(data, dict):
            raise SpecError("spec", "is not a JSON object")
        known = [field.name for field in fields(OptimizerSpec)]
        for name in data:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f", did you mean `{close[0]}`?" if close else f": {', '.join(known)}"
                raise SpecError(name, f"there is no such field{hint}")
        for name in ("betas", "no_decay"):
            if isinstance(data.get(name), list):
                data[name] = tuple(data[name])
        return OptimizerSpec(**data)


def optimizer_class(name: str) -> Any:
    """Return the class of torch.optim called `name` in any case, or raise SpecError."""
    import torch

    if not isinstance(name, str):
        raise SpecError("name", f"{name!r} is not a string")
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    del classes["optimizer"]
    found = classes.get(name.lower())
    usable = sorted(key for key, value in classes.items() if value.__name__ not in _WHOLE)
    if found is None:
        raise SpecError("name", f"torch.optim has no `{name}`; there are {', '.join(usable)}")
    if found.__name__ in _WHOLE:
        why = _WHOLE[found.__name__]
        raise SpecError("name", f"`{name}` {why}, but ranks hold slices; take {', '.join(usable)}")
    return found


def accepted_options(name: str) -> tuple[str, ...]:
    """Return the names of the arguments that the optimizer's class takes."""
    return tuple(inspect.signature(optimizer_class(name).__init__).parameters)


def _check_numbers(spec: OptimizerSpec) -> None:
    _number("lr", spec.lr, 0.0, math.inf, open_low=True)
    _number("weight_decay", spec.weight_decay, 0.0, math.inf)
    _number("min_lr", spec.min_lr, 0.0, 1.0, closed=True)
    _number("decay", spec.decay, 0.0, 1.0, open_low=True, closed=True)
    if spec.eps is not None:
        _number("eps", spec.eps, 0.0, math.inf)
    if spec.momentum is not None:
        _number("momentum", spec.momentum, 0.0, 1.0)
    if spec.clip is not None:
        _number("clip", spec.clip, 0.0, math.inf, open_low=True)
    if spec.betas is not None:
        if not isinstance(spec.betas, tuple) or len(spec.betas) != 2:
            raise SpecError("betas", f"{spec.betas!r} is not a pair of numbers")
        for beta in spec.betas:
            _number("betas", beta, 0.0, 1.0)
    if not isinstance(spec.no_decay, tuple) or not all(isinstance(x, str) for x in spec.no_decay):
        raise SpecError("no_decay", f"{spec.no_decay!r} is not a tuple of patterns")


def _check_schedule(spec: OptimizerSpec) -> None:
    if spec.schedule not in SCHEDULES:
        raise SpecError("schedule", f"{spec.schedule!r} is none of {', '.join(SCHEDULES)}")
    for field in ("warmup", "steps"):
        value = getattr(spec, field)
        if type(value) is not int or value < 0:
            raise SpecError(field, f"{value!r} is not a number of steps")
    if spec.schedule != "constant" and not spec.steps:
        raise SpecError("steps", f"the schedule `{spec.schedule}` needs the number of all steps")
    if spec.steps and spec.warmup > spec.steps:
        raise SpecError("warmup", f"{spec.warmup} steps are more than all {spec.steps}")


def _number(
    field: str, value: Any, low: float, high: float, *, open_low: bool = False, closed: bool = False
) -> None:
    """Raise SpecError unless low <= value < high (open or closed as told)."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise SpecError(field, f"{value!r} is not a finite number")
    if value < low or (open_low and value == low) or value > high or (value == high and not closed):
        inside = f"{'(' if open_low else '['}{low:g}, {high:g}{']' if closed else ')'}"
        raise SpecError(field, f"{value!r} is not in {inside}")
