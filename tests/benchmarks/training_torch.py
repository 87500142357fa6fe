"""The same training step written by hand with what torch offers: DTensor, DDP, FSDP2, pipelining."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[Tensor, Tensor], float]
"""Forward, backward and update on global ids and targets [B, T]; the loss (nan off its stage)."""
MICROBATCHES = 4


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of all positions."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(params: Any) -> torch.optim.Optimizer:
    """The optimizer of both sides; torch's fused kernel takes no tensors beside DTensors."""
    from torch.distributed.tensor import DTensor

    kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
    for param in params:
        kinds[isinstance(param, DTensor)].append(param)
    groups = [{"params": found} for found in kinds if found]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def mesh(name: str) -> Any:
    """A mesh of the two ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))


def my_rows(x: Tensor) -> Tensor:
    """This rank's sequences of a global batch."""
    return x.tensor_split(dist.get_world_size())[dist.get_rank()]


def whole(x: Any) -> float:
    """A loss as a number."""
    return float(x.full_tensor() if hasattr(x, "full_tensor") else x)


def tensor_parallel(model: nn.Module, *, vocab: bool, sequence: bool = False) -> Step:
    """`parallelize_module` as torch's tutorials do it; `vocab`: logits stay split, with loss_parallel."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor import parallel as tp

    axis = mesh("tp")
    along = Shard(1) if sequence else Replicate()
    plan: dict[str, Any] = {
        "embed_tokens": tp.RowwiseParallel(input_layouts=Replicate(), output_layouts=along),
        "lm_head": tp.ColwiseParallel(
            input_layouts=along, output_layouts=Shard(-1) if vocab else Replicate(),
            use_local_output=not vocab,
        ),
    }  # fmt: skip
    if sequence:
        plan["norm"] = tp.SequenceParallel()
    tp.parallelize_module(model, axis, plan)
    for block in model.layers:
        tp.parallelize_module(block, axis, block_plan(tp, along, sequence))
        block.self_attn.heads //= axis.size()
        block.self_attn.kv_heads //= axis.size()
    optimizer = adamw(model.parameters())

    def step(ids: Tensor, targets: Tensor) -> float:
        logits = model(ids)
        if vocab:
            with tp.loss_parallel():
                loss = loss_of(logits, targets)
                loss.backward()
        else:
            loss = loss_of(logits, targets)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return whole(loss.detach())

    return step


def block_plan(tp: Any, along: Any, sequence: bool) -> dict[str, Any]:
    """How one layer is parallelized."""
    from torch.distributed.tensor import Replicate

    row = tp.RowwiseParallel(output_layouts=along)
    plan: dict[str, Any] = {
        "self_attn.q_proj": tp.ColwiseParallel(), "self_attn.k_proj": tp.ColwiseParallel(),
        "self_attn.v_proj": tp.ColwiseParallel(), "self_attn.o_proj": row,
        "mlp.gate_proj": tp.ColwiseParallel(), "mlp.up_proj": tp.ColwiseParallel(),
        "mlp.down_proj": row,
    }  # fmt: skip
    if sequence:
        plan |= {
            "input_norm": tp.SequenceParallel(), "post_norm": tp.SequenceParallel(),
            "self_attn": tp.PrepareModuleInput(
                input_layouts=(along, None, None),
                desired_input_layouts=(Replicate(), None, None),
            ),
            "mlp": tp.PrepareModuleInput(
                input_layouts=(along,), desired_input_layouts=(Replicate(),)
            ),
        }  # fmt: skip
    return plan


def data_parallel(model: nn.Module) -> Step:
    """DistributedDataParallel with its own buckets."""
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    return on_my_rows(wrapped, adamw(wrapped.parameters()))


def fully_sharded(model: nn.Module) -> Step:
    """FSDP2: a group for each layer, and the root."""
    from torch.distributed.fsdp import fully_shard

    axis = mesh("dp")
    for block in model.layers:
        fully_shard(block, mesh=axis)
    fully_shard(model, mesh=axis)
    return on_my_rows(model, adamw(model.parameters()))


def on_my_rows(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """A step of data parallelism; the loss is that of the whole batch, as plancc's is."""

    def step(ids: Tensor, targets: Tensor) -> float:
        loss = loss_of(model(my_rows(ids)), my_rows(targets))
        loss.backward()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        optimizer.step()
        optimizer.zero_grad()
        return float(mean)

    return step


class Half(nn.Module):
    """One of two stages of a CausalLM."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__()
        half = len(model.layers) // 2
        self.first = rank == 0
        self.layers = model.layers[:half] if self.first else model.layers[half:]
        if self.first:
            self.embed_tokens = model.embed_tokens
        else:
            self.norm, self.lm_head = model.norm, model.lm_head
        self.cos, self.sin = model.cos, model.sin

    def forward(self, x: Tensor) -> Tensor:
        """Ids to hidden states, or hidden states to logits."""
        x = self.embed_tokens(x) if self.first else x
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x if self.first else self.lm_head(self.norm(x))


def pipelined(model: nn.Module) -> Step:
    """`Schedule1F1B` over two stages."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    rank, world = dist.get_rank(), dist.get_world_size()
    half = Half(model, rank)
    stage = PipelineStage(half, rank, world, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICROBATCHES, loss_fn=loss_of)
    optimizer = adamw(half.parameters())

    def step(ids: Tensor, targets: Tensor) -> float:
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(ids)
        else:
            schedule.step(target=targets, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean().detach()) if losses else float("nan")

    return step


STEPS: dict[str, Callable[[nn.Module], Step]] = {
    "tp": lambda model: tensor_parallel(model, vocab=False),
    "tp, loss_parallel": lambda model: tensor_parallel(model, vocab=True),
    "sp, loss_parallel": lambda model: tensor_parallel(model, vocab=True, sequence=True),
    "ddp": data_parallel,
    "fsdp2": fully_sharded,
    "1f1b": pipelined,
}

_KINDS = {
    "allreduce": "all_reduce", "all_reduce": "all_reduce", "allgather": "all_gather",
    "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all",
    "all_to_all": "all_to_all", "send": "exchange", "broadcast": "broadcast",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """Counts c10d calls as plancc's Counters do: whole inputs of reductions, whole results of gathers.

    Works below DTensor; receives are not counted, sends are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is a communication, and run everything."""
        from torch.distributed.tensor import DTensor

        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self.note(func.namespace, func._schema.name.partition("::")[2], args, out)
        return out

    def note(self, space: str, name: str, args: Any, out: Any) -> None:
        """Add one call."""
        kind = next((k for text, k in _KINDS.items() if text in name), None)
        if kind is None:
            return
        counts = args[0]
        if kind == "all_gather" and space == "_c10d_functional":
            counts = out
        elif kind == "reduce_scatter" and space == "c10d":
            counts = args[1]
        self.calls[kind] = self.calls.get(kind, 0) + 1
        self.bytes[kind] = self.bytes.get(kind, 0) + nbytes(counts)


def nbytes(x: Any) -> int:
    """Bytes of a tensor or of nested lists of tensors."""
    if isinstance(x, Tensor):
        return x.nbytes
    return sum(nbytes(one) for one in x) if isinstance(x, (list, tuple)) else 0


@contextmanager
def counted() -> Iterator[Counted]:
    """Count what happens inside."""
    with Counted() as counts:
        yield counts
