"""The cluster file out of measurements: of a machine whose laws are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import (
    BANDWIDTH,
    LATENCY,
    MACHINE,
    PEAK,
    WIRE,
    call_seconds,
    certain,
    findings,
    timed,
)

from plancc.calibrate.collectives import MESSAGE, Exchange
from plancc.calibrate.document import document, line
from plancc.calibrate.machine import cpu_name, disturbances
from plancc.calibrate.measure import save, text_of
from plancc.calibrate.request import CalibrationError
from plancc.calibrate.spread import Spread, spread_of
from plancc.dsl.errors import Bug
from plancc.simulator.cluster import parse_cluster, read_cluster
from plancc.simulator.errors import SimulateError
from plancc.simulator.forms import Work
from plancc.simulator.hardware import Hardware


def placed(document: dict[str, Any], ranks: int = 4) -> Hardware:
    return parse_cluster(document).place(range(ranks))


def test_the_quartiles_of_repeats() -> None:
    found = spread_of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == Spread(1.0, 2.0, 3.0, 4.0, 5)
    assert found.noise == pytest.approx(2 / 3)
    assert Spread.from_json(json.loads(json.dumps(found.json()))) == found
    assert spread_of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 1)


def test_a_file_gives_back_what_was_measured() -> None:
    hardware = placed(document(findings()))
    for flops, size in ((10**6, 10**6), (10**10, 10**6)):
        work = Work("matmul", flops, size, 0, "f32", (1, 1, 1, 1))
        assert hardware.seconds(0, work) == pytest.approx(call_seconds(flops, size), rel=1e-3)
    add = Work("memory", 0, 10**6, 0, "f32")
    assert hardware.seconds(0, add, "add") == pytest.approx(call_seconds(0, 10**6), rel=1e-3)
    assert hardware.verb_seconds("all_reduce", (0, 1), 4096) == pytest.approx(
        2 * LATENCY + 2 * 4096 / WIRE, rel=1e-3
    )
    assert not hardware.assumptions
    # between measured calls the law holds as well: it is the roofline without overlap
    work = Work("matmul", 10**9, 10**6, 0, "f32", (1, 1, 1, 1))
    assert hardware.seconds(0, work) == pytest.approx(call_seconds(10**9, 10**6), rel=0.1)


def test_constants_of_the_file() -> None:
    found = document(findings())
    kind, link = found["kinds"]["core"], found["links"]["node"]
    value = {name: kind[name]["value"] for name in ("bandwidth", "launch", "memory")}
    assert value["bandwidth"] == pytest.approx(BANDWIDTH, rel=1e-2)
    assert value["launch"] == pytest.approx(call_seconds(0, 1000), rel=1e-3)
    assert kind["flops"]["f32"]["value"] == pytest.approx(PEAK, rel=1e-2)
    assert link["latency"]["value"] == pytest.approx(2 * LATENCY, rel=1e-3)
    assert link["one_way"]["value"] == pytest.approx(0.5, rel=1e-3)
    # two more ranks take 2 x LATENCY more: half of it for each of the two ways, over two steps
    assert link["step"]["value"] == pytest.approx(LATENCY / 2, rel=1e-3)
    assert link["message_latency"]["value"] == pytest.approx(LATENCY, rel=1e-3)
    assert link["message_bandwidth"]["value"] == pytest.approx(WIRE, rel=1e-3)
    assert found["cores"]["value"] == 2
    assert document(findings("local"))["cores"]["value"] == 1


def test_every_constant_says_what_was_measured_when_and_where() -> None:
    cluster = parse_cluster(document(replace(findings(), host={"step": 1e-4})))
    of_host = {path: text for path, text in cluster.sources.items() if "per_node" not in path}
    assert "kinds.core.host.step" in of_host
    for path, source in of_host.items():
        for fact in ("2026-01-31", "Some CPU (2 cores)", "torch 2.13.0"):
            assert fact in source, path


def test_power_is_no_guess() -> None:
    with pytest.raises(SimulateError, match="power: missing"):
        placed(document(findings())).power(0)


def test_several_processes_need_a_link_and_one_does_not() -> None:
    alone = replace(findings(), exchanges=[])
    found = document(alone)
    assert found["links"] == {} and found["collectives"] == []
    hardware = placed(found, 1)
    assert hardware.seconds(0, Work("memory", 0, 10**3, 0, "f32"), "add") > 0


def test_without_products_there_is_no_file() -> None:
    with pytest.raises(Bug, match="matrix products"):
        document(replace(findings(), works=[timed("memory", "add", 0, 1000)]))


def test_messages_that_noise_turned_upside_down_still_give_a_line() -> None:
    pairs = [Exchange(MESSAGE, 2, 8, certain(1e-3)), Exchange(MESSAGE, 2, 1 << 20, certain(1e-4))]
    latency, bandwidth = line(pairs)
    assert latency == pytest.approx(1e-4)
    assert 0 < bandwidth <= (1 << 20) / 1e-4


def test_what_keeps_a_sender_is_no_part_of_the_latency() -> None:
    """A message of the least size takes LATENCY, of which the sender is kept for a quarter."""
    made = findings()
    given = [
        replace(e, given=LATENCY / 4 if e.size == 8 else LATENCY) if e.kind == MESSAGE else e
        for e in made.exchanges
    ]
    hardware = placed(document(replace(made, exchanges=given)), 2)
    assert hardware.overhead(0, 1) == pytest.approx(LATENCY / 4, rel=1e-3)
    latency, busy = hardware.message(0, 1, 8)
    assert latency + hardware.overhead(0, 1) == pytest.approx(LATENCY, rel=1e-2)
    assert busy == pytest.approx(8 / WIRE, rel=1e-2)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    made = document(findings())
    path = tmp_path / "here.json"
    save(made, path)
    assert json.loads(path.read_text()) == made
    assert read_cluster(path).name == "gloo_here"
    assert [one.name for one in tmp_path.iterdir()] == ["here.json"]
    with pytest.raises(CalibrationError, match="cannot write"):
        save(made, tmp_path / "no folder" / "here.json")
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(CalibrationError, match="cannot write"):
        save(made, folder)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["here.json", "taken"]


def test_the_text_has_a_line_for_each_constant_and_row() -> None:
    lines = text_of(document(findings())).splitlines()
    assert sum('"source"' in one for one in lines) == text_of(document(findings())).count(
        '"source"'
    )
    assert max(map(len, lines)) < 300


def test_a_machine_that_is_not_quiet_is_said_to_be_so() -> None:
    steady, shaky = certain(1.0), Spread(0.5, 0.8, 1.0, 1.2, 7)
    assert disturbances(MACHINE, [steady] * 9 + [shaky]) == []
    (busy,) = disturbances(replace(MACHINE, load=3.0), [steady])
    assert "a load of 3.0 on 2 cores" in busy
    (noisy,) = disturbances(MACHINE, [steady, shaky])
    assert "1 of 2 measurements" in noisy and "40%" in noisy
    # a single repeat tells nothing
    assert disturbances(MACHINE, [Spread(1.0, 1.0, 1.0, 1.0, 1)]) == []


def test_the_processor_as_it_calls_itself(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some: CPU @ 2 GHz\nprocessor\t: 1\n")
    assert cpu_name(info) == "Some: CPU @ 2 GHz"
    assert cpu_name(tmp_path / "none")
