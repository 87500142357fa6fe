"""`plancc train PLAN|DIR --data FILE...`: train with all ranks, in this process or in many."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plancc.cli.options import (
    add_failover,
    add_json,
    add_plan_options,
    add_precision,
    complain,
    print_event,
    print_json,
    say,
    user_errors,
    warn_dropout,
)
from plancc.dsl import render_text

OPTIMIZER = (
    "lr", "optimizer", "weight_decay", "clip", "schedule", "warmup", "min_lr", "decay", "betas",
    "eps", "momentum",
)  # fmt: skip
RUN = (
    "batch", "seq_len", "steps", "epochs", "seed", "precision", "tokenizer", "checkpoint", "every",
    "keep", "accumulate", "resume", "log", "export", "backend", "time_limit",
    "failover", "rejoin",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN|DIR")
    add_plan_options(parser, model_required=False)
    parser.add_argument(
        "--no-verify", action="store_true", help="skip the check of a plan against one device"
    )
    add_data(parser)
    add_optimizer(parser)
    add_keeping(parser)
    parser.add_argument("--backend", choices=("local", "gloo", "nccl"), default="local")
    parser.add_argument(
        "--time-limit", type=float, default=600.0, metavar="S",
        help="seconds that one instruction of a process may take (gloo, nccl)",
    )  # fmt: skip
    add_failover(parser)
    add_json(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """What is trained on, and for how long."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", nargs="+", default=[], metavar="FILE",
        help="text or JSON lines with `text`, .gz or not; folders and globs; a resumed run knows",
    )  # fmt: skip
    group.add_argument(
        "--tokenizer", metavar="bytes|FOLDER",
        help="default: that of the model's folder if it has one, else bytes",
    )  # fmt: skip
    group.add_argument("--steps", type=int, metavar="N", help="steps in all, resumed ones included")
    group.add_argument("--epochs", type=int, metavar="N", help="end with the data")
    group.add_argument("--batch", type=int, metavar="B", help="sequences in a step, over all ranks")
    group.add_argument(
        "--accumulate", type=int, metavar="N",
        help="run the plan's micro-batches N times in a step, on a smaller part of the batch each",
    )  # fmt: skip
    group.add_argument("--seq-len", type=int, metavar="N", help="tokens in a sequence")
    group.add_argument("--seed", type=int, metavar="N", help="of the data's order and of weights")
    add_precision(parser)


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """Fields of OptimizerSpec."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate (1e-3)")
    group.add_argument("--optimizer", metavar="NAME", help="a class of torch.optim (adamw)")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument("--clip", type=float, metavar="X", help="greatest global gradient norm")
    group.add_argument("--schedule", choices=("constant", "linear", "cosine", "wsd"))
    group.add_argument("--warmup", type=int, metavar="N", help="steps of rising learning rate")
    group.add_argument("--min-lr", type=float, metavar="X", help="at the end, as a share of lr")
    group.add_argument("--decay", type=float, metavar="X", help="share of the steps (wsd)")
    group.add_argument("--betas", type=float, nargs=2, metavar=("B1", "B2"))
    group.add_argument("--eps", type=float, metavar="X")
    group.add_argument("--momentum", type=float, metavar="X")


def add_keeping(parser: argparse.ArgumentParser) -> None:
    """What is written."""
    group = parser.add_argument_group("checkpoints and logs")
    group.add_argument("--checkpoint", metavar="DIR", help="saved at the end and when stopped")
    group.add_argument("--checkpoint-every", type=int, dest="every", metavar="N")
    group.add_argument("--keep", type=int, default=3, metavar="N", help="checkpoints to keep")
    group.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="FOLDER",
        help="go on with the latest checkpoint of --checkpoint, or with this one",
    )  # fmt: skip
    group.add_argument(
        "--log", "--log-file", metavar="FILE",
        help="a JSON object a step (torchrun takes --log for its own: write --log-file there)",
    )  # fmt: skip
    group.add_argument("--export", metavar="FILE", help="the weights as one safetensors file")


def run(args: argparse.Namespace) -> int:
    """Train; 1 for wrong input, 3 for a run that failed, 128 + N when stopped by signal N."""
    problem = wrong_words(args)
    if problem:
        return complain(problem) and 2
    folder = Path(args.plan)
    if folder.is_dir() and not (folder / "manifest.json").is_file():
        return complain(f"{folder} is not an artifact: it has no manifest.json")
    if not folder.exists():
        return complain(f"{folder} does not exist")
    from plancc.runtime.failure import RankFailure
    from plancc.training import TrainFailed

    try:
        return carry_out(args)
    except TrainFailed as problem:
        complain(str(problem))
        return 3
    except RankFailure as problem:
        good = last_checkpoint(args)
        complain(f"{problem}\nthe last good checkpoint is {good}" if good else str(problem))
        return 3
    except user_errors() as problem:
        return complain(str(problem))


def last_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to go on from after a run that broke off."""
    from plancc.runtime.checkpoint.shelf import Shelf

    home = Path(args.checkpoint) if args.checkpoint else None
    return Shelf(home).latest() if home is not None and home.is_dir() else None


def wrong_words(args: argparse.Namespace) -> str | None:
    """What is wrong with the options alone."""
    if (Path(args.plan) / "manifest.json").is_file():
        if args.sets or args.weights:
            return "--set and --weights are compiled in: give them to compile"
        if args.model or args.model_args:
            return "--model goes with a plan: an artifact has its own"
    elif not args.model and Path(args.plan).is_file():
        return "a plan needs --model"
    if args.resume is True and not args.checkpoint:
        return "--resume needs a folder, or --checkpoint DIR"
    if args.resume and args.weights:
        return "--resume takes the weights of the checkpoint: leave --weights out"
    if not args.resume and not args.data:
        return "--data is missing: files to train on"
    if not args.resume and args.steps is None and args.epochs is None:
        return "how long? --steps N or --epochs N"
    return None


def carry_out(args: argparse.Namespace) -> int:
    """Compile aside where need be, train, and tell what came of it."""
    import plancc.api as api
    from plancc.cli.progress import Progress
    from plancc.runtime.training.backends import rank_here

    quiet = rank_here() != 0
    bar: list[Progress] = []

    def compiled(warnings: Sequence[Any]) -> None:
        if not quiet:
            sys.stderr.write(render_text(warnings, sys.stderr.isatty()))

    def ready(found: Any) -> None:
        bar.append(Progress(found.job.steps, found.start))
        if not quiet:
            warn_dropout(found.artifact)
            for text in found.notes:
                sys.stderr.write(f"note: {text}\n")

    def row(found: dict[str, Any]) -> None:
        bar[0].row(found)

    def event(found: Any) -> None:
        bar[0].close()
        print_event(found)

    if not (Path(args.plan) / "manifest.json").is_file():
        say(f"compiling {args.plan} ...")
    wanted = {name: getattr(args, name) for name in (*RUN, *OPTIMIZER)}
    wanted["betas"] = tuple(args.betas) if args.betas else None
    try:
        done = api.train(
            args.plan, args.model, data=args.data, weights=args.weights, sets=dict(args.sets),
            model_args=dict(args.model_args), verify=not args.no_verify, on_row=row,
            on_compiled=compiled, on_ready=ready, on_event=event, **wanted,
        )  # fmt: skip
    finally:
        if bar:
            bar[0].close()
    if not quiet:
        show(args, done)
    return 128 + done.outcome.signal if done.outcome.signal else 0


def show(args: argparse.Namespace, done: Any) -> None:
    """The end of a run in words, or as JSON."""
    outcome, job = done.outcome, done.job
    if args.json:
        print_json({
            "status": outcome.status, "steps": outcome.steps, "ran": outcome.ran,
            "loss": outcome.loss, "tokens": outcome.tokens, "seconds": outcome.seconds,
            "tokens_per_s": outcome.tokens_per_s, "ranks": done.ranks, "backend": args.backend,
            "batch": job.batch, "seq_len": job.seq_len, "precision": job.precision,
            "checkpoint": outcome.checkpoint, "weights": done.weights, "export": done.exported,
        })  # fmt: skip
        return
    loss = f"loss {outcome.loss:.4f}" if outcome.loss is not None else "no loss"
    if not outcome.ran:
        print(f"nothing is left to do: {outcome.steps} steps are done, {loss}")
    else:
        print(
            f"{outcome.steps} steps, {loss}, {outcome.tokens_per_s:,.0f} tokens/s on {done.ranks} "
            f"ranks ({args.backend}, {job.precision})"
        )
    if outcome.checkpoint:
        print(f"-- checkpoint {outcome.checkpoint}")
    if done.exported:
        print(f"-- weights exported to {done.exported}")
    if done.weights == "seed":
        print(f"-- the first weights came from seed {job.seed} (no --weights given)")
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        end = f"go on with --resume {outcome.checkpoint}" if outcome.checkpoint else (
            "without --checkpoint nothing was saved"
        )  # fmt: skip
        sys.stderr.write(f"stopped by {name} after step {outcome.steps}: {end}\n")
