"""Train one small model under many plans from one seed, and draw the losses beside those of one device.

python examples/training/curves.py           run what losses.json lacks (minutes a run); write all files
python examples/training/curves.py --again   run all
python examples/training/curves.py --draw    write losses.svg and the table of README.md only
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import pydoc_data.topics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plancc.show.plot import Axis, Chart, Key, Line, picture

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
STORED, PICTURE, PAGE = HERE / "losses.json", HERE / "losses.svg", HERE / "README.md"
BEGIN, END = "<!-- curves -->", "<!-- end of curves -->"
TEXT = Path(pydoc_data.topics.__file__)
SIZES = {
    "dense": "layers=4 hidden=64 heads=8 ffn=128 vocab=264 max_len=128",
    "moe": "layers=2 hidden=64 heads=8 experts=16 ffn=64 vocab=264 max_len=128",
}
USUAL = ("--batch", "8", "--seq-len", "64", "--lr", "3e-3", "--seed", "0")
LOSSY = ("grad_dtype", "comm grads")
TOLERANCE = {
    "fp32": {"dense": 1e-3, "moe": 5e-2},
    "fp64": {"dense": 1e-9, "moe": 1e-9},
}
"""Largest relative difference of a loss from that of one device."""


@dataclass(frozen=True)
class Run:
    """A plan under examples/ and its parameters, on one of the models of SIZES."""

    name: str
    plan: str
    sets: str
    model: str
    what: str
    colour: str
    exact: bool = False
    """Whether to leave out the lines that round gradients to eight bits."""

    @property
    def base(self) -> str:
        """The run on one device that this one is compared with."""
        return "one" if self.model == "dense" else "one_moe"

    def plan_in(self, folder: Path) -> Path:
        """The plan file, or a copy in `folder` without the lines that round."""
        path = EXAMPLES / self.plan
        if not self.exact:
            return path
        copy = folder / path.name
        kept = [t for t in path.read_text().split("\n") if not t.strip().startswith(LOSSY)]
        copy.write_text("\n".join(kept))
        return copy

    def words(self, plan: str) -> list[str]:
        """The words of a command for the plan file `plan`."""
        found = [plan]
        for text in self.sets.split():
            found += ["--set", text]
        found += ["--model", str(EXAMPLES / "models.py") + f":{self.model}"]
        for text in SIZES[self.model].split():
            found += ["--model-arg", text]
        return found


RUNS = (
    Run("one", "training/one.plan", "", "dense", "one device", "#000000"),
    Run("dp", "dp_tp.plan", "dp=4 tp=1", "dense", "data parallel", "#0072B2"),
    Run("fsdp", "fsdp.plan", "", "dense", "2 replicas x FSDP 2 (ZeRO-3)", "#E69F00"),
    Run("tp8_pp2", "tp8_pp2.plan", "", "dense", "TP 8, 2 stages (GPipe)", "#009E73"),
    Run("1f1b", "megatron_1f1b.plan", "", "dense", "DP 2, TP 2, 2 stages (1F1B), ZeRO-1", "#D55E00"),
    Run("sp", "sequence_parallel.plan", "", "dense", "sequence parallel, TP 4", "#CC79A7"),
    Run("hetero", "hetero_pipeline.plan", "", "dense", "stages of 2 and 3 ranks", "#56B4E9"),
    Run("fa_pool", "fa_pool.plan", "long=8", "dense", "TP 8, attention on a pool of 16", "#7A5195"),
    Run("one_moe", "training/one.plan", "", "moe", "one device", "#777777"),
    Run("ma", "ma_separation.plan", "", "moe", "12 attention, 4 expert ranks", "#B30000", True),
    Run("ep", "expert_parallel.plan", "", "moe", "experts over 4 ranks", "#6B8E00"),
    Run("ep16", "expert_parallel.plan", "ranks=16", "moe", "heads and experts over 16 ranks", "#005F73"),
    Run("edp", "expert_data_parallel.plan", "", "moe", "expert parallel on the same 16 ranks", "#C77700"),
)  # fmt: skip


def losses_of(run: Run, precision: str, steps: int) -> tuple[list[float], int]:
    """Train with the command line; the loss of each step and the number of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        words = [
            sys.executable, "-m", "plancc", "train", *run.words(str(run.plan_in(Path(folder)))),
            "--data", str(TEXT), *USUAL, "--steps", str(steps), "--precision", precision,
            "--log", str(log), "--json",
        ]  # fmt: skip
        done = subprocess.run(
            words, cwd=EXAMPLES.parent, check=True, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        return [row["loss"] for row in rows], json.loads(done.stdout)["ranks"]


def apart(found: list[float], base: list[float]) -> list[float]:
    """The largest relative difference up to each step."""
    worst, out = 0.0, []
    for one, other in zip(found, base, strict=True):
        worst = max(worst, abs(one - other) / abs(other))
        out.append(worst)
    return out


def facts() -> dict[str, Any]:
    """What losses depend on besides the plan."""
    import torch

    return {
        "python": platform.python_version(), "torch": torch.__version__.partition("+")[0],
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "text_bytes": TEXT.stat().st_size, "text_sha256": text_hash(),
    }  # fmt: skip


def stored(again: bool) -> dict[str, Any]:
    """What losses.json has, measured as it would be now; nothing if all is to run `again`."""
    now = facts()
    if again or not STORED.exists():
        return {"facts": {**now, "ranks": {}}, "fp32": {}, "fp64": {}}
    found: dict[str, Any] = json.loads(STORED.read_text())
    differ = [name for name, value in now.items() if found["facts"][name] != value]
    if differ:
        raise SystemExit(
            f"{STORED.name} was measured with another {', '.join(differ)}: use --again"
        )
    return found


def measure(steps: int, again: bool) -> None:
    """Run what is missing; losses.json has each curve once its run has ended."""
    found = stored(again)
    for precision in ("fp32", "fp64"):
        curves = found[precision]
        for run in RUNS:
            if run.name in curves:
                continue
            curves[run.name], found["facts"]["ranks"][run.name] = losses_of(run, precision, steps)
            far = apart(curves[run.name], curves[run.base])[-1]
            aside = STORED.with_suffix(".aside")
            aside.write_text(stored_text(found))
            os.replace(aside, STORED)
            print(
                f"{precision} {run.name}: loss {curves[run.name][-1]:.4f}, {far:.1e} from one device",
                flush=True,
            )


def text_hash() -> str:
    """What the data is: it differs between versions of Python."""
    return hashlib.sha256(TEXT.read_bytes()).hexdigest()


def stored_text(found: dict[str, Any]) -> str:
    """losses.json, one line a curve, in the order of RUNS."""
    lines = ["{", f'"facts": {json.dumps(found["facts"])},']
    for precision in ("fp32", "fp64"):
        names = [run.name for run in RUNS if run.name in found[precision]]
        curves = [f"{json.dumps(k)}: {json.dumps(found[precision][k])}" for k in names]
        lines += [f'"{precision}": {{', ",\n".join(curves), "}" if precision == "fp64" else "},"]
    return "\n".join([*lines, "}"]) + "\n"


def page_text(found: dict[str, Any], page: str) -> str:
    """README.md with its table and facts written from the stored losses."""
    facts, steps = found["facts"], len(found["fp32"]["one"])
    rows = [
        f"| plan | ranks | what | loss of step {steps} (fp32) | fp32 | fp64 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in RUNS:
        sets = "".join(f" --set {text}" for text in run.sets.split())
        far = [f"{apart(found[p][run.name], found[p][run.base])[-1]:.1e}" for p in ("fp32", "fp64")]
        exact = ", no 8-bit lines" if run.exact else ""
        if run.name == run.base:
            far = ["", ""]
        rows.append(
            f"| `{run.plan}{sets}` (`{run.model}`){exact} | {facts['ranks'][run.name]} | {run.what} "
            f"| {found['fp32'][run.name][-1]:.5f} | {far[0]} | {far[1]} |"
        )
    tail = (
        f"Python {facts['python']}, torch {facts['torch']}, {facts['machine']}, `--backend local`, one "
        "thread. The text is "
        f"{facts['text_bytes']:,} bytes long (it differs between versions of Python). Tolerance: "
        f"{TOLERANCE['fp32']['dense']:.0e} in float32 ({TOLERANCE['fp32']['moe']:.0e} for the mixture "
        f"of experts), {TOLERANCE['fp64']['dense']:.0e} in float64."
    )
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    body = "\n".join(rows)
    return f"{before}{BEGIN}\n\n{body}\n\n{tail}\n\n{END}{after}"


def picture_text(found: dict[str, Any]) -> str:
    """losses.svg: the curves, and below them how far each is from one device."""
    compared = [run for run in RUNS if run.name != run.base]
    dashes = f"3 {3 * len(compared) - 3}"
    curves = found["fp32"]
    lines = [
        Line(run.what, list(enumerate(curves[run.name], 1)), run.colour, 5, opacity=0.3)
        for run in RUNS
        if run.name == run.base
    ]
    lines += [
        Line(run.what, list(enumerate(curves[run.name], 1)), run.colour, dash=dashes, shift=3 * at)
        for at, run in enumerate(compared)
    ]
    far = [
        Line(
            run.what,
            [(n, max(v, 1e-16)) for n, v in enumerate(apart(found[p][run.name], found[p][run.base]), 1)],
            run.colour, 1.5, dash,
        )
        for run in compared
        for p, dash in (("fp32", ""), ("fp64", "2 3"))
    ]  # fmt: skip
    steps = Axis("step", ticks=[(n, str(n)) for n in (1, *range(50, len(curves["one"]) + 1, 50))])
    charts = [
        Chart("loss by step, float32", lines, x=steps, y=Axis(low=1, high=6.2)),
        Chart(
            "largest relative difference from one device so far (dotted: float64)", far, x=steps,
            y=Axis(log=True, low=1e-16, high=1), limits=limits(), height=210,
        ),
    ]  # fmt: skip
    return picture(charts, [key_of(run) for run in RUNS])


def limits() -> list[tuple[float, str]]:
    """Every tolerance and what it is for."""
    return [
        (TOLERANCE["fp32"]["moe"], "tolerance of float32, mixture of experts"),
        (TOLERANCE["fp32"]["dense"], "tolerance of float32"),
        (TOLERANCE["fp64"]["dense"], "tolerance of float64"),
    ]


def key_of(run: Run) -> Key:
    """What a colour means; the runs on one device lie as broad lines under the others."""
    if run.name != run.base:
        return Key(run.what, run.colour)
    kind = "dense" if run.model == "dense" else "mixture of experts"
    return Key(f"{run.what}, {kind}", run.colour, 5, 0.3)


def main() -> None:
    """Measure unless told only to draw; write the three files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="draw the stored losses again")
    parser.add_argument("--again", action="store_true", help="run all, whatever is stored")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    args = parser.parse_args()
    if not args.draw:
        measure(args.steps, args.again)
    found = json.loads(STORED.read_text())
    PICTURE.write_text(picture_text(found))
    PAGE.write_text(page_text(found, PAGE.read_text()))


if __name__ == "__main__":
    main()
