"""Records in the order of the files, dealt to the rows of the global batch.

Every rank reads all records, raw, and deals them alike: the row with the least bytes so far gets
the next one. So the rows stay level, and no rank needs to know what another one's texts are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from plancc.runtime.data.corpus import Corpus
from plancc.runtime.data.files import DataError, DataFile, Record, read_records

WINDOW_RECORDS = 4096
WINDOW_BYTES = 16 << 20
"""Records are shuffled within windows of this size: what a rank holds in memory."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a window starts: its number in the run, the place in the epoch's files, and how many
    bytes each row has got more than the one with the least."""

    serial: int
    epoch: int
    file: int
    offset: int
    line: int
    loads: tuple[int, ...]

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Mark:
        """Read what `dataclasses.asdict` wrote."""
        return Mark(**{**row, "loads": tuple(row["loads"])})


@dataclass(frozen=True, slots=True)
class Window:
    """Records in their shuffled order, each with the row it goes to."""

    mark: Mark
    hands: tuple[tuple[int, Record], ...]


class Windows:
    """Iterates over the windows of all epochs, from a mark on."""

    def __init__(
        self, corpus: Corpus, *, seed: int, epochs: int | None, piece: int, mark: Mark
    ) -> None:
        self.corpus = corpus
        self.seed = seed
        self.epochs = epochs
        self.piece = piece
        self.mark = mark
        self.files = self.order(mark.epoch)
        self.records = self.read(mark)

    def order(self, epoch: int) -> list[DataFile]:
        """Return the files in the order of an epoch."""
        files = self.corpus.files
        return [files[i] for i in shuffled(len(files), f"{self.seed}:files:{epoch}")]

    def read(self, start: Mark) -> Iterator[tuple[int, Record]]:
        """Yield an epoch's records from a mark on, each with its file's number in the epoch."""
        for number in range(start.file, len(self.files)):
            where = (start.offset, start.line) if number == start.file else (0, 1)
            for record in read_records(self.files[number], self.piece, *where):
                yield number, record

    def next(self) -> Window | None:
        """Return the next window, None after the last epoch."""
        taken = self.take()
        if not taken:
            if self.epochs is not None and self.mark.epoch + 1 >= self.epochs:
                return None
            self.mark = Mark(self.mark.serial, self.mark.epoch + 1, 0, 0, 1, self.mark.loads)
            self.files = self.order(self.mark.epoch)
            self.records = self.read(self.mark)
            taken = self.take()
        mark = self.mark
        order = shuffled(len(taken), f"{self.seed}:window:{mark.serial}")
        records = [taken[i][1] for i in order]
        rows, loads = deal([len(record.raw) for record in records], mark.loads)
        number, last = taken[-1]
        line = last.line + (1 if last.file.lines else last.raw.count(b"\n"))
        end = last.offset + len(last.raw)
        self.mark = Mark(mark.serial + 1, mark.epoch, number, end, line, loads)
        return Window(mark, tuple(zip(rows, records, strict=True)))

    def take(self) -> list[tuple[int, Record]]:
        """Return the records of one window, none at the end of an epoch."""
        taken: list[tuple[int, Record]] = []
        size = 0
        try:
            for item in islice(self.records, WINDOW_RECORDS):
                taken.append(item)
                size += len(item[1].raw)
                if size >= WINDOW_BYTES:
                    break
        except DataError:
            # a generator that raised looks like one that ended: the next call must fail again
            self.records = self.read(self.mark)
            raise
        return taken


def shuffled(count: int, seed: str) -> list[int]:
    """Return 0..count-1 in an order that the seed alone decides, in every Python version."""
    random = Random(seed)
    keys = [random.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def deal(sizes: list[int], loads: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """Give each record to the row with the least bytes; return the rows and the new loads."""
    heap = [(load, row) for row, load in enumerate(loads)]
    heapq.heapify(heap)
    rows = []
    for size in sizes:
        load, row = heap[0]
        rows.append(row)
        heapq.heapreplace(heap, (load + size, row))
    least = heap[0][0]
    return rows, tuple(load - least for load, _ in sorted(heap, key=lambda item: item[1]))
