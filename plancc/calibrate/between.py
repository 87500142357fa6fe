"""What ranks do between two meetings: half a decoder layer, so that nothing of a verb is in the caches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from plancc.calibrate.toy import Layer, Width

WIDTH = Width(1, 512, 4, 704, 260)
"""What a rank of two computes of a layer 512 wide."""


class Between:
    """Attention and MLP of one layer for a token, by turns, as between the sums of tensor parallelism."""

    def __init__(self, device: torch.device) -> None:
        layer = Layer(WIDTH).to(device)
        x = torch.randn(1, 1, WIDTH.hidden, device=device)
        angle = torch.randn(1, WIDTH.head_dim, device=device)
        self.halves: tuple[Callable[[], object], ...] = (
            lambda: x + layer.attn(layer.first(x), angle, angle),
            lambda: x + layer.mlp(layer.second(x)),
        )
        self.turn = 0

    def __call__(self) -> int:
        """Do the next half; which of the halves that was."""
        half = self.turn
        self.halves[half]()
        self.turn = (half + 1) % len(self.halves)
        return half
