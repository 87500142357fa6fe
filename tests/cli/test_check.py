"""`plancc check` and the front door: exit codes, formats, speed, what gets imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plancc.cli import main as front
from plancc.dsl import Bug

GOLDEN = Path(__file__).parents[1] / "golden" / "check"
SAMPLE = str(GOLDEN / "sample_fa_pool.plan")
WRONG = str(GOLDEN / "P101_mesh.plan")


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """0 fine, 1 errors, 2 usage."""
    assert front.main(["check", SAMPLE]) == 0
    assert front.main(["check", SAMPLE, WRONG]) == 1
    assert front.main(["check", "nowhere.plan"]) == 1
    assert front.main([]) == front.main(["bogus"]) == front.main(["check"]) == 2
    assert front.main(["check", SAMPLE, "--set", "long"]) == 2
    assert front.main(["--help"]) == front.main(["check", "--help"]) == 0
    capsys.readouterr()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is one document on stdout, with nothing on stderr."""
    assert front.main(["check", "--format", "json", WRONG, SAMPLE]) == 1
    out, err = capsys.readouterr()
    assert [found["code"] for found in json.loads(out)] == ["P101"] and not err


def test_github(capsys: pytest.CaptureFixture[str]) -> None:
    """Annotations go to stdout."""
    assert front.main(["check", "--format", "github", WRONG]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("::error file=") and not err


def test_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug of plancc exits with 70 and says how to reproduce it."""

    def broken(*_: object) -> None:
        raise Bug("no axis left")

    monkeypatch.setattr("plancc.cli.check.load_plan", broken)
    assert front.main(["check", "my plan"]) == 70
    err = capsys.readouterr().err
    assert "bug in plancc: no axis left" in err and "plancc check 'my plan'" in err


def test_imports() -> None:
    """Checking a plan loads neither torch nor anything else that is slow."""
    script = (
        "import sys; from plancc.cli.main import main; code = main(sys.argv[1:]);"
        "slow = {'torch', 'networkx', 'numpy', 'transformers', 'sympy'} & set(sys.modules);"
        "sys.exit(repr(slow) if slow else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "check", SAMPLE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_speed() -> None:
    """A whole `plancc check` takes less than 0.2 s of processor time."""
    if not hasattr(os, "wait4"):
        pytest.skip("needs wait4")
    assert min(_seconds() for _ in range(5)) < 0.2


def _seconds() -> float:
    command = [sys.executable, "-m", "plancc.cli.main", "check", SAMPLE]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime
