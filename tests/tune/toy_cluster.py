"""A made-up cluster and a tiny model, for searches whose best is known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plancc.simulator.cluster import Cluster, parse_cluster

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT / 'examples' / 'models.py'}:dense"
EXPERTS = f"{ROOT / 'examples' / 'models.py'}:moe"
TINY = {"layers": "1", "hidden": "32", "heads": "4", "ffn": "64", "vocab": "64", "max_len": "512"}


def value(number: float) -> dict[str, Any]:
    """A constant of a cluster file."""
    return {"value": number, "source": "made up"}


def cluster_data(devices: int = 4, **changed: float) -> dict[str, Any]:
    """A cluster file: devices of 1 GFLOP/s and 1 GB/s in one node, links of 1 GB/s, all without latency.

    `changed` may be flops (FLOP/s), memory (bytes), latency (seconds), bandwidth (of links).
    """
    link = {
        "bandwidth": value(changed.get("bandwidth", 1e9)), "one_way": value(1.0), "step": value(0.0),
        "latency": value(changed.get("latency", 0.0)),
        "message_latency": value(changed.get("latency", 0.0)),
    }  # fmt: skip
    kind = {
        "per_node": value(devices), "memory": value(changed.get("memory", 1e12)),
        "flops": {"f32": value(changed.get("flops", 1e9))},
        "efficiency": {"matmul": value(1.0), "attention": value(1.0)},
        "bandwidth": value(1e9), "launch": value(0.0),
        "streaming": {"matmul": value(1.0), "attention": value(1.0), "memory": value(1.0)},
    }  # fmt: skip
    return {
        "schema": "plancc.cluster/1", "name": "toy", "about": "made up",
        "devices": [{"kind": "toy", "count": devices}], "kinds": {"toy": kind},
        "links": {"node": link},
    }  # fmt: skip


def toy(devices: int = 4, **changed: float) -> Cluster:
    """The cluster of `cluster_data`."""
    return parse_cluster(cluster_data(devices, **changed))
