"""`--trace` and `--report` of the commands: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_show_report import Page

from plancc.cli.main import main

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT / 'examples' / 'models.py'}:dense"
SMALL = [
    x for name, value in
    {"layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "vocab": 64, "max_len": 64}.items()
    for x in ("--model-arg", f"{name}={value}")
]  # fmt: skip
PLAN = [str(ROOT / "examples" / "tp.plan"), "--model", MODEL, *SMALL, "--set", "tp=2"]
SHORT = ["--tokens", "6", "--new-tokens", "2"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tensor parallelism on two ranks."""
    folder = tmp_path_factory.mktemp("shown") / "artifact"
    assert main(["compile", *PLAN, "-o", str(folder), "--no-verify"]) == 0
    return str(folder)


def section(path: Path, name: str) -> str:
    """The HTML of one section of a page."""
    return path.read_text().partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_a_run_writes_a_trace_and_a_page(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trace has both steps, the page prefill and decode apart; what is printed stays as it is."""
    trace, page = tmp_path / "t.json", tmp_path / "r.html"
    assert (
        main(["run", artifact, *SHORT, "--trace", str(trace), "--report", str(page), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found["tokens"][0]) == 2 and found["ttft_s"] > 0
    kernels = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "kernel"]
    sums = [e for e in kernels if e["name"] == "ncclDevKernel_AllReduce_Sum"]
    assert {event["pid"] for event in sums} == {0, 1}
    assert {event["args"]["module"] for event in sums} >= {"layers.1.mlp.down_proj"}
    data = json.loads(Page(page.read_text()).scripts[0])
    assert [group["title"] for group in data["groups"]] == [
        "tp, prefill, batch 1 x 6",
        "tp, decode, batch 1 x 7",
    ]
    assert not any(t["predicted"] for group in data["groups"] for t in group["timelines"])
    assert "take turns on one core" in section(page, "assumptions")
    assert "tp 0" in section(page, "layout")


def test_a_folder_gets_a_file_for_each_rank(artifact: str, tmp_path: Path) -> None:
    assert main(["run", artifact, *SHORT, "--trace", f"{tmp_path}/ranks/"]) == 0
    names = sorted(path.name for path in (tmp_path / "ranks").iterdir())
    assert names == ["rank-0.json", "rank-1.json"]


def test_a_plan_tells_its_layout_too(tmp_path: Path) -> None:
    """Compiled just now, so it is known where modules live."""
    page = tmp_path / "r.html"
    assert main(["run", *PLAN, *SHORT, "--no-verify", "--report", str(page)]) == 0
    assert "layers.*.mlp.up_proj" in section(page, "layout") and not section(page, "verification")


def test_verify_writes_a_page(artifact: str, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "v.html"
    assert main(["verify", artifact, "--report", str(page)]) == 0
    assert "those of one device." in section(page, "verification")
    assert "heads over tp" in section(page, "layout") and not section(page, "timeline")


def test_what_cannot_be_written(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is told first; then exit code 1."""
    (tmp_path / "file").write_text("")
    assert main(["run", artifact, *SHORT, "--report", str(tmp_path / "file" / "r.html")]) == 1
    out, err = capsys.readouterr()
    assert "2 ranks (local)" in out and err.startswith("error: cannot write ")
    assert main(["verify", artifact, "--report", str(tmp_path / "file" / "r.html")]) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--backend", "gloo", "--failover", "dp"], "do not go with --failover"),
        (["--backend", "nccl"], "use PyTorch's profiler"),
    ],
)
def test_runs_that_are_not_recorded(
    artifact: str, words: list[str], reason: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("plancc.cli.run.too_few_devices", lambda backend, world: None)
    assert main(["run", artifact, *SHORT, *words, "--trace", str(tmp_path / "t.json")]) == 1
    assert reason in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_torchrun_and_growing_pools_are_not_recorded(artifact: str) -> None:
    import argparse

    from plancc.cli.shown import refusal
    from plancc.runtime.artifact import load_artifact

    found = load_artifact(artifact)
    args = argparse.Namespace(trace="t.json", report=None, backend="gloo", failover=False)
    assert refusal(args, found, False) is None
    assert "torchrun" in (refusal(args, found, True) or "")
    found.manifest = {**found.manifest, "pools": {"fa": {}}}
    assert "a pool that grows" in (refusal(args, found, False) or "")
    args.trace = None
    assert refusal(args, found, True) is None


@pytest.mark.parametrize("command", ["run", "verify"])
def test_help_names_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--report FILE" in text and ("--trace FILE" in text) is (command == "run")
