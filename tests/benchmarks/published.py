"""Training steps that others measured and published, against what plancc.simulate predicts for them.

The measurements, with their sources, are in tests/simulate/published. No constant was fitted to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STORED = HERE / "published.json"
CLUSTERS = {"dgx_a100": "dgx_a100_16", "dgx_h100": "dgx_h100"}
"""Cluster of a published row -> the file of which more nodes are taken."""
CLASSES = 1
"""Worlds up to this many ranks have an actor for each rank; in larger ones ranks that do the same are one."""
SHAPE = ("layers", "hidden", "heads", "ffn", "vocab", "seq_len")
SETS = ("megatron_selene", "mosaic_fsdp")

Row = dict[str, Any]


def published(name: str) -> dict[str, Any]:
    """The measured rows of one source; each has its cluster and its micro-batches under `batches`."""
    path = ROOT / "tests" / "simulate" / "published" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    for row in found["rows"]:
        row.setdefault("cluster", found.get("cluster"))
        row.setdefault("accumulated", row["global_batch"] // row["micro_batch"] // row.get("dp", 1))
    return found


def plan_of(row: Row) -> tuple[str, dict[str, str]]:
    """The plan that a row ran, and its parameters."""
    batches = {"batches": str(row["accumulated"])}
    if "tp" in row:
        turns = "_interleaved" if row["virtual"] > 1 else ""
        return f"megatron_{row['recompute']}{turns}", {"pp": str(row["pp"]), **batches}
    full = "_full" if row["recompute"] == "full" else ""
    name = f"mpt_{row['sharding'].lower().replace('-', '')}{full}"
    return name, {"dp": str(row["devices"]), **batches}


def predict(row: Row, model: Row, dtype: str, fused: bool) -> dict[str, float]:
    """Seconds of a step, whether or not it fits; GB of the fullest device by the estimate, and its room."""
    from plancc.api import DTYPES
    from plancc.simulator.cluster import read_cluster
    from plancc.simulator.step import Inputs
    from plancc.simulator.subject import open_subject

    name, sets = plan_of(row)
    cluster = read_cluster(CLUSTERS[row["cluster"]], ROOT / "examples")
    subject = open_subject(
        HERE / "plans" / f"{name}.plan", f"{HERE / 'gpt.py'}:gpt",
        cluster.with_(f"devices.0.count={row['devices']}"), sets=sets,
        model_args={**{key: str(model[key]) for key in SHAPE}, "fused": str(fused).lower()},
        phases=("train",), dtype=DTYPES[{"f16": "fp16"}.get(dtype, dtype)],
    )  # fmt: skip
    batch, seq_len = row["global_batch"], model["seq_len"]
    unit = subject.unit("train", batch, seq_len)
    rooms = subject.rooms(unit, subject.memories(unit, batch, seq_len))
    subject.few = CLASSES
    outcome = subject.simulation(unit, spans=False).run(
        Inputs(batch, seq_len, 0, row["accumulated"])
    )
    return {
        "seconds": significant(outcome.seconds),
        "gigabytes": significant(max(room.memory.total for room in rooms) / 1e9),
        "room": significant(min(room.limit for room in rooms) / 1e9),
    }


def significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def predictions(name: str, only: Sequence[int] | None = None) -> Iterator[dict[str, float]]:
    """The predictions of the rows of one source, or of some of them; `fused` are Megatron's other seconds."""
    data = published(name)
    for number, row in enumerate(data["rows"]):
        if only is not None and number not in only:
            continue
        model = data["models"][row["model"]]
        found = predict(row, model, data["dtype"], fused="tp" not in row)
        if "tp" in row:
            found["fused"] = predict(row, model, data["dtype"], fused=True)["seconds"]
        print(name, number, found, file=sys.stderr, flush=True)
        yield found


def order(rows: Sequence[Row], seconds: Sequence[float]) -> tuple[int, int, int, int]:
    """(right, all) pairs of rows by their seconds; the same of rows of one model, by tokens/s a device."""
    counts = [0, 0, 0, 0]
    for a, b in combinations(range(len(rows)), 2):
        measured = rows[a]["seconds"] - rows[b]["seconds"]
        counts[0] += measured * (seconds[a] - seconds[b]) > 0
        counts[1] += 1
        if rows[a]["model"] == rows[b]["model"]:
            paces = [
                [rows[at]["global_batch"] / rows[at]["devices"] / time for at, time in pair]
                for pair in (
                    ((a, rows[a]["seconds"]), (b, rows[b]["seconds"])),
                    ((a, seconds[a]), (b, seconds[b])),
                )
            ]
            counts[2] += (paces[0][0] - paces[0][1]) * (paces[1][0] - paces[1][1]) > 0
            counts[3] += 1
    return counts[0], counts[1], counts[2], counts[3]


def errors(rows: Sequence[Row], seconds: Sequence[float]) -> list[float]:
    """predicted / measured - 1 in percent."""
    return [100 * (s / row["seconds"] - 1) for row, s in zip(rows, seconds, strict=True)]


def summary(title: str, rows: Sequence[Row], seconds: Sequence[float]) -> str:
    """One row of the first table."""
    found = errors(rows, seconds)
    right, pairs, ours, models = order(rows, seconds)
    return (
        f"| {title} | {len(rows)} | {sum(map(abs, found)) / len(found):.1f} % "
        f"| {min(found):+.1f} to {max(found):+.1f} % | {right} of {pairs} | {ours} of {models} |"
    )


def tables(stored: dict[str, list[dict[str, float]]]) -> list[str]:
    """The section of README.md out of what is stored."""
    megatron, mosaic = (published(name) for name in SETS)
    ours, theirs = (stored[name] for name in SETS)
    lines = [
        "Training steps that others measured, and their prediction by `plancc.simulate` (the sources are in",
        "`tests/simulate/published`; nothing was fitted to them):", "",
        "| rows | number | mean error | from .. to | order, all pairs | order, tokens/s of one model |",
        "| --- | --- | --- | --- | --- | --- |",
        summary("Megatron on Selene", megatron["rows"], [one["seconds"] for one in ours]),
        summary("the same, fused attention", megatron["rows"], [one["fused"] for one in ours]),
    ]  # fmt: skip
    for cluster in ("dgx_a100", "dgx_h100"):
        pairs = [
            (r, p) for r, p in zip(mosaic["rows"], theirs, strict=True) if r["cluster"] == cluster
        ]
        seconds = [p["seconds"] for _, p in pairs]
        title = f"MPT with FSDP, {cluster[4:].upper()}"
        lines.append(summary(title, [row for row, _ in pairs], seconds))
    return [
        *lines,
        "",
        *each_megatron(megatron["rows"], ours),
        "",
        *each_fsdp(mosaic["rows"], theirs),
    ]


def each_megatron(rows: Sequence[Row], found: Sequence[dict[str, float]]) -> Iterator[str]:
    """The table of Megatron's rows."""
    yield (
        "| Megatron | TP x PP x virtual | recompute | micro-batches | measured s | predicted s | error "
        "| fused attention | estimated GB |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row, one in zip(rows, found, strict=True):
        error, other = (100 * (one[key] / row["seconds"] - 1) for key in ("seconds", "fused"))
        yield (
            f"| {row['model']} | {row['tp']} x {row['pp']} x {row['virtual']} | {row['recompute']} "
            f"| {row['accumulated']} | {row['seconds']:.2f} | {one['seconds']:.2f} | {error:+.1f} % "
            f"| {other:+.1f} % | {memory(one)} |"
        )


def each_fsdp(rows: Sequence[Row], found: Sequence[dict[str, float]]) -> Iterator[str]:
    """The table of Mosaic's rows."""
    yield (
        "| MPT | devices | sharding | recompute | micro-batch x accumulated | measured s | predicted s "
        "| error | estimated GB |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row, one in zip(rows, found, strict=True):
        error = 100 * (one["seconds"] / row["seconds"] - 1)
        yield (
            f"| {row['model']} | {row['devices']} {row['cluster'][4:].upper()} | {row['sharding']} "
            f"| {row['recompute']} | {row['micro_batch']} x {row['accumulated']} "
            f"| {row['seconds']:.2f} | {one['seconds']:.2f} | {error:+.1f} % | {memory(one)} |"
        )


def memory(one: dict[str, float]) -> str:
    """The estimate, and that it is more than there is."""
    over = " (over)" if one["gigabytes"] > one["room"] else ""
    return f"{one['gigabytes']:.0f}{over}"


def section(write: bool) -> list[str]:
    """Predict all rows; with `write` keep what was found."""
    stored = {name: list(predictions(name)) for name in SETS}
    if write:
        lines = ",\n".join(
            f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
            for name, rows in stored.items()
        )
        aside = STORED.with_suffix(".new")
        aside.write_text("{\n" + lines + "\n}\n")
        aside.replace(STORED)
    return tables(stored)
