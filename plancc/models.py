"""Models by name: what `--model` says, loaded with parameters on meta and real buffers."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be found, built or captured: the user's side, exit code 1."""

    def __init__(self, message: str, notes: tuple[str, ...] = ()) -> None:
        self.message = message
        self.notes = notes
        super().__init__("\n".join((message, *(f"note: {note}" for note in notes))))
