"""The JSON lines of a run: one object a step, flushed; a resumed run goes on without doubled steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A log that only one rank writes. Raises OSError."""

    def __init__(self, path: Path, after: int) -> None:
        """Open the log; of one that is there, keep the steps up to `after`."""
        if path.exists():
            keep_until(path, after)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step."""
        self.file.write(line(row))
        self.file.flush()

    def close(self) -> None:
        """Write all to the disk."""
        os.fsync(self.file.fileno())
        self.file.close()


def line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; what is not finite becomes null."""
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def keep_until(path: Path, step: int) -> None:
    """Drop the rows after a step, and a last one that was cut off; whole or not at all."""
    kept = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
            kept.append(text + "\n")
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text("".join(kept), "utf-8")
    os.replace(aside, path)
