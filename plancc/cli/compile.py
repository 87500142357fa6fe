"""`plancc compile PLAN --model M -o DIR`: verified per-rank programs in a folder."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from plancc.cli.options import (
    add_json,
    add_plan_options,
    add_precision,
    add_purpose,
    complain,
    print_json,
    say,
    user_errors,
    warn_dropout,
)
from plancc.dsl import render_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN")
    add_plan_options(parser, model_required=True)
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the artifact folder")
    add_purpose(parser)
    add_precision(parser)
    parser.add_argument(
        "--no-verify", action="store_true", help="skip the check against one device"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    parser.add_argument("--print-after", metavar="PASS", help="print the unit after a pass")
    parser.add_argument("--time", action="store_true", help="print the seconds of each pass")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compile; 1 if plan, model, weights or verification are wrong."""
    if args.precision == "fp64":
        return complain("float64 needs no programs of its own: train --precision fp64") and 2
    folder = Path(args.out)
    if folder.exists() and not args.force and not (folder / "manifest.json").is_file():
        return complain(f"{folder} exists and is not an artifact; --force replaces it")
    say(f"compiling {args.plan} ...")
    import plancc.api as api

    begin = time.perf_counter()
    try:
        built = api.compile(
            args.plan, args.model, folder, weights=args.weights, sets=dict(args.sets),
            model_args=dict(args.model_args), verify=not args.no_verify, for_=args.purpose,
            dtype=api.DTYPES[args.precision] if args.precision else None,
            watch=printer(args.print_after, args.json) if args.print_after else None,
        )  # fmt: skip
    except user_errors() as problem:
        return complain(str(problem))
    sys.stderr.write(render_text(built.warnings, sys.stderr.isatty()))
    warn_dropout(built.artifact)
    show(args, built, time.perf_counter() - begin)
    return 0


def printer(name: str, as_json: bool):
    """A watch that prints the unit once the pass called `name` has run (on stderr beside JSON)."""
    from plancc.compiler import PIPELINE
    from plancc.ir.printer import unit_text

    known = [step.name for step in PIPELINE]
    if name not in known:
        raise SystemExit(complain(f"no pass `{name}`: {', '.join(known)}") and 2)

    def watch(step: str, unit: object, took: float) -> None:
        if step == name:
            (sys.stderr if as_json else sys.stdout).write(unit_text(unit) + "\n")

    return watch


def show(args: argparse.Namespace, built: object, seconds: float) -> None:
    """What was made, in words or as JSON."""
    compiled, verified = built.compiled, built.verified  # type: ignore[attr-defined]
    classes = {p.name for _, s in compiled.sets for p in s.programs}
    facts = {
        "folder": str(args.out), "ranks": compiled.world.size, "classes": len(classes),
        "phases": list(dict.fromkeys(s.phase for _, s in compiled.sets)),
        "variants": len(compiled.plan.variants), "seconds": round(seconds, 3),
        "weights": built.artifact.manifest["weights"]["kind"],  # type: ignore[attr-defined]
        "verified": verified.json() if verified else None,
        "notes": list(compiled.notes),
    }  # fmt: skip
    if args.time:
        facts["passes"] = {k: round(v, 4) for k, v in compiled.seconds.items()}
    if args.json:
        print_json(facts)
        return
    word = "not verified"
    if verified is not None:
        worst = max(v.max_rel_error for v in verified.variants)
        dims = "on shrunk dims" if verified.shrunk else "at full size"
        word = (
            f"verified {dims} against one device in {verified.reference_dtype}: off by {worst:.1e}"
        )
    print(f"{args.out}: {facts['ranks']} ranks in {facts['classes']} classes, "
          f"phases {', '.join(facts['phases'])}; {word}")  # fmt: skip
    if facts["weights"] == "seed":
        print("weights come from seed 0 (no --weights given)")
    for note in compiled.notes:
        print(f"note: {note}")
    for name, took in facts.get("passes", {}).items():
        print(f"  {name:<18} {took * 1000:8.1f} ms")
