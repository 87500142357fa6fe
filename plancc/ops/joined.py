"""Cross entropy with the vocabulary over ranks: the pairs of all ranks joined, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from plancc.ops.loss import IGNORE


def joined_nll(joined: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) [...] from the joined (logsumexp, target's logit) [..., 2]; 0 where ignored."""
    return (joined[..., 0] - joined[..., 1]).masked_fill(targets == IGNORE, 0.0)


def joined_rows_backward(grad: Tensor, pair: Tensor, joined: Tensor) -> Tensor:
    """Return the gradient [..., 2] of one rank's pair from that of the joined one."""
    share = (pair[..., 0] - joined[..., 0]).exp()
    return torch.stack([grad[..., 0] * share, grad[..., 1]], -1)
