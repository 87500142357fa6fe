"""Progress on stderr, of a training run or of stages: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from plancc.cli.balance import balance_text

EVERY = 10
"""Lines of a whole run where nobody watches."""
PAUSE = 10.0
"""Seconds after which such a line is due, however few steps there were."""


class Progress:
    """Shows the rows of a run of `total` steps (None: until the data ends), of which `start` are done."""

    def __init__(self, total: int | None, start: int = 0, out: TextIO | None = None) -> None:
        self.total = total
        self.out = out or sys.stderr
        self.bar = self.out.isatty()
        self.every = max(1, -(-(total - start) // EVERY)) if total is not None else 10
        self.first = 0
        self.begin = self.last = time.monotonic()
        self.shown = False

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a step."""
        now, step = time.monotonic(), row["step"]
        if not self.first:
            self.first, self.begin = step, now
        text = self.text(row, now)
        if self.bar:
            width = shutil.get_terminal_size().columns
            self.out.write("\r" + text[: width - 1].ljust(width - 1))
            self.out.flush()
            self.shown = True
        elif (
            step == self.first
            or row.get("balance")
            or step == self.total
            or step % self.every == 0
            or now - self.last > PAUSE
        ):
            self.out.write(text + "\n")
            self.out.flush()
            self.last = now

    def text(self, row: Mapping[str, Any], now: float) -> str:
        """`step 20/200 [##...] loss 2.7069, 15,533 tokens/s, 0:41 to go, lr 3e-03, norm 0.72`."""
        step = row["step"]
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"step {step}{of}"]
        if self.total is not None and self.bar:
            full = 20 * step // self.total
            parts[0] += f" [{'#' * full}{'.' * (20 - full)}]"
        loss, norm = row["loss"], row["grad_norm"]
        parts.append("loss -" if loss is None else f"loss {loss:.4f}")
        parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
        if self.total is not None and step > self.first:
            each = (now - self.begin) / (step - self.first)
            parts.append(f"{clock(each * (self.total - step))} to go")
        parts.append(f"lr {row['lr']:.2e}")
        parts.append("skipped (fp16 overflow)" if row["skipped"] else f"norm {norm:.3g}")
        if row.get("balance"):
            parts.append(balance_text(row["balance"]))
        return " ".join(parts[:1]) + "  " + ", ".join(parts[1:])

    def close(self) -> None:
        """End the bar's line."""
        if self.shown:
            self.out.write("\n")
            self.out.flush()


class Stages:
    """Shows how far work has come that is done in stages: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        self.bar = self.out.isatty()
        self.shown = False

    def show(self, done: int, total: int, next_: str) -> None:
        """`done` of `total` stages lie behind, `next_` begins; with all behind, nothing does."""
        full = 20 * done // total
        text = f"{done}/{total} [{'#' * full}{'.' * (20 - full)}] {next_}"
        if self.bar:
            width = shutil.get_terminal_size().columns
            self.out.write("\r" + text[: width - 1].ljust(width - 1))
            self.shown = True
        elif done < total:
            self.out.write(f"{done + 1}/{total} {next_}\n")
        self.out.flush()

    def close(self) -> None:
        """End the bar's line."""
        if self.shown:
            self.out.write("\n")
            self.out.flush()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
