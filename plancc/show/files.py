"""Writing files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


class WriteError(Exception):
    """A file that was asked for cannot be written; the message says which and why."""


def write_whole(path: str | Path, parts: Iterable[str]) -> None:
    """Write text aside, then rename it to `path`; folders are made. WriteError if that cannot be."""
    path = Path(path)
    try:
        _write(path, parts)
    except OSError as problem:
        raise WriteError(f"cannot write {path}: {problem.strerror or problem}") from problem


def _write(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(number, "w", encoding="utf-8") as file:
            file.writelines(parts)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
