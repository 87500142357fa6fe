"""Fit the constants of a cluster file to the published profiles of Vidur, and say how well they fit.

    git clone https://github.com/microsoft/vidur
    python examples/clusters/fit_vidur.py vidur/data/profiling

Errors are means of |predicted / measured - 1| over all points: how well the constants fit, not how well they
predict. Times of the profiles are milliseconds; rows of one size count with the median of their medians.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
PEAKS = {"a100": (312e12, 2.039e12), "h100": (989.4e12, 3.35e12)}
"""Peak FLOP/s in 16 bits and bytes/s of memory (data sheets)."""
MODEL = "meta-llama/Llama-2-7b-hf"


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a profile."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def products(path: Path) -> Points:
    """[n, 3]: FLOPs, bytes and seconds of the four matrix products of a layer."""
    found = []
    for row in rows_of(path):
        m, h, f = int(row["num_tokens"]), int(row["n_embd"]), int(row["n_expanded_embd"])
        tp = int(row["num_tensor_parallel_workers"])
        shapes = {
            "attn_pre_proj": (h, 3 * h // tp), "attn_post_proj": (h // tp, h),
            "mlp_up_proj": (h, 2 * f // tp), "mlp_down_proj": (f // tp, h),
        }  # fmt: skip
        for name, (k, n) in shapes.items():
            seconds = float(row[f"time_stats.{name}.median"]) * 1e-3
            found.append((2 * m * k * n, 2 * (m * k + k * n + m * n), seconds))
    return np.array(found)


def additions(path: Path) -> Points:
    """[n, 2]: bytes and seconds of the addition of two activations."""
    return np.array([
        (3 * 2 * int(row["num_tokens"]) * int(row["n_embd"]), float(row["time_stats.add.median"]) * 1e-3)
        for row in rows_of(path)
    ])  # fmt: skip


def transfers(path: Path, nodes: int) -> Points:
    """[n, 3]: ranks, bytes and seconds of a collective over so many nodes."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows_of(path):
        ranks = int(row["num_workers"])
        if ranks == nodes * int(row["devices_per_node"]):
            seconds = float(row[f"time_stats.{row['collective']}.median"]) * 1e-3
            found.setdefault((ranks, int(row["size"])), []).append(seconds)
    return np.array([(ranks, size, median(seconds)) for (ranks, size), seconds in found.items()])


def error(predicted: Points, measured: Points) -> float:
    """The mean of |predicted / measured - 1|."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def matmul_error(
    points: Points, peaks: tuple[float, float], constants: tuple[float, float, float]
) -> float:
    """The error of (share of the FLOP/s, share of the bandwidth, seconds of a launch)."""
    efficiency, streaming, launch = constants
    flops, size, seconds = points.T
    work = np.maximum(flops / (peaks[0] * efficiency), size / (peaks[1] * streaming))
    return error(work + launch, seconds)


def line(points: Points, factor: Points, bandwidths: range) -> tuple[float, int, int]:
    """(error, microseconds, GB/s) of the best latency + factor x bytes / bandwidth."""
    return min(
        (error(us * 1e-6 + factor * points[:, 1] / (gb * 1e9), points[:, 2]), us, gb)
        for us, gb in product(range(2, 80), bandwidths)
    )


def main(folder: Path) -> None:
    """Print the fits of both kinds of device."""
    for name, peaks in PEAKS.items():
        profile = folder / "compute" / name / MODEL / "mlp.csv"
        points = products(profile)
        grid = product(
            np.arange(0.5, 0.91, 0.02), np.arange(0.6, 1.0, 0.02), np.arange(0, 11e-6, 1e-6)
        )
        best = min((matmul_error(points, peaks, constants), constants) for constants in grid)
        shipped = matmul_error(points, peaks, (0.70, 0.72, 6e-6))
        print(f"{name}: {len(points)} products; 0.70, 0.72, 6 us: {shipped:.1%}; best {best[0]:.1%} with "
              f"{best[1][0]:.2f}, {best[1][1]:.2f}, {best[1][2] * 1e6:.0f} us")  # fmt: skip
        added = additions(profile)
        large = added[added[:, 0] >= 0.7 * added[:, 0].max()]
        print(
            f"{name}: addition, {np.median(large[:, 0] / large[:, 1]) / peaks[1]:.2f} of the bandwidth"
        )
        network = folder / "network" / f"{name}_dgx"
        reduced = transfers(network / "all_reduce.csv", 1)
        rings = 2 * (reduced[:, 0] - 1) / reduced[:, 0]
        fit = line(reduced, rings, range(100, 420, 4))
        print(
            f"{name}: {len(reduced)} all-reduces within a node: {fit[1]} us, {fit[2]} GB/s, {fit[0]:.1%}"
        )
        for nodes, bandwidths in ((1, range(100, 420, 4)), (2, range(4, 50))):
            sent = transfers(network / "send_recv.csv", nodes)
            fit = line(sent, np.ones(len(sent)), bandwidths)
            last = sent[sent[:, 1].argmax()]
            where = "within a node" if nodes == 1 else "between nodes"
            print(f"{name}: {len(sent)} messages {where}: {fit[1]} us, {fit[2]} GB/s, {fit[0]:.1%}; "
                  f"the largest {last[1] / last[2] / 1e9:.0f} GB/s")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
