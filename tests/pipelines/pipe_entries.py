"""What the two processes of the oracle run: a step of plancc, and the same step of torch's pipelining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plancc.runtime.artifact import load_artifact
from plancc.runtime.loading import Loaded
from plancc.runtime.processes import RankResult
from plancc.runtime.training.step import TrainRunner

LAYERS, HIDDEN, HEADS, VOCAB, BATCH, TOKENS = 4, 16, 2, 30, 8, 6


class Layer(nn.Module):
    """Attention and a small network, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, hidden] -> the same."""
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(b, t, HIDDEN))
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    """Layers between an embedding and a head, without buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class Part(nn.Module):
    """One stage of torch's pipeline, with the names of the whole model."""

    def __init__(self, model: Model, index: int, count: int) -> None:
        super().__init__()
        size = LAYERS // count
        self.first, self.last = index == 0, index == count - 1
        if self.first:
            self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleDict(
            {str(n): model.layers[n] for n in range(index * size, (index + 1) * size)}
        )
        if self.last:
            self.norm, self.lm_head = model.norm, model.lm_head

    def forward(self, x: Tensor) -> Tensor:
        """Ids or hidden states -> hidden states or logits."""
        x = self.embed_tokens(x) if self.first else x
        for layer in self.layers.values():
            x = layer(x)
        return self.lm_head(self.norm(x)) if self.last else x


def model() -> Model:
    """The model in float64, the same in every process."""
    torch.manual_seed(3)
    return Model().double()


def step_inputs() -> dict[str, Tensor]:
    """Ids, targets and the scale of one step."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCAB, (BATCH, TOKENS), generator=generator)
    targets = torch.randint(VOCAB, (BATCH, TOKENS), generator=generator)
    scale = torch.tensor(1 / (BATCH * TOKENS), dtype=torch.float64)
    return {"ids": ids, "targets": targets, "scale": scale}


def ours(transport: Any, payload: dict[str, Any]) -> RankResult:
    """A step of the emitted programs: loss, and gradients by name."""
    artifact = load_artifact(Path(payload["folder"]))
    params = {name: tensor.detach() for name, tensor in model().named_parameters()}
    runner = TrainRunner(artifact, transport, Loaded(params, {}), dtype=torch.float64)
    found = runner.step(step_inputs())
    gradients = {name: x.contiguous() for name, _, x in runner.located_gradients(found)}
    loss = None if found.loss is None else float(found.loss)
    return RankResult(loss, gradients)


def theirs(transport: Any, payload: dict[str, Any]) -> RankResult:
    """The same step by torch.distributed.pipelining."""
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, schedules

    rank, world, virtual = transport.rank, transport.world, payload["virtual"]
    dist.init_process_group(
        "gloo", init_method=f"file://{payload['meeting']}", rank=rank, world_size=world
    )
    whole, count = model(), world * virtual
    parts = {v * world + rank: Part(whole, v * world + rank, count) for v in range(virtual)}
    stages = [PipelineStage(p, i, count, torch.device("cpu")) for i, p in parts.items()]
    given = step_inputs()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return total * given["scale"]

    kind = getattr(schedules, payload["schedule"])
    schedule = kind(
        stages if virtual > 1 else stages[0], payload["batches"], loss_fn=loss, scale_grads=False
    )
    losses: list[Tensor] = []
    last = any(part.last for part in parts.values())
    schedule.step(
        *([given["ids"]] if rank == 0 else []),
        **(dict(target=given["targets"], losses=losses) if last else {}),
    )
    gradients = {
        name: p.grad for part in parts.values() for name, p in part.named_parameters()
        if p.grad is not None
    }  # fmt: skip
    dist.destroy_process_group()
    return RankResult(float(sum(losses)) if last else None, gradients)
