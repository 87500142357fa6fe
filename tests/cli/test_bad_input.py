"""Wrong plans, models, weights, artifacts and requests: the message, the exit code, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plancc.cli.main import main

ROOT = Path(__file__).parents[2]
PLAN = str(ROOT / "examples" / "tp.plan")
MODEL = str(ROOT / "examples" / "models.py") + ":dense"
SMALL = [
    x for name, value in
    {"layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "vocab": 64, "max_len": 64}.items()
    for x in ("--model-arg", f"{name}={value}")
]  # fmt: skip
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "artifact"
    assert (
        main(["compile", PLAN, "--model", MODEL, *SMALL, "--set", "tp=2", "-o", str(folder)]) == 0
    )
    return folder


def test_missing_plan(say: Say, tmp_path: Path) -> None:
    code, _, err = say("compile", tmp_path / "no.plan", "--model", MODEL, "-o", tmp_path / "out")
    assert code == 1 and "P103" in err and not (tmp_path / "out").exists()


def test_corrupt_plan(say: Say, tmp_path: Path) -> None:
    plan = tmp_path / "bad.plan"
    plan.write_bytes(b"plan x, edition 1\nmesh \xff\xfe\n")
    code, _, err = say("compile", plan, "--model", MODEL, "-o", tmp_path / "out")
    assert code == 1 and "error[P001]" in err and list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize(
    ("spec", "words"),
    [("no_such.py:dense", "no model file"), (MODEL + "x", "no factory"), ("nonsense", "")],
)
def test_model_that_does_not_load(say: Say, tmp_path: Path, spec: str, words: str) -> None:
    code, _, err = say("compile", PLAN, "--model", spec, "-o", tmp_path / "out")
    assert code == 1 and words in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_model_that_does_not_trace(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "import torch\n"
        "class M(torch.nn.Module):\n"
        "    def forward(self, input_ids):\n"
        "        return input_ids.float() if input_ids.sum().item() > 3 else input_ids\n"
        "def make():\n    return M()\n"
    )
    code, _, err = say("compile", PLAN, "--model", f"{file}:make", "-o", tmp_path / "out")
    assert code == 1 and "Traceback" not in err and err.startswith("error")
    assert not (tmp_path / "out").exists()


def test_operator_without_a_row(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "import torch\n"
        "class M(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed = torch.nn.Embedding(8, 4)\n"
        "    def forward(self, input_ids):\n"
        "        return torch.special.i0(self.embed(input_ids))\n"
        "def make():\n    return M()\n"
    )
    plan = tmp_path / "p.plan"
    plan.write_text("plan p, edition 1\nmesh m[tp = 2] on local\nplace ** on m\n")
    code, _, err = say("compile", plan, "--model", f"{file}:make", "-o", tmp_path / "out")
    assert code == 1 and "error[P314]" in err and "special_i0" in err and "m.py:7" in err


def checkpoint(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    import sys

    sys.path.insert(0, str(ROOT / "examples"))
    import models

    sys.path.pop(0)
    state = models.dense(layers=2, hidden=32, heads=4, ffn=48, vocab=64, max_len=64).state_dict()
    change(state)
    save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    return path


def test_weights_that_miss_a_tensor(say: Say, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "w.safetensors", lambda s: s.pop("layers.1.mlp.up_proj.weight"))
    code, _, err = say(
        "compile", PLAN, "--model", MODEL, *SMALL, "--weights", file, "-o", tmp_path / "out"
    )
    assert code == 1 and "layers.1.mlp.up_proj.weight" in err and not (tmp_path / "out").exists()


def test_weights_of_another_shape(say: Say, tmp_path: Path) -> None:
    file = checkpoint(
        tmp_path / "w.safetensors", lambda s: s.update({"norm.weight": torch.ones(31)})
    )
    code, _, err = say(
        "compile", PLAN, "--model", MODEL, *SMALL, "--weights", file, "-o", tmp_path / "out"
    )
    assert code == 1 and "norm.weight" in err and "[31]" in err and "[32]" in err


def test_weights_cut_short(say: Say, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "w.safetensors", lambda s: None)
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = say(
        "compile", PLAN, "--model", MODEL, *SMALL, "--weights", file, "-o", tmp_path / "out"
    )
    assert code == 1 and "w.safetensors" in err and "Traceback" not in err


@pytest.mark.parametrize("victim", ["decode_v0_c0.py", "manifest.json", "resolved-plan.json"])
def test_changed_artifact(say: Say, tmp_path: Path, artifact: Path, victim: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    text = (copy / victim).read_text()
    (copy / victim).write_text(text.replace("2", "3", 1))
    code, _, err = say("run", copy, "--tokens", 3)
    assert code == 1 and "was changed" in err


def test_artifact_with_a_file_missing(say: Say, tmp_path: Path, artifact: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / "prefill_v0_c0.py").unlink()
    code, _, err = say("run", copy, "--tokens", 3)
    assert code == 1 and "prefill_v0_c0.py is missing" in err


def test_not_an_artifact(say: Say, tmp_path: Path) -> None:
    code, _, err = say("run", tmp_path)
    assert code == 1 and "is not an artifact" in err


def test_prompt_beyond_the_declared_range(say: Say, tmp_path: Path) -> None:
    plan = tmp_path / "p.plan"
    plan.write_text(
        "plan p, edition 1\nmodel m { seq_len in 1..16 }\nmesh m[tp = 2] on local\nplace ** on m\n"
    )
    code, _, err = say("run", plan, "--model", MODEL, *SMALL, "--tokens", 12, "--new-tokens", 5)
    assert code == 1 and "outside 1..16" in err


def test_prompt_beyond_the_vocabulary(say: Say, artifact: Path) -> None:
    code, _, err = say("run", artifact, "--prompt", "hello")
    assert code == 1 and "vocabulary" in err


def test_mesh_larger_than_the_cluster(say: Say, tmp_path: Path) -> None:
    plan = tmp_path / "p.plan"
    plan.write_text(
        "plan p, edition 1\ncluster c { devices gpu[4] { per_node = 4; memory = 8GB; link = 1GB/s } }\n"
        "mesh m[tp = 8] on gpu\nplace ** on m\n"
    )
    code, _, err = say("compile", plan, "--model", MODEL, *SMALL, "-o", tmp_path / "out")
    assert code == 1 and "P201" in err


def test_budget_too_small(say: Say, tmp_path: Path) -> None:
    plan = tmp_path / "p.plan"
    plan.write_text(
        "plan p, edition 1\nmodel m { seq_len in 1..16; batch in 1..2 }\n"
        "mesh m[tp = 2] on local { budget = 10KB }\nplace ** on m\n"
    )
    code, _, err = say("compile", plan, "--model", MODEL, *SMALL, "-o", tmp_path / "out")
    assert code == 1 and "P602" in err and "weights" in err and not (tmp_path / "out").exists()


def test_unsupported_features_are_named_at_their_line(say: Say, tmp_path: Path) -> None:
    plan = tmp_path / "p.plan"
    plan.write_text(
        "plan p, edition 1\nmesh m[dp = 2] on local\nplace ** on m { split batch over dp }\n"
        "place layers.* { split seq over dp (layout = zigzag) }\ncomm over m.dp { stream = dedicated }\n"
    )
    code, _, err = say("compile", plan, "--model", MODEL, *SMALL, "-o", tmp_path / "out")
    assert code == 1 and "error[P901]" in err and "p.plan:4" in err and "p.plan:5" in err


def test_usage(say: Say) -> None:
    assert say("compile")[0] == 2
    assert say("nonsense")[0] == 2
    assert say("run", PLAN)[0] == 2


def test_json_is_one_document(say: Say, artifact: Path) -> None:
    code, out, _ = say("run", artifact, "--tokens", 3, "--new-tokens", 2, "--json", "--check")
    facts = json.loads(out)
    assert code == 0 and facts["matches_reference"] is True and facts["ranks"] == 2
    code, out, _ = say("verify", artifact, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["ok"] and [v["phase"] for v in facts["variants"]]
    code, out, _ = say("explain", PLAN, "--model", MODEL, *SMALL, "--json")
    assert code == 0 and json.loads(out)["ranks"] == 4


def test_existing_folder_is_not_overwritten(say: Say, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    code, _, err = say("compile", PLAN, "--model", MODEL, *SMALL, "-o", folder)
    assert code == 1 and "--force" in err and (folder / "thesis.txt").read_text() == "precious"
