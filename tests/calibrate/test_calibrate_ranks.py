"""Verbs and steps as they are measured on ranks: what is kept, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import plancc.api
from plancc.calibrate.clock import Clock, Effort
from plancc.calibrate.collectives import KINDS, MESSAGE, joined, run_rank
from plancc.calibrate.point import DECODE, PREFILL, TRAIN, WARM, Point, Truth
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
    found = joined(ranks, by_turns=True)
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
    found = joined(launch(2, entry, payload((8,)), time_limit=60.0), by_turns=False)
    assert [one.kind for one in found] == [*KINDS, MESSAGE]
    assert all(one.seconds.count >= SHORT.laps for one in found)


def test_a_verb_lasts_from_the_last_rank_that_came_to_the_last_that_left() -> None:
    first = [("all_reduce", 8, [(0.0, 5.0, 0.5), (10.0, 12.0, 0.25)])]
    second = [("all_reduce", 8, [(3.0, 4.5, 1.0), (11.0, 12.5, 0.25)])]
    (found,) = joined([first, second], by_turns=False)
    assert (found.seconds.least, found.seconds.high) == (1.5, 2.0)
    (found,) = joined([first, second], by_turns=True)
    assert (found.seconds.least, found.seconds.high) == (0.5, 1.5)
    message = [[(MESSAGE, 8, [(0.0, 4.0, 1.0)])]] * 2
    (found,) = joined(message, by_turns=False)
    assert found.seconds.median == 2.0


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
