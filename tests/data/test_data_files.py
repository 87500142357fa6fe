"""Data files: found, checked, cut into documents; every bad one named by file and line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.runtime.data import DataError, open_corpus
from plancc.runtime.data import files as files_module
from plancc.runtime.data.files import read_records, text_of


def write_lines(path: Path, texts: list[str]) -> Path:
    """Write texts in C4's form, packed if the name ends with .gz."""
    data = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def all_texts(path: Path, piece: int = 64) -> list[str]:
    """The texts of every record of one file."""
    (file,) = open_corpus([path]).files
    return [text_of(record) for record in read_records(file, piece)]


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl", "a.json", "a.ndjson.gz"])
def test_json_lines_in_every_form(tmp_path: Path, name: str) -> None:
    texts = ["one", "zwei ü", "", "vier\nlines\n\nof text"]
    assert all_texts(write_lines(tmp_path / name, texts)) == texts


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "LICENSE", "notes.md"])
def test_plain_text_joins_again(tmp_path: Path, name: str) -> None:
    text = "".join(f"Paragraph {i} says é.\r\n{'word ' * (i % 40)}\r\n\r\n" for i in range(200))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    pieces = all_texts(tmp_path / name)
    assert "".join(pieces) == text
    assert all(64 < len(piece.encode()) <= 256 for piece in pieces[:-1])


@pytest.mark.parametrize("mark", ["", " ", "é", "\n"])
def test_text_without_blank_lines_is_cut_all_the_same(tmp_path: Path, mark: str) -> None:
    text = f"{'abcdefg' * 3}{mark}" * 500 if mark else "日本語" * 3000
    (tmp_path / "a.txt").write_text(text, "utf-8", newline="")
    pieces = all_texts(tmp_path / "a.txt")
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 256 for piece in pieces)
    if mark in (" ", "\n"):
        assert all(piece.endswith(mark) for piece in pieces)


@given(st.text(st.sampled_from("a\n \r日é"), max_size=900), st.integers(0, 50))
def test_reading_on_from_any_record_gives_the_rest(
    tmp_path_factory: pytest.TempPathFactory, text: str, pick: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(f"x{text}".encode())
    (file,) = open_corpus([path]).files
    records = list(read_records(file, 16))
    start = records[pick % len(records)]
    rest = list(read_records(file, 16, start.offset, start.line))
    assert rest == records[pick % len(records) :]
    assert "".join(map(text_of, records)) == f"x{text}"
    assert start.line == 1 + path.read_bytes()[: start.offset].count(b"\n")


def test_chunks_of_the_reader_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join("line " * (i % 50) for i in range(300)))
    whole = all_texts(tmp_path / "a.txt")
    monkeypatch.setattr(files_module, "_CHUNK", 7)
    assert all_texts(tmp_path / "a.txt") == whole


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hi"}\r\n\r\n{"text": "ho"}')
    assert [t.strip() for t in all_texts(tmp_path / "a.jsonl")] == ["hi", "", "ho"]


def test_folders_and_globs(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".cache").mkdir(parents=True)
    write_lines(tmp_path / "deep" / "c4.00001.json.gz", ["b"])
    write_lines(tmp_path / "c4.00000.json.gz", ["a"])
    (tmp_path / "deep" / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "deep" / ".cache" / "y.txt").write_text("no")
    found = open_corpus([tmp_path])
    assert [file.path.name for file in found.files] == ["c4.00000.json.gz", "c4.00001.json.gz"]
    assert [path.name for path in found.ignored] == ["x.parquet"]
    assert found.size == sum(file.path.stat().st_size for file in found.files)
    assert open_corpus([str(tmp_path / "**" / "*.gz")]).files == found.files


def test_the_order_of_files_is_that_of_names_wherever_they_are(tmp_path: Path) -> None:
    for place, names in (("z/1", "ba"), ("a/2", "c")):
        (tmp_path / place).mkdir(parents=True)
        for name in names:
            (tmp_path / place / f"{name}.txt").write_text(name)
    found = open_corpus([tmp_path / "z", tmp_path / "a"]).identity()
    assert [row[0] for row in found] == ["a.txt", "b.txt", "c.txt"]
    assert open_corpus([tmp_path / "a", tmp_path / "z" / "1"]).identity() == found


CASES = {
    "missing": (None, None, "no such file"),
    "empty": ("a.txt", b"", "the file is empty"),
    "empty_gzip": ("a.txt.gz", gzip.compress(b""), "empty once unpacked"),
    "no_gzip": ("a.json.gz", b'{"text": "x"}\n', "not a gzip file"),
    "cut_gzip": ("a.json.gz", gzip.compress(b'{"text": "xyz"}\n')[:-12], "ends too early"),
    "bad_gzip": ("a.txt.gz", gzip.compress(b"x" * 99)[:10] + b"\xff" * 40, "a.txt.gz:1: damaged"),
    "broken": ("a.jsonl", b'{"text": "x"\n', "a.jsonl:1: not one JSON object per line"),
    "array": ("a.json", b'["x"]\n', "a JSON list, not an object"),
    "pretty": ("a.json", b'{\n"text": "x"\n}\n', "a.json:1: not one JSON object per line"),
    "no_text": ("a.json", b'{"body": "x"}\n', "a.json:1: no `text`; the object has body"),
    "null": ("a.json", b'{"text": null}\n', "`text` is null, not a string"),
    "surrogate": ("a.json", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    "deep": ("a.json", b"[" * 200_000, "not one JSON object per line"),
    "latin": ("a.txt", b"caf\xe9 ol\xe9", "a.txt:1: not UTF-8 text"),
    "binary": ("x.parquet", b"PAR1\x15\x04\x15\xb0\xff", "not UTF-8 text"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_data_is_refused_when_opened(tmp_path: Path, case: str) -> None:
    name, data, message = CASES[case]
    path = tmp_path / (name or "absent.txt")
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as error:
        open_corpus([path])
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_text("x")
    with pytest.raises(DataError, match="no data file in the folder"):
        open_corpus([tmp_path / "sub"])
    with pytest.raises(DataError, match="no such file"):
        open_corpus([str(tmp_path / "*.txt")])
    with pytest.raises(DataError, match="given twice"):
        open_corpus([tmp_path / "sub" / "a.bin", str(tmp_path / "sub" / "*.bin")])
    with pytest.raises(DataError, match="no data file was given"):
        open_corpus([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        open_corpus([path])


def test_an_error_of_the_system_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", ["x"])
    corpus = open_corpus([path])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files_module.gzip, "open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read \(Permission denied\)"):
        list(read_records(corpus.files[0], 64))


def test_errors_further_down_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 6 + b'{"text": 7}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:7: `text` is 7"):
        all_texts(path)
    path = tmp_path / "b.txt"
    path.write_bytes(b"fine line\n" * 20_000 + b"not \xff fine\n")
    with pytest.raises(DataError, match=r"b\.txt:20001: not UTF-8"):
        all_texts(path, 1000)
    data = gzip.compress(os.urandom(4_000_000).hex().encode(), 1)
    path = tmp_path / "c.txt.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"c\.txt\.gz:1: the gzip file ends too early"):
        all_texts(path, 1000)


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "LONGEST_LINE", 50)
    (tmp_path / "a.json").write_text('{"text": "x"}\n' + '{"text": "' + "x" * 100 + '"}\n')
    with pytest.raises(DataError, match=r"a\.json:2: a line over"):
        all_texts(tmp_path / "a.json")
