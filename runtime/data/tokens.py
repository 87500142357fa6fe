"""Texts to token ids for training: bytes, or the tokenizer of a model folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plancc.runtime.data.files import DataError


class Tokens(Protocol):
    """What turns a text into ids; `end` is the id between documents, `name` says which it is."""

    name: str
    vocab: int
    end: int

    def encode(self, text: str) -> NDArray[Any]:
        """Return the ids of a text, integers below `vocab`, without `end` after them."""


class ByteTokens:
    """A byte of UTF-8 is a token, 0..255; 256 ends a document."""

    name = "bytes"
    vocab = 257
    end = 256

    def encode(self, text: str) -> NDArray[Any]:
        """Return the UTF-8 bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)


class FolderTokens:
    """The tokenizer.json of a model folder (or that file); texts become what `run` would see.

    Special tokens that it puts around a text stay; the document's end is the model's eos token,
    which is not put twice.
    """

    def __init__(self, path: str | Path) -> None:
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such tokenizer file; without it, train on bytes")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise DataError("a tokenizer needs `tokenizers`: pip install plancc[hf]") from None
        try:
            content = file.read_bytes()
            self.tokenizer: Any = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the package raises bare Exception for a file it cannot read
            raise DataError(f"{file}: not a tokenizer ({error})") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.name = f"tokenizer {hashlib.sha256(content).hexdigest()[:16]}"
        self.vocab = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.end = self.find_end(file.parent)
        self.vocab = max(self.vocab, self.end + 1)

    def find_end(self, folder: Path) -> int:
        """Return the id of the eos token that the folder's settings name."""
        named = read_object(folder / "tokenizer_config.json").get("eos_token")
        named = named.get("content") if isinstance(named, dict) else named
        found = self.tokenizer.token_to_id(named) if isinstance(named, str) else None
        for name in ("generation_config.json", "config.json"):
            if found is None:
                found = read_object(folder / name).get("eos_token_id")
                found = found[0] if isinstance(found, list) and found else found
        if not isinstance(found, int) or found < 0:
            raise DataError(
                f"{folder}: no eos token to end a document with: "
                "tokenizer_config.json or config.json names it"
            )
        return found

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokenizer's ids of a text."""
        ids = np.array(self.tokenizer.encode(text).ids, np.int32)
        return ids[:-1] if len(ids) and ids[-1] == self.end else ids


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable ({error})") from error
    return value if isinstance(value, dict) else {}


def check_vocabulary(tokens: Tokens, rows: int) -> None:
    """Raise DataError if a model with `rows` token embeddings is too small for the tokens."""
    if rows < tokens.vocab:
        raise DataError(
            f"the model's vocabulary has {rows} tokens, the data ({tokens.name}) needs "
            f"{tokens.vocab}: ids go up to {tokens.vocab - 1}, {tokens.end} ends a document"
        )
