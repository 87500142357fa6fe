"""Training steps of emitted programs against hand-written torch, on two gloo ranks of one host."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIZES = {"layers": 4, "hidden": 512, "heads": 8, "ffn": 1408, "vocab": 4096, "max_len": 256}
SIDES = ("ours", "theirs")
BATCH, TOKENS = 4, 256
CASES = {
    "TP 2": ("tp", "tp"),
    "TP 2, loss_parallel": ("tp, loss_parallel", "tp"),
    "TP 2 and sequence parallelism, loss_parallel": ("sp, loss_parallel", "sp"),
    "DDP": ("ddp", "dp"),
    "DDP; ours with overlap": ("ddp", "dp_ahead"),
    "FSDP2": ("fsdp2", "fsdp"),
    "FSDP2; ours with overlap": ("fsdp2", "fsdp_ahead"),
    "Schedule1F1B, 2 stages, 4 micro-batches": ("1f1b", "pipeline"),
}
"""Case -> (step of the torch side, plan)."""
ABOUT = (
    f"Training step, {SIZES['layers']} layers, hidden {SIZES['hidden']}, vocab {SIZES['vocab']}, batch "
    f"{BATCH} x {TOKENS} tokens, two gloo ranks, against hand-written torch (`emitted : torch`):"
)


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Run one case: medians of both sides, ratios of neighbours, calls and bytes of the two ranks."""
    import torch
    from safetensors.torch import save_file

    import plancc.api
    from plancc.models import load_model
    from plancc.runtime.launch import launch

    by_hand, plan = CASES[case]
    torch.manual_seed(0)
    spec = f"{ROOT / 'examples' / 'models.py'}:dense"
    args = {name: str(size) for name, size in SIZES.items()}
    with tempfile.TemporaryDirectory() as folder:
        weights, artifact = f"{folder}/weights.safetensors", f"{folder}/artifact"
        model = load_model(spec, args).module
        initial = {n: torch.empty_like(p, device="cpu") for n, p in model.named_parameters()}
        for tensor in initial.values():
            torch.nn.init.normal_(tensor, std=0.02) if tensor.dim() > 1 else tensor.fill_(1.0)
        save_file(initial, weights)
        plancc.api.compile(
            HERE / "plans" / f"{plan}.plan", spec, artifact, weights=[weights],
            model_args=args, phases=("train",), verify=False,
        )  # fmt: skip
        payload = {
            "artifact": artifact, "weights": weights, "store": f"{folder}/store", "torch": by_hand,
            "sizes": SIZES, "batch": BATCH, "tokens": TOKENS, "rounds": rounds,
        }  # fmt: skip
        entry = "tests.benchmarks.training_rank:measure"
        ranks = launch(2, entry, payload, time_limit=600.0, start_limit=600.0)
    return summary(ranks)


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what the ranks measured: a step lasts until the last of them is done."""
    seconds = {side: joined(ranks, "seconds", side, max) for side in SIDES}
    work = {side: joined(ranks, "work", side, sum) for side in SIDES}
    ratios = sorted(a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    losses = zip(*(mean_loss(ranks, side) for side in SIDES), strict=True)
    return {
        "ours": statistics.median(seconds["ours"]), "theirs": statistics.median(seconds["theirs"]),
        "ratio": statistics.median(ratios), "low": ratios[len(ratios) // 4],
        "high": ratios[-1 - len(ratios) // 4],
        "best": min(seconds["ours"]) / min(seconds["theirs"]),
        "work": statistics.median(a / b for a, b in zip(*work.values(), strict=True)),
        "gap": max(abs(ours - theirs) / abs(theirs) for ours, theirs in losses),
        "calls": {side: max(sum(r["calls"][side].values()) for r in ranks) for side in SIDES},
        "sent": {side: max(leaving(r["bytes"][side]) for r in ranks) for side in SIDES},
        "kinds": {side: ranks[-1]["calls"][side] for side in SIDES},
    }  # fmt: skip


def joined(
    ranks: list[dict[str, Any]], what: str, side: str, join: Callable[[Any], float]
) -> list[float]:
    """One number of both ranks for each round."""
    return [join(both) for both in zip(*(r[what][side] for r in ranks), strict=True)]


def leaving(counts: dict[str, int]) -> int:
    """Bytes that leave one of two ranks: a ring sends half of what is gathered or scattered."""
    whole = sum(counts.get(kind, 0) for kind in ("all_reduce", "exchange", "broadcast"))
    return whole + sum(
        counts.get(k, 0) // 2 for k in ("all_gather", "reduce_scatter", "all_to_all")
    )


def mean_loss(ranks: list[dict[str, Any]], side: str) -> list[float]:
    """The loss of each step: the mean over the ranks that have one."""
    steps = zip(*(r["losses"][side] for r in ranks), strict=True)
    return [statistics.fmean(x for x in step if x == x) for step in steps]


if __name__ == "__main__":
    for name in sys.argv[2:] or CASES:
        print(json.dumps({"case": name, **measure(name, int(sys.argv[1]))}), flush=True)
