"""The transport of one epoch of a run with replicas: an epoch's, with lanes that can be abandoned too."""

from __future__ import annotations

import torch.distributed as dist

from plancc.runtime.distributed import DistributedTransport
from plancc.runtime.epoch import EpochTransport


class FailoverTransport(EpochTransport):
    """One rank's end; its ranks are numbered as the epoch's programs number them."""

    def _beside(self) -> DistributedTransport:
        return FailoverTransport(
            self.rank, self.world, dist.PrefixStore("lane", self.store), self._over,
            loopback=self._loopback, members=self.members, messages=False,
            time_limit=self._limit.total_seconds(),
        )  # fmt: skip
