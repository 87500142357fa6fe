"""A checkpoint's model as one plain safetensors file, for `--weights` and for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from plancc.runtime.checkpoint.files import Entry, flush_folder, write_safetensors
from plancc.runtime.checkpoint.pieces import CheckpointError
from plancc.runtime.checkpoint.read import Checkpoint
from plancc.runtime.weights import whole


def export_safetensors(
    checkpoint: Checkpoint, path: str | Path, *, prefix: str = "model/"
) -> tuple[int, str]:
    """Write the whole tensors under `prefix`, named without it; return file size and SHA-256.

    The file appears whole or not at all, and holds one tensor in memory at a time. Raises
    CheckpointError if there is nothing to write, or no place to write it to.
    """
    path, source = Path(path), checkpoint.under(prefix)
    names = source.names()
    if not names:
        text = f"`{checkpoint.folder}` has no tensor whose name begins with `{prefix}`"
        raise CheckpointError([text])
    entries = [
        Entry(
            name,
            source.shape(name),
            source.dtype(name),
            lambda name=name: source.read(name, whole(source.shape(name))),
        )
        for name in names
    ]
    aside = path.with_name(f"{path.name}.partial")
    try:
        aside.unlink(missing_ok=True)
        done = write_safetensors(aside, entries, {"format": "pt"})
        os.replace(aside, path)
        flush_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError([f"`{path}` cannot be written: {error}"]) from error
    return done
