"""Each floor imports only from the floors before it; `plancc check` never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = ("dsl", "ir", "ops", "passes", "codegen", "runtime", "compiler", "models", "api", "explain")
FLOORS = {
    "dsl": (),
    "plancc/ir": ("dsl", "ir", "ops"),
    "plancc/ops": ("dsl", "ops"),
    "passes": ("dsl", "ir", "ops", "passes", "models"),
    "plancc/codegen": ("dsl", "ir", "codegen"),
    "plancc/balance": ("balance",),
    "runtime": ("dsl", "ir", "ops", "balance", "runtime"),
    "plancc/verification": ("dsl", "ir", "ops", "passes", "codegen", "runtime", "verification",
                            "compiler", "models"),
    "plancc/simulator": (*BELOW, "simulator"),
    "plancc/show": (*BELOW, "simulator", "show"),
    "plancc/tune": (*BELOW, "simulator", "tune"),
    "plancc/calibrate": (*BELOW, "simulator", "show", "calibrate"),
}  # fmt: skip
HEAVY = ("torch", "networkx", "numpy", "transformers", "sympy")


def imports(path: Path) -> set[str]:
    """Every absolute module name that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_imports_only_from_below(floor: str) -> None:
    own = floor.removeprefix("plancc/")
    allowed = {own, *FLOORS[floor]}
    wrong = [
        (path.name, name)
        for path in (ROOT / floor).rglob("*.py")
        for name in imports(path)
        if name.startswith("plancc.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


def test_language_floor_imports_nothing_heavy() -> None:
    wrong = [
        (path.name, name)
        for path in (ROOT / "dsl").rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_check_loads_no_torch() -> None:
    plan = ROOT / "examples" / "tp8_pp2.plan"
    code = (
        "import sys; from plancc.cli.main import main; code = main(['check', sys.argv[1]]);"
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]; assert not bad, bad; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plan)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_old_names_are_refused() -> None:
    for name in ("dsl", "passes", "runtime"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
        )
        assert f"import plancc.{name}" in done.stderr
