"""A tiny byte-level model, its plans and its data, for tests that train."""

from __future__ import annotations

import functools
import pydoc_data.topics
import tempfile
from pathlib import Path
from typing import Any

import plancc

ROOT = Path(__file__).parents[2]
TEXT = pydoc_data.topics.__file__
MODEL = str(ROOT / "examples" / "models.py") + ":dense"
ARGS = {"layers": "3", "hidden": "24", "heads": "6", "ffn": "30", "vocab": "260", "max_len": "64"}
WORDS = ["--model", MODEL, *(w for k, v in ARGS.items() for w in ("--model-arg", f"{k}={v}"))]
_ASIDE = tempfile.TemporaryDirectory()

PIPELINE = """plan pipe, edition 1
param pp = 3 in 1..8
mesh base[pp = pp] on local
place ** on base
place layers.*     { split layers over pp }
place embed_tokens on base[pp = 0]
place norm         on base[pp = -1]
place lm_head      on base[pp = -1]
pipeline over base.pp { schedule = "1F1B"; microbatches = 4 }
"""
ALONE = "plan alone, edition 1\nmesh base[x = 1] on local\nplace ** on base\n"
DATA_ONLY = (
    "plan data, edition 1\nparam dp = 3 in 1..8\nmesh base[dp = dp] on local\n"
    "place ** on base { split batch over dp }\n"
)
BOTH = """plan both, edition 1
mesh base[dp = 2, pp = 2] on local
place ** on base   { split batch over dp }
place layers.*     { split layers over pp }
place embed_tokens on base[pp = 0]
place norm         on base[pp = -1]
place lm_head      on base[pp = -1]
pipeline over base.pp { schedule = "GPipe"; microbatches = 2 }
"""
ZERO = (
    "plan zero, edition 1\nmodel m {{ mode = train }}\nmesh base[dp = 3] on local\n"
    "place ** on base {{ split batch over dp }}\nplace ** {{ split {0} over dp }}\n"
)
FSDP = (ROOT / "examples" / "fsdp.plan").read_text()
PLANS = {
    "alone": (ALONE, {}),
    "tp2": ((ROOT / "examples" / "tp.plan").read_text(), {"tp": "2"}),
    "tp3": ((ROOT / "examples" / "tp.plan").read_text(), {"tp": "3"}),
    "dp2": (DATA_ONLY, {"dp": "2"}),
    "dp3": (DATA_ONLY, {"dp": "3"}),
    "dp2_tp2": ((ROOT / "examples" / "dp_tp.plan").read_text(), {}),
    "pp3": (PIPELINE, {}),
    "dp2_pp2": (BOTH, {}),
    "zero1": (ZERO.format("optim"), {}),
    "zero2": (ZERO.format("grads, optim"), {}),
    "zero3": (ZERO.format("params, grads, optim"), {}),
    "fsdp": (FSDP, {}),
}


def plan_file(name: str) -> Path:
    """The file of a plan of PLANS."""
    path = Path(_ASIDE.name) / f"{name}.plan"
    path.write_text(PLANS[name][0])
    return path


@functools.cache
def artifact(name: str, precision: str | None = None) -> Path:
    """The tiny model compiled for training under one of PLANS."""
    from plancc.api import DTYPES

    folder = Path(_ASIDE.name) / f"{name}-{precision}"
    plancc.compile(
        plan_file(name), MODEL, folder, sets=PLANS[name][1], model_args=ARGS, for_="train",
        dtype=DTYPES[precision] if precision else None, verify=False,
    )  # fmt: skip
    return folder


def train(name: str, **wanted: Any) -> Any:
    """Train it: 8 x 32 tokens a step unless told otherwise; fp64 unless a precision is given."""
    usual = {"data": TEXT, "batch": 8, "seq_len": 32, "lr": 3e-3, "precision": "fp64"}
    compiled = wanted.get("precision", "fp64")
    folder = artifact(name, compiled if compiled in ("bf16", "fp16") else None)
    if wanted.get("resume"):
        usual = {}
    return plancc.train(folder, **{**usual, **wanted})


def tensors(folder: str | Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, whole."""
    from plancc.runtime.checkpoint import Checkpoint
    from plancc.runtime.weights import whole

    found = Checkpoint.open(folder)
    return {name: found.read(name, whole(found.shape(name))) for name in found.names()}
