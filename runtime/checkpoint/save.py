"""Saving: every rank writes its pieces aside, rank 0 makes a checkpoint of them, or nothing.

Ranks agree through files alone: what a rank did, and what came of it, lies in `step-N.partial`
before each barrier. Works for threads of one process and for processes that share a file system.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plancc.dsl.errors import Bug
from plancc.runtime.checkpoint.files import Entry, flush_folder, write_safetensors, write_text
from plancc.runtime.checkpoint.manifest import Manifest, Row, form, has_id, merge, plain
from plancc.runtime.checkpoint.pieces import (
    CODES,
    CheckpointError,
    Piece,
    check_piece,
    is_box,
    same_bits,
)
from plancc.runtime.checkpoint.read import Checkpoint
from plancc.runtime.checkpoint.shelf import MANIFEST, Shelf


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was saved. Ranks but 0 know `path` and `step` only.

    `size` in bytes; `removed` names older steps; `problems` says which could not be removed.
    """

    path: Path
    step: int
    size: int = 0
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def save_checkpoint(
    folder: str | Path,
    step: int,
    pieces: Iterable[Piece],
    state: Mapping[str, Any],
    *,
    rank: int,
    world: int,
    barrier: Callable[[], None],
    keep: int = 3,
) -> Saved:
    """Save the pieces of all ranks as `folder/step-N`, whole or not at all.

    Every rank calls it, with its own pieces; `state` counts on rank 0 only, and `barrier` waits
    for all ranks. If any rank fails, all raise: CheckpointError, or Bug for pieces that do not
    make up their tensors. The checkpoints saved before and `latest` are then as they were.
    """
    if step < 0 or keep < 1 or not 0 <= rank < world:
        raise Bug(f"no checkpoint of step {step} on rank {rank} of {world}, {keep} kept")
    save = _Save(Shelf(Path(folder)), step, rank, world, keep)
    save.attempt(save.begin, state, when=rank == 0)
    barrier()
    save.attempt(save.write, pieces)
    barrier()
    save.attempt(save.commit, state, when=rank == 0)
    save.attempt(save.explain, when=rank == 0 and save.trouble is not None, again=True)
    barrier()
    save.attempt(save.confirm, when=rank != 0)
    barrier()
    if save.trouble is not None:
        if rank == 0:
            save.shelf.discard(step)
        raise save.trouble
    return save.saved


class _Save:
    """One rank's part of one save; `trouble` is the first thing that went wrong here."""

    def __init__(self, shelf: Shelf, step: int, rank: int, world: int, keep: int) -> None:
        self.shelf = shelf
        self.step = step
        self.rank = rank
        self.world = world
        self.keep = keep
        self.aside = shelf.step(step, ".partial")
        self.id = ""
        self.trouble: Exception | None = None
        self.saved = Saved(shelf.step(step), step)

    def attempt(
        self, act: Callable[..., None], *given: Any, when: bool = True, again: bool = False
    ) -> None:
        """Act unless something went wrong before; keep what goes wrong now for later."""
        if not when or (self.trouble is not None and not again):
            return
        try:
            act(*given)
        except (CheckpointError, Bug) as error:
            self.trouble = self.trouble or error
        except Exception as error:
            text = f"rank {self.rank} could not save step {self.step}: {_say(error)}"
            wrapped = CheckpointError([text])
            wrapped.__cause__ = error
            self.trouble = self.trouble or wrapped

    def begin(self, state: Mapping[str, Any]) -> None:
        """Make the folder in which all ranks write; clear what killed saves left."""
        plain(dict(state))
        self.shelf.tidy()
        self.aside.mkdir()
        self.id = uuid.uuid4().hex
        (self.aside / "save.json").write_text(json.dumps({"id": self.id}))

    def write(self, pieces: Iterable[Piece]) -> None:
        """Write this rank's data and its table, or a note of why that failed."""
        if self.rank:
            self.id = self._read_id()
        name = f"rank-{self.rank:05d}"
        try:
            table = _write_pieces(self.aside / f"{name}.safetensors", list(pieces))
            (self.aside / f"{name}.json").write_text(json.dumps(table))
        except Exception as error:
            self._leave_note(name, error)
            raise

    def _read_id(self) -> str:
        path = self.aside / "save.json"
        try:
            return str(json.loads(path.read_text())["id"])
        except (FileNotFoundError, NotADirectoryError):
            text = (
                f"rank {self.rank} does not see `{path}`: either rank 0 could not begin the save, "
                "or the ranks do not share a file system here"
            )
            raise CheckpointError([text]) from None

    def _leave_note(self, name: str, error: Exception) -> None:
        """Make room on the disk, then tell rank 0; without a note it misses the table."""
        note = {"bug": isinstance(error, Bug), "text": _say(error)}
        try:
            for suffix in ("safetensors", "json"):
                (self.aside / f"{name}.{suffix}").unlink(missing_ok=True)
            (self.aside / f"{name}.failed").write_text(json.dumps(note))
        except OSError:
            return

    def commit(self, state: Mapping[str, Any]) -> None:
        """Check what the ranks wrote, make a checkpoint of it, and remove old ones."""
        tables = self._tables()
        files = {table["file"]: (table["size"], table["sha256"]) for table in tables}
        rows, doubled = merge(tables)
        check_equal(self.aside, rows, doubled)
        manifest = Manifest(self.id, self.step, dict(state), files, rows)
        for path in (self.aside / "save.json", *self.aside.glob("rank-*.json")):
            path.unlink()
        write_text(self.aside / MANIFEST, form(manifest))
        self.shelf.commit(self.step)
        removed, problems = self.shelf.prune(self.step, self.keep)
        size = sum(size for size, _ in files.values())
        path = self.shelf.step(self.step)
        self.saved = Saved(path, self.step, size, tuple(removed), tuple(problems))

    def _tables(self) -> list[dict[str, Any]]:
        """Read every rank's table; raise what the ranks that failed have to say."""
        tables, bugs, failed = [], [], []
        for rank in range(self.world):
            name = f"rank-{rank:05d}"
            if note := _read_note(self.aside / f"{name}.failed"):
                (bugs if note["bug"] else failed).append(self._line(rank, note["text"]))
            elif table := _read_note(self.aside / f"{name}.json"):
                tables.append(table)
            else:
                failed.append(self._line(rank, "it left nothing behind to say why"))
        if bugs:
            raise Bug("\n".join(bugs + failed))
        if failed:
            raise CheckpointError(failed)
        return tables

    def _line(self, rank: int, text: str) -> str:
        return f"rank {rank} could not save step {self.step}: {text}"

    def explain(self) -> None:
        """Tell the other ranks what went wrong."""
        for path in self.aside.glob("rank-*.safetensors"):
            path.unlink()
        note = {
            "id": self.id,
            "bug": isinstance(self.trouble, Bug),
            "problems": str(self.trouble).split("\n"),
        }
        (self.aside / "failed.json").write_text(json.dumps(note))

    def confirm(self) -> None:
        """Raise unless rank 0 made a checkpoint of this very save."""
        path = self.saved.path / MANIFEST
        if path.exists() and has_id(path, self.id):
            return
        said = _read_note(self.aside / "failed.json")
        if said.get("id") != self.id:
            text = "rank 0 could not finish, and left nothing behind to say why"
            raise CheckpointError([self._line(self.rank, text)])
        raise Bug("\n".join(said["problems"])) if said["bug"] else CheckpointError(said["problems"])


def _read_note(path: Path) -> dict[str, Any]:
    """Read a JSON object that a rank left; {} if there is none, or only a part of it."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _say(error: Exception) -> str:
    known = isinstance(error, (OSError, CheckpointError, Bug))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _write_pieces(path: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Write one rank's data file; return its table for rank 0. Pieces without elements need none.

    The header also says in torch.distributed.checkpoint's words where pieces of one block lie.
    """
    rows, entries, offsets = [], {}, {}
    for piece in pieces:
        check_piece(piece)
        key = None
        if piece.tensor.numel():
            key, number = piece.name, 0
            while key in entries:
                key, number = f"{piece.name}#{number + 1}", number + 1
            shape = tuple(piece.tensor.shape)
            entries[key] = Entry(key, shape, piece.tensor.dtype, lambda p=piece: p.tensor)
            if key == piece.name and is_box(piece.ranges):
                offsets[key] = {"saved_offsets": [low for ((low, _),) in piece.ranges]}
        rows.append([piece.name, key, piece.shape, CODES[piece.tensor.dtype], piece.ranges])
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    size, digest = write_safetensors(path, list(entries.values()), metadata)
    flush_folder(path.parent)
    return {"file": path.name, "size": size, "sha256": digest, "pieces": rows}


def check_equal(folder: Path, rows: Mapping[str, Row], names: Sequence[str]) -> None:
    """Raise CheckpointError unless the pieces of these tensors agree bit by bit where they overlap.

    Each piece is compared with what all of them together make of its place.
    """
    source = Checkpoint(folder, Manifest("", 0, {}, {}, rows))
    problems = []
    for name in names:
        row = rows[name]
        for piece in row.pieces:
            alone = source.read_from(row, [piece], piece.ranges)
            if not same_bits(alone, source.read(name, piece.ranges)):
                problems.append(f"`{name}` in `{piece.file}` differs from other ranks' values")
    if problems:
        raise CheckpointError(problems)
