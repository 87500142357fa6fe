"""What a plan states and the model does not bear out is told; what a command cannot use is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from plancc.cli.main import main

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT / 'examples' / 'models.py'}:dense"
SMALL = [
    x for name, value in
    {"layers": 3, "hidden": 32, "heads": 4, "ffn": 48, "vocab": 64, "max_len": 64}.items()
    for x in ("--model-arg", f"{name}={value}")
]  # fmt: skip
HEAD = "plan p, edition 1\n"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("model m { experts = 4 }\nmesh a[tp = 2] on local\nplace ** on a\n", 1, "has no experts"),
        ("model m { dtype = bf16 }\nmesh a[tp = 2] on local\nplace ** on a\n", 1, "is in fp32"),
        ("model m { seq_len in 1..500 }\nmesh a[tp = 2] on local\nplace ** on a\n", 0, "64 positions"),
        ("mesh a[pp = 2] on local\nplace ** on a\nplace layers.* { split layers over pp }\n"
         "place embed_tokens on a[pp = 0]\nplace norm, lm_head on a[pp = -1]\n", 0, "are uneven"),
        ("mesh a[tp = 1] on local[0:1]\nmesh b[tp = 1] on local[1:2]\nplace ** on a\n"
         "place layers[1:3], norm, lm_head on b\n"
         'pipeline b -> a { schedule = "GPipe"; microbatches = 2 }\n', 1, "P501"),
    ],
)  # fmt: skip
def test_told(text: str, code: int, words: str, tmp_path: Path, capsys) -> None:
    plan = tmp_path / "p.plan"
    plan.write_text(HEAD + text)
    assert (
        main(["compile", str(plan), "--model", MODEL, *SMALL, "-o", str(tmp_path / "out")]) == code
    )
    assert words in capsys.readouterr().err


def test_options_that_an_artifact_cannot_use(tmp_path: Path, capsys) -> None:
    plan = str(ROOT / "examples" / "tp.plan")
    out = str(tmp_path / "out")
    assert main(["compile", plan, "--model", MODEL, *SMALL, "--set", "tp=2", "-o", out]) == 0
    assert main(["run", out, "--tokens", "2", "--set", "tp=3"]) == 2
    assert "compiled in" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "nothere")]) == 1
    assert "does not exist" in capsys.readouterr().err
