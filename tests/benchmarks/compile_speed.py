"""How long compilation takes (imports apart, without verify), and what it needs of memory."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "models.py") + ":dense"
PLAN = str(Path(__file__).parent / "grid.plan")
SMALL = {"hidden": "512", "heads": "8", "ffn": "2048", "vocab": "32000"}
LARGE = {"hidden": "8192", "heads": "64", "kv_heads": "8", "ffn": "28672", "vocab": "128256"}

CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "4 layers, TP8 PP2, 16 ranks": ({**SMALL, "layers": "4"}, {"dp": "1", "pp": "2"}),
    "32 layers, TP8 PP4 DP4, 128 ranks": ({**SMALL, "layers": "32"}, {"dp": "4", "pp": "4"}),
    "80 layers of a 70B shape, TP8 PP16 DP8, 1024 ranks": (
        {**LARGE, "layers": "80"}, {"dp": "8", "pp": "16"}
    ),
    **{
        f"8 layers, TP8 PP2 DP{dp}, {16 * dp} ranks": (
            {**SMALL, "layers": "8"}, {"dp": str(dp), "pp": "2"}
        )
        for dp in (1, 4, 16, 64, 256)
    },
}  # fmt: skip


def measure(case: str) -> dict[str, float]:
    """Seconds of capture, lowering and writing, and the peak megabytes, of one case in this process."""
    import networkx  # noqa: F401  (an import that the check would otherwise pay for)

    from plancc.codegen.manifest import write_artifact
    from plancc.compiler import compile_graph
    from plancc.dsl import load_plan
    from plancc.models import load_model
    from plancc.passes.capture import capture

    args, sets = CASES[case]
    warm_up()
    begin = time.perf_counter()
    module = load_model(MODEL, args).module
    graph = capture(module)
    captured = time.perf_counter()
    plan, report = load_plan(PLAN, sets)
    assert plan is not None, report.diagnostics
    compiled = compile_graph(plan, graph, report)
    lowered = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Path(folder) / "a", plan, compiled.world, compiled.sets, graph, {})
    end = time.perf_counter()
    return {
        "ranks": compiled.world.size, "capture": captured - begin, "lower": lowered - captured,
        "write": end - lowered, "total": end - begin,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def warm_up() -> None:
    """Import and trace once with a tiny model: what a long-lived process has behind it."""
    from plancc.models import load_model
    from plancc.passes.capture import capture

    capture(load_model(MODEL, {**SMALL, "layers": "1", "hidden": "64"}).module)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
