"""`plancc calibrate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plancc.cli.main import main
from plancc.cli.progress import Stages
from plancc.simulator.cluster import read_cluster


def test_a_quick_calibration_gives_a_file_that_simulate_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "here.json"
    assert main(["calibrate", "--quick", "--ranks", "2", "-o", str(out), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["file"] == str(out) and found["cluster"] == json.loads(out.read_text())
    assert "1/" in told.err and "decoder" in told.err
    assert all(f"WARNING: {text}" in told.err for text in found["warnings"])
    cluster = read_cluster(out)
    (kind,) = cluster.kinds.values()
    assert {"matmul", "attention", "memory", "rms_norm", "adam"} <= {name for name, _ in kind.calls}
    assert set(kind.host) == {
        "instruction",
        "recorded",
        "backward",
        "step",
        "parameter",
        "train_step",
    }
    assert kind.power is None and cluster.cores == 1
    assert {row["kind"] for row in found["cluster"]["collectives"]} == {
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all",
    }  # fmt: skip
    example = Path(__file__).parents[2] / "examples"
    sizes = ("layers=1", "hidden=64", "heads=4", "ffn=64", "vocab=260")
    words = [word for size in sizes for word in ("--model-arg", size)]
    code = main(
        ["simulate", str(example / "tp.plan"), "--model", f"{example / 'models.py'}:dense", *words,
         "--set", "tp=2", "--cluster", str(out), "--phase", "prefill", "--batch", "2",
         "--seq-len", "16", "--json"]
    )  # fmt: skip
    assert code == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["ttft_s"] > 0 and row["energy_j_per_token"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_nccl_without_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--backend", "nccl", "-o", str(tmp_path / "here.json")]) == 1
    assert "nccl needs GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "-o", str(tmp_path / "none" / "here.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--ranks", "1"], ["--ranks", "two"], ["--dtype", "int8"], ["--backend", "mpi"]],
)
def test_wrong_options(wrong: list[str], tmp_path: Path) -> None:
    assert main(["calibrate", *wrong, "-o", str(tmp_path / "here.json")]) == 2


class Terminal:
    """Keeps what is written."""

    def __init__(self, watched: bool) -> None:
        self.text, self.watched = "", watched

    def isatty(self) -> bool:
        return self.watched

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_stages_are_lines_or_a_bar() -> None:
    lines, bar = Terminal(False), Terminal(True)
    for out in (lines, bar):
        stages = Stages(out)  # type: ignore[arg-type]
        stages.show(0, 2, "one")
        stages.show(1, 2, "two")
        stages.show(2, 2, "")
        stages.close()
    assert lines.text == "1/2 one\n2/2 two\n"
    assert "\r1/2 [##########..........] two" in bar.text and bar.text.endswith("\n")
