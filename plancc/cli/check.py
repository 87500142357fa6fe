"""`plancc check`: all checks of a plan, with a model also those that need one."""

from __future__ import annotations

import argparse
import sys

from plancc.dsl import Report, load_plan, render_github, render_json, render_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plans", nargs="+", metavar="PLAN")
    parser.add_argument(
        "--set", action="append", default=[], type=key_value, dest="sets", metavar="NAME=VALUE",
        help="set a parameter of the plan (repeatable)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("text", "json", "github"), default="text")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    parser.add_argument(
        "--model", metavar="MODEL", help="package.module:factory, file.py:factory or hf:FOLDER"
    )
    parser.add_argument(
        "--model-arg", action="append", default=[], type=key_value, dest="model_args",
        metavar="NAME=VALUE", help="an argument of the model's factory (repeatable)",
    )  # fmt: skip


def key_value(text: str) -> tuple[str, str]:
    """Read `name=value`."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"`{text}` is not NAME=VALUE")
    return name.strip(), value


def run(args: argparse.Namespace) -> int:
    """Check each plan; 1 if one has errors."""
    whole = Report()
    for path in args.plans:
        try:
            report = check_one(path, args)
        except Exception as problem:
            return _complain_of_model(problem)
        if args.format == "text":
            _show(path, report, args.color)
        whole.extend(report)
    if args.format == "json":
        sys.stdout.write(render_json(whole.diagnostics))
    elif args.format == "github":
        sys.stdout.write(render_github(whole.diagnostics))
    return 0 if whole.ok else 1


def check_one(path: str, args: argparse.Namespace) -> Report:
    """All diagnostics of one plan."""
    from plancc.passes.plan_schedule import check_schedules

    plan, report = load_plan(path, dict(args.sets))
    if plan is not None:
        check_schedules(plan, report)
    if plan is not None and args.model:
        from plancc.compiler import check_model

        check_model(plan, report, args.model, dict(args.model_args))
    return report


def _complain_of_model(problem: Exception) -> int:
    """A model that cannot be loaded or captured, in words; any other exception goes on."""
    from plancc.models import ModelError

    if not isinstance(problem, ModelError):
        raise problem
    sys.stderr.write(f"error: {problem}\n")
    return 1


def _show(path: str, report: Report, color: str) -> None:
    """Diagnostics to stderr, the verdict to stdout."""
    found = report.diagnostics
    painted = color == "always" or (color == "auto" and sys.stderr.isatty())
    sys.stderr.write(render_text(found, painted))
    sys.stderr.flush()
    errors, warnings = len(report.errors), len(found) - len(report.errors)
    counts = [
        f"{n} {word}{'s' if n > 1 else ''}"
        for n, word in ((errors, "error"), (warnings, "warning"))
        if n
    ]
    sys.stdout.write(f"{path}: {', '.join(counts) or 'ok'}\n")
