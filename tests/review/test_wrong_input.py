"""Wrong input at the command line and in folders: an error in words, exit code 1 or 2."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from small_artifacts import HEAD, compiled
from torch import Tensor, nn

import plancc
from plancc.cli.main import main

ROOT = Path(__file__).parents[2]
TP = str(ROOT / "examples" / "tp.plan")
MODELS = str(ROOT / "examples" / "models.py")
SMALL = ["layers=1", "hidden=16", "heads=4", "ffn=8", "vocab=256", "max_len=32"]
MODEL = ["--model", f"{MODELS}:dense", *(w for a in SMALL for w in ("--model-arg", a))]


def test_check_of_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """`check --model` says what is wrong with the model."""
    assert main(["check", TP, "--model", "nowhere.py:dense"]) == 1
    assert "no model file `nowhere.py`" in capsys.readouterr().err
    assert main(["check", TP, "--model", f"{MODELS}:dense", "--model-arg", "foo=3"]) == 1
    assert "no argument `foo`" in capsys.readouterr().err


def test_model_file_that_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model file that calls sys.exit does not end plancc without a word."""
    file = tmp_path / "leaving.py"
    file.write_text("import sys\nsys.exit(0)\n")
    assert main(["compile", TP, "--model", f"{file}:model", "-o", str(tmp_path / "out")]) == 1
    assert "does not import" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/proc/none/out", "{file}/out"])
def test_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    """An error in words, exit code 1."""
    file = tmp_path / "file"
    file.write_text("")
    assert main(["compile", TP, *MODEL, "--no-verify", "-o", out.format(file=file)]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before the model is captured."""
    tmp_path.chmod(0o500)
    assert main(["compile", TP, *MODEL, "-o", str(tmp_path / "out")]) == 1
    assert "no permission" in capsys.readouterr().err


def test_verify_folder_takes_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--set` beside an artifact is a usage error, not something to pass over."""
    folder = str(tmp_path / "out")
    assert main(["compile", TP, *MODEL, "--no-verify", "-o", folder]) == 0
    assert main(["verify", folder, "--set", "tp=2"]) == 2
    assert "--set" in capsys.readouterr().err


def test_plan_with_more_variants_than_its_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan that was edited since does not verify an older artifact."""
    plan, folder = tmp_path / "a.plan", tmp_path / "out"
    text = f"plan a, edition 1\nmodel m {{ seq_len in 1..32 }}\n{HEAD}"
    plan.write_text(text)
    assert main(["compile", str(plan), *MODEL, "--no-verify", "-o", str(folder)]) == 0
    plan.write_text(f"{text}when seq_len > 8 {{ place layers.*.mlp {{ split ffn over tp }} }}\n")
    assert main(["verify", str(folder)]) == 1
    assert "does not hold the programs" in capsys.readouterr().err


def test_buffers_and_weights_that_share_memory(tmp_path: Path) -> None:
    """Tensors that are views of one storage are written apart and come back."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 16)
            whole = torch.randn(2, 16, 8)
            self.first, self.second = nn.Parameter(whole[0]), nn.Parameter(whole[1])
            row = torch.arange(8.0)
            self.register_buffer("row", row)
            self.register_buffer("grid", row.view(2, 4))

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.table(input_ids)
            return (x @ self.first + self.row) @ self.second.T + self.grid.reshape(8).sum()

    model = Shared()
    built = compiled(tmp_path, HEAD, model, verify=True)
    ids = torch.randint(16, (3, 5))
    found = next(iter(plancc.load(built.folder).forward(input_ids=ids).values()))
    assert torch.allclose(found, model(ids), rtol=1e-4, atol=1e-4)


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    """Whichever is last, a whole artifact remains, and nothing beside it."""
    plan = tmp_path / "t.plan"
    plan.write_text(f"plan t, edition 1\n{HEAD}")
    built = compiled(tmp_path, HEAD)
    from plancc.codegen.manifest import write_artifact

    parts = (built.compiled.plan, built.compiled.world, built.compiled.sets, built.compiled.graph)
    problems: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(10):
                write_artifact(built.folder, *parts, {})
        except Exception as problem:
            problems.append(problem)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert problems == []
    assert built.artifact.world == 3
    assert {p.name for p in tmp_path.iterdir()} == {"t.plan", "out"}


def test_weights_by_their_index(tmp_path: Path) -> None:
    """An index file is as good as the folder that it lies in."""
    import json

    from safetensors.torch import save_file

    from plancc.runtime.weights import SafetensorsWeights

    save_file({"a": torch.ones(2)}, str(tmp_path / "one.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert SafetensorsWeights(index).names() == ["a"]


def test_artifact_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An artifact of a model named by a relative path is verified from anywhere."""
    (tmp_path / "mine.py").write_text((ROOT / "examples" / "models.py").read_text())
    monkeypatch.chdir(tmp_path)
    words = ["--model", "mine.py:dense", *MODEL[2:], "--no-verify", "-o", "out"]
    assert main(["compile", TP, *words]) == 0
    monkeypatch.chdir("/")
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_tokenizer_that_is_gone(tmp_path: Path) -> None:
    """A prompt is refused then, and not read as bytes."""
    from plancc.runtime.artifact import ArtifactError
    from plancc.runtime.prompts import Codec

    artifact = compiled(tmp_path, HEAD).artifact
    assert Codec(artifact).encode("ab") == [97, 98]
    artifact.manifest["model"]["tokenizer"] = str(tmp_path)
    codec = Codec(artifact)
    with pytest.raises(ArtifactError, match="tokenizer is not there"):
        codec.prompt("ab", None, None)
    assert codec.prompt(None, None, 3).shape == (1, 3)
    assert codec.text([5, 7]) == "5 7"
