"""Entries of launched ranks that misbehave in the middle of a real program."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from plancc.runtime.comm import Comm
from plancc.runtime.deploy import run_rank
from plancc.runtime.transport import Transport


def run(transport: Transport, payload: Mapping[str, Any]) -> dict[str, Any]:
    """`run_rank`, but payload["victim"] does payload["deed"] at its n-th all-reduce."""
    if transport.rank == payload["victim"]:
        original, seen = Comm.all_reduce, [0]

        def all_reduce(self: Comm, x: Any, parts: Any, at: int) -> Any:
            seen[0] += 1
            if seen[0] == payload["after"]:
                return misbehave(self, x, parts, at, payload["deed"], original)
            return original(self, x, parts, at)

        Comm.all_reduce = all_reduce  # type: ignore[method-assign]
    return run_rank(transport, payload)


def misbehave(self: Comm, x: Any, parts: Any, at: int, deed: str, original: Any) -> Any:
    """One deed in place of an all-reduce."""
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "raise":
        raise RuntimeError("planted")
    if deed == "hang":
        time.sleep(1000)
    if deed == "skip":
        return x
    if deed == "mismatch":
        return original(self, x[..., :-1], parts, at)
    raise ValueError(deed)
