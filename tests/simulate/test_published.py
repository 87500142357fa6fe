"""The published measurements that predictions are held against, and the fits to published profiles."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
CLUSTERS = HERE.parents[1] / "examples" / "clusters"
COUNTS = {"22B": 22.074e9, "175B": 174.616e9, "1T": 1.008e12}
"""Parameters of the Megatron models that calculon-ai/calculon prints (test/, llm-parameter-calculator)."""


def published(name: str) -> dict[str, Any]:
    """One file of published measurements."""
    found: dict[str, Any] = json.loads((HERE / "published" / f"{name}.json").read_text())
    assert found["about"] and "commit" in found["source"]
    return found


def block_parameters(model: dict[str, Any]) -> int:
    """Parameters of the layers: four projections of attention, two of the MLP, biases and two norms."""
    hidden, ffn = model["hidden"], model["ffn"]
    assert model["biases"] and not model["gated"]
    layer = 4 * hidden * hidden + 2 * hidden * ffn + (4 * hidden + ffn + hidden) + 2 * 2 * hidden
    return int(model["layers"] * layer)


def test_megatron_on_selene() -> None:
    data = published("megatron_selene")
    assert len(data["rows"]) == 8
    for row in data["rows"]:
        model = data["models"][row["model"]]
        assert row["devices"] == row["tp"] * row["pp"] * row["dp"]
        assert row["global_batch"] % (row["micro_batch"] * row["dp"]) == 0
        assert model["layers"] % (row["pp"] * row["virtual"]) == 0
        assert model["hidden"] % model["heads"] == 0 and model["ffn"] == 4 * model["hidden"]
    for name, count in COUNTS.items():
        assert block_parameters(data["models"][name]) == pytest.approx(count, rel=0.02)


def test_megatron_utilisation_is_that_of_the_paper() -> None:
    """Model FLOPs utilisation of "present work", Table 5: 41.5, 51.4, 56.0 and 56.3 %."""
    data = published("megatron_selene")
    found = []
    for row in data["rows"]:
        m = data["models"][row["model"]]
        tokens = row["global_batch"] * m["seq_len"]
        layers = (
            72 * tokens * m["layers"] * m["hidden"] ** 2 * (1 + m["seq_len"] / (6 * m["hidden"]))
        )
        flops = layers + 6 * tokens * m["hidden"] * m["vocab"]
        found.append(100 * flops / row["seconds"] / row["devices"] / 312e12)
    assert found[1::2] == pytest.approx([41.5, 51.4, 56.0, 56.3], abs=0.2)  # 1.10 s has two places


def test_fsdp_of_mosaic() -> None:
    data = published("mosaic_fsdp")
    assert len(data["rows"]) == 42
    for model in data["models"].values():
        positions, final = model["seq_len"] * model["hidden"], 2 * model["hidden"]
        embedded = model["vocab"] * model["hidden"] + positions
        assert block_parameters(model) + embedded + final == model["parameters"]
    for row in data["rows"]:
        assert (CLUSTERS / f"{row['cluster']}.json").exists() or row["cluster"] == "dgx_a100"
        assert row["micro_batch"] * row["accumulated"] * row["devices"] == row["global_batch"]
        tokens = row["global_batch"] * data["models"][row["model"]]["seq_len"]
        assert row["seconds"] == pytest.approx(tokens / row["tokens_per_second"], abs=1e-4)


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    """The script that fits constants to Vidur's profiles."""
    spec = importlib.util.spec_from_file_location("fit_vidur", CLUSTERS / "fit_vidur.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fit_finds_planted_constants(fit: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "all_reduce.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            [
                "time_stats.all_reduce.median",
                "num_workers",
                "size",
                "collective",
                "devices_per_node",
            ]
        )
        for ranks in (2, 4, 8):
            for size in (2048, 10**5, 10**6, 10**7):
                seconds = 30e-6 + 2 * (ranks - 1) / ranks * size / 200e9
                rows.writerow([seconds * 1e3, ranks, size, "all_reduce", ranks])
        rows.writerow([99.0, 2, 2048, "all_reduce", 1])  # over two nodes: not looked at
    points = fit.transfers(path, 1)
    assert len(points) == 12
    rings = 2 * (points[:, 0] - 1) / points[:, 0]
    error, latency, bandwidth = fit.line(points, rings, range(100, 300, 10))
    assert (latency, bandwidth) == (30, 200) and error < 1e-9


def test_the_fit_of_products_is_the_simulators_roofline(fit: ModuleType) -> None:
    from plancc.simulator.cluster import read_cluster
    from plancc.simulator.forms import Work

    hardware = read_cluster(CLUSTERS / "dgx_a100_16.json").place((0,))
    works = [Work("matmul", 10**9, 10**6, 0, "bf16"), Work("matmul", 10**6, 10**8, 0, "bf16")]
    points = np.array([(w.flops, w.moved, hardware.seconds(0, w)) for w in works])
    assert fit.matmul_error(points, fit.PEAKS["a100"], (0.70, 0.72, 6e-6)) < 1e-9
