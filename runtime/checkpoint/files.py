"""Files written whole and flushed to the disk: safetensors as a stream, short texts, folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plancc.runtime.checkpoint.pieces import CODES, as_bytes, nbytes

BLOCK = 1 << 24  # bytes hashed and written at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a safetensors file; `make` is called when its turn comes to be written."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_safetensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]
) -> tuple[int, str]:
    """Write a new safetensors file to the disk; return its size and SHA-256. Raises OSError.

    Tensors are written one after the other without being copied, those of wide dtypes first.
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    head, size = _header(ordered, metadata)
    digest = hashlib.sha256(head)
    with open(path, "xb") as file:
        file.write(head)
        for entry in ordered:
            data = memoryview(as_bytes(entry.make()).numpy())
            for at in range(0, len(data), BLOCK):
                digest.update(data[at : at + BLOCK])
                file.write(data[at : at + BLOCK])
        file.flush()
        os.fsync(file.fileno())
    return len(head) + size, digest.hexdigest()


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the file's first bytes, padded to 8, and the size of the tensors that follow."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        end = at + nbytes(entry.shape, entry.dtype)
        code, shape = CODES[entry.dtype], list(entry.shape)
        table[entry.key] = {"dtype": code, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest, block = hashlib.sha256(), bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text and flush it to the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, on file systems that can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
