"""The folder that holds the checkpoints of a run, and the steps that make changes to it atomic.

`step-00000200` is a whole checkpoint, `latest` names the one to resume from. Every other name
(`.partial`, `.old`, `.deleted`) is a save or removal under way, or what a killed one left.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from plancc.runtime.checkpoint.files import flush_folder, write_text

MANIFEST = "checkpoint.json"
STEP = re.compile(r"step-\d{8,}")


class Shelf:
    """A folder of checkpoints. Its methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, number: int, suffix: str = "") -> Path:
        """Return the folder of a step: whole, or with a suffix such as ".partial"."""
        return self.path / f"step-{number:08d}{suffix}"

    def steps(self) -> list[Path]:
        """List the whole checkpoints, those saved last first."""
        found = [
            (path.stat().st_mtime_ns, path.parent)
            for path in self.path.glob(f"step-*/{MANIFEST}")
            if STEP.fullmatch(path.parent.name) or self._stands_in(path.parent)
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def unfinished(self) -> list[Path]:
        """List what saves left that never ended."""
        return sorted(self._leftovers(".partial"))

    def latest(self) -> Path | None:
        """Return the folder that `latest` names, there or not; None if there is no `latest`.

        Raises ValueError for a text that names no step.
        """
        try:
            text = (self.path / "latest").read_text("utf-8").strip()
        except FileNotFoundError:
            return None
        if not STEP.fullmatch(text):
            raise ValueError(f"`{self.path / 'latest'}` says {text[:40]!r}, which names no step")
        path = self.path / text
        old = path.with_name(f"{text}.old")
        return old if old.is_dir() and not path.exists() else path

    def tidy(self) -> None:
        """Make the folder if need be, and end what a killed save or removal left behind."""
        self.path.mkdir(parents=True, exist_ok=True)
        for old in self._leftovers(".old"):
            if self._stands_in(old):
                old.rename(old.with_suffix(""))
            else:
                shutil.rmtree(old)
        for path in (*self._leftovers(".partial"), *self._leftovers(".deleted")):
            shutil.rmtree(path)
        (self.path / "latest.partial").unlink(missing_ok=True)

    def commit(self, number: int) -> None:
        """Turn `step-N.partial` into `step-N` and let `latest` name it; all of this or nothing."""
        aside, final, old = (self.step(number, suffix) for suffix in (".partial", "", ".old"))
        flush_folder(aside)
        write_text(self.path / "latest.partial", f"{final.name}\n")
        try:
            if final.exists():
                final.rename(old)
            aside.rename(final)
            flush_folder(self.path)
            os.replace(self.path / "latest.partial", self.path / "latest")
        except OSError:
            if not aside.exists() and final.exists():
                final.rename(aside)
            if old.exists() and not final.exists():
                old.rename(final)
            raise

    def prune(self, number: int, keep: int) -> tuple[list[str], list[str]]:
        """Remove what step N replaced and all but the last `keep` steps; never step N itself.

        Returns the names of the steps removed, and what could not be done.
        """
        removed: list[str] = []
        problems: list[str] = []
        try:
            others = [path for path in self.steps() if path != self.step(number)]
            for path in (self.step(number, ".old"), *others[keep - 1 :]):
                if path.exists():
                    gone = path.with_name(f"{path.name}.deleted")
                    path.rename(gone)
                    removed.append(path.name)
                    shutil.rmtree(gone)
            flush_folder(self.path)
        except OSError as error:
            problems.append(f"old checkpoints in `{self.path}` cannot be removed: {error}")
        return removed, problems

    def discard(self, number: int) -> None:
        """Remove a save that failed, as far as that is possible."""
        shutil.rmtree(self.step(number, ".partial"), ignore_errors=True)
        try:
            (self.path / "latest.partial").unlink(missing_ok=True)
        except OSError:
            return

    def _stands_in(self, path: Path) -> bool:
        """Say whether a replaced step is all there is of it: its save was killed."""
        return path.suffix == ".old" and not path.with_suffix("").exists()

    def _leftovers(self, suffix: str) -> list[Path]:
        found = self.path.glob(f"step-*{suffix}")
        return [path for path in found if STEP.fullmatch(path.name.split(".")[0])]
