"""Options that several commands share, and the errors that mean exit code 1."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from plancc.cli.check import key_value


def add_plan_options(parser: argparse.ArgumentParser, *, model_required: bool) -> None:
    """PLAN, --model, --model-arg, --weights, --set."""
    parser.add_argument(
        "--model", required=model_required, metavar="MODEL",
        help="package.module:factory, file.py:factory or hf:FOLDER",
    )  # fmt: skip
    parser.add_argument(
        "--model-arg", action="append", default=[], type=key_value, dest="model_args",
        metavar="NAME=VALUE", help="an argument of the model's factory (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", action="append", metavar="FILE",
        help="safetensors file, or a folder of them (repeatable); without it: a fixed seed",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], type=key_value, dest="sets", metavar="NAME=VALUE",
        help="set a parameter of the plan (repeatable)",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def add_hardware_options(parser: argparse.ArgumentParser) -> None:
    """--cluster, --preset, --hardware, and what predictions assume: --lockstep, --dtype, --skew."""
    parser.add_argument(
        "--cluster", metavar="C", help="a cluster file, or the name of one in clusters/ beside the "
        "plan (dgx_a100_16, dgx_h100 ...); `plancc calibrate` writes one of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--preset", default="honest", metavar="NAME",
        help="honest (the file as it is), ideal (all peaks, no latencies), or one of the file",
    )  # fmt: skip
    parser.add_argument(
        "--hardware", action="append", default=[], metavar="PATH=VALUE",
        help="another value of a constant of the cluster: links.network.nics=1 (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--lockstep", action="store_true",
        help="decode steps wait for all micro-batches, as `plancc run` does",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="the model's type (default: its own)"
    )
    parser.add_argument(
        "--skew", type=float, metavar="F",
        help="the busiest rank of experts gets F times the mean (default: balanced routing)",
    )  # fmt: skip


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def complain(message: str) -> int:
    """An error on stderr; exit code 1."""
    sys.stderr.write(f"error: {message}\n")
    return 1


def add_failover(parser: argparse.ArgumentParser) -> None:
    """What happens when a rank dies."""
    parser.add_argument(
        "--failover", nargs="?", const=True, default=False, metavar="AXIS",
        help="go on with the other replicas over AXIS when a rank dies (gloo); default: the axis "
        "over which the plan replicates parameters",
    )  # fmt: skip
    parser.add_argument(
        "--no-rejoin", action="store_false", dest="rejoin",
        help="with --failover: do not start dead ranks again",
    )  # fmt: skip


def print_event(event: Any) -> None:
    """One line for ranks that are lost or come back."""
    if event.what != "done again":
        sys.stderr.write(f"step {event.step}: {event.detail}\n")


def user_errors() -> tuple[type[Exception], ...]:
    """What a user's plan, model, weights, data or artifact can be wrong by, apart from PlanError.

    Among the WeightsErrors are those of checkpoints.
    """
    from plancc.api import VerifyError
    from plancc.models import ModelError
    from plancc.passes.derive_training import NotTrainable
    from plancc.runtime.artifact import ArtifactError
    from plancc.runtime.data import DataError
    from plancc.runtime.optimizer import SpecError
    from plancc.runtime.training.job import TrainError
    from plancc.runtime.weights import WeightsError
    from plancc.show.files import WriteError

    return (
        ModelError, ArtifactError, WeightsError, VerifyError,
        NotTrainable, DataError, SpecError, TrainError, WriteError,
    )  # fmt: skip


def add_purpose(parser: argparse.ArgumentParser) -> None:
    """--for."""
    parser.add_argument(
        "--for", choices=("infer", "train"), dest="purpose",
        help="what the programs are for (default: the plan's `mode`, else infer)",
    )  # fmt: skip


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision."""
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "fp64"),
        help="what to train in (default: the model's own dtype); bf16, fp16 keep float32 masters",
    )  # fmt: skip


def say(text: str) -> None:
    """A line of progress on stderr, where somebody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(text + "\n")


def warn_dropout(artifact: Any) -> None:
    """Tell on stderr of dropout that a model asks for in training and does not get."""
    found = artifact.manifest.get("training", {}).get("dropout", [])
    if found:
        path, p = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        sys.stderr.write(
            f"warning: dropout is not applied: the model has `{path}` (p = {p}){more}\n"
        )
