"""Wheel and sdist hold one package, plancc: never a top-level dsl, passes or runtime."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        path, target = ROOT / name, source / name
        if not path.exists() and not path.is_symlink():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        else:
            target.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)],
        check=True,
    )
    return next(folder.glob("*.whl"))


def test_wheel_has_one_top_level_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"plancc"}


def test_wheel_has_the_language_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"plancc/dsl/plan.lark", "plancc/dsl/codes/P303.md", "plancc/runtime/comm.py",
            "plancc/show/page/page.html", "plancc/show/page/main.js", "plancc/verification/check.py",
            "plancc/passes/rows/table.py", "plancc/passes/capture/capture.py"} <= names  # fmt: skip


def test_wheel_checks_a_plan_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    plan = tmp_path / "tp.plan"
    plan.write_bytes((ROOT / "examples" / "tp.plan").read_bytes())
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import plancc.dsl;"
        f"assert plancc.dsl.__file__.startswith({str(tmp_path)!r}), plancc.dsl.__file__;"
        f"from plancc.cli.main import main; sys.exit(main(['check', {str(plan)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
