"""Batches are the same for every number of ranks, go on exactly, and hold each document once."""

from __future__ import annotations

import gzip
import json
import pydoc_data.topics
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plancc.runtime.data import Batches, ByteTokens, Corpus, DataError, merge_states, open_corpus
from plancc.runtime.data import windows as windows_module

TOPICS = Path(pydoc_data.topics.__file__)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[3, 4096], ids=["windows of 3", "one window"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small windows, so that small data has many."""
    monkeypatch.setattr(windows_module, "WINDOW_RECORDS", request.param)
    return request.param


def write(folder: Path, files: list[list[str]]) -> Corpus:
    """Write each list of texts as a JSON-lines file, every other one packed."""
    for old in folder.iterdir():
        old.unlink()
    for number, texts in enumerate(files):
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        packed = number % 2 == 0
        name = f"part{number}.json" + ".gz" * packed
        (folder / name).write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return open_corpus([folder])


@st.composite
def corpora(draw: st.DrawFn) -> list[list[str]]:
    """Files of texts that all differ; some have no text."""
    lengths = draw(
        st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=4)
    )
    number = iter(range(10**6))
    return [[f"{next(number):03d}" + "x" * n if n else "" for n in row] for row in lengths]


def splits(draw: Any, batch: int) -> list[list[int]]:
    """The rows of a batch, in any order, shared by any number of ranks."""
    rows = draw(st.permutations(range(batch)))
    cuts = sorted(draw(st.sets(st.integers(1, batch - 1)))) if batch > 1 else []
    return [rows[a:b] for a, b in zip([0, *cuts], [*cuts, batch], strict=True)]


def together(
    ranks: list[Batches], shares: list[list[int]], batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Global batches out of the ranks' rows, until the first rank has no more."""
    while all([rank.ready() for rank in ranks]):
        whole = [torch.empty(batch, ranks[0].seq_len, dtype=torch.int64) for _ in range(2)]
        for rank, rows in zip(ranks, shares, strict=True):
            for target, part in zip(whole, next(rank), strict=True):
                target[list(rows)] = part
        yield whole[0], whole[1]


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether two runs of batches are equal."""
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def build(corpus: Corpus, **options: Any) -> Batches | None:
    """Batches, or None where the data is shorter than one."""
    made = Batches(corpus, ByteTokens(), **options)
    try:
        return made if made.ready() else None
    except DataError as error:
        assert "shorter than one batch" in str(error)
        return None


@QUICK
@given(data=st.data(), files=corpora(), batch=st.integers(1, 5), seq_len=st.integers(1, 9))
def test_any_number_of_ranks_sees_the_same_batches(
    tmp_path: Path, window: int, data: st.DataObject, files: Any, batch: int, seq_len: int
) -> None:
    options = {"batch": batch, "seq_len": seq_len, "seed": 3}
    options["epochs"] = data.draw(st.sampled_from([1, 2, None]))
    corpus = write(tmp_path, files)
    one = build(corpus, **options)
    if one is None:
        return
    shares = splits(data.draw, batch)
    ranks = [Batches(corpus, ByteTokens(), rows=rows, **options) for rows in shares]
    assert same(list(islice(together(ranks, shares, batch), 40)), list(islice(one, 40)))


@QUICK
@given(data=st.data(), files=corpora(), batch=st.integers(1, 4), seq_len=st.integers(1, 7))
def test_a_run_goes_on_at_every_step_with_other_ranks(
    tmp_path: Path, window: int, data: st.DataObject, files: Any, batch: int, seq_len: int
) -> None:
    options = {"batch": batch, "seq_len": seq_len, "seed": 1}
    options["epochs"] = data.draw(st.sampled_from([1, 3, None]))
    corpus = write(tmp_path, files)
    one = build(corpus, **options)
    if one is None:
        return
    batches = list(islice(one, 25))
    shares = splits(data.draw, batch)
    saving = [Batches(corpus, ByteTokens(), rows=rows, **options) for rows in shares]
    steps = together(saving, shares, batch)
    for step in range(len(batches) + 1):
        state = json.loads(json.dumps(merge_states([rank.state() for rank in saving])))
        assert state["step"] == step
        other = splits(data.draw, batch)
        ranks = [Batches(corpus, ByteTokens(), rows=rows, state=state, **options) for rows in other]
        rest = list(islice(together(ranks, other, batch), min(8, len(batches) - step)))
        assert same(rest, batches[step : step + 8])
        counts = [(r.documents, r.skipped, r.epoch) for r in (*saving, *ranks)]
        if rest and step + 8 >= len(batches):
            whole = Batches(corpus, ByteTokens(), state=state, **options)
            list(islice(whole, len(rest)))
            assert whole.state()["rows"] == one.state()["rows"], counts
        next(steps, None)


@QUICK
@given(files=corpora(), batch=st.integers(1, 5), seq_len=st.integers(1, 9), seed=st.integers())
def test_every_document_once_an_epoch_but_for_the_counted_tail(
    tmp_path: Path, window: int, files: Any, batch: int, seq_len: int, seed: int
) -> None:
    made = build(write(tmp_path, files), batch=batch, seq_len=seq_len, seed=seed, epochs=2)
    if made is None:
        return
    streams: list[list[int]] = [[] for _ in range(batch)]
    for inputs, targets in made:
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for stream, before, after in zip(streams, inputs, targets, strict=True):
            assert stream[-1:] in ([], before[:1].tolist())
            stream[-1:] = [*before.tolist(), int(after[-1])]
    texts = [text for texts in files for text in texts if text]
    assert sum(map(len, streams)) + made.dropped() == 2 * sum(len(t) + 1 for t in texts)
    left = Counter(texts * 2)
    tails = []
    for stream in streams:
        *done, tail = bytes_of(stream)
        left.subtract(done)
        tails.append(tail)
    assert min(left.values()) >= 0
    for tail in sorted(filter(None, tails), key=len, reverse=True):
        left[next(t for t, count in left.items() if count and t.startswith(tail))] -= 1


def bytes_of(stream: list[int]) -> list[str]:
    """The documents of a stream of byte tokens; the last one has no end."""
    parts: list[list[int]] = [[]]
    for token in stream:
        if token == 256:
            parts.append([])
        else:
            parts[-1].append(token)
    return [bytes(part).decode() for part in parts]


def test_real_text(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": 8, "seq_len": 128}
    corpus = open_corpus([TOPICS])
    made = Batches(corpus, ByteTokens(), seed=0, epochs=1, **options)
    batches = list(made)
    seen = sum(inputs.numel() for inputs, _ in batches) + options["batch"]
    pieces = Counter(int((inputs == 256).sum()) for inputs, _ in batches)
    ends = sum(number * count for number, count in pieces.items())
    assert len(batches) > 400
    assert made.dropped() < 0.02 * seen
    assert 0 <= seen + made.dropped() - TOPICS.stat().st_size - ends < 100
    text = TOPICS.read_text("utf-8")
    first = bytes_of(batches[0][0][0].tolist())[0]
    assert len(first) > 50 and first in text
    again = Batches(corpus, ByteTokens(), seed=0, epochs=1, **options)
    assert same(list(again), batches)
    other = Batches(corpus, ByteTokens(), seed=1, epochs=1, **options)
    assert not same(list(islice(other, 1)), batches[:1])
    packed = tmp_path / "topics.txt.gz"
    packed.write_bytes(gzip.compress(TOPICS.read_bytes()))
    assert same(list(Batches(open_corpus([packed]), ByteTokens(), epochs=1, **options)), batches)


def test_each_epoch_has_its_own_order(tmp_path: Path) -> None:
    corpus = write(tmp_path, [[f"{i:03d}" for i in range(60)]])
    made = Batches(corpus, ByteTokens(), batch=1, seq_len=40, seed=0)
    stream = torch.cat([next(made)[0][0] for _ in range(18)]).tolist()
    assert made.epoch == 3
    documents = bytes_of(stream)[:-1]
    epochs = [documents[i : i + 60] for i in (0, 60, 120)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_rank_reads_no_text_of_other_rows(tmp_path: Path, window: int) -> None:
    class Counting(ByteTokens):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def encode(self, text: str) -> np.ndarray:
            self.seen.append(text)
            return super().encode(text)

    texts = [f"{i:04d}" * (1 + i % 7) for i in range(100)]
    corpus = write(tmp_path, [texts[:50], texts[50:]])
    seen = []
    for rows in (range(2), range(2, 3), range(3, 6)):
        tokens = Counting()
        made = Batches(corpus, tokens, batch=6, seq_len=10, rows=rows, epochs=1)
        list(made)
        made.dropped()
        seen += tokens.seen
    assert sorted(seen) == sorted(texts)


def test_rows_stay_level(tmp_path: Path) -> None:
    texts = [f"{i:03d}" + "x" * (i * i % 2000) for i in range(600)]
    made = Batches(write(tmp_path, [texts]), ByteTokens(), batch=8, seq_len=64, epochs=1)
    list(made)
    assert made.dropped() < 8 * 2200


def test_empty_documents_are_counted(tmp_path: Path, window: int) -> None:
    corpus = write(tmp_path, [["", "aaaa", "  ", "bbbb", "", "cccc"]])
    made = Batches(corpus, ByteTokens(), batch=1, seq_len=14, epochs=1)
    next(made)
    again = Batches(corpus, ByteTokens(), batch=1, seq_len=14, epochs=2, state=made.state())
    next(again)
    assert again.documents == 5
    assert 3 <= again.skipped <= 6


def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "WINDOW_BYTES", 1 << 16)
    line = json.dumps({"text": "some words " * 180}) + "\n"
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(line.encode() * 6000, 1))
    made = Batches(open_corpus([tmp_path]), ByteTokens(), batch=4, seq_len=512, epochs=1)
    tracemalloc.start()
    steps = sum(1 for _ in made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps > 5000
    assert peak < 2 << 20


@pytest.mark.parametrize("epochs", [1, None])
def test_data_shorter_than_a_batch(tmp_path: Path, epochs: int | None) -> None:
    corpus = write(tmp_path, [["some text", "and more"]])
    made = Batches(corpus, ByteTokens(), batch=2, seq_len=9, epochs=epochs)
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 rows need 10 tokens each, and row [01] gets 9 of"):
            next(made)
    assert next(Batches(corpus, ByteTokens(), batch=2, seq_len=8, epochs=epochs)) is not None
    nothing = write(tmp_path, [[" ", ""]])
    with pytest.raises(DataError, match="row 0 gets 0 of the 2 documents"):
        next(Batches(nothing, ByteTokens(), batch=1, seq_len=1, epochs=epochs))


def test_a_broken_line_stops_again_and_again(tmp_path: Path, window: int) -> None:
    lines = [json.dumps({"text": "x" * 20})] * 20
    lines[13] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = Batches(open_corpus([tmp_path]), ByteTokens(), batch=2, seq_len=8)
    with pytest.raises(DataError, match=r"a\.jsonl:14: not one JSON object"):
        list(made)
    before = made.state()
    with pytest.raises(DataError, match=r"a\.jsonl:14"):
        next(made)
    assert made.state() == before


def test_a_cut_file_stops_again_and_again(tmp_path: Path, window: int) -> None:
    data = gzip.compress("".join(f'{{"text": "{i:05d}"}}\n' for i in range(900)).encode())
    (tmp_path / "a.json.gz").write_bytes(data[:-200])
    made = Batches(open_corpus([tmp_path]), ByteTokens(), batch=1, seq_len=8, epochs=1)
    for _ in range(2):
        with pytest.raises(DataError, match="ends too early"):
            list(made)


def test_lines_are_counted_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "WINDOW_RECORDS", 4)
    lines = [json.dumps({"text": "x" * 20})] * 20
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    options: dict[str, Any] = {"batch": 1, "seq_len": 8, "epochs": 1}
    made = Batches(open_corpus([tmp_path]), ByteTokens(), **options)
    for _ in range(30):
        next(made)
    state = made.state()
    assert state["mark"]["line"] > 1
    with pytest.raises(DataError, match=r"a\.jsonl:21: not one JSON object"):
        list(Batches(open_corpus([tmp_path]), ByteTokens(), state=state, **options))


def test_windows_have_orders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "WINDOW_RECORDS", 20)
    corpus = write(tmp_path, [[f"{i:03d}" for i in range(60)]])
    made = Batches(corpus, ByteTokens(), batch=1, seq_len=40)
    documents = bytes_of(torch.cat([next(made)[0][0] for _ in range(6)]).tolist())[:-1]
    orders = [tuple(int(text) % 20 for text in documents[i : i + 20]) for i in (0, 20, 40)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 3


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": 2, "seq_len": 4}
    files = [["some text here", "and more there"], ["and a third one", "and one more"]]
    corpus = write(tmp_path, files)
    made = Batches(corpus, ByteTokens(), **options)
    next(made)
    state = made.state()

    def refused(message: str, changed: Corpus = corpus, state: Any = state, **other: Any) -> None:
        with pytest.raises(DataError, match=message):
            Batches(changed, ByteTokens(), state=state, **{**options, **other})

    refused("batch = 2, this one has 3", batch=3)
    refused("seq_len = 4, this one has 5", seq_len=5)
    refused("seed = 0, this one has 1", seed=1)
    refused("lacks row 1", state={**state, "rows": {"0": state["rows"]["0"]}})
    refused("version 9", state={**state, "version": 9})
    refused("not a data state", state={"version": 1})
    refused("not a data state", state={**state, "mark": {}})
    refused("not a data state", state={**state, "rows": 3})
    refused("part0.json.gz has changed", write(tmp_path, [["other text"], files[1]]))
    refused("part1.json is not there", write(tmp_path, files[:1]))
    refused("part2.json.gz is new", write(tmp_path, [*files, ["x"]]))


def test_states_that_do_not_belong_together(tmp_path: Path) -> None:
    corpus = write(tmp_path, [["some text here", "and more there"]])
    one, two = (Batches(corpus, ByteTokens(), batch=2, seq_len=4, rows=[r]) for r in (0, 1))
    next(one)
    with pytest.raises(DataError, match="different step"):
        merge_states([one.state(), two.state()])
    next(two)
    both = merge_states([one.state(), two.state(), two.state()])
    assert sorted(both["rows"]) == ["0", "1"]
    moved = {**two.state(), "rows": {"1": [0, 0, 1, 0, 0]}}
    with pytest.raises(DataError, match="row 1 of the data at different places"):
        merge_states([both, moved])
    with pytest.raises(DataError, match="no data state"):
        merge_states([])
    with pytest.raises(DataError, match="not a data state"):
        merge_states([{}, {}])


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"seq_len": 0}, {"epochs": 0}, {"rows": [2]}, {"rows": [0, 0]}, {"rows": []}],
)
def test_sizes_that_no_batch_has(tmp_path: Path, options: dict[str, Any]) -> None:
    corpus = write(tmp_path, [["some text here"]])
    with pytest.raises(DataError):
        Batches(corpus, ByteTokens(), **{"batch": 2, "seq_len": 4, **options})
