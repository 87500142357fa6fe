"""A cluster of round numbers, for times that can be worked out on paper."""

from __future__ import annotations

from typing import Any


def const(value: float) -> dict[str, Any]:
    """A constant of a cluster file."""
    return {"value": value, "source": "round"}


def plain(devices: int = 16) -> dict[str, Any]:
    """Nodes of eight devices: 100 GB/s within, eight NICs of 10 GB/s; 100 TFLOP/s half reached, 1 TB/s."""
    return {
        "schema": "plancc.cluster/1",
        "name": "plain",
        "about": "round numbers",
        "devices": [{"kind": "gpu", "count": devices}],
        "kinds": {
            "gpu": {
                "per_node": const(8),
                "memory": const(80e9),
                "flops": {"bf16": const(100e12), "f32": const(10e12)},
                "efficiency": {"matmul": const(0.5), "attention": const(0.25)},
                "bandwidth": const(1e12),
                "streaming": {"matmul": const(0.8), "attention": const(0.5), "memory": const(1.0)},
                "launch": const(5e-6),
                "power": {"busy": const(400), "idle": const(50)},
            }
        },
        "links": {
            "node": {
                "bandwidth": const(100e9),
                "message_bandwidth": const(200e9),
                "peak": const(300e9),
                "latency": const(10e-6),
                "one_way": const(0.5),
                "step": const(1e-6),
                "message_latency": const(4e-6),
            },
            "network": {
                "bandwidth": const(10e9),
                "nics": const(8),
                "latency": const(20e-6),
                "one_way": const(0.5),
                "step": const(5e-6),
                "message_latency": const(30e-6),
            },
        },
    }
