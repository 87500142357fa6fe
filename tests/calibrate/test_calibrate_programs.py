"""Instructions that are timed where they stand: which seconds belong to which, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import findings

from plancc.calibrate.document import document
from plancc.calibrate.point import DECODE, PREFILL, TRAIN, Point
from plancc.calibrate.probed import AROUND, Stamps, laps_of
from plancc.calibrate.programs import (
    Steps,
    autograd_seconds,
    instruction_seconds,
    known_seconds,
    optimizer_seconds,
    points,
    rows_of,
)
from plancc.calibrate.samples import APART, EXPERTS, SPLIT, Compiled, Sample, compiled, samples
from plancc.calibrate.toy import Decoder, Width
from plancc.dsl.errors import Bug
from plancc.ir.program import Backward, Compute, Free, Leaf, Origin
from plancc.simulator.cluster import parse_cluster
from plancc.simulator.forms import Work
from plancc.simulator.hardware import Hardware
from plancc.simulator.script import as_measured

TINY = Width(1, 16, 2, 16, 260, 8)
NOWHERE = Origin("", "", None)


class Ticks:
    """A clock that goes on by given steps."""

    def __init__(self, *steps: float) -> None:
        self.steps, self.at = iter(steps), 0.0

    def __call__(self) -> float:
        self.at += next(self.steps, 0.0)
        return self.at


def test_stamps_leave_out_what_a_stamp_takes() -> None:
    """Values after 1 and 2 seconds; between them a probe that itself takes 5."""
    stamps = Stamps(Ticks(0, 1, 5, 2, 5))
    stamps.begin("step")
    stamps("x", None)
    stamps("y", None)
    assert stamps.medians(0) == {"step": [1.0, 2.0]}


def test_the_first_steps_do_not_count() -> None:
    stamps = Stamps(Ticks(0, 9, 0, 0, 1, 0, 0, 3, 0))
    for _ in range(3):
        stamps.begin("step")
        stamps("x", None)
    assert stamps.medians(1) == {"step": [2.0]}


def test_what_a_step_takes_around_its_functions() -> None:
    """Ten seconds in all, four of them inside."""
    stamps = Stamps(Ticks(0, 10))

    def step() -> None:
        stamps.inside += 4

    stamps.around(step)
    assert stamps.medians(0) == {AROUND: [6.0]}


def compute(target: str) -> Compute:
    return Compute(target, (), {}, (), NOWHERE)


def sample(step: object, seconds: float, *works: Work) -> Sample:
    return Sample("step", (step,), (works,), seconds)  # type: ignore[arg-type]


MATMUL = Work("matmul", 2000, 100, 20, "f32", (1, 1, 10, 100))
ADD = Work("memory", 0, 8, 4, "f32")


def test_rows_are_medians_of_equal_calls() -> None:
    linear, add = compute("aten.linear.default"), compute("aten.add.Tensor")
    shard = compute("plancc.embedding_shard.default")
    view = compute("aten.permute.default")
    found = rows_of(
        [sample(linear, s, MATMUL) for s in (1.0, 9.0, 2.0)]
        + [sample(add, 3.0, ADD), sample(shard, 7.0, ADD, ADD), sample(view, 1.0)]
        + [Sample("step", (add, add), ((ADD,), (ADD,)), 99.0)]
    )
    assert found["matmul"] == {"f32": [[2000, 120, 2.0]]}
    assert found["add"] == found["memory"] == {"f32": [[0, 12, 3.0]]}
    assert found["embedding_shard"] == {"f32": [[0, 24, 7.0]]}
    assert set(found) == {"matmul", "add", "memory", "embedding_shard"}
    assert instruction_seconds([sample(view, s) for s in (1.0, 5.0, 2.0)]) == 2.0


def test_a_call_of_several_products_is_a_row_of_its_operator_and_attention_one_of_each() -> None:
    experts, over = compute("plancc.experts.default"), compute("plancc.attention_over_keys.default")
    scores = Work("attention", 500, 60, 4, "f32", (1, 1, 1, 5, 5))
    found = rows_of([sample(experts, 8.0, ADD, MATMUL, ADD, MATMUL), sample(over, 2.0, scores)])
    assert found["experts"] == {"f32": [[4000, 2 * 120 + 2 * 12, 8.0]]}
    assert found["attention_over_keys"] == found["attention"] == {"f32": [[500, 64, 2.0]]}
    assert set(found) == {"experts", "attention_over_keys", "attention"}
    raw = document(findings())
    raw["kinds"]["core"]["calls"] = {**found, "matmul": {"f32": [[2000, 120, 2.0]]}}
    known = parse_cluster(raw).place([0])
    assert known_seconds(sample(experts, 0.0, ADD, MATMUL, ADD, MATMUL), known) == 8.0
    half = [replace(work, dtype="bf16") for work in (ADD, MATMUL)]
    assert len(as_measured(known, 0, experts, tuple(half))) == 2  # rows of f32 say nothing of those
    raw["kinds"]["core"]["calls"].pop("experts")
    apart = parse_cluster(raw).place([0])
    assert 4.0 < known_seconds(sample(experts, 0.0, ADD, MATMUL, ADD, MATMUL), apart) < 4.1


def hardware(**host: float) -> Hardware:
    raw = document(findings())
    raw["kinds"]["core"]["calls"] = {
        "matmul": {"f32": [[2000, 120, 2.0]]}, "add": {"f32": [[0, 12, 3.0]]},
        "memory": {"f32": [[0, 12, 4.0]]},
    }  # fmt: skip
    raw["kinds"]["core"]["host"] = {n: {"value": v, "source": "x"} for n, v in host.items()}
    return parse_cluster(raw).place([0])


def test_what_autograd_adds() -> None:
    """A recorded product of 2.5 s (2 known), a view of 0.7 (0.1 known), a backward of 8 (2 x 2 + 3 known)."""
    backward = Backward((), (), (), (), None, NOWHERE)  # type: ignore[arg-type]
    found = autograd_seconds(
        [
            sample(compute("aten.linear.default"), 2.5, MATMUL),
            sample(compute("aten.permute.default"), 0.7),
            sample(Leaf("x", None, NOWHERE), 0.1),  # type: ignore[arg-type]
            sample(backward, 8.0 + 1.0, MATMUL, MATMUL, ADD),
        ],
        hardware(instruction=0.1),
    )
    assert found["recorded"] == pytest.approx((0.5 + 0.6 + 0.0) / 3)
    assert found["backward"] == pytest.approx((9.0 - 4.0 - 4.0) / 3)


def test_what_training_takes_behind_its_programs() -> None:
    """2 s a step, 0.5 s a parameter, 1e-3 s a byte: exactly found again."""
    steps = [
        Steps(2 + 0.5 * n + 1e-3 * size, n, size) for n, size in ((10, 0), (50, 0), (20, 4000))
    ]
    host, row = optimizer_seconds(*steps)
    assert host == pytest.approx({"parameter": 0.5, "train_step": 2.0})
    assert row == pytest.approx([0, 4000, 4.0])


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Compiled]]:
    home = tmp_path_factory.mktemp("decoders")
    mixture = Width(1, 16, 2, 16, 260, 8, experts=4)
    yield {
        "infer": compiled(Decoder(TINY), False, home / "infer"),
        "train": compiled(Decoder(TINY), True, home / "train"),
        "split": compiled(Decoder(TINY), False, home / "split", SPLIT),
        "apart": compiled(Decoder(TINY), False, home / "apart", APART),
        "experts": compiled(Decoder(mixture), False, home / "experts", EXPERTS),
    }


RUNS = (
    ("infer", Point(DECODE, 1, 1, 8, steps=3)), ("infer", Point(PREFILL, 2, 5, steps=1)),
    ("train", Point(TRAIN, 2, 5, steps=1)), ("split", Point(DECODE, 2, 1, 8, steps=1)),
    ("apart", Point(DECODE, 2, 1, 8, steps=1)), ("experts", Point(PREFILL, 2, 5, steps=1)),
)  # fmt: skip


@pytest.mark.parametrize("name, point", RUNS)
def test_every_instruction_with_a_value_is_in_one_sample(
    decoders: dict[str, Compiled], name: str, point: Point
) -> None:
    decoder = decoders[name]
    ranks = laps_of(decoder.run(point), 1)
    assert len(ranks) == decoder.ranks
    found = list(samples(decoder, point, ranks))
    seconds = sum(s for laps in ranks for n, row in laps.items() if n != AROUND for s in row)
    assert sum(one.seconds for one in found) == pytest.approx(seconds)
    told = [id(step) for one in found for step in one.steps]
    for rank in range(decoder.ranks):
        program = decoder.programs[point.phase, rank]
        computes = [s for s in program.instructions if isinstance(s, Compute)]
        sections = {s.name for s in program.sections} - set(ranks[rank])
        if not sections:
            assert {id(step) for step in computes} <= set(told)
    assert not any(isinstance(step, Free) for one in found for step in one.steps)


def test_the_operators_of_each_plan_become_rows(decoders: dict[str, Compiled]) -> None:
    def names(name: str, point: Point) -> set[str]:
        decoder = decoders[name]
        return set(rows_of(samples(decoder, point, laps_of(decoder.run(point), 1))))

    plain = names("infer", RUNS[1][1])
    assert {"matmul", "attention", "rms_norm", "embedding", "memory", "mul", "silu"} <= plain
    assert "embedding_shard" in names("split", RUNS[3][1])
    assert {"route", "topk", "experts"} <= names("experts", RUNS[5][1])
    assert {"attention", "attention_over_keys"} <= names("apart", RUNS[4][1])


def test_other_probes_than_values_are_a_bug(decoders: dict[str, Compiled]) -> None:
    decoder, point = decoders["infer"], RUNS[1][1]
    (laps,) = laps_of(decoder.run(point), 1)
    laps["step"].append(1.0)
    with pytest.raises(Bug, match="more probes than values"):
        list(samples(decoder, point, [laps]))


@pytest.mark.parametrize("quick", [True, False])
def test_the_runs_of_a_calibration_can_be_run(quick: bool) -> None:
    plan = points(quick, "local")
    for point in (*plan.points, *plan.training):
        assert point.past + point.tokens + point.steps <= min(w.length for w in plan.widths)
    assert {point.phase for point in plan.points} == {PREFILL, DECODE}
    cold = [w for w in plan.widths if weights(w) > 48 << 20]
    assert quick or len(cold) == len(plan.widths)


def weights(width: Width) -> int:
    """Bytes of a decoder's weights."""
    inner = width.heads * width.head_dim
    layer = 4 * width.hidden * inner + 3 * width.hidden * width.ffn
    return 4 * (width.layers * layer + 2 * width.vocab * width.hidden)


def test_files_of_decoders_stay_in_their_folder(tmp_path: Path) -> None:
    made = compiled(Decoder(TINY), False, tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert all(path.is_relative_to(tmp_path) for path in (made.folder, *made.probed.values()))
