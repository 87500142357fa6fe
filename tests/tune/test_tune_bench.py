"""Settings tried on a tiny model and a made-up cluster: what is refused, what does not fit, what is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_cluster import toy

from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.dsl.declared import declared_params
from plancc.ir.graph import Graph
from plancc.tune import bench as bench_module
from plancc.tune.bench import Bench
from plancc.tune.distinct import plan_key, program_key
from plancc.tune.forms import DEVICES, METRICS, Case, joint
from plancc.tune.report import picks, search_facts
from plancc.tune.search import Limits, Trail, confirm, search
from plancc.tune.space import space_of

GRID = """plan p, edition 1
param dp = 1 in 1..8
param tp = 1 in 1..8
mesh base[dp = dp, tp = tp] on local
place ** on base { split batch over dp }
place layers.*.self_attn { split heads over tp }
place layers.*.mlp { split ffn over tp }
"""
DECODE = Case("decode", 4, 64)
Write = Callable[..., Path]


def searched(
    plan: Path, graph: Graph, cluster: Any, *cases: Case, metric: str = "time"
) -> tuple[Bench, Trail]:
    bench = Bench(plan, graph, cluster, cases or (DECODE,))
    params, report = declared_params(plan)
    assert report.ok
    space = space_of(params, cluster.size, {}, {})
    return bench, search(space, bench.tries, joint(METRICS[metric]), Limits())


def best(trail: Trail, metric: str = "time") -> dict[str, str]:
    found = trail.best(joint(METRICS[metric]))
    assert found is not None
    return dict(found.sets)


def test_slow_messages_make_one_device_best(written: Write, graph: Graph) -> None:
    # A message takes a second: a cut batch gathers its outputs once, cut heads and FFN add up twice.
    _, trail = searched(written(GRID), graph, toy(latency=1.0))
    assert best(trail) == {"dp": "1", "tp": "1"}
    seconds = {a.sets: a.cells[0].row.seconds for a in trail.tried.values() if a.cells}  # type: ignore[union-attr]
    assert seconds[("dp", "4"), ("tp", "1")] == pytest.approx(1.0, rel=1e-3)
    assert seconds[("dp", "1"), ("tp", "4")] == pytest.approx(2.0, rel=1e-3)


def test_free_messages_make_all_devices_best(written: Write, graph: Graph) -> None:
    cluster = toy(bandwidth=1e15)
    _, trail = searched(written(GRID), graph, cluster, Case("decode", 4, 64))
    assert best(trail) == {
        "dp": "2",
        "tp": "2",
    }  # the cut batch spares the embedding, cut weights the FFN
    _, trail = searched(written(GRID), graph, cluster, Case("decode", 1, 64))
    assert best(trail) == {"dp": "1", "tp": "4"}  # one sequence cannot be cut


def test_least_memory_cuts_the_weights(written: Write, graph: Graph) -> None:
    _, trail = searched(written(GRID), graph, toy(latency=1.0), metric="memory")
    assert best(trail, "memory") == {
        "dp": "1",
        "tp": "4",
    }  # dp repeats weights, tp cuts weights and cache


def test_what_is_refused_is_counted_by_its_code(written: Write, graph: Graph) -> None:
    bench, trail = searched(
        written(GRID + 'require dp * tp <= 2 or dp == 4 else "two, or four replicas"\n'),
        graph,
        toy(),
    )
    # Of 8 x 8: (1, 1), (1, 2), (2, 1), (4, 1) fit; (4, t) needs 4 t devices; the others break the rule.
    assert trail.refused == {"P106": 64 - 3 - 8, DEVICES: 7}
    assert trail.simulated == 4 and trail.same == 0 and trail.complete
    assert trail.example(DEVICES).reason == "needs 8 devices, toy has 4"
    facts = search_facts(bench, trail, METRICS["time"], [()])
    assert facts["searched"]["refused"]["P106"]["reason"] == "two, or four replicas"
    assert facts["cases"][0]["counts"] == {"fits": 4, "does_not_fit": 0, "not_simulated": {}}


def test_what_a_pass_refuses_is_counted_too(written: Write, graph: Graph) -> None:
    # The embedding and the head are not cut: with 90 KB only settings that cut the rest enough pass (P602).
    text = GRID.replace("on local", "on local { budget = 90KB }").replace("1..8", "[1, 2, 4]")
    plan = written(text + "model m { batch in 1..4; seq_len in 1..64 }\n")
    _, trail = searched(plan, graph, toy())
    assert trail.refused["P602"] == 6 - trail.simulated > 0 and trail.simulated > 0


def test_what_does_not_fit_in_memory_is_counted(written: Write, graph: Graph) -> None:
    plan = written(GRID)
    _, trail = searched(plan, graph, toy())
    need = sorted(
        max(a.cells[0].row.memory_gb.values()) * 1e9  # type: ignore[union-attr]
        for a in trail.tried.values() if a.cells
    )  # fmt: skip
    between = (need[2] + need[3]) / 2
    bench, trail = searched(plan, graph, toy(memory=between))
    facts = search_facts(bench, trail, METRICS["time"], [()])
    assert facts["cases"][0]["counts"] == {
        "fits": 3, "does_not_fit": len(need) - 3, "not_simulated": {}
    }  # fmt: skip
    for row in facts["cases"][0]["front"]:
        assert max(row["row"]["memory_gb"].values()) * 1e9 <= between
    _, tight = searched(plan, graph, toy(memory=need[0] / 2))
    assert tight.best(joint(METRICS["time"])) is None


def test_a_length_that_the_plan_does_not_admit_has_no_row(written: Write, graph: Graph) -> None:
    plan = written(GRID + "model m { batch in 1..8; seq_len in 1..32 }\n")
    bench, trail = searched(plan, graph, toy(), DECODE)
    facts = search_facts(bench, trail, METRICS["time"], [()])
    (reason,) = facts["cases"][0]["counts"]["not_simulated"]
    assert reason == "seq_len = 64 is outside 1..32, the plan's range"
    assert facts["best"] is None


def test_a_batch_with_too_few_sequences_for_its_micro_batches_has_no_row(
    written: Write, graph: Graph
) -> None:
    text = GRID.replace("param tp = 1 in 1..8", "param m = 2 in [2, 8]\nparam tp = 1 in 1..1")
    text = text.replace("dp = 1 in 1..8", "pp = 1 in 1..1").replace("dp = dp", "pp = pp")
    text = text.replace("{ split batch over dp }", "").replace(
        "place layers", "place layers.* { split layers over pp }\nplace layers", 1
    )
    text += (
        'model m1 { mode = train }\npipeline over base.pp { schedule = "1F1B"; microbatches = m }\n'
    )
    bench, trail = searched(written(text), graph, toy(), Case("train", 4, 64))
    facts = search_facts(bench, trail, METRICS["time"], [()])
    assert facts["cases"][0]["counts"]["not_simulated"] == {
        "a batch of 4 has fewer sequences than 8 micro-batches": 1
    }
    assert best(trail)["m"] == "2"


def test_settings_that_make_the_same_plan_are_lowered_once(
    written: Write, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[0].params)
        return compile_graph(*args, **options)

    monkeypatch.setattr(bench_module, "compile_graph", counted)
    text = GRID.replace("param tp", "param unused = 1 in 1..3\nlet more = unused\nparam tp")
    text = text.replace("tp = tp]", "tp = tp + 0 * more]").replace("1..8", "[1, 2]")
    _, trail = searched(written(text), graph, toy())
    assert trail.same == 8 and trail.simulated == len(calls) == 4 and trail.complete
    assert all(a.cells == trail.tried[a.same_as].cells for a in trail.tried.values() if a.same_as)


def test_of_equals_the_best_is_nearest_to_the_defaults(written: Write, graph: Graph) -> None:
    text = GRID.replace("param tp", "param unused = 2 in 1..3\nlet more = unused\nparam tp")
    _, trail = searched(written(text.replace("tp = tp]", "tp = tp + 0 * more]")), graph, toy())
    assert best(trail)["unused"] == "2"


def test_variants_with_the_same_programs_are_simulated_once(
    written: Write, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    plain = Bench.row
    monkeypatch.setattr(Bench, "row", lambda *args: rows.append(args[2]) or plain(*args))
    text = GRID.replace("param dp", "param far = 100 in [100, 200]\nparam dp").replace(
        "1..8", "[1, 2]"
    )
    text = text.replace("place layers.*.mlp { split ffn over tp }", "")
    text += "when seq_len > far { place layers.*.mlp { split ffn over tp } }\n"
    plan = written(text + "model m { batch in 1..8; seq_len in 1..512 }\n")
    _, trail = searched(plan, graph, toy(), Case("decode", 4, 64), Case("decode", 4, 150))
    # far decides nothing at 64, so 4 programs there; at 150 it does where tp = 2: 4 + 2.
    assert trail.simulated == 8 and len(rows) == 4 + 6
    assert {a.cells[1].row.variant for a in trail.tried.values() if a.cells[1].row} == {
        "101 <= seq_len <= 512", "1 <= seq_len <= 200"
    }  # fmt: skip


def test_a_setting_that_another_phase_refuses_is_not_told(written: Write, graph: Graph) -> None:
    # Prefill of 512 tokens holds more activations than decode does; the budget lies between.
    text = GRID.replace("on local", "on local { budget = 400KB }").replace("1..8", "[1, 2]")
    plan = written(text + "model m { batch in 1..4; seq_len in 1..512 }\n")
    bench, trail = searched(plan, graph, toy())
    taken = [a.sets for a in trail.tried.values() if a.cells]
    confirm(trail, picks(METRICS["time"]), bench.whole)
    left = [a.sets for a in trail.tried.values() if a.cells]
    assert len(left) < len(taken) and trail.refused["P602"] >= len(taken) - len(left)
    found = trail.best(joint(METRICS["time"]))
    for sets in left if found is None else [found.sets]:
        assert bench.whole(sets) is None


def changes() -> Iterator[tuple[str, str]]:
    """Changes of GRID that make another plan."""
    yield "dp = 1", "dp = 2"
    yield "split ffn over tp", "split ffn over tp (block = balanced)"
    yield "split batch over dp", "replicate batch over dp"
    yield "on local", "on local { budget = 1GB }"


@pytest.mark.parametrize(("old", "new"), list(changes()))
def test_plans_that_differ_have_different_keys(written: Write, old: str, new: str) -> None:
    keys = [plan_key(resolved(written(text))) for text in (GRID, GRID.replace(old, new, 1))]
    assert keys[0] != keys[1]


def test_lines_and_names_of_parameters_do_not_change_the_key(written: Write) -> None:
    other = GRID.replace("\n", "\n# a remark\n").replace("param tp = 1", "param tp = 1 + 0")
    assert plan_key(resolved(written(GRID))) == plan_key(resolved(written(other, "q.plan")))


def test_programs_have_one_key_however_they_are_made(written: Write, graph: Graph) -> None:
    keys = set()
    for name, text in (("a.plan", GRID), ("b.plan", "# moved\n" + GRID)):
        plan, report = load_plan(written(text, name), {"tp": "2"})
        assert plan is not None
        made = compile_graph(plan, graph, report, phases=("decode", "prefill"))
        decode, prefill = (made.unit(phase).programs for phase in ("decode", "prefill"))
        assert decode is not None and prefill is not None
        keys.add((program_key(decode, made.world, plan), program_key(prefill, made.world, plan)))
    ((first, second),) = keys
    assert first != second


def resolved(path: Path) -> Any:
    """The plan of a file."""
    plan, report = load_plan(path)
    assert plan is not None, report.diagnostics
    return plan
