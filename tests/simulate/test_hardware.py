"""Seconds of works, verbs and messages: examples worked out on paper, and what must hold of all of them."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_cluster import const, plain

from plancc.dsl.errors import Bug
from plancc.simulator.cluster import ClusterError, parse_cluster
from plancc.simulator.forms import Work
from plancc.simulator.hardware import Hardware
from plancc.simulator.hardware_forms import VERBS, Curve

US = 1e-6
NODE, BOTH = tuple(range(8)), tuple(range(16))


def placed(raw: dict[str, Any] | None = None, *settings_: str, ranks: int = 16) -> Hardware:
    """The first ranks of the plain cluster, or of another."""
    return parse_cluster(raw or plain()).with_(*settings_).place(range(ranks))


def test_a_matrix_product_is_bound_by_its_flops() -> None:
    work = Work("matmul", 2 * 4096**3, 2 * 2 * 4096**2, 2 * 4096**2, "bf16", (1, 4096, 4096, 4096))
    # 137.4 GFLOP at 50 TFLOP/s; its 101 MB would take 126 us
    assert placed().seconds(0, work) == pytest.approx(5 * US + 2748.779 * US, rel=1e-6)


def test_a_skinny_product_is_bound_by_its_bytes() -> None:
    work = Work("matmul", 2 * 4096**2, 2 * (4096 + 4096**2), 2 * 4096, "bf16", (1, 1, 4096, 4096))
    # 33.6 MB at 0.8 TB/s; its 34 MFLOP would take 0.7 us
    assert placed().seconds(0, work) == pytest.approx(5 * US + 41.964 * US, rel=1e-4)


def test_other_kinds_of_work() -> None:
    hardware = placed()
    assert hardware.seconds(0, Work("attention", 10**9, dtype="bf16")) == pytest.approx(45 * US)
    assert hardware.seconds(0, Work("memory", 10**15, 3 * 10**6, 10**6, "i64")) == pytest.approx(
        9 * US
    )
    assert hardware.seconds(0, Work("memory")) == pytest.approx(5 * US)
    assert hardware.seconds(0, Work("view")) == 0.0


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (Work("matmul", 8, dtype="f64"), "kinds.gpu.flops.f64: missing; there are bf16, f32"),
        (Work("sort", 8, dtype="f32"), "kinds.gpu.efficiency.sort: missing"),
        (Work("sort", 0, 8), "kinds.gpu.streaming.sort: missing"),
    ],
)
def test_what_the_file_lacks_is_named(work: Work, told: str) -> None:
    with pytest.raises(ClusterError, match=told.replace(".", r"\.")):
        placed().seconds(0, work)


def test_verbs_within_a_node() -> None:
    hardware = placed()
    # ring: latency, 2 x 7 steps of 1 us, 2 x 7/8 x 80 MB at 100 GB/s
    assert hardware.verb_seconds("all_reduce", NODE, 80_000_000) == pytest.approx(
        (10 + 14 + 1400) * US
    )
    one_way = pytest.approx((5 + 7 + 700) * US)
    assert hardware.verb_seconds("reduce_scatter", NODE, 80_000_000) == one_way
    assert hardware.verb_seconds("all_gather", NODE, 10_000_000) == one_way
    # 7/8 of the operand leaves each rank
    assert hardware.verb_seconds("all_to_all", NODE, 80_000_000) == pytest.approx((5 + 700) * US)
    assert hardware.verb_seconds("all_reduce", NODE, 0) == pytest.approx(24 * US)
    assert hardware.verb_seconds("all_reduce", (3,), 10**9) == 0.0


def test_verbs_across_two_nodes() -> None:
    hardware = placed()
    # ring: 20 us, twice 14 steps inside and one outside, 15/8 x 80 MB at 8 NICs x 10 GB/s
    large = hardware.verb_seconds("all_reduce", BOTH, 80_000_000)
    assert large == pytest.approx((20 + 2 * (14 + 5) + 1875) * US)
    # a tree is no deeper than a chain of 8: 7 steps inside, one outside
    assert hardware.verb_seconds("all_reduce", BOTH, 80) == pytest.approx(
        (20 + 2 * (7 + 5)) * US, rel=1e-3
    )
    # 7/16 stay inside (70 us), 8/16 leave by the rank's own NIC (800 us), at the same time
    there = hardware.verb_seconds("all_to_all", BOTH, 16_000_000)
    assert there == pytest.approx((10 + 5 + 800) * US)
    assert "share of the NICs" in hardware.assumptions[0]


def test_ranks_of_a_node_share_its_nics() -> None:
    pair = (0, 8)  # one of eight ranks of either node
    assert placed().verb_seconds("all_reduce", pair, 10**6) == pytest.approx((20 + 10 + 100) * US)
    one = placed(None, "links.network.nics=1")
    assert one.verb_seconds("all_reduce", pair, 10**6) == pytest.approx((20 + 10 + 800) * US)
    assert one.verb_seconds("all_reduce", BOTH, 80_000_000) == pytest.approx(
        (20 + 2 * (14 + 5) + 15_000) * US
    )
    alone = parse_cluster(plain()).with_("links.network.nics=1").place((0, 8))
    assert alone.verb_seconds("all_reduce", (0, 1), 10**6) == pytest.approx((20 + 10 + 100) * US)
    double = placed(None, "links.network.nics=16")  # two NICs near each device
    assert double.verb_seconds("all_reduce", pair, 10**6) == pytest.approx((20 + 10 + 50) * US)


def test_many_nodes_take_a_tree_when_small_and_a_ring_when_large() -> None:
    hardware = placed(plain(64), ranks=64)
    heads = tuple(range(0, 64, 8))
    # 8 nodes: a ring has 7 steps one way, a tree 3
    assert hardware.verb_seconds("all_reduce", heads, 0) == pytest.approx((20 + 2 * 3 * 5) * US)
    ring, tree = 20 + 2 * 7 * 5 + 1.75 * 1e4, 20 + 2 * 3 * 5 + 2 * 1e4
    assert hardware.verb_seconds("all_reduce", heads, 10**8) == pytest.approx(min(ring, tree) * US)
    assert ring < tree


def test_an_uneven_group_waits_for_its_fewest_nics() -> None:
    group = (*range(8), 8)  # nine ranks, one of them alone on its node
    seconds = placed().verb_seconds("reduce_scatter", group, 9_000_000)
    assert seconds == pytest.approx((10 + 7 + 5 + 800) * US)  # 8/9 of 9 MB at 10 GB/s
    # the lone rank gives 8/9 to others by its NIC, the others 7/9 within their node
    there = placed().verb_seconds("all_to_all", group, 9_000_000)
    assert there == pytest.approx((10 + 5 + 800) * US)


def test_a_message_through_one_nic() -> None:
    hardware = placed()
    assert hardware.message(0, 8, 10**6) == pytest.approx((30 * US, 100 * US))
    assert hardware.route(0, 8) == ("nic 0.0", "nic 1.0")
    assert hardware.message(1, 2, 10**6) == pytest.approx((4 * US, 5 * US))
    assert hardware.route(1, 2) == ("port 0.1", "port 0.2")
    shared = placed(None, "links.network.nics=2")
    assert {shared.links(rank)[1] for rank in NODE} == {"nic 0.0", "nic 0.1"}
    with pytest.raises(Bug):
        hardware.message(3, 3, 1)
    with pytest.raises(Bug):
        hardware.verb_seconds("exchange", NODE, 1)


def test_between_two_kinds_the_slower_link_counts() -> None:
    raw = plain(2)
    raw["devices"].append({"kind": "old", "count": 3})
    raw["kinds"]["old"] = deepcopy(raw["kinds"]["gpu"]) | {"network": "slow"}
    raw["links"]["slow"] = deepcopy(raw["links"]["network"]) | {
        "bandwidth": const(1e9), "message_latency": const(50e-6)
    }  # fmt: skip
    hardware = placed(raw, ranks=5)
    assert hardware.nodes == (0, 0, 1, 1, 1)
    assert hardware.message(0, 4, 10**6) == hardware.message(4, 0, 10**6)
    assert hardware.message(0, 4, 10**6) == pytest.approx((50 * US, 1000 * US))
    assert hardware.verb_seconds("all_reduce", (0, 4), 10**6) == pytest.approx(1030 * US)
    raw["links"]["pcie"] = deepcopy(raw["links"]["node"]) | {"bandwidth": const(1e9)}
    raw["kinds"]["old"] |= {"node": "pcie", "network": "network"}
    # 3/4 of twice 1 MB: two ranks' NICs would give 20 GB/s
    seconds = placed(raw, ranks=5).verb_seconds("all_reduce", (0, 1, 2, 3), 10**6)
    assert seconds == pytest.approx((20 + 2 * (2 + 5) + 1500) * US)


def test_devices_memory_and_power() -> None:
    hardware = parse_cluster(plain()).place((3, 9, 15))
    assert hardware.nodes == (0, 1, 1) and hardware.node(2) == 1
    assert hardware.memory(1) == 80e9
    assert hardware.power(2) == (400, 50)
    with pytest.raises(ClusterError, match="16 devices, 0 to 15; the plan also uses 16, 40"):
        parse_cluster(plain()).place((0, 16, 40))
    raw = plain()
    del raw["kinds"]["gpu"]["power"], raw["links"]["network"]
    bare = placed(raw)
    with pytest.raises(ClusterError, match=r"kinds\.gpu\.power: missing"):
        bare.power(0)
    with pytest.raises(ClusterError, match=r"links\.network: missing"):
        bare.message(0, 8, 1)
    assert bare.message(0, 1, 0) == (4 * US, 0.0)


GROUPS = st.lists(st.integers(0, 23), min_size=2, max_size=24, unique=True).map(tuple)
SIZES = st.integers(0, 10**10)
SPEEDS = (
    "kinds.gpu.bandwidth", "kinds.gpu.flops.bf16", "kinds.gpu.efficiency.matmul",
    "kinds.gpu.streaming.matmul", "links.node.bandwidth", "links.node.message_bandwidth",
    "links.network.bandwidth",
)  # fmt: skip
DELAYS = (
    "kinds.gpu.launch", "links.node.latency", "links.node.step", "links.node.message_latency",
    "links.network.latency", "links.network.step", "links.network.message_latency",
)  # fmt: skip
BASE = parse_cluster(plain(24))


def all_times(hardware: Hardware, group: tuple[int, ...], size: int) -> list[float]:
    """Every kind of time."""
    work = Work("matmul", size * 7, size, 0, "bf16")
    verbs = [hardware.verb_seconds(kind, group, size) for kind in VERBS]
    return [hardware.seconds(0, work), *hardware.message(*group[:2], size), *verbs]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SPEEDS), st.floats(1.0, 1.2), GROUPS, SIZES)
def test_more_speed_is_never_slower(
    path: str, factor: float, group: tuple[int, ...], size: int
) -> None:
    faster = BASE.with_(f"{path}={BASE.values[path] * factor}").place(range(24))
    before = all_times(BASE.place(range(24)), group, size)
    assert all(b >= a for b, a in zip(before, all_times(faster, group, size), strict=True))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), GROUPS, SIZES)
def test_more_nics_are_never_slower(
    nics: int, more: int, group: tuple[int, ...], size: int
) -> None:
    few, many = (
        BASE.with_(f"links.network.nics={n}").place(range(24)) for n in (nics, nics + more)
    )
    before = all_times(few, group, size)
    assert all(b >= a for b, a in zip(before, all_times(many, group, size), strict=True))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DELAYS), st.floats(1.0, 10.0), GROUPS, SIZES)
def test_more_latency_is_never_faster(
    path: str, factor: float, group: tuple[int, ...], size: int
) -> None:
    slower = BASE.with_(f"{path}={BASE.values[path] * factor}").place(range(24))
    before = all_times(BASE.place(range(24)), group, size)
    assert all(b <= a for b, a in zip(before, all_times(slower, group, size), strict=True))


@settings(max_examples=100, deadline=None)
@given(GROUPS, SIZES, SIZES)
def test_more_bytes_are_never_faster(group: tuple[int, ...], one: int, other: int) -> None:
    hardware = BASE.place(range(24))
    small, large = (all_times(hardware, group, size) for size in sorted((one, other)))
    assert all(a <= b for a, b in zip(small, large, strict=True))


POINTS = st.lists(
    st.tuples(st.floats(1, 1e12), st.floats(1e-7, 1e3)),
    min_size=1,
    max_size=8,
    unique_by=lambda p: p[0],
)


@settings(max_examples=150, deadline=None)
@given(POINTS, st.lists(st.floats(0, 1e15), min_size=2, max_size=6))
def test_curves_never_fall_and_pass_through_their_points(
    points: list[tuple[float, float]], sizes: list[float]
) -> None:
    curve = Curve.of_points(points)
    found = [curve.at(size) for size in sorted(sizes)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(found))
    for size, seconds in points:
        assert curve.at(size) >= seconds * (1 - 1e-9)
    assert curve.at(max(points)[0]) == pytest.approx(max(seconds for _, seconds in points))


def test_measured_products_count_in_place_of_the_shares() -> None:
    raw = plain()
    # the ridge of 100 TFLOP/s and 1 TB/s lies at 100 FLOPs a byte
    rows = [[1e9, 1e3, 1e-3], [4e9, 1e3, 4e-3], [1e7, 1e6, 2e-3], [1e6, 1e8, 2e-1]]
    raw["kinds"]["gpu"]["tables"] = {"matmul": {"bf16": rows}}
    hardware = placed(raw)
    assert hardware.seconds(0, Work("matmul", 2 * 10**9, 10, 0, "bf16")) == pytest.approx(2e-3)
    assert hardware.seconds(0, Work("matmul", 10, 10**7, 0, "bf16")) == pytest.approx(2e-2)
    # beyond the measured range: its last rate, and it is said
    assert hardware.seconds(0, Work("matmul", 4 * 10**10, 10, 0, "bf16")) == pytest.approx(4e-2)
    assert any("outside the measured 1e+09 to 4e+09" in text for text in hardware.assumptions)
    # another dtype has no rows: the shares of the peaks
    assert hardware.seconds(0, Work("matmul", 10**9, dtype="f32")) == pytest.approx(205 * US)


def test_a_table_for_any_dtype() -> None:
    raw = plain()
    raw["kinds"]["gpu"]["tables"] = {"memory": {"any": [[0, 100, 1e-5], [0, 10000, 1e-3]]}}
    hardware = placed(raw)
    assert hardware.seconds(0, Work("memory", 10**6, 1000, 0, "i64")) == pytest.approx(1e-4)
    assert hardware.seconds(0, Work("memory", read=1)) == pytest.approx(1e-5)


def test_measured_collectives() -> None:
    raw = plain()
    raw["collectives"] = [
        {"kind": "all_reduce", "ranks": ranks, "bytes": size, "seconds": ranks * size * 1e-6}
        for ranks in (2, 8) for size in (10, 1000)
    ]  # fmt: skip
    hardware = placed(raw, ranks=16)
    assert hardware.verb_seconds("all_reduce", (0, 1), 100) == pytest.approx(2e-4)
    assert hardware.verb_seconds("all_reduce", (0, 1, 2, 3), 100) == pytest.approx(4e-4)
    assert not hardware.assumptions
    assert hardware.verb_seconds("all_reduce", NODE, 4000) == pytest.approx(3.2e-2)
    assert hardware.verb_seconds("all_reduce", NODE, 1) == pytest.approx(8e-5)
    assert (
        "all_reduce of 8 ranks, bytes: outside the measured 10 to 1000" in hardware.assumptions[0]
    )
    # other verbs, and groups over more nodes than were measured, go by the links
    assert hardware.verb_seconds("all_gather", NODE, 10_000_000) == pytest.approx(712 * US)
    assert hardware.verb_seconds("all_reduce", (0, 8), 10**6) == pytest.approx(130 * US)


def test_ideal_forgets_what_was_measured() -> None:
    raw = plain()
    raw["kinds"]["gpu"]["tables"] = {"memory": {"any": [[0, 100, 1.0]]}}
    raw["collectives"] = [{"kind": "all_reduce", "ranks": 8, "bytes": 10, "seconds": 1.0}]
    hardware = parse_cluster(raw).preset("ideal").place(NODE)
    assert hardware.seconds(0, Work("memory", read=10**6)) == pytest.approx(1 * US)
    assert hardware.verb_seconds("all_reduce", NODE, 3 * 10**6) == pytest.approx(17.5 * US)


def test_a_sender_is_kept_as_long_as_the_file_says() -> None:
    raw = plain()
    assert parse_cluster(raw).place((0, 1, 8)).overhead(0, 1) == 0.0
    raw["links"]["node"]["message_overhead"] = const(3e-6)
    hardware = parse_cluster(raw).place((0, 1, 8))
    assert hardware.overhead(0, 1) == 3e-6 and hardware.overhead(0, 2) == 0.0
    assert parse_cluster(raw).preset("ideal").place((0, 1)).overhead(0, 1) == 0.0
    raw["links"]["node"]["message_overhead"] = const(-1)
    with pytest.raises(ClusterError, match=r"links\.node\.message_overhead"):
        parse_cluster(raw)


def test_more_or_fewer_ranks_than_were_measured() -> None:
    raw = plain()
    raw["collectives"] = [{"kind": "all_gather", "ranks": 4, "bytes": 10, "seconds": 1e-3}]
    hardware = placed(raw)
    assert hardware.verb_seconds("all_gather", NODE, 10) == pytest.approx(2e-3)
    assert hardware.verb_seconds("all_gather", (0, 1), 10) == pytest.approx(1e-3)
    assert hardware.assumptions == (
        "all_gather of 8 ranks: in proportion to 4 ranks, the most measured",
        "all_gather of 2 ranks: as of 4 ranks, the fewest measured",
    )
