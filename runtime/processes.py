"""What a rank's process does: join the world, run the entry, leave a report, be gone.

It is forked from a forkserver that has torch loaded. It dies with its launcher: a thread watches
the launcher, and the kernel kills the process should the forkserver end first.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plancc.runtime.beacon import Beacon, Beacons
from plancc.runtime.cores import settle, share
from plancc.runtime.distributed import open_transport
from plancc.runtime.failure import LostPeer, Mismatch, RankFailure

NO_LIMIT = 24 * 3600.0  # the launcher measures time, not the backend
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RankResult:
    """What an entry may return in place of plain JSON: a JSON value, and tensors by name."""

    value: Any
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """What a rank's process is told; plain values only. `cores` are those that the launcher may use."""

    world: int
    scratch: str
    entry: str
    backend: str
    folder: str
    environment: dict[str, str]
    cores: tuple[int, ...]


def main(rank: int, start: Start) -> None:
    """Run one rank; never returns."""
    scratch = Path(start.scratch)
    code = 1
    try:
        die_with_launcher(scratch)
        os.environ.update(start.environment)
        os.chdir(start.folder)
        torch.set_num_threads(1)
        if start.backend == "gloo":  # with nccl the host has little to compute
            settle(share(rank, start.world, start.cores))
        _run(rank, start, scratch)
        code = 0
    except BaseException as error:
        write_json(report_path(scratch, rank), report_of(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def resolve(entry: str) -> Callable[..., Any]:
    """Return the function that "module:function" names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def result_path(scratch: Path, rank: int) -> Path:
    """Where a rank leaves its JSON result."""
    return scratch / f"result-{rank}.json"


def tensors_path(scratch: Path, rank: int) -> Path:
    """Where a rank leaves its tensors."""
    return scratch / f"result-{rank}.safetensors"


def report_path(scratch: Path, rank: int) -> Path:
    """Where a rank says why it failed."""
    return scratch / f"failure-{rank}.json"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(value))
    aside.replace(path)


def _run(rank: int, start: Start, scratch: Path) -> None:
    beacons = Beacons(scratch / "beacons", start.world)
    store = dist.FileStore(str(scratch / "store"), start.world)
    fn = resolve(start.entry)
    payload = json.loads((scratch / "payload.json").read_text())
    transport = open_transport(
        start.backend,
        rank,
        start.world,
        store,
        local_rank=rank,
        beacon=Beacon(beacons, rank),
        time_limit=NO_LIMIT,
    )
    _save(scratch, rank, fn(transport, payload))
    transport.close()


def _save(scratch: Path, rank: int, result: Any) -> None:
    value = result
    if isinstance(result, RankResult):
        from safetensors.torch import save_file

        value = result.value
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in result.tensors.items()}
        save_file(whole, tensors_path(scratch, rank))
    write_json(result_path(scratch, rank), value)


def report_of(error: BaseException) -> dict[str, Any]:
    """Tell an error as plain data: its kind (mismatch, lost, raised), reason, detail, traceback."""
    if isinstance(error, Mismatch):
        return {"kind": "mismatch", "parts": error.parts}
    report = {
        "kind": "lost" if isinstance(error, LostPeer) else "raised",
        "reason": f"raised {type(error).__name__}",
        "detail": str(error),
        "traceback": traceback.format_exc(),
    }
    if isinstance(error, RankFailure):
        report |= {"reason": error.reason, "detail": error.detail}
    return report


def die_with_launcher(scratch: Path) -> None:
    """End this process when its launcher ends, whatever it is doing then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A rank holds open what keeps the forkserver alive: let that end with the launcher.
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        forkserver._forkserver._forkserver_alive_fd = None
    launcher = parent_process().sentinel
    leftovers = [scratch, *_listener_folder()]

    def watch() -> None:
        wait([launcher])
        for folder in leftovers:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def _listener_folder() -> list[Path]:
    """Find the folder of the forkserver's socket, which a killed launcher cannot remove."""
    address = getattr(forkserver._forkserver, "_forkserver_address", None)
    folder = Path(address).parent if isinstance(address, str) else Path()
    return [folder] if folder.name.startswith("pymp-") else []
