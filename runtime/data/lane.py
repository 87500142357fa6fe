"""One row of the global batch: its documents in order, packed into samples.

A row's tokens are one stream: document, end token, document, end token, ... A sample is seq_len + 1
of them and starts where the targets of the one before ended, so each token is an input once and a
target once.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plancc.runtime.data.files import DataError, Record, text_of
from plancc.runtime.data.tokens import Tokens


class Position(NamedTuple):
    """Where a row's next sample starts: window, document in it, token of the document; and how
    many documents lie behind it, used and skipped (no text in them)."""

    serial: int = 0
    number: int = 0
    token: int = 0
    documents: int = 0
    skipped: int = 0


class Segment(NamedTuple):
    """The tokens of a document with its end token; none at all if it has no text."""

    serial: int
    number: int
    ids: NDArray[Any]


class Lane:
    """Documents dealt and not yet read, tokens read and not yet used up."""

    def __init__(self, row: int, tokens: Tokens, start: Position) -> None:
        self.row = row
        self.tokens = tokens
        self.start = start
        self.have = 0
        self.queue: deque[tuple[int, int, Record]] = deque()
        self.segments: deque[Segment] = deque()
        self.used = 0
        self.documents = start.documents
        self.skipped = start.skipped
        self.dtype = np.uint16 if tokens.vocab <= 1 << 16 else np.int32

    @property
    def position(self) -> Position:
        """Where the next sample starts."""
        if not self.segments:
            return self.start
        head = self.segments[0]
        return Position(head.serial, head.number, self.used, self.documents, self.skipped)

    def give(self, serial: int, number: int, record: Record) -> None:
        """Take a document into the queue unless it lies before the place to start from."""
        if (serial, number) >= self.start[:2]:
            self.queue.append((serial, number, record))

    def fill(self, count: int) -> bool:
        """Read documents until `count` tokens are there; False if the queue is too short."""
        while self.have < count:
            if not self.queue:
                return False
            self.read_one()
        return True

    def read_one(self) -> None:
        """Turn the first document of the queue into tokens; it stays queued if it is broken."""
        serial, number, record = self.queue[0]
        ids = self.encode(record)
        if not self.segments and self.start.token and self.have == 0:
            if (serial, number) != self.start[:2] or len(ids) <= self.start.token:
                raise DataError(f"{record.place}: the file has changed since the state was saved")
            self.used = self.start.token
        self.queue.popleft()
        self.segments.append(Segment(serial, number, ids))
        self.have += len(ids) - (self.used if len(self.segments) == 1 else 0)

    def encode(self, record: Record) -> NDArray[Any]:
        """Return a document's tokens and the end token, nothing for one without text."""
        text = text_of(record)
        ids = self.tokens.encode(text) if text.strip() else ()
        if len(ids) == 0:
            return np.empty(0, self.dtype)
        whole = np.empty(len(ids) + 1, self.dtype)
        whole[:-1] = ids
        whole[-1] = self.tokens.end
        return whole

    def take(self, out: NDArray[np.int64]) -> None:
        """Write a sample, which must be there, and move on to its last token."""
        at, used = 0, self.used
        for segment in self.segments:
            part = segment.ids[used : used + len(out) - at]
            out[at : at + len(part)] = part
            at, used = at + len(part), 0
            if at == len(out):
                break
        self.used += len(out) - 1
        self.have -= len(out) - 1
        while self.used >= len(self.segments[0].ids):
            ids = self.segments.popleft().ids
            self.used -= len(ids)
            self.documents += len(ids) > 0
            self.skipped += len(ids) == 0
