"""One data file: its form, its records as raw bytes, and the text of a record.

A record is one line of a JSON-lines file, or one piece of a plain text: both can be found, counted
and measured without being decoded, so that a rank pays only for the records of its own rows.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

GZIP = b"\x1f\x8b"
LONGEST_LINE = 64 << 20
"""Bytes of the longest JSON line: what a rank may have to hold at once."""
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"\n(?:[ \t\r]*\n)+")


class DataError(Exception):
    """The training data cannot be used: the user's side. Names the file and the line."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file as found: `lines` of JSON or plain text, gzip or not; `digest` of head and tail."""

    path: Path
    lines: bool
    compressed: bool
    size: int
    digest: str

    @property
    def identity(self) -> list[str | int]:
        """What a resumed run compares: name, bytes on disk, digest."""
        return [self.path.name, self.size, self.digest]


class Record(NamedTuple):
    """Raw bytes of one document, with where they start: line from 1, offset after unpacking."""

    file: DataFile
    line: int
    offset: int
    raw: bytes

    @property
    def place(self) -> str:
        """`file:line` of the record's start."""
        return f"{self.file.path}:{self.line}"


def read_records(file: DataFile, piece: int, offset: int = 0, line: int = 1) -> Iterator[Record]:
    """Yield the records of a file from an offset where one starts; DataError if it is broken.

    `piece` is the least size in bytes of a piece of plain text, see `cut`.
    """
    with reading(file.path, line):
        opener = gzip.open if file.compressed else open
        with cast(IO[bytes], opener(file.path, "rb")) as handle:
            handle.seek(offset)
            source = json_lines(handle) if file.lines else text_pieces(handle, piece)
            while (raw := next_record(source, file.path, line)) is not None:
                yield Record(file, line, offset, raw)
                offset += len(raw)
                line += 1 if file.lines else raw.count(b"\n")


def next_record(source: Iterator[bytes], path: Path, line: int) -> bytes | None:
    """Return the next record, None at the end; name the line if it cannot be read."""
    with reading(path, line):
        return next(source, None)


@contextmanager
def reading(path: Path, line: int) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a DataError."""
    try:
        yield
    except EOFError:
        raise DataError(
            f"{path}:{line}: the gzip file ends too early: it was cut off, copy it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{line}: damaged gzip data ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except OverflowError as error:
        raise DataError(f"{path}:{line}: {error}") from error


def json_lines(handle: IO[bytes]) -> Iterator[bytes]:
    """Yield lines with their line ends; a line over the limit is refused."""
    while raw := handle.readline(LONGEST_LINE + 1):
        if len(raw) > LONGEST_LINE:
            raise OverflowError(
                f"a line over {LONGEST_LINE >> 20} MiB: JSON data is one object per line"
            )
        yield raw


def text_pieces(handle: IO[bytes], least: int) -> Iterator[bytes]:
    """Yield the pieces of a plain text; joined they are the text, byte for byte."""
    buffer, start, ended = b"", 0, False
    while True:
        while not ended and len(buffer) - start < 4 * least:
            chunk = handle.read(max(_CHUNK, 4 * least))
            ended = not chunk
            buffer, start = buffer[start:] + chunk, 0
        if start == len(buffer):
            return
        end = cut(buffer, start, least)
        yield buffer[start:end]
        start = end


def cut(buffer: bytes, start: int, least: int) -> int:
    """Return where the piece that starts at `start` ends.

    It ends after the first blank line beyond `least` bytes; without one in 4 * least bytes, after
    the last line end there, else the last space, else between two characters.
    """
    limit = start + 4 * least
    blank = _BLANK.search(buffer, start + least, limit)
    if blank:
        return blank.end()
    if len(buffer) <= limit:
        return len(buffer)
    for mark in (b"\n", b" "):
        found = buffer.rfind(mark, start + least, limit)
        if found >= 0:
            return found + 1
    end = limit
    while buffer[end] & 0xC0 == 0x80 and end > limit - 3:
        end -= 1
    return end


def text_of(record: Record) -> str:
    """Return the text of a record, "" for a blank line; DataError with file:line if it has none."""
    raw = record.raw.removeprefix(_BOM) if record.offset == 0 else record.raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = record.line + raw.count(b"\n", 0, error.start)
        raise DataError(f"{record.file.path}:{line}: not UTF-8 text ({error.reason})") from None
    if not record.file.lines or not text.strip():
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise DataError(f"{record.place}: not one JSON object per line: {reason}") from None
    if not isinstance(row, dict):
        raise DataError(f"{record.place}: a JSON {type(row).__name__}, not an object with `text`")
    if "text" not in row:
        raise DataError(f"{record.place}: no `text`; the object has {', '.join(row) or 'nothing'}")
    text = row["text"]
    if not isinstance(text, str):
        raise DataError(f"{record.place}: `text` is {json.dumps(text)[:40]}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{record.place}: `text` has half of a surrogate pair") from None
    return text
