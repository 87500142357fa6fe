"""`--trace` and `--report`: what commands write for people to look at."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from plancc.cli.options import say


def add_report(parser: argparse.ArgumentParser) -> None:
    """--report."""
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write an HTML page of all that was found (one file, no network)",
    )


def add_trace(parser: argparse.ArgumentParser) -> None:
    """--trace and --report of a run."""
    parser.add_argument(
        "--trace", metavar="FILE",
        help="write when each rank computed, communicated and waited, for Perfetto or chrome://tracing; "
        "a folder (FILE ends with /) gets a file for each rank, for Holistic Trace Analysis",
    )  # fmt: skip
    add_report(parser)


def wanted(args: argparse.Namespace) -> bool:
    """Whether the run is to be recorded."""
    return bool(args.trace or args.report)


def refusal(args: argparse.Namespace, artifact: Any, torchrun: bool) -> str | None:
    """Why a run cannot be recorded; None if it can."""
    if not wanted(args):
        return None
    if args.backend == "nccl":
        return "--trace and --report record local and gloo runs: on GPUs use PyTorch's profiler"
    if args.failover:
        return "--trace and --report do not go with --failover"
    if args.backend == "gloo" and torchrun:
        return "--trace and --report do not go with torchrun: run gloo on this host, or --backend local"
    if args.backend == "gloo" and len(artifact.manifest.get("pools", {})) == 1:
        return "--trace and --report do not go with a pool that grows on gloo: use --backend local"
    return None


def record(args: argparse.Namespace, artifact: Any, ids: Any) -> tuple[dict[str, Any], Any]:
    """Generate and record: what came out, and the records of all ranks."""
    from plancc.runtime.record import record_local, record_processes

    if args.backend == "local":
        found, records = record_local(artifact, ids, args.new_tokens)
        return found.json(), records
    return record_processes(artifact, ids, args.new_tokens, args.time_limit)


def write_run(
    args: argparse.Namespace, artifact: Any, records: Sequence[Mapping[str, Any]], built: Any = None
) -> None:
    """Write the files that are asked for. WriteError if they cannot be written."""
    from plancc.show.measured import measured, measured_timelines

    if args.trace:
        whole = measured(artifact, records, f"{artifact.manifest['plan']}, whole run")
        write_timelines(args.trace, [whole])
    if args.report:
        from plancc.show.report import Report, write_report

        verified = built.verified if built is not None else None
        report = Report(
            f"{artifact.manifest['plan']}, run on {artifact.world} ranks ({args.backend})",
            measured_timelines(artifact, records), layout=layout_facts(artifact, built),
            assumptions=run_notes(args), verification=verified.json() if verified else None,
        )  # fmt: skip
        write_report(args.report, report)
        say(f"wrote {args.report}")


def write_timelines(path: str, timelines: Sequence[Any]) -> None:
    """One trace of all, or in a folder (`path` ends with /) one a rank of the first. WriteError if not."""
    from plancc.show.trace import write_rank_traces, write_trace

    if path.endswith("/"):
        write_rank_traces(timelines[0], path)
    else:
        write_trace(timelines, path)
    say(f"wrote {path}")


def write_verified(path: str, result: Any, compiled: Any) -> None:
    """Write the page of a verification. WriteError if it cannot be written."""
    from plancc.explain import explain
    from plancc.show.report import Report, write_report

    title = f"{compiled.plan.name}, verified on {result.ranks} ranks"
    write_report(path, Report(title, layout=explain(compiled), verification=result.json()))
    say(f"wrote {path}")


def layout_facts(artifact: Any, built: Any) -> dict[str, Any]:
    """All facts where the plan was just compiled; else those that the artifact holds."""
    from plancc.explain import explain

    if built is not None:
        return explain(built.compiled)
    manifest = artifact.manifest
    rows = {(row["phase"], row["variant"]): row for row in manifest["programs"]}
    return {
        "plan": manifest["plan"], "ranks": artifact.world, "schedule": None, "phases": [], "notes": [],
        "meshes": [
            {"name": grid.name, "axes": dict(grid.axes), "ranks": list(grid.ranks)}
            for grid in artifact.grids.values()
        ],
        "variants": [
            {"index": variant, "guard": row["guard"], "phase": phase}
            for (phase, variant), row in rows.items()
        ],
    }  # fmt: skip


def run_notes(args: argparse.Namespace) -> list[str]:
    """What the measured times mean."""
    notes = [
        "Times are measured on this host's clock, which all ranks share. Weights were read before the "
        "first step.",
        "A rank's time in a verb is divided where the last of those that it meets arrives: waiting, then "
        "the move itself.",
        "Between two verbs a rank computes; its modules and plan lines are those of the program text there.",
    ]
    if args.backend == "local":
        notes.append(
            "Local ranks take turns on one core: the time until a rank gets its turn counts as waiting "
            "or as part of the move."
        )
    return notes
