"""`plancc run PLAN|DIR`: generate with all ranks, in this process or as processes of this host."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from plancc.cli.balance import balance_lines
from plancc.cli.options import (
    add_failover,
    add_json,
    add_plan_options,
    complain,
    print_event,
    print_json,
    say,
    user_errors,
)
from plancc.cli.shown import add_trace, record, refusal, wanted, write_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN|DIR")
    add_plan_options(parser, model_required=False)
    parser.add_argument("--backend", choices=("local", "gloo", "nccl"), default="local")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-file", metavar="FILE")
    prompt.add_argument("--tokens", type=int, metavar="N", help="a prompt of N random tokens")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="copies of the prompt")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="K")
    parser.add_argument("--check", action="store_true", help="compare the tokens with one device")
    parser.add_argument(
        "--no-verify", action="store_true", help="skip the check against one device"
    )
    parser.add_argument(
        "--time-limit", type=float, default=60.0, metavar="S",
        help="seconds that one instruction of a process may take (gloo, nccl)",
    )  # fmt: skip
    add_failover(parser)
    add_trace(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run; 1 for wrong input, 3 for a run that failed."""
    if args.new_tokens < 1 or args.batch < 1 or (args.tokens is not None and args.tokens < 1):
        return complain("--new-tokens, --batch and --tokens are at least 1") and 2
    folder = Path(args.plan)
    try:
        if (folder / "manifest.json").is_file():
            if args.sets or args.weights:
                return complain("--set and --weights are compiled in: give them to compile") and 2
            return run_artifact(args, folder)
        if folder.is_dir():
            return complain(f"{folder} is not an artifact: it has no manifest.json")
        if not folder.exists():
            return complain(f"{folder} does not exist")
        if not args.model:
            return complain("a plan needs --model") and 2
        import plancc.api as api

        with tempfile.TemporaryDirectory() as aside:
            out = Path(aside) / "artifact"
            say(f"compiling {args.plan} ...")
            built = api.compile(
                args.plan, args.model, out, weights=args.weights, sets=dict(args.sets),
                model_args=dict(args.model_args), verify=not args.no_verify, for_="infer",
            )  # fmt: skip
            return run_artifact(args, out, built)
    except user_errors() as problem:
        return complain(str(problem))


def run_artifact(args: argparse.Namespace, folder: Path, built: Any = None) -> int:
    """Generate with the artifact in `folder` and print what came out; `built` if it was compiled just now."""
    from plancc.runtime.artifact import load_artifact
    from plancc.runtime.prompts import Codec

    artifact = load_artifact(folder)
    if "train" in artifact.phases:
        return complain(for_training(str(folder)))
    if "prefill" not in artifact.phases:
        return complain(
            "the model has no prefill and decode: use the Python API, Deployment.forward"
        )
    codec = Codec(artifact)
    ids = codec.prompt(args.prompt, args.prompt_file, args.tokens).repeat(args.batch, 1)
    problem = artifact.refuses(ids.shape[0], ids.shape[1], args.new_tokens)
    if problem:
        return complain(problem)
    problem = too_few_devices(args.backend, artifact.world) or refusal(
        args, artifact, under_torchrun()
    )
    if problem:
        return complain(problem)
    records = None
    if wanted(args):
        found, records = record(args, artifact, ids)
    else:
        found = survive(args, artifact, ids) if args.failover else generate(args, artifact, ids)
    if args.backend != "local" and under_torchrun() and os.environ["RANK"] != "0":
        return 0
    facts: dict[str, Any] = {
        "backend": args.backend, "ranks": artifact.world, "variant": found["variants"],
        "prompt_tokens": ids.shape[1], "tokens": found["tokens"],
        "text": [codec.text(row) for row in found["tokens"]],
        "ttft_s": found["ttft_s"], "tpot_s": found["tpot_s"],
        "tps": args.batch / found["tpot_s"] if found["tpot_s"] else None,
        "weights": artifact.manifest["weights"]["kind"],
    }  # fmt: skip
    if "measured" in found:
        facts["measured"] = found["measured"]
    if "balance" in found:
        facts["balance"] = found["balance"]
    for name in ("events", "failover"):
        if name in found:
            facts[name] = found[name]
    if args.check:
        facts["matches_reference"] = matches(args, artifact, ids, found["tokens"])
    show(args, facts)
    if records is not None:
        write_run(args, artifact, records, built)
    return 1 if facts.get("matches_reference") is False else 0


def for_training(what: str) -> str:
    """What to say of a plan or an artifact that does not generate."""
    return f"{what} is for training, `run` generates: use `plancc train`"


def generate(args: argparse.Namespace, artifact: Any, ids: Any) -> dict[str, Any]:
    """Tokens and times from the chosen backend."""
    from plancc.runtime.deploy import Deployment

    if args.backend == "local":
        result, measured = Deployment(artifact).measure(ids, args.new_tokens)
        return {**result.json(), "measured": measured}
    if under_torchrun():
        with Deployment(artifact).this_rank(args.backend) as rank:
            return rank.generate(ids, args.new_tokens).json()
    if args.backend == "gloo" and len(artifact.manifest.get("pools", {})) == 1:
        from plancc.runtime.elastic import generate as elastic

        return elastic(artifact, ids, args.new_tokens, args.time_limit)
    from plancc.runtime.launch import launch
    from plancc.runtime.meter import summary

    payload = {
        "folder": str(artifact.folder.resolve()), "ids": ids.tolist(),
        "new_tokens": args.new_tokens, "measure": True,
    }  # fmt: skip
    found = launch(
        artifact.world, "plancc.runtime.deploy:run_rank", payload, backend=args.backend,
        time_limit=args.time_limit, describe=artifact.describe,
    )  # fmt: skip
    return {**found[0], "measured": summary([one["record"] for one in found])}


def survive(args: argparse.Namespace, artifact: Any, ids: Any) -> dict[str, Any]:
    """Tokens and times of a run that goes on when a rank of a replica dies."""
    from contextlib import ExitStack

    from plancc.failover import spares_aside
    from plancc.runtime.failover.generation import generate_with_failover

    with ExitStack() as stack:
        spares = spares_aside(
            artifact, args, stack, model_args=dict(args.model_args) or None,
            verify=not args.no_verify,
        )  # fmt: skip
        return generate_with_failover(
            spares, ids, args.new_tokens, print_event, rejoin=args.rejoin,
            time_limit=args.time_limit,
        )  # fmt: skip


def too_few_devices(backend: str, world: int) -> str | None:
    """Why this host cannot hold the ranks; None if it can."""
    if backend != "nccl" or under_torchrun():
        return None
    import torch

    count = torch.cuda.device_count()
    if count >= world:
        return None
    return (
        f"nccl needs a GPU for each of the {world} ranks, this host has {count}: try --backend gloo"
    )


def under_torchrun() -> bool:
    """Whether a launcher made this process one rank of many."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def matches(args: argparse.Namespace, artifact: Any, ids: Any, tokens: list[list[int]]) -> bool:
    """Whether one device, running the captured model, gives the same tokens."""
    from plancc.verification.one_device import greedy_tokens

    spec = args.model or artifact.manifest["model"]["spec"]
    expected = greedy_tokens(artifact, spec, dict(args.model_args), ids, args.new_tokens)
    return bool(expected == tokens)


def show(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """The text and the times, or JSON."""
    if args.json:
        print_json(facts)
        return
    for text in facts["text"]:
        print(text)
    tps = f", {facts['tps']:.1f} tokens/s" if facts["tps"] else ""
    print(
        f"-- {facts['ranks']} ranks ({facts['backend']}), first token after "
        f"{facts['ttft_s']:.2f} s, then {facts['tpot_s'] * 1000:.0f} ms a token{tps}"
    )
    for event in facts.get("events", ()):
        print(f"-- step {event['step']}: {event['what']} {event['detail']} (pool {event['pool']})")
    for line in [*balance_lines(facts.get("balance", ())), *measured_lines(facts)]:
        print(line)
    if facts["weights"] == "seed":
        print("-- weights come from seed 0 (no --weights given): the text means nothing")
    if "matches_reference" in facts:
        same = "the same tokens as" if facts["matches_reference"] else "OTHER TOKENS THAN"
        print(f"-- {same} one device")


def measured_lines(facts: dict[str, Any]) -> list[str]:
    """Shares of time and bytes by phase and mesh."""
    lines = []
    for phase, meshes in facts.get("measured", {}).items():
        for mesh, row in meshes.items():
            line = (
                f"-- {phase} {mesh}: {row['ranks']} ranks, busy {row['busy']:.0%}, "
                f"communication {row['communication']:.0%}"
            )
            if row["bound"]:
                line += (
                    f", to other meshes and merges {row['sent_most'] / 1e3:,.1f} kB a rank "
                    f"(least possible {row['bound'] / 1e3:,.1f})"
                )
            lines.append(line)
    if lines and facts["backend"] == "local":
        lines.append(
            "-- local ranks take turns on one core: waiting for a turn counts as communication"
        )
    return lines
