"""Dynamic loss scaling for fp16: halved where gradients overflow, doubled after a good while."""

from __future__ import annotations

import torch
from torch import Tensor

START, GROWTH, LEAST, MOST = 2.0**16, 2000, 2.0**-10, 2.0**24


class LossScale:
    """The factor of the loss; 1 and constant unless `dynamic`."""

    def __init__(self, dynamic: bool) -> None:
        self.dynamic = dynamic
        self.value = START if dynamic else 1.0
        self.good = 0  # steps without overflow since the last change

    def kept(self) -> None:
        """Note a step without overflow."""
        self.good += 1
        if self.dynamic and self.good >= GROWTH:
            self.value, self.good = min(self.value * 2, MOST), 0

    def overflowed(self) -> bool:
        """Halve the scale; False if it is as small as it may be already."""
        if self.value <= LEAST:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def state(self) -> Tensor:
        """Return [scale, good steps] as float64."""
        return torch.tensor([self.value, float(self.good)], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Take what `state` gave."""
        self.value, self.good = float(state[0]), int(state[1])
