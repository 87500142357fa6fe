"""Every architecture of the zoo, straight from transformers, verified at TP 2 and 3; the table of the docs.

The table in examples/README.md is put together from one line a model under tests/golden/architectures;
`pytest --update-golden tests/test_architectures.py` rewrites both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from plancc.codegen.manifest import write_artifact
from plancc.compiler import Compiled, compile_graph
from plancc.dsl import Source, load_plan
from plancc.ir.graph import Graph
from plancc.models import ModelError
from plancc.passes.capture import capture
from plancc.passes.match_targets import Modules
from plancc.passes.name_dims import name_dims
from plancc.runtime.artifact import load_artifact
from plancc.verification import Verification, VerifyResult
from tests.model_zoo import ZOO

ROOT = Path(__file__).parents[1]
LINES = ROOT / "tests" / "golden" / "architectures"
TABLE = ROOT / "examples" / "README.md"
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
UNSUPPORTED = {
    "dbrx": "its experts loop over data-dependent indices outside transformers' expert registry",
}  # fmt: skip


def plan_text(graph: Graph, tp: int) -> str:
    """The plan a user would write: heads, ffn, experts and vocab over tp, wherever the model has them."""
    named, modules = name_dims(graph), Modules(graph)
    rows = {}
    for name in ("vocab", "ffn", "experts", "heads"):
        for anchor in named.anchors:
            if anchor.name == name and anchor.path:
                rows[fold(anchor.path, modules)] = name
    if "lm_head" in graph.modules:
        rows["lm_head"] = "vocab"
    places = "\n".join(
        f"place {path} {{ split {dim} over tp (block = balanced) }}" for path, dim in rows.items()
    )
    return f"plan zoo, edition 1\nmesh base[tp = {tp}] on local\nplace ** on base\n{places}\n"


def fold(path: str, modules: Modules) -> str:
    """A path with its layer number as `*`."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def lowered(graph: Graph, tp: int) -> Compiled:
    plan, report = load_plan(Source("zoo.plan", plan_text(graph, tp)))
    assert plan is not None, report.diagnostics
    return compile_graph(plan, graph, report)


def verified(compiled: Compiled, folder: Path) -> VerifyResult:
    write_artifact(folder, compiled.plan, compiled.world, compiled.sets, compiled.graph, {})
    return Verification(compiled, load_artifact(folder)).run()


def row(name: str, model: nn.Module, compiled: Compiled, worst: float) -> str:
    """One line of the table."""
    forward = compiled.units[0]
    moves = count_by_kind(compiled)
    phases = ", ".join(unit.graph.phase for unit in compiled.units)
    return (
        f"| {name} | {type(model).__name__} | {phases} | {len(forward.graph.nodes)} | {moves} "
        f"| {'< 1e-10' if worst < 1e-10 else f'{worst:.0e}'} |"
    )


def count_by_kind(compiled: Compiled) -> str:
    """`4 all_reduce, 1 all_gather` of a forward step."""
    from plancc.verification.check import count_moves

    return ", ".join(f"{n} {kind}" for kind, n in count_moves(compiled.units[0]).items())


@pytest.mark.parametrize("name", [n for n in ZOO if n not in UNSUPPORTED])
def test_architecture(name: str, tmp_path: Path, golden: Callable[[Path, str], None]) -> None:
    torch.set_num_threads(1)
    model = ZOO[name]()
    graph = capture(model)
    worst, text = 0.0, ""
    for tp in (2, 3):
        compiled = lowered(graph, tp)
        result = verified(compiled, tmp_path / str(tp))
        assert result.ok, [v for v in result.variants if not v.ok]
        worst = max(worst, *(v.max_rel_error for v in result.variants))
        text = text or row(name, model, compiled, worst)
    golden(LINES / f"{name}.txt", text + "\n")


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architecture_says_why(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        capture(ZOO[name]())
    assert "modeling_" in str(caught.value) and ".py:" in str(caught.value)


def test_table_is_in_step(
    golden: Callable[[Path, str], None], request: pytest.FixtureRequest
) -> None:
    head = (
        "| name | class | phases | operators | moves of a forward step (TP 2, 2 layers) | error (float64) |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    rows = "".join((LINES / f"{n}.txt").read_text() for n in sorted(ZOO) if n not in UNSUPPORTED)
    others = "".join(f"\nNot supported: {name}: {why}.\n" for name, why in UNSUPPORTED.items())
    before, _, rest = TABLE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    golden(TABLE, f"{before}{BEGIN}\n\n{head}{rows}{others}\n{END}{after}")
