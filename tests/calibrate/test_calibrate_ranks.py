"""Verbs and steps as they are measured on ranks: what is kept, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import plancc.api
from plancc.calibrate import pace
from plancc.calibrate.clock import Clock, Effort
from plancc.calibrate.collectives import (
    KINDS,
    MESSAGE,
    Measured,
    Meeting,
    joined,
    run_rank,
    together,
)
from plancc.calibrate.machine import disturbances, this_machine
from plancc.calibrate.point import DECODE, PREFILL, TRAIN, WARM, Point, Truth
from plancc.calibrate.spread import spread_of
from plancc.calibrate.toy import Decoder, Width
from plancc.calibrate.truth import measure, summary
from plancc.runtime.artifact import Artifact, ArtifactError
from plancc.runtime.launch import launch
from plancc.runtime.local import run_local
from plancc.runtime.training.job import TrainError

SHORT = Effort(1e-4, 2, 1)
TINY = Width(1, 16, 2, 16, 260, 8)
PLAN = """plan two, edition 1
mesh base[tp = 2] on local
place ** on base
place layers.*.attn { split heads over tp }
"""


def payload(sizes: tuple[int, ...]) -> dict[str, object]:
    return {"threads": 1, "effort": asdict(SHORT), "sizes": sizes}


@pytest.mark.parametrize("world", [2, 3])
def test_every_verb_is_measured_for_every_size(world: int) -> None:
    ranks = run_local(world, lambda t: run_rank(t, payload((8, 1000))))
    found = joined(ranks, 1)
    kinds = (*KINDS, MESSAGE) if world == 2 else KINDS
    assert [one.kind for one in found] == [*kinds, *kinds]
    assert {one.ranks for one in found} == {world}
    whole = {one.kind: one.size for one in found[len(kinds) :]}
    # 250 elements; of what is scattered every rank gets as many: 252 among three
    assert whole["all_reduce"] == 1000
    assert whole["reduce_scatter"] == whole["all_to_all"] == (1000 if world == 2 else 1008)
    assert all(one.seconds.least > 0 for one in found)


def test_verbs_of_processes() -> None:
    entry = "plancc.calibrate.collectives:run_rank"
    told = launch(2, entry, payload((8,)), time_limit=60.0)
    found = joined([Measured.from_json(one) for one in told], 2)
    assert [one.kind for one in found] == [*KINDS, MESSAGE]
    assert all(one.seconds.count >= SHORT.laps for one in found)


def ranks_of(kind: str, *ranks: list[tuple[float, float, float, float]]) -> list[Measured]:
    """What ranks measured that work alone for 1 s a half: (begin, end, busy, work) of their calls."""
    return [
        Measured(
            [1.0, 1.0], [(kind, 8, [Meeting(*m, 0.25) for m in zip_halves(calls)])]
        ) for calls in ranks
    ]  # fmt: skip


def zip_halves(
    calls: list[tuple[float, float, float, float]],
) -> list[tuple[float, float, float, int, float]]:
    """The calls with the halves of the work by turns."""
    return [(begin, end, busy, at % 2, work) for at, (begin, end, busy, work) in enumerate(calls)]


def test_a_verb_lasts_from_the_last_rank_that_came_to_the_last_that_left() -> None:
    first = [(0.0, 5.0, 0.5, 1.0), (10.0, 12.0, 0.25, 1.0)]
    second = [(3.0, 4.5, 1.0, 1.0), (11.0, 12.5, 0.25, 1.0)]
    for cores in (0, 2, 8):
        (found,) = joined(ranks_of("all_reduce", first, second), cores)
        assert (found.seconds.least, found.seconds.high) == (1.5, 2.0)


def test_ranks_that_share_cores_take_turns() -> None:
    calls = [(0.0, 5.0, 0.5, 1.0), (10.0, 12.0, 0.25, 1.0)]
    for cores, turns in ((1, 3), (2, 2)):
        (found,) = joined(ranks_of("all_reduce", calls, calls, calls), cores)
        assert (found.seconds.least, found.seconds.high) == (0.25 * turns, 0.5 * turns)


def test_what_the_work_behind_a_verb_takes_longer_is_the_verbs() -> None:
    first = [(0.0, 5.0, 0.5, 1.5), (10.0, 15.0, 0.5, 2.5)]  # 0.5 and 1.5 longer: 1.0 in the mean
    second = [(0.0, 5.0, 0.5, 1.0), (10.0, 15.0, 0.5, 0.5)]  # quicker: nothing
    (found,) = joined(ranks_of("all_reduce", first, second), 2)
    assert found.seconds.median == 5.0 + 0.5  # the mean of the ranks
    (found,) = joined(ranks_of("all_reduce", first, second), 1)
    assert found.seconds.median == 1.0 + 1.0
    (found,) = joined(ranks_of("all_reduce", first, second), 0)
    assert found.seconds.median == 5.0  # devices of their own have caches of their own


def test_a_message_takes_half_of_there_and_back_and_keeps_its_sender_a_while() -> None:
    calls = [(0.0, 4.0, 1.0, 1.0)]
    (found,) = joined(ranks_of(MESSAGE, calls, calls), 2)
    assert (found.seconds.median, found.given) == (2.0, 0.25)
    (found,) = joined(ranks_of(MESSAGE, calls, calls), 0)
    assert found.given == 0.0  # the host's time is none of a device


def test_launches_count_together() -> None:
    calls = [(0.0, 4.0, 1.0, 1.0), (5.0, 6.0, 1.0, 1.0)]
    late = [(9.0, 9.5, 1.0, 1.0), (9.6, 9.7, 1.0, 1.0)]
    (one,) = together([ranks_of("all_reduce", calls), ranks_of("all_reduce", late)])
    ((kind, size, met),) = one.calls
    assert (kind, size, [m.begin for m in met]) == ("all_reduce", 8, [0.0, 5.0, 9.0, 9.6])
    assert one.alone == [1.0, 1.0]


def test_what_was_measured_on_a_slow_machine_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "PAUSE", 0.0)
    laps = iter([1.5, 1.5, 1.0, 1.0, 1.0, 1.5, 1.02, 1.04, 2.0, 2.0, 2.0, 2.0, 2.0, 1.3, 3.0, 3.0])
    monkeypatch.setattr(pace, "LAPS", 1)
    monkeypatch.setattr(pace.Pace, "lap", lambda self: next(laps))
    now, done, again = pace.Pace(torch.device("cpu")), [], []

    def measure() -> int:
        done.append(len(done))
        return len(done)

    def steadily(tries: int = pace.TRIES) -> int:
        return now.steadily(measure, tries, lambda: again.append(len(done)))

    assert steadily() == 1 and now.worst == 0  # as quick as ever so far
    assert steadily() == 2  # quick before and after
    assert now.worst == pytest.approx(0.5)  # what was kept before was slow
    assert steadily() == 4 and again == [3]  # slower behind it by half, then quick enough
    assert now.worst == pytest.approx(0.5)
    assert steadily() == 7 and again == [3, 5, 6]  # never: the last of three counts, and is told
    assert now.worst == pytest.approx(1.0)
    assert steadily(1) == 8 and again == [3, 5, 6]
    assert now.worst == pytest.approx(2.0)
    spreads = [spread_of([1.0, 1.0])]
    told = disturbances(this_machine(torch.device("cpu"), 1), spreads, now.worst)
    assert any("200% slower at times than at its best" in line for line in told)
    on_gpu = pace.Pace(torch.device("cuda"))
    assert on_gpu.steadily(measure) == 9 and on_gpu.worst == 0


def test_a_clock_tells_seconds_of_a_call() -> None:
    calls = []
    found = Clock(torch.device("cpu"), 1, SHORT).seconds(lambda: calls.append(1))
    assert found.count == SHORT.laps
    assert 0 < found.least < 1e-3
    assert len(calls) > SHORT.laps


def test_a_step_lasts_from_the_first_begin_to_the_last_end() -> None:
    point = Point(PREFILL, 1, 8, steps=2)
    marks = [
        [((0.0, 0.0), (3.0, 1.0), (4.0, 1.5)), ((10.0, 2.0), (12.0, 3.0), (13.0, 3.5))],
        [((1.0, 0.0), (5.0, 2.0), (6.0, 2.5)), ((9.0, 2.5), (11.0, 4.5), (12.0, 5.0))],
    ]
    found = summary(point, marks, 0.5)
    assert (found.seconds.least, found.seconds.high) == (4.0, 6.0)
    assert (found.programs.least, found.programs.high) == (3.0, 5.0)
    assert found.busy == (1.5, 2.5) and found.computing == (1.0, 2.0)
    assert Truth.from_json(json.loads(json.dumps(found.json()))) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "forward"}, {"backend": "mpi"}, {"batch": 0}, {"steps": 0}, {"past": 3},
        {"phase": DECODE, "past": 40}, {"phase": DECODE, "tokens": 1, "past": WARM + 1},
    ],
)  # fmt: skip
def test_points_that_cannot_be_run(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(Point(PREFILL, 1, 8, steps=3), **wrong)  # type: ignore[arg-type]


def test_the_middle_decode_step_finds_as_many_cached_as_the_point_says() -> None:
    point = Point(DECODE, 1, 1, 20, steps=5)
    # the prompt, three steps to warm up, then five: the third of them has 20 behind it
    assert point.prompt + WARM + 2 == 20
    assert Point.from_json(json.loads(json.dumps(point.json()))) == point


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Artifact]]:
    folder = tmp_path_factory.mktemp("tiny")
    plan = folder / "two.plan"
    plan.write_text(PLAN)
    yield {
        for_: plancc.api.compile(
            plan, Decoder(TINY), folder / for_, verify=False, for_=for_
        ).artifact
        for for_ in ("infer", "train")
    }


@pytest.mark.parametrize("backend", ["local", "gloo"])
@pytest.mark.parametrize("phase", [PREFILL, DECODE, TRAIN])
def test_steps_are_run_for_real(artifacts: dict[str, Artifact], phase: str, backend: str) -> None:
    artifact = artifacts["train" if phase == TRAIN else "infer"]
    point = (
        Point(phase, 2, 1, 12, backend, 3) if phase == DECODE else Point(phase, 2, 6, 0, backend, 3)
    )
    found = measure(artifact, point)
    assert found.ranks == 2 and found.seconds.count == 3
    assert 0 < found.programs.least <= found.seconds.high
    assert len(found.busy) == 2 and all(
        0 < c <= b for c, b in zip(found.computing, found.busy, strict=True)
    )


def test_what_an_artifact_does_not_admit_is_said_before_it_runs(
    artifacts: dict[str, Artifact],
) -> None:
    with pytest.raises(ArtifactError, match="no decode programs"):
        measure(artifacts["train"], Point(DECODE, 1, 1, 12, steps=3))
    with pytest.raises(ArtifactError, match="positions"):
        measure(artifacts["infer"], Point(PREFILL, 1, 5000))
    with pytest.raises(TrainError, match="no training programs"):
        measure(artifacts["infer"], Point(TRAIN, 2, 8))


def test_where_files_are_left_nothing_is(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    before = sorted(path.name for path in artifacts["train"].folder.iterdir())
    measure(artifacts["train"], Point(TRAIN, 2, 6, 0, "local", 1))
    assert sorted(path.name for path in artifacts["train"].folder.iterdir()) == before
