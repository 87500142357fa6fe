"""Predicted times of experts from measured ones: an exponential mean of each expert."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DECAY = 0.8
Rows = Sequence[Sequence[float]]


@dataclass(slots=True)
class Estimate:
    """The exponential means so far: `sums` and `weights` [layers][experts], of the given decay.

    A measurement of NaN says that an expert was not measured; its mean stays as it was.
    """

    decay: float = DECAY
    sums: list[list[float]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError for a decay that forgets everything or nothing."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"a decay of {self.decay}: from 0 to less than 1")

    def update(self, measured: Rows) -> None:
        """Take in one measurement [layers][experts], of seconds or tokens.

        Raises ValueError for another shape, and for a value that is negative or infinite.
        """
        if not self.sums:
            self.sums = [[0.0] * len(row) for row in measured]
            self.weights = [[0.0] * len(row) for row in measured]
        if [len(row) for row in measured] != [len(row) for row in self.sums]:
            raise ValueError("measured times of other layers or experts than before")
        for layer, row in enumerate(measured):
            for expert, value in enumerate(row):
                if value < 0 or math.isinf(value):
                    raise ValueError(f"expert {expert} of layer {layer} took {value}")
        for sums, weights, row in zip(self.sums, self.weights, measured, strict=True):
            for expert, value in enumerate(row):
                if not math.isnan(value):
                    sums[expert] = self.decay * sums[expert] + (1 - self.decay) * float(value)
                    weights[expert] = self.decay * weights[expert] + (1 - self.decay)

    def predict(self) -> list[list[float]]:
        """Return the predicted times [layers][experts]; one never measured gets its layer's mean.

        Means are not drawn to 0 by a short history. A layer without any measurement is all 1.
        """
        found = []
        for sums, weights in zip(self.sums, self.weights, strict=True):
            means = [s / w if w else math.nan for s, w in zip(sums, weights, strict=True)]
            known = [mean for mean in means if not math.isnan(mean)]
            other = math.fsum(known) / len(known) if known else 1.0
            found.append([other if math.isnan(mean) else mean for mean in means])
        return found

    def state(self) -> dict[str, list[list[float]]]:
        """Return the state for a checkpoint as plain lists."""
        return {"sums": [list(r) for r in self.sums], "weights": [list(r) for r in self.weights]}

    def load(self, state: Mapping[str, Rows]) -> None:
        """Take over what `state` gave."""
        self.sums = [list(row) for row in state["sums"]]
        self.weights = [list(row) for row in state["weights"]]


def predict(history: Sequence[Rows], decay: float = DECAY) -> list[list[float]]:
    """Return the predicted times [layers][experts] after history [steps][layers][experts].

    The last step weighs most. Raises ValueError as `Estimate` does, and for no history.
    """
    if not history:
        raise ValueError("no measured times to predict from")
    estimate = Estimate(decay)
    for measured in history:
        estimate.update(measured)
    return estimate.predict()


def expert_times(tokens: Rows, seconds: Rows) -> list[list[float]]:
    """Return times [layers][experts]: tokens of each expert times seconds per token, [..][..]."""
    return [
        [count * each for count, each in zip(row, own, strict=True)]
        for row, own in zip(tokens, seconds, strict=True)
    ]
