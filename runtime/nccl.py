"""The nccl backend: one GPU a rank.

Uneven collectives are padded to the largest part. Messages have a communicator for each direction
of each pair, so that one that nobody receives yet holds up nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plancc.runtime.distributed import DistributedTransport
from plancc.runtime.transport import Group


class NcclTransport(DistributedTransport):
    """One rank on nccl."""

    def __init__(self, rank: int, world: int, store: dist.Store, **rest: Any) -> None:
        super().__init__(rank, world, store, **rest)
        torch.cuda.set_device(self.device)
        self._pairs: dict[tuple[int, int, int], Any] = {}
        self._sent: list[tuple[Any, Tensor]] = []

    def _beside(self) -> NcclTransport:
        return NcclTransport(
            self.rank, self.world, dist.PrefixStore("lane", self.store), device=self.device,
            time_limit=self._limit.total_seconds(),
        )  # fmt: skip

    def prepare(self, groups: Sequence[Group], pairs: Sequence[tuple[int, int]]) -> None:
        """Make the communicators of these groups and (source, target) pairs beforehand."""
        token = torch.zeros(1, device=self.device)
        for group in sorted(set(groups)):
            if self.rank in group and len(group) > 1:
                self._backend(group).allreduce([token]).wait()
        for source, target in sorted(set(pairs)):
            if self.rank in (source, target) and source != target:
                self._pair(source, target).allreduce([token]).wait()
        torch.cuda.synchronize(self.device)

    def _connect(self, name: str, group: Group) -> Any:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._limit
        store = dist.PrefixStore(name, self.store)
        return dist.ProcessGroupNCCL(store, group.index(self.rank), len(group), options)

    def _pair(self, source: int, target: int, channel: int = 0) -> Any:
        """Return the communicator of one direction and channel; the source is its rank 0."""
        key = (source, target, channel)
        if key not in self._pairs:
            name = "message " + ",".join(map(str, key))
            self._pairs[key] = self._connect(name, (source, target))
        return self._pairs[key]

    def _sum(self, x: Tensor, group: Group) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        if x.dtype == torch.bool:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.MAX
            self._backend(group).allreduce([total.view(torch.uint8)], options).wait()
        else:
            self._backend(group).allreduce([total]).wait()
        return total

    def _gather(self, x: Tensor, group: Group, sizes: Sequence[int]) -> Tensor:
        largest = max(sizes)
        given = x if x.numel() == largest else torch.nn.functional.pad(x, (0, largest - x.numel()))
        out = x.new_empty(largest * len(group))
        self._backend(group)._allgather_base(out, given).wait()
        if min(sizes) == largest:
            return out
        return torch.cat(
            [row[:size] for row, size in zip(out.chunk(len(group)), sizes, strict=True)]
        )

    def _sum_parts(self, parts: Sequence[Tensor], group: Group) -> Tensor:
        mine = parts[group.index(self.rank)]
        largest = max(part.numel() for part in parts)
        given = mine.new_zeros(len(group), largest)
        for row, part in zip(given, parts, strict=True):
            row[: part.numel()] = part.reshape(-1)
        out = mine.new_empty(largest)
        options = dist.ReduceScatterOptions()
        if mine.dtype == torch.bool:
            options.reduceOp = dist.ReduceOp.MAX
            given, out = given.view(torch.uint8), out.view(torch.uint8)
        self._backend(group)._reduce_scatter_base(out, given.view(-1), options).wait()
        return out[: mine.numel()].view(mine.dtype).view(mine.shape).clone()

    def _swap(
        self, flat: Tensor, sizes: Sequence[int], group: Group, found: Sequence[int]
    ) -> Tensor:
        out = flat.new_empty(sum(found))
        self._backend(group).alltoall_base(out, flat, list(found), list(sizes)).wait()
        return out

    def _send(self, tensor: Tensor, target: int, tag: int, channel: int) -> None:
        self._sent = [(work, kept) for work, kept in self._sent if not work.is_completed()]
        work = self._pair(self.rank, target, channel).send([tensor], 1, 0)
        self._sent.append((work, tensor))

    def _receive(self, tensor: Tensor, source: int, tag: int, channel: int) -> Callable[[], object]:
        return self._pair(source, self.rank, channel).recv([tensor], 0, 0).wait

    def _flush(self, show: Callable[[int], None]) -> None:
        torch.cuda.synchronize(self.device)
        self._sent.clear()
