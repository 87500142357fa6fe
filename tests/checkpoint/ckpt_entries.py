"""Plans, pieces and ranks for the tests of checkpoints; also what ranks as processes run."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import torch

from plancc.runtime.checkpoint import Checkpoint, Piece, save_checkpoint
from plancc.runtime.checkpoint.pieces import extent
from plancc.runtime.local import run_local

DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool,
)  # fmt: skip
SHAPES = {
    "model/embed": (12, 6), "model/block.0.qkv": (18, 5), "model/norm": (7,), "model/scale": (),
    "model/none": (0, 3), "optim/block.0.qkv/exp_avg": (18, 5), "optim/step": (),
}  # fmt: skip


def tensors(salt=0, dtype=torch.float32):
    """The tensors of a small model and its optimizer; other values for another `salt`."""
    generator = torch.Generator().manual_seed(salt)
    return {
        name: torch.randint(-99, 99, shape, generator=generator).to(dtype)
        for name, shape in SHAPES.items()
    }


def cut(tensor, ranges):
    """The slice of a tensor at `ranges`: for each dim the pieces to join."""
    for dim, row in enumerate(ranges):
        parts = [tensor.narrow(dim, low, high - low) for low, high in row]
        tensor = torch.cat(parts, dim) if parts else tensor.narrow(dim, 0, 0)
    return tensor


def share(size, rank, world, dim=0, fused=1):
    """A rank's ranges of a dim of `size` that is `fused` matrices one after the other."""
    part = size // fused
    low, high = part * rank // world, part * (rank + 1) // world
    return tuple((part * i + low, part * i + high) for i in range(fused))


def pieces_of(whole, rank, world, fused=1):
    """One piece of each tensor for a rank: cut along the first dim; rank 0 has what has no dims."""
    found = []
    for name, tensor in whole.items():
        if tensor.dim() == 0:
            if rank == 0:
                found.append(Piece(name, (), (), tensor))
            continue
        first, *others = tensor.shape
        fold = fused if "qkv" in name else 1
        ranges = (share(first, rank, world, fused=fold), *(((0, n),) for n in others))
        found.append(Piece(name, tuple(tensor.shape), ranges, cut(tensor, ranges)))
    return found


def save_local(folder, step, make, state=None, world=4, keep=3):
    """Save with all ranks as threads; `make(rank)` gives the pieces."""
    group = tuple(range(world))

    def rank_main(transport):
        return save_checkpoint(
            folder, step, make(transport.rank), {"step": step} if state is None else state,
            rank=transport.rank, world=world, barrier=lambda: transport.barrier(group, 1),
            keep=keep,
        )  # fmt: skip

    return run_local(world, rank_main)


def save_alone(folder, step, pieces, state=None, keep=3):
    """Save with one rank."""
    return save_checkpoint(
        folder, step, pieces, state or {}, rank=0, world=1, barrier=lambda: None, keep=keep
    )


def listing(folder):
    """The names in a folder, sorted."""
    return sorted(os.listdir(folder))


def whole_of(tensor):
    return tuple(((0, size),) for size in tensor.shape)


def check_holds(checkpoint, whole):
    """Compare every tensor of a checkpoint, bit by bit."""
    assert checkpoint.names() == sorted(whole)
    for name, tensor in whole.items():
        found = checkpoint.read(name, whole_of(tensor))
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found, tensor)


def as_piece(name, tensor, ranges):
    piece = cut(tensor, ranges)
    assert tuple(piece.shape) == extent(ranges)
    return Piece(name, tuple(tensor.shape), ranges, piece)


# Entries of ranks that are processes: they take (transport, payload).


def save(transport, payload):
    """Save the small model; returns what the rank was told. One rank may have a full disk."""
    group, hard = tuple(range(transport.world)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    full = payload.get("full") == transport.rank
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def barrier():
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # gloo writes files too
        transport.barrier(group, 1)
        if payload.get("killed") == transport.rank:
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600 if full else hard, hard))

    whole = tensors(payload["salt"])
    pieces = pieces_of(whole, transport.rank, transport.world, fused=3)
    try:
        saved = save_checkpoint(
            payload["folder"], payload["step"], pieces, {"salt": payload["salt"]},
            rank=transport.rank, world=transport.world, barrier=barrier,
        )  # fmt: skip
        return ["saved", str(saved.path)]
    except Exception as error:
        return [type(error).__name__, str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def load(transport, payload):
    """Check this rank's slices of a checkpoint that ranks of another plan saved."""
    share = (transport.rank, transport.world)
    checkpoint = Checkpoint.open(Path(payload["folder"]), share=share)
    whole = tensors(checkpoint.state["salt"])
    for piece in pieces_of(whole, transport.rank, transport.world):
        assert torch.equal(checkpoint.read(piece.name, piece.ranges), piece.tensor)
    return checkpoint.step
