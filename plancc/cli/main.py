"""The front door: which module runs which command, and what the exit codes mean.

0 fine, 1 diagnostics of level error, 2 usage, 3 a run failed, 70 a bug in plancc.
A command is a module with `add_arguments(parser)` and `run(args) -> int`, imported when used.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from plancc.dsl.errors import Bug, PlanError

OK, WRONG, USAGE, FAILED, BUG = 0, 1, 2, 3, 70

# Command -> (module, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("plancc.cli.check", "check plans"),
    "compile": ("plancc.cli.compile", "compile a plan and a model to per-rank programs"),
    "run": ("plancc.cli.run", "run a plan or a compiled artifact"),
    "train": ("plancc.cli.train", "train a plan or a compiled artifact on text"),
    "verify": ("plancc.cli.verify", "compare all ranks with the one-device model"),
    "simulate": ("plancc.cli.simulate", "predict time, memory and traffic on a cluster"),
    "tune": ("plancc.cli.tune", "search the values of a plan's parameters, predicted on a cluster"),
    "calibrate": ("plancc.cli.calibrate", "measure this machine into a cluster file"),
    "explain": ("plancc.cli.explain", "explain a plan, or a diagnostic code"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return _run(words)
    try:
        _front_parser().parse_args(words)
    except SystemExit as stop:
        return _code_of(stop)
    return USAGE


def _front_parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    lines = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="plancc", description="A declarative parallel-plan compiler for PyTorch.",
        epilog=f"commands:\n{lines}\n\nplancc COMMAND --help shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"plancc {version('plancc')}")
    parser.add_argument("command", choices=sorted(COMMANDS), metavar="COMMAND")
    return parser


def _run(words: list[str]) -> int:
    """Run a known command; every exception becomes an exit code here."""
    module_name, text = COMMANDS[words[0]]
    try:
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(prog=f"plancc {words[0]}", description=text)
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(words[1:])))
    except SystemExit as stop:
        return _code_of(stop)
    except PlanError as error:
        from plancc.dsl.render import render_text

        sys.stderr.write(render_text(error.diagnostics, color=sys.stderr.isatty()))
        return WRONG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if _is_failure(error):
            sys.stderr.write(f"error: {error}\n")
            return FAILED
        return _report_bug(error, words)


def _is_failure(error: Exception) -> bool:
    """Whether this is a RankFailure (without importing the runtime to ask)."""
    runtime = sys.modules.get("plancc.runtime.failure")
    failure = getattr(runtime, "RankFailure", None)
    return failure is not None and isinstance(error, failure)


def _report_bug(error: Exception, words: list[str]) -> int:
    import platform
    import traceback
    from importlib.metadata import version

    if not isinstance(error, Bug) or os.environ.get("PLANCC_TRACEBACK"):
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write(
        f"bug in plancc: {error or type(error).__name__}\n"
        f"  reproduce: plancc {shlex.join(words)}\n"
        f"  plancc {version('plancc')}, Python {platform.python_version()}, "
        f"{platform.system()}; PLANCC_TRACEBACK=1 shows the traceback\n"
        "  please report this with the plan and the model\n"
    )
    return BUG


def _code_of(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else USAGE


if __name__ == "__main__":
    sys.exit(main())
