"""Rank optimizers over slices of the same weights, in threads, and plain torch beside them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from plancc.runtime.optimizer import OptimizerSpec, Owned, RankOptimizer, StepReport, learning_rate

SHAPES = {"embed": (10, 6), "up": (7, 6), "norm": (6,), "down": (6, 7), "scalar": ()}
CUT = {"embed": 0, "up": 0, "down": 1}  # parameter -> dim; the others are on every rank


class Together:
    """Adds tensors up over ranks that run in threads of one process."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.parts: list[Tensor | None] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def sum_all(self, rank: int, part: Tensor) -> Tensor:
        assert part.dtype == torch.float64 and part.numel() <= 4
        self.parts[rank] = part.clone()
        self.barrier.wait()
        total = sum(self.parts)
        self.barrier.wait()
        return total

    def run(self, work: Sequence[Callable[[], StepReport]]) -> list[StepReport | Exception]:
        """Run one call a rank; exceptions are results."""
        results: list = [None] * self.world

        def body(rank: int) -> None:
            try:
                results[rank] = work[rank]()
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def bounds(size: int, world: int, rank: int) -> tuple[int, int]:
    step = -(-size // world)
    return min(size, rank * step), min(size, (rank + 1) * step)


def spans(name: str, world: int, rank: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The ranges of a rank's slice: in two pieces where the parameter is `down`."""
    found = [((0, size),) for size in SHAPES[name]]
    if name in CUT:
        low, high = bounds(SHAPES[name][CUT[name]], world, rank)
        middle = (low + high) // 2
        found[CUT[name]] = ((middle, high), (low, middle)) if name == "down" else ((low, high),)
    return tuple(found)


def cut(whole: Tensor, ranges: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    for dim, pieces in enumerate(ranges):
        whole = torch.cat([whole.narrow(dim, a, b - a) for a, b in pieces], dim)
    return whole.clone()


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }


def gradients(step: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * size
        for name, shape in SHAPES.items()
    }


class Ranks:
    """A world of rank optimizers over the slices of the same weights."""

    def __init__(self, spec: OptimizerSpec, world: int, precision: str, dtype: torch.dtype) -> None:
        self.together = Together(world)
        self.spec, self.precision = spec, precision
        self.owned = [
            [
                Owned(name, cut(whole, spans(name, world, rank)), SHAPES[name],
                      spans(name, world, rank), counts=name in CUT or rank == world - 1)
                for name, whole in weights(dtype).items()
            ]
            for rank in range(world)
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.ranks = [
            RankOptimizer(self.spec, owned, sum_all=partial(self.together.sum_all, rank),
                          precision=self.precision)
            for rank, owned in enumerate(self.owned)
        ]  # fmt: skip

    def step(self, index: int, grads: Mapping[str, Tensor | None]) -> list:
        work = []
        for rank, owned in zip(self.ranks, self.owned, strict=True):
            own = {
                item.name: None if grads[item.name] is None
                else cut(grads[item.name], item.ranges).to(item.tensor.dtype)
                for item in owned
            }  # fmt: skip
            work.append(partial(rank.step, index, own))
        return self.together.run(work)

    def whole(self, name: str) -> Tensor:
        """Put a parameter together from the slices."""
        total = torch.full(SHAPES[name], math.nan, dtype=torch.float64)
        for owned in self.owned:
            item = next(item for item in owned if item.name == name)
            place(total, item, item.tensor)
        return total


def place(total: Tensor, item: Owned, value: Tensor) -> None:
    """Write a slice into the whole."""
    index = [torch.tensor([i for a, b in pieces for i in range(a, b)]) for pieces in item.ranges]
    if not index:
        total.copy_(value)
    elif all(len(part) for part in index):
        total[torch.meshgrid(*index, indexing="ij")] = value.detach().to(total.dtype)


class Plain:
    """The same training on one device with nothing but torch."""

    def __init__(self, spec: OptimizerSpec, dtype: torch.dtype) -> None:
        self.spec = spec
        self.params = {name: nn.Parameter(w.to(dtype)) for name, w in weights(dtype).items()}
        wide = [p for p in self.params.values() if p.dim() > 1]
        flat = [p for p in self.params.values() if p.dim() <= 1]
        kinds = {type_.__name__.lower(): type_ for type_ in vars(torch.optim).values()
                 if isinstance(type_, type)}  # fmt: skip
        groups = [{"params": wide, "weight_decay": spec.weight_decay},
                  {"params": flat, "weight_decay": 0.0}]  # fmt: skip
        if spec.name == "rprop":
            groups = [{"params": wide + flat}]
        self.optimizer = kinds[spec.name](groups, lr=spec.lr, **spec.options())

    def step(self, index: int, grads: Mapping[str, Tensor | None]) -> float:
        for name, param in self.params.items():
            param.grad = None if grads[name] is None else grads[name].to(param.dtype).clone()
        norm = nn.utils.clip_grad_norm_(self.params.values(), self.spec.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, index)
        self.optimizer.step()
        return float(norm)


def saved(ranks: Ranks) -> dict[tuple[str, str], Tensor]:
    """A checkpoint: every piece of state as a whole tensor, or a number."""
    found: dict[tuple[str, str], Tensor] = {}
    for rank, owned in zip(ranks.ranks, ranks.owned, strict=True):
        for piece in rank.state_pieces():
            key = (piece.kind, piece.name)
            if piece.whole:
                assert piece.tensor.numel() <= 2
                found[key] = piece.tensor.clone()
                continue
            item = next(x for x in owned if x.name == piece.name)
            assert piece.tensor.shape == item.tensor.shape
            whole = torch.full(item.shape, math.nan, dtype=piece.tensor.dtype)
            place(found.setdefault(key, whole), item, piece.tensor)
    return found


def resumed(ranks: Ranks, checkpoint: dict, tensors: dict[str, Tensor], world: int) -> Ranks:
    """Fresh optimizers over other slices, with the state of a checkpoint."""
    dtype = ranks.owned[0][0].tensor.dtype
    other = Ranks(ranks.spec, world, ranks.precision, dtype)
    for owned in other.owned:
        for item in owned:
            item.tensor.copy_(cut(tensors[item.name], item.ranges))
    other.start()
    for rank in other.ranks:

        def read(kind: str, item: Owned | None) -> Tensor | None:
            value = checkpoint.get((kind, item.name if item else ""))
            if value is None or item is None or value.shape != item.shape or kind == "step":
                return value
            return cut(value, item.ranges)

        rank.load_state(read)
    return other
