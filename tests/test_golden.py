"""Golden pairs: NAME.plan begins with `# run: COMMAND`; what that prints is NAME.out.

$TMP in a command is a fresh folder, $ROOT the repository.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from plancc.cli.main import main

GOLDEN = Path(__file__).parent / "golden"
RUN = "# run: "
ROOT = str(Path(__file__).parents[1])


def _first_line(path: Path) -> str:
    return path.read_bytes().split(b"\n")[0].decode("utf-8", "replace").strip()


PAIRS = [path for path in sorted(GOLDEN.rglob("*.plan")) if _first_line(path).startswith(RUN)]


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden(
    path: Path, golden: Callable[[Path, str], None], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Run the command on the file, in its folder: diagnostics, output, exit code."""
    line = _first_line(path)[len(RUN) :].replace("$TMP", str(tmp_path)).replace("$ROOT", ROOT)
    words = shlex.split(line)
    monkeypatch.chdir(path.parent)
    code = main([words[0], path.name, *words[1:]])
    out, err = capfd.readouterr()
    text = f"{err}{out}exit {code}\n".replace(str(tmp_path), "$TMP").replace(ROOT, "$ROOT")
    golden(path.with_suffix(".out"), text)
