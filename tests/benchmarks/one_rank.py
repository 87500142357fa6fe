"""The emitted program on one rank against the eager model: the same work, turn by turn."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def measure(rounds: int = 40) -> dict[str, float]:
    """Median seconds of both and the median of the ratios, turn by turn; batch 4 x 256 tokens."""
    sys.path.insert(0, str(ROOT / "examples"))
    import models

    import plancc
    from plancc.runtime.deploy import RankHandle
    from plancc.runtime.loading import open_weights
    from plancc.runtime.local import run_local

    torch.manual_seed(0)
    model = models.dense(layers=4, hidden=512, heads=8, ffn=2048, vocab=8000).eval()
    ids = torch.randint(8000, (4, 256))
    with tempfile.TemporaryDirectory() as folder:
        plan = ROOT / "examples" / "tp.plan"
        built = plancc.compile(plan, model, f"{folder}/a", sets={"tp": "1"}, verify=False)
        weights = open_weights(built.artifact)

        def on_rank(transport) -> dict[str, float]:
            runner = RankHandle(built.artifact, weights, 0, transport).runner
            assert runner is not None

            def emitted() -> torch.Tensor:
                return runner.run("forward", {"input_ids": ids})["logits"].pieces[0]

            def eager() -> torch.Tensor:
                return model(ids)

            with torch.no_grad():
                gap = (emitted() - eager()).abs().max().item()
                return {**compare(emitted, eager, rounds), "gap": gap}

        return run_local(1, on_rank)[0]


def compare(a: Callable[[], object], b: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time a and b in turn; medians, and the median ratio a / b of neighbours."""
    first, second = [], []
    for _ in range(rounds):
        first.append(timed(a))
        second.append(timed(b))
    return {
        "emitted": statistics.median(first),
        "eager": statistics.median(second),
        "ratio": statistics.median(x / y for x, y in zip(first, second, strict=True)),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(json.dumps(measure()))
