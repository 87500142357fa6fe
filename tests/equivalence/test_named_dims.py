"""A dim that the plan names itself, because inference has no name for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import plancc

PLAN = """plan gated, edition 1

model m {
  dim lanes = mixer.into.weight[0]
}

mesh base[tp = 3] on local

place ** on base
place mixer { split lanes over tp (block = balanced) }
"""


class Mixer(nn.Module):
    """Two projections with a product of their own outputs between them."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(12, 20)
        self.out = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        return self.out(torch.tanh(y) * torch.sigmoid(y))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.mixer = Mixer()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mixer(self.embed(input_ids))


def test_named_dim_is_split(tmp_path: Path) -> None:
    path = tmp_path / "gated.plan"
    path.write_text(PLAN)
    torch.manual_seed(0)
    model = Model().eval()
    built = plancc.compile(path, model, tmp_path / "a")
    text = built.load().rank(0).source("forward_v0_c0.py")
    assert "lanes_tp" in text and text.count("comm.all_reduce") == 1
    ids = torch.randint(30, (2, 5))
    found = next(iter(built.load().forward(input_ids=ids).values()))
    assert torch.allclose(found, model(ids), atol=1e-6)
