"""`plancc simulate PLAN...`: predict time, memory and traffic on hardware that need not be there."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plancc.cli.options import (
    add_hardware_options,
    add_json,
    add_plan_options,
    complain,
    print_json,
    say,
    user_errors,
)
from plancc.cli.shown import add_trace, wanted, write_timelines

LENGTH = 1024


def numbers(text: str) -> list[int]:
    """`1,16,64` as numbers from 1."""
    found = [int(word) for word in text.split(",")]
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError("numbers from 1, separated by commas")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plans", metavar="PLAN", nargs="+")
    add_plan_options(parser, model_required=True)
    add_hardware_options(parser)
    parser.add_argument("--batch", type=numbers, default=[1], metavar="B[,B...]")
    parser.add_argument(
        "--seq-len", type=numbers, metavar="N[,N...]",
        help="lengths (default: 1024, or the longest that plan and model admit)",
    )  # fmt: skip
    parser.add_argument(
        "--phase", metavar="P[,P...]",
        help="prefill, decode, train or forward (default: train where the plan says so, else the "
        "first two)",
    )  # fmt: skip
    parser.add_argument(
        "--microbatches", default=None, metavar="M",
        help="micro-batches of a pipeline in inference: a number, or `best` of 1 to twice the stages "
        "(default: the plan's)",
    )  # fmt: skip
    parser.add_argument(
        "--crossover", action="store_true",
        help="with two plans: the lengths between the smallest and the largest --seq-len at which "
        "one overtakes the other",
    )  # fmt: skip
    parser.add_argument(
        "--summary", action="store_true", help="draw who computes, moves and waits, for every row"
    )
    parser.add_argument(
        "--check", nargs="?", const="local", choices=("local", "gloo", "nccl"), metavar="BACKEND",
        help="also run the steps for real on this machine (default: local), which the cluster should be "
        "a file of: see calibrate",
    )  # fmt: skip
    add_trace(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate every plan at every point; 1 for wrong input."""
    from plancc.simulator.errors import SimulateError

    if args.crossover and (len(args.plans) != 2 or len(args.seq_len or ()) < 2):
        return complain("--crossover compares two plans between two or more --seq-len") and 2
    if args.microbatches not in (None, "best") and not args.microbatches.isdigit():
        return complain("--microbatches is a number or `best`") and 2
    if not args.cluster:
        return complain(
            "--cluster says which hardware to predict: a file, or a name such as dgx_a100_16"
        )
    missing = [plan for plan in args.plans if not Path(plan).is_file()]
    if missing:
        return complain(f"{missing[0]} does not exist")
    if args.check and (args.dtype or args.microbatches):
        return (
            complain("--check runs plans and models as they are: no --dtype, --microbatches") and 2
        )
    args.lockstep = args.lockstep or bool(args.check)
    try:
        return simulate(args)
    except SimulateError as problem:
        return complain("\nerror: ".join(problem.problems))
    except user_errors() as problem:
        return complain(str(problem))


def simulate(args: argparse.Namespace) -> int:
    """Open the subjects, make the rows, print them."""
    from plancc.simulator.compare import crossings
    from plancc.simulator.rows import UTILISATION
    from plancc.simulator.table import table

    subjects = [opened(args, plan) for plan in args.plans]
    points = [
        (subject, *row_at(args, subject, phase, batch, seq_len))
        for subject in subjects
        for phase in phases_of(args, subject)
        for batch in args.batch
        for seq_len in args.seq_len or [usual_length(subject)]
    ]
    rows = [row for _, row, _ in points]
    found = []
    if args.crossover:
        low, high = min(args.seq_len), max(args.seq_len)
        found = [
            crossing
            for phase in phases_of(args, subjects[0])
            for batch in args.batch
            for crossing in crossings(subjects[0], subjects[1], phase, batch, low, high)
        ]
    assumptions = said(args, subjects)
    write_shown(args, points, assumptions)
    paths = dict(zip(map(id, subjects), args.plans, strict=True))
    checks = checked(args, [(paths[id(subject)], row) for subject, row, _ in points])
    if args.json:
        print_json({
            "predicted": True, "cluster": args.cluster, "rows": [row.json() for row in rows],
            "crossings": [asdict(c) for c in found], "utilisation": UTILISATION,
            "assumptions": assumptions,
            **({"measured": [one.truth.json() for one in checks]} if args.check else {}),
        })  # fmt: skip
        return 0 if all(row.fits for row in rows) else 1
    print(f"predicted, on {args.cluster}")
    print(table(rows))
    for subject, _, outcome in points if args.summary else ():
        print_summary(subject, outcome)
    for text in map(str, checks):
        print(text)
    for c in found:
        print(
            f"{c.phase}, batch {c.batch}: {c.faster} is faster than {c.slower} from seq_len "
            f"{c.seq_len} ({c.tokens:,} tokens in flight)"
        )
    if args.crossover and not found:
        print(f"no crossing between seq_len {min(args.seq_len)} and {max(args.seq_len)}")
    for text in assumptions:
        print(f"note: {text}")
    return 0 if all(row.fits for row in rows) else 1


def checked(args: argparse.Namespace, rows: list[tuple[str, Any]]) -> list[Any]:
    """Plans and their rows, run for real on this machine if that is asked for."""
    if not args.check:
        return []
    from plancc.calibrate.check import run_row

    sets, model_args = dict(args.sets), dict(args.model_args)
    return [run_row(row, args.check, plan, args.model, sets, model_args) for plan, row in rows]


def usual_length(subject: Any) -> int:
    """1024, or the longest sequence that the plan and the model admit."""
    longest = min(unit.graph.limits.get("T", LENGTH) for unit in subject.compiled.units)
    low, high = subject.plan.inputs.get("seq_len", (1, LENGTH))
    return int(max(low, min(LENGTH, longest, high)))


def opened(args: argparse.Namespace, plan: str) -> Any:
    """One plan on the cluster."""
    from plancc.api import DTYPES
    from plancc.simulator.cluster import read_cluster
    from plancc.simulator.routing import EVEN, Skewed
    from plancc.simulator.subject import open_subject

    cluster = read_cluster(args.cluster, Path(plan).parent).preset(args.preset)
    if args.hardware:
        cluster = cluster.with_(*args.hardware)
    wanted = args.phase.split(",") if args.phase else None
    return open_subject(
        plan, args.model, cluster, sets=dict(args.sets), model_args=dict(args.model_args),
        phases=wanted, dtype=DTYPES[args.dtype] if args.dtype else None,
        routing=Skewed(args.skew) if args.skew else EVEN,
    )  # fmt: skip


def phases_of(args: argparse.Namespace, subject: Any) -> list[str]:
    """The phases to simulate."""
    if args.phase:
        return list(args.phase.split(","))
    return [phase for phase in subject.phases if phase != "forward"] or list(subject.phases)


def row_at(args: argparse.Namespace, subject: Any, phase: str, batch: int, seq_len: int) -> Any:
    """The row of one point, and what was simulated for it."""
    from plancc.simulator.compare import best_row
    from plancc.simulator.rows import make_row

    spans = wanted(args) or args.summary
    if args.microbatches == "best":
        return best_row(subject, phase, batch, seq_len, spans=spans)
    count = int(args.microbatches) if args.microbatches else None
    return make_row(
        subject, phase, batch, seq_len, microbatches=count, lockstep=args.lockstep, spans=spans
    )


def budgets_of(subject: Any) -> dict[str, int]:
    """The bytes that each mesh may fill."""
    return {name: mesh.budget for name, mesh in subject.plan.meshes.items() if mesh.budget}


def print_summary(subject: Any, outcome: Any) -> None:
    """Who did what, in a terminal."""
    from plancc.show.summary import summary

    if outcome is not None:
        print()
        print(summary(outcome.timeline, budgets=budgets_of(subject)), end="")


def write_shown(args: argparse.Namespace, points: list[Any], assumptions: list[str]) -> None:
    """The files that are asked for. WriteError if they cannot be written."""
    timelines = [outcome.timeline for _, _, outcome in points if outcome is not None]
    if args.trace and timelines:
        write_timelines(args.trace, timelines)
    if args.report:
        from plancc.explain import explain
        from plancc.show.report import Report, write_report

        first = points[0][0]
        write_report(args.report, Report(
            f"{', '.join(dict.fromkeys(s.plan.name for s, _, _ in points))} on {args.cluster}, predicted",
            timelines, [row.json() for _, row, _ in points], explain(first.compiled), assumptions,
            budgets=budgets_of(first),
        ))  # fmt: skip
        say(f"wrote {args.report}")


def said(args: argparse.Namespace, subjects: list[Any]) -> list[str]:
    """What the prediction stands on."""
    found = [text for subject in subjects for text in subject.assumptions]
    if args.skew:
        found.append(f"the busiest rank of experts gets {args.skew:g} times the mean")
    return list(dict.fromkeys(found))
