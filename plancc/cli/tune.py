"""`plancc tune PLAN`: the best values of a plan's parameters, predicted, with how far the search went."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from plancc.cli.options import (
    add_hardware_options,
    add_json,
    add_plan_options,
    complain,
    print_json,
    user_errors,
)
from plancc.cli.simulate import numbers

METRICS = ("tpot", "ttft", "step", "tps", "memory", "time")
THE_ONE = "*"
"""`--threshold` without a name: the only parameter that moves the pool."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN")
    add_plan_options(parser, model_required=True)
    add_hardware_options(parser)
    parser.add_argument(
        "--metric", choices=METRICS, default="time",
        help="what to make best: tpot (decode), ttft (prefill), step (train, forward), time (of any phase; "
        "the default), tps (tokens per second), memory (of the fullest device)",
    )  # fmt: skip
    parser.add_argument(
        "--phase", metavar="P[,P...]", help="prefill, decode, train or forward (default: by the metric, else "
        "train where the plan says so, else decode)",
    )  # fmt: skip
    parser.add_argument("--batch", type=numbers, default=[1], metavar="B[,B...]")
    parser.add_argument(
        "--seq-len", type=numbers, default=[1024], metavar="N[,N...]",
        help="of several, with several batches, every pair is a case; with --threshold: from, to",
    )  # fmt: skip
    parser.add_argument(
        "--search", action="append", default=[], metavar="NAME=V[,V...]",
        help="values to look at in place of those of the domain: tp=1,2,4 or tp=1..64 (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", nargs="?", const=THE_ONE, metavar="NAME",
        help="from how many tokens in flight the plan's pool pays, for each batch: closed form and "
        "simulation, and the best value of the parameter NAME that moves it",
    )  # fmt: skip
    parser.add_argument(
        "--ratio", metavar="A:F", help="the best ratio of devices of the mesh A (attention) to the mesh F "
        "(experts), for each case: closed form and search",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, metavar="SECONDS", help="stop searching after this"
    )
    parser.add_argument(
        "--points", type=count, metavar="N", help="stop after N settings that were simulated"
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="J", help="try settings in J processes (default 1)"
    )
    add_json(parser)


def positive(text: str) -> float:
    """A number of seconds."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("more than 0 seconds")
    return value


def count(text: str) -> int:
    """A number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a number from 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Search; 1 for wrong input, and where nothing fits."""
    from plancc.passes.derive_phases import NotCausal
    from plancc.simulator.errors import SimulateError
    from plancc.tune.forms import TuneError

    wrong = usage(args)
    if wrong:
        return complain(wrong) and 2
    if not args.cluster:
        return complain(
            "--cluster says which hardware to predict: a file, or a name such as dgx_a100_16"
        )
    if not Path(args.plan).is_file():
        return complain(f"{args.plan} does not exist")
    try:
        return tune(args)
    except SimulateError as problem:
        return complain("\nerror: ".join(problem.problems))
    except (TuneError, NotCausal) as problem:
        return complain(str(problem))
    except user_errors() as problem:
        return complain(str(problem))


def usage(args: argparse.Namespace) -> str:
    """What is wrong with the options; "" if nothing is."""
    if args.threshold and args.ratio:
        return "--threshold and --ratio are two searches: ask for one"
    if args.ratio and len([name for name in args.ratio.split(":") if name]) != 2:
        return f"--ratio {args.ratio}: name two meshes, as in --ratio attn:moe"
    for option in ("threshold", "ratio"):
        if getattr(args, option) and args.metric != "time":
            return f"--{option} compares times: leave --metric {args.metric} out"
    if args.threshold and len(args.seq_len) not in (1, 2):
        return "--threshold takes two lengths: --seq-len FROM,TO"
    return ""


def tune(args: argparse.Namespace) -> int:
    """Open the plan and the model, search, print."""
    from plancc.dsl.declared import declared_params
    from plancc.tune.jobs import open_bench, open_cluster
    from plancc.tune.space import check_names, space_of

    params, report = declared_params(args.plan, dict(args.sets))
    report.raise_errors()
    fixed, asked = dict(args.sets), asked_values(args)
    check_names(params, fixed, asked)
    order = order_of(args)
    space = space_of(params, open_cluster(order).size, fixed, asked)
    check_something(args, space)
    bench = open_bench(order)
    if args.threshold:
        return threshold(args, bench, space)
    return search(args, bench, space, order)


def asked_values(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """What --search says."""
    from plancc.tune.forms import TuneError
    from plancc.tune.space import read_values

    found = {}
    for text in args.search:
        name, equals, values = text.partition("=")
        if not equals:
            raise TuneError(f"--search {text}: write NAME=V,V or NAME=LO..HI")
        found[name.strip()] = read_values(values)
    return found


def check_something(args: argparse.Namespace, space: Any) -> None:
    """TuneError where there is nothing to choose."""
    from plancc.dsl import load_plan
    from plancc.tune.forms import TuneError
    from plancc.tune.pools import pool_axes

    if space.knobs:
        return
    plan, _ = load_plan(args.plan, dict(args.sets))
    if plan is not None and any(pool_axes(plan)) and not (args.threshold or args.ratio):
        return
    fixed = ", ".join(f"`{name}`" for name, _ in args.sets)
    if space.skipped:
        told = (
            f"`{space.skipped[0]}` has no domain: --search {space.skipped[0]}=V,V names its values"
        )
    elif fixed:
        told = f"--set fixes {fixed}"
    else:
        told = "declare some, as in `param tp = 2 in [1, 2, 4]`"
    raise TuneError(f"{args.plan} has no parameter to search; {told}")


def order_of(args: argparse.Namespace) -> Any:
    """What the search is about."""
    from plancc.api import DTYPES
    from plancc.tune.forms import Case
    from plancc.tune.jobs import Order

    phases = phases_of(args)
    lengths = [max(args.seq_len)] if args.threshold else args.seq_len
    cases = tuple(Case(p, b, n) for p in phases for b in args.batch for n in lengths)
    return Order(
        args.plan, args.model, args.cluster, cases,
        tuple(phases) if "train" in phases else None, dict(args.sets), dict(args.model_args),
        str(DTYPES[args.dtype]).removeprefix("torch.") if args.dtype else "", args.preset,
        tuple(args.hardware), args.skew or 0.0, args.lockstep,
    )  # fmt: skip


def phases_of(args: argparse.Namespace) -> list[str]:
    """The phases to tune for; TuneError where the metric is not one of theirs."""
    from plancc.tune.forms import METRICS as KNOWN
    from plancc.tune.forms import TuneError

    metric = KNOWN[args.metric]
    if not args.phase:
        return default_phases(args, metric.phases)
    phases = list(dict.fromkeys(args.phase.split(",")))
    for phase in phases:
        if phase not in KNOWN["time"].phases:
            raise TuneError(f"there is no phase `{phase}`: {', '.join(KNOWN['time'].phases)}")
        if phase not in metric.phases:
            raise TuneError(
                f"--metric {metric.name} is of {' and '.join(metric.phases)}, not of {phase}: "
                "--metric time fits every phase"
            )
    return phases


def default_phases(args: argparse.Namespace, known: tuple[str, ...]) -> list[str]:
    """The phases that the metric or the plan's mode says."""
    from plancc.dsl import load_plan
    from plancc.tune.forms import TuneError

    if len(known) == 1:
        return list(known)
    plan, _ = load_plan(args.plan, dict(args.sets))
    if plan is None:
        raise TuneError(
            f"{args.plan} is refused with its defaults, so its mode is not known: say --phase"
        )
    if "train" in (plan.facts.get("mode"), *known[:1]):
        return ["train"]
    return ["prefill", "decode"] if args.ratio else ["decode"]


def search(args: argparse.Namespace, bench: Any, space: Any, order: Any) -> int:
    """Search for the metric, or for the ratio of two meshes."""
    from contextlib import nullcontext

    from plancc.tune.forms import METRICS as KNOWN
    from plancc.tune.forms import at_case, joint
    from plancc.tune.jobs import Helpers
    from plancc.tune.pools import pool_sizes
    from plancc.tune.ratio import find_ratio
    from plancc.tune.report import picks, ratio_facts, search_facts
    from plancc.tune.search import Limits, confirm, search
    from plancc.tune.text import ratio_text, search_text

    limits = Limits(args.limit, args.points)
    with Helpers(bench, order, args.jobs) if args.jobs > 1 else nullcontext(bench) as crew:
        tries = watched(crew.tries)
        if args.ratio:
            found = find_ratio(bench, space, tries, args.ratio.split(":"), limits)
            facts = ratio_facts(bench, found)
            print_json(facts) if args.json else print(ratio_text(facts))
            return 0 if all(one["splits"] for one in facts["ratios"]) else 1
        metric = KNOWN[args.metric]
        trail = search(space, tries, joint(metric), limits)
    confirm(trail, picks(metric), bench.whole)
    pools = []
    for number, case in enumerate(bench.cases):
        best = trail.best(at_case(metric, number))
        pools.append(pool_sizes(bench, best.sets, case, space.knobs) if best is not None else ())
    facts = search_facts(bench, trail, metric, pools)
    print_json(facts) if args.json else print(search_text(facts))
    return 0 if facts["best"] is not None else 1


def threshold(args: argparse.Namespace, bench: Any, space: Any) -> int:
    """Find the threshold of every batch."""
    from plancc.tune.forms import TuneError
    from plancc.tune.report import threshold_facts
    from plancc.tune.text import threshold_text
    from plancc.tune.threshold import find_thresholds, threshold_knob

    phase, low, high = bench.cases[0].phase, *lengths_of(args)
    if args.threshold == THE_ONE:
        knob = threshold_knob(bench, space.knobs, phase)
    else:
        known = {knob.name: knob for knob in space.knobs}
        if args.threshold not in known:
            raise TuneError(f"--threshold {args.threshold}: it may be {', '.join(known)}")
        knob = known[args.threshold]
    found = find_thresholds(bench, knob, phase, args.batch, low, high)
    facts = threshold_facts(bench, found)
    print_json(facts) if args.json else print(threshold_text(facts))
    return 0 if all(one["best"] is not None for one in facts["thresholds"]) else 1


def lengths_of(args: argparse.Namespace) -> tuple[int, int]:
    """From which length to which; TuneError where there is nothing between them."""
    from plancc.tune.forms import TuneError

    low, high = min(args.seq_len), max(args.seq_len)
    if low == high:
        raise TuneError("--threshold looks between two lengths: --seq-len 1024,131072")
    return low, high


def watched(tries: Any) -> Any:
    """The same, with a count on stderr where somebody watches."""
    if not sys.stderr.isatty():
        return tries
    done = 0

    def counted(wanted: Any) -> Any:
        nonlocal done
        for attempt in tries(wanted):
            done += 1
            sys.stderr.write(f"\r{done} settings tried")
            sys.stderr.flush()
            yield attempt
        sys.stderr.write("\r\033[K")

    return counted
