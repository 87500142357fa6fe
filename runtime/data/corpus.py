"""Paths, folders and globs in, the checked list of data files out."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plancc.runtime.data.files import GZIP, DataError, DataFile, read_records, reading, text_of

LINES = (".json", ".jsonl", ".ndjson")
TEXTS = (".txt", ".text", ".md", ".rst")
_EDGE = 64 << 10
"""Bytes at the head and at the tail of a file that its digest covers."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The data files in their one order; `ignored` are files of folders that have no data suffix.

    The order depends on names and contents alone, so that another machine that keeps the same
    files in another place sees the same data.
    """

    files: tuple[DataFile, ...]
    ignored: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    def identity(self) -> list[list[str | int]]:
        """Name, bytes and digest of every file: what a resumed run must find again."""
        return [file.identity for file in self.files]


def open_corpus(paths: Sequence[str | Path]) -> Corpus:
    """Find and check data files: files, folders (searched to the bottom) and globs.

    A file named by itself may have any suffix: .json, .jsonl and .ndjson hold one object with
    `text` per line, all else is plain text, either way with .gz after it where packed. Folders
    give their files with known suffixes; files and folders whose names start with a dot are none
    of theirs. The head of each file is read; DataError for what is missing, empty or unreadable.
    """
    found: dict[Path, Path] = {}
    ignored: list[Path] = []
    for path in expand(paths):
        members = [path]
        if path.is_dir():
            inside = list(visible_files(path))
            members = [file for file in inside if known(file)]
            ignored += [file for file in inside if not known(file)]
            if not members:
                names = ", ".join((*LINES, *TEXTS))
                raise DataError(f"{path}: no data file in the folder ({names}, each also .gz)")
        for file in members:
            place = file.resolve()
            if place in found:
                raise DataError(f"{file}: given twice")
            found[place] = file
    if not found:
        raise DataError("no data file was given")
    files = [examine(path) for path in found.values()]
    files.sort(key=lambda file: (file.path.name, file.size, file.digest, str(file.path)))
    return Corpus(tuple(files), tuple(sorted(ignored)))


def expand(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Yield what exists by its name, else what a glob finds; DataError if that is nothing."""
    for given in paths:
        path = Path(given)
        if path.exists():
            yield path
            continue
        names = sorted(glob.glob(str(given), recursive=True)) if glob.has_magic(str(given)) else []
        if not names:
            raise DataError(f"{given}: no such file")
        yield from map(Path, names)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, none with a dot before its name or its folder's."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in inner):
            yield path


def suffix(path: Path) -> str:
    """Return the suffix that tells the form: the one before .gz where there is one."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def known(path: Path) -> bool:
    """Whether a file in a folder is data."""
    return suffix(path) in (*LINES, *TEXTS)


def examine(path: Path) -> DataFile:
    """Describe a file and read its first record, so that what is no data fails before a run."""
    with reading(path, 1), open(path, "rb") as handle:
        head = handle.read(_EDGE)
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _EDGE))
        tail = handle.read()
    if not head:
        raise DataError(f"{path}: the file is empty")
    compressed = head.startswith(GZIP)
    if path.name.lower().endswith(".gz") and not compressed:
        raise DataError(f"{path}: not a gzip file, though its name says so")
    digest = hashlib.sha256(head + tail).hexdigest()[:16]
    file = DataFile(path, suffix(path) in LINES, compressed, size, digest)
    first = next(read_records(file, _EDGE), None)
    if first is None:
        raise DataError(f"{path}: the file is empty once unpacked")
    text_of(first)
    return file
