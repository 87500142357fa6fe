"""`plancc calibrate`: measure this machine into a cluster file, which `plancc simulate --cluster` reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from plancc.cli.options import add_json, complain, print_json
from plancc.cli.progress import Stages

DTYPES = {"fp64": "f64", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""What users write -> the names of a cluster file."""


def ranks(text: str) -> tuple[int, ...]:
    """`2,4` as numbers of ranks from 2."""
    found = tuple(sorted({int(word) for word in text.split(",")}))
    if found[0] < 2:
        raise argparse.ArgumentTypeError("numbers from 2, separated by commas")
    return found


def dtypes(text: str) -> tuple[str, ...]:
    """`fp32,bf16` as the names of a cluster file."""
    words = tuple(dict.fromkeys(text.split(",")))
    unknown = [word for word in words if word not in DTYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"`{unknown[0]}` is none of {', '.join(DTYPES)}")
    return tuple(DTYPES[word] for word in words)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "-o", "--out", default="clusters/here.json", metavar="FILE",
        help="the cluster file to write (default: clusters/here.json)",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("local", "gloo", "nccl"), default="local")
    parser.add_argument(
        "--ranks", type=ranks, metavar="N[,N...]",
        help="how many ranks meet in measured collectives (default: 2,3,4,8; nccl: as there are GPUs)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=dtypes, default=("f32",), metavar="TYPE[,TYPE...]",
        help=f"what local calls are measured in: {', '.join(DTYPES)} (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few sizes, few repeats: a rough file")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and write; 1 for what cannot be measured here, 3 for ranks that failed."""
    from plancc.calibrate.measure import calibrate, save
    from plancc.calibrate.request import RANKS, CalibrationError, Request

    out = Path(args.out)
    if not out.absolute().parent.is_dir():
        return complain(f"{out}: there is no folder {out.absolute().parent}")
    request = Request(args.backend, args.ranks or RANKS, args.dtype, args.quick)
    stages = Stages()
    try:
        found = calibrate(request, stages.show)
        save(found.document, out)
    except CalibrationError as problem:
        return complain(str(problem))
    finally:
        stages.close()
    warn(found.warnings)
    if args.json:
        print_json({"file": str(out), "warnings": list(found.warnings), "cluster": found.document})
    else:
        show(out, found.document)
    return 0


def warn(warnings: tuple[str, ...]) -> None:
    """Say loudly that a file is not to be trusted."""
    for text in warnings:
        sys.stderr.write(f"WARNING: {text}\n")
    if warnings:
        sys.stderr.write("WARNING: measure again on a quiet machine before you trust this file\n")


def show(out: Path, document: Any) -> None:
    """The constants that say most."""
    from plancc.calibrate.document import HOST

    (name, kind), *_ = document["kinds"].items()
    print(f"{out}: {document['about']}")
    for dtype, peak in kind["flops"].items():
        print(f"  {name} {dtype}: {peak['value'] / 1e9:,.1f} GFLOP/s in matrix products")
    print(f"  {name}: {kind['bandwidth']['value'] / 1e9:,.1f} GB/s of memory")
    for what, seconds in kind.get("host", {}).items():
        print(f"  {name}: {seconds['value'] * 1e6:,.1f} us {HOST[what]}")
    link = document["links"].get("node")
    if link is not None:
        way = sum(link[name]["value"] for name in ("message_latency", "message_overhead"))
        print(
            f"  small all-reduce: {link['latency']['value'] * 1e6:,.0f} us; "
            f"messages: {way * 1e6:,.0f} us and "
            f"{link['message_bandwidth']['value'] / 1e9:,.2f} GB/s"
        )
