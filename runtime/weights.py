"""Where a rank's weights come from: safetensors files, read in slices.

Nothing is read before it is asked for, and no more than the slice asked for. What is wrong with a
checkpoint (missing, misshapen, truncated) is collected into one `WeightsError`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Ranges = tuple[tuple[tuple[int, int], ...], ...]
"""For each dim, the (low, high) pieces that are wanted, in the order in which to join them."""

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class WeightsError(Exception):
    """The weights are not what the program needs; carries every problem that was found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class WeightSource(Protocol):
    """Tensors by their fully qualified names, readable in slices."""

    def names(self) -> list[str]:
        """List all tensors, sorted."""

    def shape(self, fqn: str) -> tuple[int, ...]:
        """Return the whole tensor's shape; WeightsError if there is none of this name."""

    def dtype(self, fqn: str) -> torch.dtype:
        """Return the tensor's dtype; WeightsError if there is none of this name."""

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes, as a fresh contiguous tensor."""

    def check(self, table: Mapping[str, tuple[Sequence[int], torch.dtype | None]]) -> None:
        """Raise one WeightsError for all that `table` (name -> shape, dtype or None) misses."""


def whole(shape: Sequence[int]) -> Ranges:
    """Return the ranges of a whole tensor."""
    return tuple(((0, size),) for size in shape)


def find(source: WeightSource, fqns: Sequence[str]) -> str:
    """Return the first of a tied weight's names that the source has; WeightsError if none."""
    problems: list[str] = []
    for fqn in fqns:
        try:
            source.shape(fqn)
        except WeightsError as error:
            problems.extend(error.problems)
        else:
            return fqn
    raise WeightsError(problems)


def check_table(
    source: WeightSource, table: Mapping[str, tuple[Sequence[int], torch.dtype | None]]
) -> None:
    """Raise one WeightsError for all that the table (name -> shape, dtype or None) misses."""
    problems: list[str] = []
    for fqn, (shape, dtype) in table.items():
        try:
            found, kind = source.shape(fqn), source.dtype(fqn)
        except WeightsError as error:
            problems.extend(error.problems)
            continue
        if found != tuple(shape):
            problems.append(f"weight `{fqn}` has shape {list(found)}, not {list(shape)}")
        if dtype is not None and kind != dtype:
            problems.append(f"weight `{fqn}` has dtype {_name(kind)}, not {_name(dtype)}")
    if problems:
        raise WeightsError(problems)


def check_ranges(fqn: str, shape: Sequence[int], ranges: Ranges) -> None:
    """Raise WeightsError unless the ranges lie within the shape."""
    inside = len(ranges) == len(shape) and all(
        0 <= low <= high <= size
        for size, pieces in zip(shape, ranges, strict=True)
        for low, high in pieces
    )
    if not inside:
        raise WeightsError([f"weight `{fqn}` has shape {list(shape)}, which lacks {ranges}"])


def join_pieces(ranges: Ranges, dtype: torch.dtype, read: Any) -> Tensor:
    """Assemble a slice from blocks; `read` takes one non-empty (low, high) for each dim."""
    size = [sum(high - low for low, high in pieces) for pieces in ranges]
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    filled = [[piece for piece in pieces if piece[0] < piece[1]] for pieces in ranges]
    if all(len(pieces) == 1 for pieces in filled):
        # a block may share the storage of its file's handle: what is read is the caller's own
        return read(tuple(pieces[0] for pieces in filled)).clone(
            memory_format=torch.contiguous_format
        )
    out = torch.empty(size, dtype=dtype)
    spots = [_spots(pieces) for pieces in filled]
    for block, spot in zip(product(*filled), product(*spots), strict=True):
        out[tuple(slice(*s) for s in spot)] = read(block)
    return out


def _spots(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where each piece lies once they are joined."""
    spots, at = [], 0
    for low, high in pieces:
        spots.append((at, at + high - low))
        at += high - low
    return spots


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class SafetensorsWeights:
    """Tensors of safetensors files: one file, several, or a folder (with an index or not)."""

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        """Find the files and their tensors; WeightsError for files that are missing or corrupt."""
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self._files: dict[str, Any] = {}
        self._problems: list[str] = []
        for path in given:
            self._add(Path(path))
        if self._problems:
            raise WeightsError(self._problems)

    def names(self) -> list[str]:
        """List all tensors, sorted."""
        return sorted(self._files)

    def shape(self, fqn: str) -> tuple[int, ...]:
        """Return the whole tensor's shape; WeightsError if there is none of this name."""
        return tuple(self._slice(fqn).get_shape())

    def dtype(self, fqn: str) -> torch.dtype:
        """Return the tensor's dtype; WeightsError if there is none of this name."""
        name = self._slice(fqn).get_dtype()
        if name not in DTYPES:
            raise WeightsError([f"weight `{fqn}` has dtype {name}, which is not supported"])
        return DTYPES[name]

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes, as a fresh contiguous tensor."""
        found = self._slice(fqn)
        check_ranges(fqn, found.get_shape(), ranges)
        if not ranges:
            return self._files[fqn].get_tensor(fqn).clone()
        return join_pieces(
            ranges, self.dtype(fqn), lambda block: found[tuple(slice(*b) for b in block)]
        )

    def check(self, table: Mapping[str, tuple[Sequence[int], torch.dtype | None]]) -> None:
        """Raise one WeightsError for all that `table` (name -> shape, dtype or None) misses."""
        check_table(self, table)

    def _slice(self, fqn: str) -> Any:
        if fqn not in self._files:
            close = difflib.get_close_matches(fqn, self._files, n=1, cutoff=0.8)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise WeightsError([f"weight `{fqn}` is missing{hint}"])
        return self._files[fqn].get_slice(fqn)

    def _add(self, path: Path) -> None:
        if path.name.endswith(".index.json"):
            self._add_index(path)
        elif not path.is_dir():
            self._open(path)
        elif (path / INDEX).is_file():
            self._add_index(path / INDEX)
        elif files := sorted(path.glob("*.safetensors")):
            for file in files:
                self._open(file)
        else:
            self._problems.append(f"no safetensors file in folder `{path}`")

    def _add_index(self, path: Path) -> None:
        try:
            places = json.loads(path.read_text())["weight_map"]
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            self._problems.append(f"index `{path}` cannot be read: {error!r}")
            return
        for name in files:
            self._open(path.parent / name)
        if not self._problems:
            self._problems.extend(
                f"weight `{fqn}` is in the index `{path}` but not in `{name}`"
                for fqn, name in places.items()
                if fqn not in self._files
            )

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            self._problems.append(f"weights file `{path}` does not exist")
            return
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            self._problems.append(f"weights file `{path}` is truncated or corrupt: {error}")
            return
        for fqn in file.keys():  # noqa: SIM118 (a safe_open is not a mapping)
            if fqn in self._files:
                self._problems.append(f"weight `{fqn}` is in several files, `{path}` among them")
            self._files[fqn] = file
