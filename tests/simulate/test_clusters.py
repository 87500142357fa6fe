"""Cluster files: what is shipped, what is refused and how, presets and constants set by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from plain_cluster import const, plain

from plancc.simulator.cluster import ClusterError, parse_cluster, read_cluster
from plancc.simulator.forms import Work

FOLDER = Path(__file__).parents[2] / "examples"
SHIPPED = sorted((FOLDER / "clusters").glob("*.json"))
NAMES = [path.stem for path in SHIPPED]


def problems(raw: Any) -> tuple[str, ...]:
    """What is wrong with a file's data."""
    with pytest.raises(ClusterError) as found:
        parse_cluster(raw)
    return found.value.problems


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plain cluster with one part replaced, or without it where the value is KeyError."""
    raw = plain()
    *parents, last = path.split(".")
    owner: Any = raw
    for name in parents:
        owner = owner[int(name) if isinstance(owner, list) else name]
    if value is KeyError:
        del owner[last]
    else:
        owner[last] = value
    return raw


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_every_constant_of_the_shipped_files_has_a_source(path: Path) -> None:
    cluster = read_cluster(path)
    numbers = [value for value, _ in constants(json.loads(path.read_text()))]
    assert len(cluster.sources) == len(cluster.values) >= 29
    assert len(numbers) == len(cluster.values) + sum(
        len(item["set"]) for item in cluster.raw.get("presets", {}).values()
    )
    for source in cluster.sources.values():
        assert re.search(r"data sheet|assumed|fit|vidur|arXiv|issue|NCCL|the A100's", source), (
            source
        )


def constants(part: Any) -> Iterator[tuple[float, str]]:
    """Every {value, source} of a file."""
    if isinstance(part, dict):
        if "value" in part:
            yield part["value"], part["source"]
        for item in part.values():
            yield from constants(item)


def test_the_shipped_files_are_told_in_the_readme() -> None:
    text = (FOLDER / "clusters" / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}`" in text
    for name in ("dgx_a100_16", "dgx_h100", "dgx_h200"):
        cluster = read_cluster(name, FOLDER)
        for path, value in cluster.values.items():
            assert f"| `{path}` | {value:g} | {cluster.sources[path]} |" in text, path


def test_the_example_of_the_readme_is_right() -> None:
    text = (FOLDER / "clusters" / "README.md").read_text()
    lab = parse_cluster(json.loads(text.partition("```json\n")[2].partition("```")[0]))
    assert lab.place((0, 1)).verb_seconds("all_reduce", (0, 1), 20_000_000) == pytest.approx(
        1.03e-3
    )


def test_one_kind_is_the_same_in_every_file() -> None:
    seen: dict[str, Any] = {}
    for name in NAMES:
        raw = json.loads((FOLDER / "clusters" / f"{name}.json").read_text())
        for kind, item in raw["kinds"].items():
            own = {part: value for part, value in item.items() if part not in ("node", "network")}
            assert seen.setdefault(kind, own) == own
            for end in ("node", "network"):
                link = raw["links"][item.get(end, end)]
                assert seen.setdefault(f"{kind}.{end}", link) == link


@pytest.mark.parametrize("path", SHIPPED, ids=NAMES)
def test_presets_of_the_shipped_files(path: Path) -> None:
    honest = read_cluster(path)
    assert honest.preset("honest") is honest
    ranks = range(honest.size)
    work = Work("matmul", 10**9, 10**6, 10**6, "bf16")
    group = tuple(ranks)
    times = {}
    for name in ("honest", "ideal", *honest.presets):
        hardware = honest.preset(name).place(ranks)
        times[name] = (hardware.seconds(0, work), hardware.verb_seconds("all_reduce", group, 10**6))
    others = [value for name, value in times.items() if name != "ideal"]
    assert all(
        ideal < other
        for value in others
        for ideal, other in zip(times["ideal"], value, strict=True)
    )
    assert all(
        new < old
        for name in honest.presets
        for new, old in zip(times[name], times["honest"], strict=True)
    )


def test_ideal_is_the_data_sheet() -> None:
    hardware = read_cluster("dgx_a100_16", FOLDER).preset("ideal").place(range(16))
    assert hardware.seconds(0, Work("matmul", 312 * 10**9, dtype="bf16")) == pytest.approx(1e-3)
    assert hardware.seconds(0, Work("memory", read=2039 * 10**6)) == pytest.approx(1e-3)
    assert hardware.message(0, 1, 300 * 10**6) == (0.0, pytest.approx(1e-3))
    assert hardware.message(0, 8, 25 * 10**6) == (0.0, pytest.approx(1e-3))
    assert hardware.verb_seconds("all_gather", tuple(range(8)), 0) == 0.0
    assert hardware.assumptions == ("ideal: all peaks reached, no latencies",)


def test_the_graph_preset_sets_what_it_says() -> None:
    cluster = read_cluster("dgx_a100_16", FOLDER).preset("graph")
    assert cluster.values["links.node.latency"] == 12e-6
    assert cluster.changed == ("graph: kernels and collectives are launched by CUDA graphs",)
    with pytest.raises(ClusterError, match="no preset `graf`; there are honest, ideal, graph"):
        cluster.preset("graf")


def test_a_constant_set_by_hand() -> None:
    cluster = read_cluster("dgx_a100_16", FOLDER)
    one = cluster.with_("links.network.nics=1", "kinds.a100.launch = 0", "devices.0.count=8")
    assert (one.links["network"].nics, one.kinds["a100"].launch, one.size) == (1, 0, 8)
    assert one.sources["links.network.nics"] == "set by hand"
    assert one.place(range(8)).assumptions == (
        "links.network.nics = 1 instead of 8",
        "kinds.a100.launch = 0 instead of 6e-06",
        "devices.0.count = 8",
    )
    assert cluster.values["links.network.nics"] == 8  # the file itself stays
    assert one.with_("links.network.nics=2").changed[-1] == "links.network.nics = 2 instead of 1"
    assert parse_cluster(plain()).with_("kinds.gpu.flops.f64=1e12", "cores=4").cores == 4


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("links.network.nic=1", "links.network.nic: unknown; did you mean `nics`?"),
        (
            "links.web.nics=1",
            "`links.web.nics`: no `links.web`; there are links.network, links.node",
        ),
        ("devices.3.count=1", "`devices.3.count`: no `devices.3`; there are devices.0"),
        ("kinds.gpu.memory.value.x=1", "`kinds.gpu.memory.value.x` is no constant"),
        ("name=3", "`name` is no constant"),
        (
            "links.network.nics",
            "`links.network.nics`: write path=number, as in links.network.nics=1",
        ),
        ("links.network.nics=many", "`links.network.nics=many`: write path=number"),
        (
            "links.network.nics=0",
            "links.network.nics: 0 is no nics: it must be a whole number of at least 1",
        ),
        ("links.network.nics=1.5", "links.network.nics: 1.5 is no nics"),
        ("kinds.gpu.memory=1e999", "kinds.gpu.memory: Infinity where a number must stand"),
        (
            "kinds.gpu.efficiency.matmul=1.2",
            "kinds.gpu.efficiency.matmul: 1.2 is no matmul: it must be more",
        ),
    ],
)
def test_settings_that_are_refused(setting: str, told: str) -> None:
    with pytest.raises(ClusterError) as found:
        parse_cluster(plain()).with_(setting)
    assert found.value.problems[0].startswith(told)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ClusterError) as found:
        parse_cluster(plain()).with_("links.web.nics=1", "x", "links.network.nics=1")
    assert len(found.value.problems) == 2


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("schema", "plancc.cluster/2", 'schema: "plancc.cluster/2" where "plancc.cluster/1" must stand'),
        ("name", KeyError, "name: nothing where a text must stand"),
        ("devices", [], 'devices: a list of {"kind": ..., "count": ...} must stand here'),
        ("devices.0.kind", "tpu", "devices.0.kind: `tpu` is not in kinds (gpu)"),
        ("devices.0.count", 0, "devices.0.count: 0 is no count: it must be a whole number of at least 1"),
        ("kinds.gpu.bandwidth", const(0), "kinds.gpu.bandwidth: 0 is no bandwidth: it must be more than 0"),
        ("kinds.gpu.bandwidth", 2e12, 'kinds.gpu.bandwidth: 2000000000000.0 where {"value": ..., "source"'),
        ("kinds.gpu.bandwidth", KeyError, "kinds.gpu.bandwidth: missing;"),
        ("kinds.gpu.bandwidth.source", " ", 'kinds.gpu.bandwidth.source: " " where a text must stand'),
        ("kinds.gpu.bandwidth.value", True, "kinds.gpu.bandwidth: true where a number must stand"),
        ("kinds.gpu.launch", const(-1), "kinds.gpu.launch: -1 is no launch: it must be 0 or more"),
        ("kinds.gpu.flops.bf61", const(1), "kinds.gpu.flops.bf61: unknown; did you mean `bf16`?"),
        ("kinds.gpu.power.idle", KeyError, "kinds.gpu.power.idle: missing"),
        ("kinds.gpu.node", "pcie", "kinds.gpu.node: `pcie` is not in links (node, network)"),
        ("kinds.spare", {}, "kinds.spare.bandwidth: missing"),
        ("links.network.nics", KeyError, "links.network.nics: missing; nodes are joined by NICs"),
        ("links.node.bandwidth", const(4e11), "links.node.bandwidth: 4e+11 is more than its peak, 3e+11"),
        ("links.node.banwidth", const(1), "links.node.banwidth: unknown; did you mean `bandwidth`?"),
        ("kinds.gpu.tables", {"matmul": {"f64": [[1, 1, 1]]}}, "kinds.gpu.tables.matmul.f64: no peak for"),
        ("kinds.gpu.tables", {"matmul": {"f32": []}}, "kinds.gpu.tables.matmul.f32: rows [FLOPs, bytes,"),
        ("kinds.gpu.tables", {"memory": {"any": [[1, 1]]}}, "kinds.gpu.tables.memory.any.0: [1, 1] where"),
        ("kinds.gpu.tables", {"memory": {"any": [[1, 1, 0]]}}, "kinds.gpu.tables.memory.any.0.seconds: 0 is"),
        ("collectives", {}, "collectives: {} where a list must stand"),
        (
            "collectives",
            [{"kind": "gather", "ranks": 2, "bytes": 1, "seconds": 1}],
            "collectives.0.kind: `gather` is none of all_reduce, all_gather, reduce_scatter, all_to_all",
        ),
        ("cores", const(0.5), "cores: 0.5 is no cores"),
        ("presets", {"ideal": {"about": "x", "set": {}}}, "presets.ideal: `ideal` is a preset of every"),
        (
            "presets",
            {"odd": {"about": "x", "set": {"links.web.nics": const(1)}}},
            "presets.odd.set: `links.web.nics`: no `links.web`",
        ),
        (
            "presets",
            {"odd": {"about": "x", "set": {"links.node.latency": const(-1)}}},
            "presets.odd.set: links.node.latency: -1 is no latency",
        ),
    ],
)  # fmt: skip
def test_a_wrong_part_is_told_with_its_place(path: str, value: Any, told: str) -> None:
    found = problems(changed(path, value))
    assert any(text.startswith(told) for text in found), found


def test_all_problems_are_told_at_once() -> None:
    raw = changed("kinds.gpu.bandwidth", const(0))
    raw["links"]["node"]["step"] = const(-1)
    del raw["kinds"]["gpu"]["memory"]
    assert len(problems(raw)) == 3


LEGAL = {
    '"x"': ("name", "about", "source"),
    "[]": ("collectives",),
    "{}": ("flops", "efficiency", "streaming", "presets", "presets.fast.set"),
}
"""What is right there after all."""


@pytest.mark.parametrize(
    "bad", [None, -1, "x", [], {}, {"value": None, "source": "x"}, float("nan")]
)
def test_no_bad_part_anywhere_is_more_than_a_problem(bad: Any) -> None:
    def paths(part: Any, at: str) -> Iterator[str]:
        for name, item in part.items() if isinstance(part, dict) else enumerate(part):
            where = f"{at}.{name}" if at else str(name)
            yield where
            if isinstance(item, (dict, list)):
                yield from paths(item, where)

    raw = plain() | {
        "collectives": [{"kind": "all_reduce", "ranks": 2, "bytes": 8, "seconds": 1.0}],
        "presets": {"fast": {"about": "x", "set": {"links.node.step": const(0)}}},
    }
    for path in paths(raw, ""):
        if path.startswith("presets.fast.set.links"):
            continue  # its name has dots
        made = deepcopy(raw)
        *parents, last = path.split(".")
        owner: Any = made
        for name in parents:
            owner = owner[int(name) if isinstance(owner, list) else name]
        owner[int(last) if isinstance(owner, list) else last] = bad
        legal = LEGAL.get(json.dumps(bad), ())
        if last in legal or path in legal:
            assert parse_cluster(made).name
        else:
            place = path.removesuffix(".value")
            assert any(place in text for text in problems(made)), path


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError, match=r"no cluster file `dgx_a100`; .* dgx_a100_16, dgx_a100_40, dgx_h100"
    ):
        read_cluster("dgx_a100", FOLDER)
    with pytest.raises(ClusterError, match=r"no cluster file `x`; .*clusters has none"):
        read_cluster("x", tmp_path)
    for text, told in (
        ("{", "no JSON"),
        ('{"a": 1, "a": 2}', "`a` stands twice"),
        ("[]", "schema: nothing"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(ClusterError, match=told) as found:
            read_cluster(path)
        assert all(problem.startswith(str(path)) for problem in found.value.problems)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ClusterError, match="utf-8"):
        read_cluster(path)
