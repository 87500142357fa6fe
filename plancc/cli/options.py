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


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def complain(message: str) -> int:
    """An error on stderr; exit code 1."""
    sys.stderr.write(f"error: {message}\n")
    return 1


def user_errors() -> tuple[type[Exception], ...]:
    """What a user's plan, model, weights or artifact can be wrong by, apart from PlanError."""
    from plancc.api import VerifyError
    from plancc.models import ModelError
    from plancc.runtime.artifact import ArtifactError
    from plancc.runtime.weights import WeightsError

    return (ModelError, ArtifactError, WeightsError, VerifyError)


def say(text: str) -> None:
    """A line of progress on stderr, where somebody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(text + "\n")
