"""A corpus in, the rows of global batches out: inputs and targets of one rank, step by step.

The batches are decided by the corpus, the tokens, the seed and the sizes, never by how many ranks
share the rows or in which micro-batches they use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plancc.runtime.data.corpus import Corpus
from plancc.runtime.data.files import DataError
from plancc.runtime.data.lane import Lane, Position
from plancc.runtime.data.state import VERSION, restore
from plancc.runtime.data.tokens import Tokens
from plancc.runtime.data.windows import Mark, Windows

_LEAST_PIECE = 64


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """Yields (inputs, targets), int64 [rows, seq_len], of the `rows` (default: all) of each batch.

    With `epochs` the rows end where their data does, each rank's at its own step: the run ends at
    the first of them (`ready`). Without, they go on for ever, in a new order each epoch. Plain
    text is cut into documents of 4 to 16 bytes times seq_len, at blank lines where there are some.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokens: Tokens,
        *,
        batch: int,
        seq_len: int,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        epochs: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        rows = range(batch) if rows is None else rows
        check_sizes(batch, seq_len, rows, epochs)
        self.seq_len = seq_len
        self.run = {
            "version": VERSION, "batch": batch, "seq_len": seq_len, "seed": seed,
            "tokens": tokens.name, "files": corpus.identity(),
        }  # fmt: skip
        self.step = 0
        mark = Mark(0, 0, 0, 0, 1, (0,) * batch)
        places = dict.fromkeys(rows, Position())
        if state is not None:
            self.step, mark, places = restore(state, self.run, rows)
        piece = max(_LEAST_PIECE, 4 * seq_len)
        self.windows = Windows(corpus, seed=seed, epochs=epochs, piece=piece, mark=mark)
        self.marks = {mark.serial: mark}
        self.lanes = {row: Lane(row, tokens, place) for row, place in places.items()}
        self.read_documents = self.read_bytes = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch's rows; DataError for broken data, or if there is too little."""
        if not self.ready():
            raise StopIteration
        samples = np.empty((len(self.lanes), self.seq_len + 1), np.int64)
        for lane, sample in zip(self.lanes.values(), samples, strict=True):
            lane.take(sample)
        self.step += 1
        both = torch.from_numpy(samples)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def ready(self) -> bool:
        """Whether there is a next batch. Ranks of a run with `epochs` must agree on it: all or end.

        False never becomes True again; what it reads ahead does not show in `state`.
        """
        return all(self.fill(lane) for lane in self.lanes.values())

    def fill(self, lane: Lane) -> bool:
        """Read on until a row has its next sample; False if the data ends before."""
        while not lane.fill(self.seq_len + 1):
            if not self.read_window():
                if self.step == 0:
                    raise self.too_short(lane)
                return False
        return True

    def read_window(self) -> bool:
        """Deal the next window to the rows that are here; False if no more is to be had.

        The first batch must come out of the first epoch.
        """
        window = self.windows.next()
        if window is None or (self.step == 0 and window.mark.epoch > 0):
            return False
        serial = window.mark.serial
        self.marks[serial] = window.mark
        for index, (row, record) in enumerate(window.hands):
            if row in self.lanes:
                self.lanes[row].give(serial, index, record)
        self.read_documents += len(window.hands)
        self.read_bytes += sum(len(record.raw) for _, record in window.hands)
        oldest = self.oldest().serial
        self.marks = {serial: mark for serial, mark in self.marks.items() if serial >= oldest}
        return True

    def too_short(self, lane: Lane) -> DataError:
        """Say what a batch needs and what there is."""
        batch = self.run["batch"]
        return DataError(
            f"the data is shorter than one batch: {batch} rows need {self.seq_len + 1} tokens "
            f"each, and row {lane.row} gets {lane.have} of the {self.read_documents} documents "
            f"({self.read_bytes} bytes) that there are; take a smaller batch or seq_len, or more "
            "data"
        )

    def oldest(self) -> Mark:
        """Return the last known window start that no row's place lies before."""
        serial = min(lane.position.serial for lane in self.lanes.values())
        return self.marks[max(known for known in self.marks if known <= serial)]

    def state(self) -> dict[str, Any]:
        """Return the place after the batches given out, as JSON; `merge_states` joins the ranks'.

        A run with other ranks, and rows in other hands, goes on from the merged state exactly.
        """
        rows = {str(row): list(lane.position) for row, lane in self.lanes.items()}
        mark = asdict(self.oldest())
        return {**self.run, "step": self.step, "mark": {**mark, "loads": list(mark["loads"])},
                "rows": rows}  # fmt: skip

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the row that is furthest behind."""
        return self.oldest().epoch

    @property
    def documents(self) -> int:
        """Documents of these rows that lie behind, over all epochs."""
        return sum(lane.documents for lane in self.lanes.values())

    @property
    def skipped(self) -> int:
        """Documents of these rows passed over because they have no text, over all epochs."""
        return sum(lane.skipped for lane in self.lanes.values())

    def dropped(self) -> int:
        """Count the tokens of these rows that no batch had: the tail of a run with `epochs`.

        Reads the rest of the data, so call it at the end; 0 in a run that goes on for ever.
        """
        if self.windows.epochs is None:
            return 0
        while self.read_window():
            pass
        for lane in self.lanes.values():
            while lane.queue:
                lane.read_one()
        seen = 1 if self.step else 0
        return sum(lane.have - seen for lane in self.lanes.values())


def check_sizes(batch: int, seq_len: int, rows: Sequence[int], epochs: int | None) -> None:
    """Raise DataError for sizes that no batch can have."""
    for name, value in (("batch", batch), ("seq_len", seq_len), ("epochs", epochs)):
        if value is not None and value < 1:
            raise DataError(f"{name} must be at least 1, not {value}")
    if len(set(rows)) != len(rows) or not rows or min(rows) < 0 or max(rows) >= batch:
        raise DataError(f"rows {list(rows)} are not rows of a batch of {batch}")
