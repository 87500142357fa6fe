"""What each rank of a host shows the launcher and its peers: an mmap file, one region a rank.

The head says where the rank stands and whom it waits for. The board says what it brought to its
latest meetings, so that two ranks that meet with different intentions notice it beforehand, and
the launcher knows who has not arrived.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import threading
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from plancc.runtime.transport import COMPUTE, IN_OP, STARTING

Channel = tuple[int, ...]
"""What ranks meet over: (GROUP, *ranks), (MESSAGE, source, target, channel) or (PART, source, target)."""
GROUP, MESSAGE, PART = range(3)

_HEAD = struct.Struct("<qqqQ")  # changes, instruction or -1, state, meeting
_KEY = struct.Struct("<Q")  # meeting
_ENTRY = struct.Struct("<qQ104s")  # instruction, program, text
_SLOT = _KEY.size + _ENTRY.size
_ENTRIES = 512
_TEXT = 104


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank stands; `meeting` is 0 while it waits for messages."""

    changes: int
    instruction: int | None
    state: int
    meeting: int
    peers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a rank brought to a meeting."""

    instruction: int
    program: int
    text: str


class Beacons:
    """The shared file of all ranks; each rank writes its own region only."""

    def __init__(self, path: Path, world: int, *, create: bool = False) -> None:
        self.world = world
        self._mask = (world + 63) // 64 * 8
        self._region = _HEAD.size + self._mask + _ENTRIES * _SLOT
        with path.open("x+b" if create else "r+b") as file:
            if create:
                file.truncate(self._region * world)
            self._map = mmap.mmap(file.fileno(), self._region * world)
        if create:
            for rank in range(world):
                self.write(rank, 0, None, STARTING)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def write(
        self,
        rank: int,
        changes: int,
        instruction: int | None,
        state: int,
        meeting: int = 0,
        peers: Collection[int] = (),
    ) -> None:
        """Write the head of a rank."""
        start = rank * self._region
        if state == IN_OP:
            mask = sum(1 << peer for peer in peers)
            low = start + _HEAD.size
            self._map[low : low + self._mask] = mask.to_bytes(self._mask, "little")
        at = -1 if instruction is None else instruction
        self._map[start : start + _HEAD.size] = _HEAD.pack(changes, at, state, meeting)

    def read(self, rank: int) -> Standing:
        """Return where a rank stands."""
        start = rank * self._region
        changes, at, state, meeting = _HEAD.unpack_from(self._map, start)
        low = start + _HEAD.size
        mask = int.from_bytes(self._map[low : low + self._mask], "little")
        peers = tuple(r for r in range(self.world) if mask >> r & 1) if state == IN_OP else ()
        return Standing(changes, None if at < 0 else at, state, meeting, peers)

    def post(self, rank: int, meeting: int, entry: Entry) -> None:
        """Put on the board what a rank brings to a meeting."""
        slot = self._slot(rank, meeting)
        body = _ENTRY.pack(entry.instruction, entry.program, entry.text.encode())
        _KEY.pack_into(self._map, slot, 0)  # nobody may see the key beside another entry's body
        self._map[slot + _KEY.size : slot + _KEY.size + _ENTRY.size] = body
        _KEY.pack_into(self._map, slot, meeting)

    def look(self, rank: int, meeting: int) -> Entry | None:
        """Return what a rank brought to a meeting, or None if it is not (or no longer) known."""
        slot = self._slot(rank, meeting)
        if _KEY.unpack_from(self._map, slot)[0] != meeting:
            return None
        at, program, text = _ENTRY.unpack_from(self._map, slot + _KEY.size)
        if _KEY.unpack_from(self._map, slot)[0] != meeting:
            return None
        return Entry(at, program, text.rstrip(b"\0").decode(errors="replace"))

    def _slot(self, rank: int, meeting: int) -> int:
        board = rank * self._region + _HEAD.size + self._mask
        return board + meeting % _ENTRIES * _SLOT


class Beacon:
    """One rank's own beacon: counts its meetings, and finds peers that intend something else."""

    def __init__(self, beacons: Beacons, rank: int) -> None:
        self._beacons = beacons
        self._rank = rank
        self._changes = 0
        self._met: dict[Channel, int] = {}
        self._fence = threading.Lock()
        self.instruction: int | None = None

    def stand(self, at: int | None, state: int = COMPUTE) -> None:
        """Show that the rank is at an instruction, waiting for nobody."""
        self._changes += 1
        self.instruction = at
        self._beacons.write(self._rank, self._changes, at, state)

    def wait(self, at: int | None, peers: Collection[int], meeting: int = 0) -> None:
        """Show that the rank waits for peers, at a meeting or for messages."""
        self._changes += 1
        self.instruction = at
        self._beacons.write(self._rank, self._changes, at, IN_OP, meeting, peers)

    def arrive(
        self, channel: Channel, peers: Collection[int], at: int, program: str, text: str
    ) -> tuple[int, tuple[int, Entry] | None]:
        """Post what the rank brings to the next meeting over a channel.

        Returns the meeting, and the first peer that already brought something else, if any.
        """
        count = self._met[channel] = self._met.get(channel, 0) + 1
        meeting = hash((*channel, count)) & 0xFFFFFFFFFFFFFFFF | 1
        mine = Entry(at, zlib.crc32(program.encode()) if program else 0, _shorten(text))
        self._beacons.post(self._rank, meeting, mine)
        with self._fence:  # an atomic operation: nobody looks before what it posted is visible
            pass
        for peer in peers:
            theirs = self._beacons.look(peer, meeting)
            if theirs is not None and _clash(mine, theirs):
                return meeting, (peer, theirs)
        return meeting, None


def _clash(mine: Entry, theirs: Entry) -> bool:
    if mine.text != theirs.text:
        return True
    same = mine.program and mine.program == theirs.program
    return bool(same) and mine.instruction != theirs.instruction


def _shorten(text: str) -> str:
    """Fit a text into an entry, with a hash in place of what is cut off."""
    if len(text) <= _TEXT:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{text[: _TEXT - 20]}...#{digest}"
