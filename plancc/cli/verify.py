"""`plancc verify PLAN|DIR`: all ranks in one process against the one-device model."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from plancc.cli.options import (
    add_json,
    add_plan_options,
    add_purpose,
    complain,
    print_json,
    user_errors,
)
from plancc.cli.shown import add_report, write_verified


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN|DIR")
    add_plan_options(parser, model_required=False)
    add_purpose(parser)
    parser.add_argument("--full-size", action="store_true", help="do not shrink the model's dims")
    parser.add_argument(
        "--dtype", choices=("float64", "float32", "bfloat16"), default="float64",
        help="the dtype that programs and reference compute in",
    )  # fmt: skip
    add_report(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verify; 1 if a variant differs."""
    try:
        result, compiled = verify_target(args)
        if args.report:
            write_verified(args.report, result, compiled)
    except user_errors() as problem:
        return complain(str(problem))
    if args.json:
        print_json(result.json())
    else:
        show(result)
    return 0 if result.ok else 1


def verify_target(args: argparse.Namespace):
    """Compile the plan aside, or take a folder with the model it records: what is found, and on what."""
    import torch

    import plancc.api as api

    dtype = getattr(torch, args.dtype)
    folder = Path(args.plan)
    if (folder / "manifest.json").is_file():
        if args.sets or args.weights:
            raise SystemExit(
                complain("--set and --weights go with a plan: an artifact has its own") and 2
            )
        built = api.reopen(folder, model=args.model, model_args=dict(args.model_args))
        trains = "train" in built.artifact.phases
        if args.purpose is not None and trains is not (args.purpose == "train"):
            raise SystemExit(
                complain(f"{folder} was compiled for {'training' if trains else 'inference'}")
            )
        return api.verify(built, full_size=args.full_size, dtype=dtype), built.compiled
    if folder.is_dir():
        raise SystemExit(complain(f"{folder} is not an artifact: it has no manifest.json"))
    if not folder.exists():
        raise SystemExit(complain(f"{folder} does not exist"))
    if not args.model:
        raise SystemExit(complain("a plan needs --model") and 2)
    with tempfile.TemporaryDirectory() as aside:
        built = api.compile(
            args.plan, args.model, Path(aside) / "artifact", weights=args.weights,
            sets=dict(args.sets), model_args=dict(args.model_args), for_=args.purpose, verify=False,
        )  # fmt: skip
        return api.verify(built, full_size=args.full_size, dtype=dtype), built.compiled


def show(result: object) -> None:
    """One line a phase and variant."""
    for row in result.variants:  # type: ignore[attr-defined]
        moves = (
            ", ".join(f"{n} {kind}" for kind, n in row.collectives.items()) or "no communication"
        )
        verdict = "ok " if row.ok else "BAD"
        off = f"off by {row.max_rel_error:.1e}"
        if row.max_grad_error is not None:
            off += f" (gradients {row.max_grad_error:.1e})"
        print(f"{verdict} {row.phase:<8} {row.guard:<24} {off}  {moves}")
        if row.message:
            print(f"    {row.message}")
    if result.first_divergence is not None:  # type: ignore[attr-defined]
        print(f"    {result.first_divergence}")  # type: ignore[attr-defined]
    if result.shrunk:  # type: ignore[attr-defined]
        dims = ", ".join(f"{k} {v}" for k, v in result.shrunk.items())  # type: ignore[attr-defined]
        print(f"dims shrunk to: {dims}")
