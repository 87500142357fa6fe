"""Bytes as tokens, tokenizers of model folders, and models whose vocabulary is too small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plancc.runtime.data import ByteTokens, DataError, FolderTokens, check_vocabulary


def make_folder(folder: Path, end: object = "</s>", template: bool = False) -> Path:
    """Write a word tokenizer, with its eos in the settings, as model folders have it."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<unk>": 0, "</s>": 1, "<s>": 2, "hello": 3, "world": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    if template:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
        )
    made.enable_truncation(2)
    made.save(str(folder / "tokenizer.json"))
    if end is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    return folder


def test_bytes() -> None:
    tokens = ByteTokens()
    assert tokens.encode("aé").tolist() == [97, 0xC3, 0xA9]
    check_vocabulary(tokens, 257)
    with pytest.raises(DataError, match=r"has 256 tokens, the data \(bytes\) needs 257"):
        check_vocabulary(tokens, 256)


def test_a_folder(tmp_path: Path) -> None:
    tokens = FolderTokens(make_folder(tmp_path))
    assert tokens.encode("hello world hello what").tolist() == [3, 4, 3, 0]
    assert (tokens.vocab, tokens.end) == (5, 1)
    again = FolderTokens(tmp_path / "tokenizer.json")
    assert (again.name, again.end) == (tokens.name, 1)


def test_a_template_does_not_end_twice(tmp_path: Path) -> None:
    tokens = FolderTokens(make_folder(tmp_path, {"content": "</s>"}, template=True))
    assert tokens.encode("hello").tolist() == [2, 3]


@pytest.mark.parametrize("ids", [1, [1, 2]])
def test_the_end_from_the_config(tmp_path: Path, ids: object) -> None:
    make_folder(tmp_path, None)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert FolderTokens(tmp_path).end == 1


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer file"):
        FolderTokens(tmp_path)
    with pytest.raises(DataError, match="no eos token"):
        FolderTokens(make_folder(tmp_path, None))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not readable"):
        FolderTokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        FolderTokens(tmp_path)
