"""Golden pairs: NAME.plan begins with `# run: COMMAND`; what that prints is NAME.out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from plancc.cli.main import main

GOLDEN = Path(__file__).parent / "golden"
RUN = "# run: "


def _first_line(path: Path) -> str:
    return path.read_bytes().split(b"\n")[0].decode("utf-8", "replace").strip()


PAIRS = [path for path in sorted(GOLDEN.rglob("*.plan")) if _first_line(path).startswith(RUN)]


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden(
    path: Path, golden: Callable[[Path, str], None], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Run the command on the file, in its folder: diagnostics, output, exit code."""
    words = shlex.split(_first_line(path)[len(RUN) :])
    monkeypatch.chdir(path.parent)
    code = main([words[0], path.name, *words[1:]])
    out, err = capfd.readouterr()
    golden(path.with_suffix(".out"), f"{err}{out}exit {code}\n")
