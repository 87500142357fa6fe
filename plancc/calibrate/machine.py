"""What is known of the machine that measures, and whether it is quiet enough to."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from plancc.calibrate.pace import SLOW
from plancc.calibrate.spread import Spread
from plancc.runtime.cores import usable

BUSY = 0.3
"""Load per core, before anything is measured, from which others are said to compute too."""
NOISY = 0.1
"""Quartiles this far apart (over the median) make a measurement a noisy one."""
MANY = 0.2
"""Share of noisy measurements from which a calibration is called noisy."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that go into the source of every constant. `memory` is in bytes, `load` the 1-minute average."""

    cpu: str
    cores: int
    memory: int
    gpu: str
    system: str
    torch: str
    python: str
    threads: int
    load: float
    when: str

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def about(self) -> str:
        """`measured 2026-01-31 on AMD EPYC (2 cores), torch 2.13.0, 1 thread a rank`."""
        device = self.gpu or f"{self.cpu} ({self.cores} core{'' if self.cores == 1 else 's'})"
        threads = (
            "" if self.gpu else f", {self.threads} thread{'' if self.threads == 1 else 's'} a rank"
        )
        return f"measured {self.when[:10]} on {device}, torch {self.torch}{threads}"


def this_machine(device: torch.device, threads: int) -> Machine:
    """Look around; `threads` are those that a rank computes with."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(
        cpu_name(), usable_cores(), memory_bytes(device), gpu, platform.system(), torch.__version__,
        platform.python_version(), threads, load(),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(usable()) or os.cpu_count() or 1


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as it calls itself, or at least its architecture."""
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load() -> float:
    """The 1-minute load average; 0 where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def disturbances(machine: Machine, spreads: Iterable[Spread], slower: float = 0.0) -> list[str]:
    """Why the figures may be wrong: others computed beforehand or meanwhile, or repeats lie far apart.

    `slower` tells by how much the machine was slower than at its best.
    """
    found = []
    if slower > SLOW:
        found.append(f"the machine was up to {slower:.0%} slower at times than at its best")
    if machine.load > BUSY * machine.cores:
        found.append(
            f"the machine was busy before this began: a load of {machine.load:.1f} on {machine.cores} "
            f"core{'' if machine.cores == 1 else 's'}"
        )
    known = [spread for spread in spreads if spread.count > 1]
    noisy = [spread for spread in known if spread.noise > NOISY]
    if known and len(noisy) > MANY * len(known):
        found.append(
            f"{len(noisy)} of {len(known)} measurements have quartiles more than {NOISY:.0%} apart "
            f"(the worst: {max(spread.noise for spread in noisy):.0%})"
        )
    return found
