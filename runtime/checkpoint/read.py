"""Resuming: any slice of any tensor, whatever pieces the ranks that saved it held."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.checkpoint.files import hash_file
from plancc.runtime.checkpoint.manifest import Manifest, Row, Stored, parse
from plancc.runtime.checkpoint.pieces import CheckpointError, overlaps
from plancc.runtime.checkpoint.shelf import MANIFEST, STEP, Shelf
from plancc.runtime.weights import Ranges, check_ranges, check_table, join_pieces

Table = Mapping[str, "tuple[Sequence[int], torch.dtype | None]"]
HINTS = 20  # missing tensors for which a like name is looked for


class Checkpoint:
    """A checkpoint as a source of weights (`WeightSource`), with its step and the run's state."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take over what was read; `open` checks the files as well."""
        self.folder = folder
        self.manifest = manifest
        self._files: dict[str, Any] = {}
        self._distinct: dict[str, list[Stored]] = {}

    @classmethod
    def open(
        cls, folder: str | Path, *, verify: bool = True, share: tuple[int, int] = (0, 1)
    ) -> Checkpoint:
        """Open one step's folder, or the latest step in a folder of checkpoints.

        `verify` compares every file with its SHA-256; share=(rank, world) only this rank's part
        of them. Raises one CheckpointError for all that is wrong, with the step to resume from
        instead.
        """
        path = Path(folder)
        step = None
        try:
            step = choose(path)
            return cls._load(step, verify, share)
        except CheckpointError as error:
            home = path if step is None else step.parent
            advice = cls._advice(Shelf(home), step or path / "latest")
            raise CheckpointError([*error.problems, *advice]) from None

    @classmethod
    def _load(cls, step: Path, verify: bool, share: tuple[int, int]) -> Checkpoint:
        manifest = parse(step / MANIFEST)
        check_files(step, manifest, verify, share)
        return cls(step, manifest)

    @classmethod
    def _advice(cls, shelf: Shelf, bad: Path) -> list[str]:
        """Say which other step of the folder is good, if there are others."""
        others = [path for path in shelf.steps() if path != bad] if shelf.path.is_dir() else []
        for path in others:
            try:
                cls._load(path, True, (0, 1))
            except CheckpointError:
                continue
            return [f"`{path}` is good: name this folder to resume from it"]
        return [f"none of the other checkpoints in `{shelf.path}` is good"] if others else []

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return self.manifest.step

    @property
    def state(self) -> Mapping[str, Any]:
        """What rank 0 gave along: plain JSON."""
        return self.manifest.state

    def names(self) -> list[str]:
        """List all tensors, sorted."""
        return sorted(self.manifest.tensors)

    def shape(self, fqn: str) -> tuple[int, ...]:
        """Return the whole tensor's shape; CheckpointError if there is none of this name."""
        return self._row(fqn).shape

    def dtype(self, fqn: str) -> torch.dtype:
        """Return the tensor's dtype; CheckpointError if there is none of this name."""
        return self._row(fqn).dtype

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes, as a fresh contiguous tensor."""
        row = self._row(fqn)
        check_ranges(fqn, row.shape, ranges)
        if fqn not in self._distinct:
            self._distinct[fqn] = list({p.ranges: p for p in reversed(row.pieces)}.values())
        return self.read_from(row, self._distinct[fqn], ranges)

    def read_from(self, row: Row, pieces: Sequence[Stored], ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes from these pieces; the last one has the say."""
        return join_pieces(ranges, row.dtype, lambda block: self._block(row, pieces, block))

    def check(self, table: Table) -> None:
        """Raise one WeightsError for all that `table` (name -> shape, dtype or None) misses."""
        check_table(self, table)

    def check_against(self, table: Table) -> None:
        """Raise one CheckpointError unless the tensors are those of `table`, all and no others."""
        problems = compare(self, table)
        if problems:
            raise CheckpointError([f"`{self.folder}` does not fit:", *problems])

    def under(self, prefix: str) -> Part:
        """Return the tensors whose names begin with `prefix` ("model/"), named without it."""
        return Part(self, prefix)

    def _row(self, fqn: str) -> Row:
        if fqn not in self.manifest.tensors:
            hint = _like(fqn, self.manifest.tensors)
            raise CheckpointError([f"`{fqn}` is not in the checkpoint `{self.folder}`{hint}"])
        return self.manifest.tensors[fqn]

    def _block(
        self, row: Row, pieces: Sequence[Stored], block: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Read one (low, high) for each dim from the pieces that have some of it."""
        out = torch.empty([high - low for low, high in block], dtype=row.dtype)
        for piece in pieces:
            spots = [
                list(overlaps(held, low, high))
                for held, (low, high) in zip(piece.ranges, block, strict=True)
            ]
            if all(spots):
                self._copy(out, piece, spots)
        return out

    def _copy(
        self, out: Tensor, piece: Stored, spots: Sequence[list[tuple[int, int, int]]]
    ) -> None:
        """Copy where a piece meets a block: (start, stop, start in `out`), several for each dim."""
        try:
            file = self._open(piece.file)
            if not spots:
                out.copy_(file.get_tensor(piece.key))
                return
            first = [min(start for start, _, _ in row) for row in spots]
            last = [max(stop for _, stop, _ in row) for row in spots]
            found = file.get_slice(piece.key)[tuple(map(slice, first, last))]
        except (OSError, ValueError, _safetensors_error()) as error:
            text = f"`{self.folder / piece.file}` cannot be read: {error}"
            raise CheckpointError([text]) from error
        blocks = [(out, found)]
        for dim, row in enumerate(spots):
            blocks = [
                (
                    to.narrow(dim, at, stop - start),
                    source.narrow(dim, start - first[dim], stop - start),
                )
                for to, source in blocks
                for start, stop, at in row
            ]
        for to, source in blocks:
            to.copy_(source)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            from safetensors import safe_open

            self._files[name] = safe_open(self.folder / name, framework="pt")
        return self._files[name]


class Part:
    """The tensors of a checkpoint under a prefix, as a source of weights (`WeightSource`)."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix

    def names(self) -> list[str]:
        """List all tensors, sorted, without the prefix."""
        at = len(self._prefix)
        return [name[at:] for name in self._checkpoint.names() if name.startswith(self._prefix)]

    def shape(self, fqn: str) -> tuple[int, ...]:
        """Return the whole tensor's shape; CheckpointError if there is none of this name."""
        return self._checkpoint.shape(self._prefix + fqn)

    def dtype(self, fqn: str) -> torch.dtype:
        """Return the tensor's dtype; CheckpointError if there is none of this name."""
        return self._checkpoint.dtype(self._prefix + fqn)

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes, as a fresh contiguous tensor."""
        return self._checkpoint.read(self._prefix + fqn, ranges)

    def check(self, table: Table) -> None:
        """Raise one WeightsError for all that `table` (name -> shape, dtype or None) misses."""
        check_table(self, table)


def choose(path: Path) -> Path:
    """Return the step's folder that `path` means; CheckpointError if there is none."""
    if path.is_file():
        raise CheckpointError([f"`{path}` is a file, not a folder of checkpoints"])
    if not path.is_dir():
        raise CheckpointError([f"the checkpoint folder `{path}` does not exist"])
    if (path / MANIFEST).exists() or STEP.fullmatch(path.name):
        return path
    shelf = Shelf(path)
    try:
        latest = shelf.latest()
    except (OSError, ValueError) as error:
        raise CheckpointError([str(error)]) from None
    if latest is not None:
        if not latest.is_dir():
            text = f"`{path / 'latest'}` names `{latest.name}`, which is not there"
            raise CheckpointError([text])
        return latest
    if steps := shelf.steps():
        return steps[0]
    begun = shelf.unfinished()
    more = f", only `{begun[-1].name}`, a save that never ended" if begun else ""
    raise CheckpointError([f"there is no checkpoint in `{path}`{more}"])


def check_files(step: Path, manifest: Manifest, verify: bool, share: tuple[int, int]) -> None:
    """Raise one CheckpointError for all files that are missing, cut short or changed."""
    problems, good = [], []
    for name, (size, digest) in manifest.files.items():
        path = step / name
        if Path(name).name != name or not path.is_file():
            problems.append(f"`{path}` is missing")
        elif (found := path.stat().st_size) != size:
            problems.append(f"`{path}` has {found} bytes instead of {size}")
        else:
            good.append((path, digest))
    mine = good[share[0] :: share[1]] if verify else []
    with ThreadPoolExecutor(max(1, min(8, len(mine), os.cpu_count() or 1))) as pool:
        try:
            found = pool.map(hash_file, [path for path, _ in mine])
            for (path, digest), actual in zip(mine, found, strict=True):
                if actual != digest:
                    problems.append(f"`{path}` was damaged: its SHA-256 is not the one it had")
        except OSError as error:
            problems.append(f"a data file cannot be read: {error}")
    if problems:
        raise CheckpointError(problems)


def compare(checkpoint: Checkpoint, table: Table) -> list[str]:
    """List how the tensors of a checkpoint differ from those of `table`."""
    held = checkpoint.manifest.tensors
    missing = [name for name in table if name not in held]
    unknown = [name for name in held if name not in table]
    if table and len(missing) == len(table):
        text = f"it has none of the {len(table)} tensors that are needed, such as `{missing[0]}`"
        more = f", but {len(unknown)} others, such as `{unknown[0]}`" if unknown else ""
        return [f"{text}{more}: it is of another model"]
    problems = []
    for i, name in enumerate(missing):
        hint = _like(name, unknown) if i < HINTS else ""
        problems.append(f"`{name}` is needed, but not in the checkpoint{hint}")
    problems += [f"`{name}` is in the checkpoint, but not needed" for name in unknown]
    for name, (shape, dtype) in table.items():
        if name not in held:
            continue
        row = held[name]
        if row.shape != tuple(shape):
            problems.append(f"`{name}` has shape {list(row.shape)}, not {list(shape)}")
        if dtype is not None and row.dtype != dtype:
            problems.append(f"`{name}` is {_short(row.dtype)}, not {_short(dtype)}")
    return problems


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _like(name: str, others: Any) -> str:
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f"; did you mean `{close[0]}`?" if close else ""


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
