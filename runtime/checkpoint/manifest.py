"""`checkpoint.json`: which tensors a checkpoint has, in which pieces, in which files; sealed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plancc.dsl.errors import Bug
from plancc.runtime.checkpoint.pieces import CODES, CheckpointError, cover
from plancc.runtime.weights import DTYPES, Ranges

SCHEMA = "plancc/checkpoint@1"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a piece lies: under `key` in `file`."""

    file: str
    key: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor of a checkpoint and its pieces, those of low ranks first."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `checkpoint.json` says; `files` has the size and SHA-256 of each data file."""

    id: str
    step: int
    state: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]
    tensors: Mapping[str, Row]


def merge(tables: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Row], list[str]]:
    """Put the tables of all ranks together; also list the names of which pieces overlap.

    Raises Bug where ranks disagree about a shape or dtype, and where pieces leave a hole.
    """
    first: dict[str, tuple[int, Any, Any]] = {}
    pieces: dict[str, list[Stored]] = {}
    for rank, table in enumerate(tables):
        for name, key, shape, code, ranges in table["pieces"]:
            before, *known = first.setdefault(name, (rank, shape, code))
            if known != [shape, code]:
                text = f"{known[1]} {known[0]} on rank {before} and {code} {shape} on rank {rank}"
                raise Bug(f"`{name}` is {text}: it cannot be saved as one tensor")
            stored = pieces.setdefault(name, [])
            if key is not None:
                stored.append(Stored(table["file"], key, as_ranges(ranges)))
    rows, doubled = {}, []
    for name, (_, shape, code) in sorted(first.items()):
        hole, twice = cover(shape, [piece.ranges for piece in pieces[name]])
        if hole is not None:
            raise Bug(f"no rank saves `{name}` of shape {shape} at {_text(hole)}")
        if twice:
            doubled.append(name)
        rows[name] = Row(tuple(shape), DTYPES[code], tuple(pieces[name]))
    return rows, doubled


def _text(block: Sequence[tuple[int, int]]) -> str:
    return "[" + ", ".join(f"{low}:{high}" for low, high in block) + "]"


def as_ranges(rows: Sequence[Sequence[Sequence[int]]]) -> Ranges:
    """Return ranges that were read from JSON."""
    return tuple(tuple((low, high) for low, high in row) for row in rows)


def form(manifest: Manifest) -> str:
    """Return the text of `checkpoint.json`: a line for each tensor and file, sealed."""
    tensors = {
        name: {
            "dtype": CODES[row.dtype],
            "shape": row.shape,
            "pieces": [{"file": p.file, "key": p.key, "ranges": p.ranges} for p in row.pieces],
        }
        for name, row in manifest.tensors.items()
    }
    files = {
        name: {"size": size, "sha256": digest} for name, (size, digest) in manifest.files.items()
    }
    body = {
        "schema": SCHEMA,
        "id": manifest.id,
        "step": manifest.step,
        "state": manifest.state,
        "files": files,
        "tensors": tensors,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(body[key])}" for key in ("schema", "id", "step")]
    lines += [f' "seal": "{_seal(body)}"', f' "state": {json.dumps(manifest.state)}']
    lines += [_block("files", files), _block("tensors", tensors)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(key: str, rows: Mapping[str, Any]) -> str:
    inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f' "{key}": {{\n{inner}\n }}' if rows else f' "{key}": {{}}'


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def has_id(path: Path, name: str) -> bool:
    """Say whether this `checkpoint.json` is of the save called `name`. Raises OSError."""
    with open(path, "rb") as file:
        return f'"id": "{name}"'.encode() in file.read(200)


def parse(path: Path) -> Manifest:
    """Read a `checkpoint.json`; CheckpointError if it is not one, or was changed."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        text = f"`{path.parent}` is not a checkpoint: it has no {path.name}"
        raise CheckpointError([text]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError([f"`{path}` cannot be read: {error}"]) from None
    if not isinstance(body, dict) or not str(body.get("schema")).startswith("plancc/checkpoint@"):
        raise CheckpointError([f"`{path}` is not of a plancc checkpoint"])
    if body["schema"] != SCHEMA:
        text = f"`{path}` has schema {body['schema']}, this plancc reads {SCHEMA}"
        raise CheckpointError([text])
    if body.pop("seal", None) != _seal(body):
        raise CheckpointError([f"`{path}` was changed after it was written"])
    tensors = {
        name: Row(
            tuple(row["shape"]),
            DTYPES[row["dtype"]],
            tuple(Stored(p["file"], p["key"], as_ranges(p["ranges"])) for p in row["pieces"]),
        )
        for name, row in body["tensors"].items()
    }
    files = {name: (row["size"], row["sha256"]) for name, row in body["files"].items()}
    return Manifest(body["id"], body["step"], body["state"], files, tensors)


def plain(value: Any, path: str = "state") -> None:
    """Raise CheckpointError unless JSON gives the value back as it is; names the first culprit."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError([f"{path} has the key {key!r}, which is not a string"])
            plain(item, f"{path}[{key!r}]")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            plain(item, f"{path}[{i}]")
    elif type(value) is float and not math.isfinite(value):
        raise CheckpointError([f"{path} is {value}, which JSON does not have"])
    elif type(value) not in (str, int, float, bool, type(None)):
        text = f"{path} is a {type(value).__name__}, which JSON does not give back as it is"
        raise CheckpointError([text])
