"""The learning rate of a step, as a pure function: nothing to save, nothing to step."""

from __future__ import annotations

import math

from plancc.runtime.optimizer.spec import OptimizerSpec


def learning_rate(spec: OptimizerSpec, step: int) -> float:
    """Return the learning rate of step 0, 1, ...; ValueError for a negative step.

    Step s of w warmup steps has lr (s + 1) / w; the last steps and all later ones have the least.
    """
    if step < 0:
        raise ValueError(f"there is no step {step}")
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    return spec.lr * _share(spec, step)


def _share(spec: OptimizerSpec, step: int) -> float:
    if spec.schedule == "constant":
        return 1.0
    start = spec.warmup
    if spec.schedule == "wsd":
        start = max(start, spec.steps - max(1, round(spec.decay * spec.steps)))
    done = 1.0 if step >= spec.steps else max(0.0, (step - start) / (spec.steps - start))
    if spec.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return 1.0 - (1.0 - spec.min_lr) * done
