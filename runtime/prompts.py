"""Text to token ids and back: the model folder's tokenizer, else bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact, ArtifactError


class Codec:
    """The tokenizer of an artifact. Where its model has none, a byte is a token (ids 0..255).

    `lost` is a tokenizer file that the model should have: texts are then refused, and ids stay ids.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.vocab = vocabulary(artifact)
        folder = artifact.manifest["model"].get("tokenizer")
        self.tokenizer: Any = None
        self.lost: Path | None = None
        if folder:
            from tokenizers import Tokenizer

            path = Path(folder)
            file = path / "tokenizer.json" if path.is_dir() else path
            self.lost = None if file.is_file() else file
            self.tokenizer = None if self.lost else Tokenizer.from_file(str(file))

    def prompt(self, text: str | None, file: str | None, tokens: int | None) -> Tensor:
        """Ids [1, T] of a text, of a file's text, or of `tokens` random tokens."""
        if tokens is not None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(self.vocab, (1, tokens), generator=generator)
        if file is not None:
            path = Path(file)
            if not path.is_file():
                raise ArtifactError(f"no prompt file {file}")
            text = path.read_text(errors="replace")
        ids = self.encode("Once upon a time" if text is None else text)
        if not ids:
            raise ArtifactError("the prompt is empty")
        if max(ids) >= self.vocab:
            raise ArtifactError(
                f"the prompt has token {max(ids)}, the model's vocabulary ends at {self.vocab - 1}: "
                "give --tokens N, or a model folder with a tokenizer"
            )
        return torch.tensor([ids], dtype=torch.long)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; ArtifactError if the model's tokenizer cannot be read."""
        if self.lost is not None:
            raise ArtifactError(
                f"the model's tokenizer is not there: no {self.lost}; give --tokens N"
            )
        if self.tokenizer is not None:
            return list(self.tokenizer.encode(text).ids)
        return list(text.encode())

    def text(self, ids: list[int]) -> str:
        """The text of token ids; what is no byte shows as a question mark in a box."""
        if self.lost is not None:
            return " ".join(map(str, ids))
        if self.tokenizer is not None:
            return str(self.tokenizer.decode(ids))
        return bytes(i if i < 256 else 0x1A for i in ids).decode(errors="replace")


def vocabulary(artifact: Artifact) -> int:
    """Rows of the token embedding: the largest table whose first dim is named vocab."""
    for program in artifact.manifest["programs"]:
        for cls in program["classes"]:
            for row in cls["weights"]:
                tree = row["dims"][0] if row["dims"] else None
                if tree and tree[0] == "leaf" and tree[1].startswith("vocab"):
                    return int(tree[2])
    raise ArtifactError("the artifact's model has no token embedding")
