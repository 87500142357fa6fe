"""Sizes of a pool, leases that two base groups share, and a queue on local ranks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from elastic_plans import compile_pool, one_device, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.runtime.artifact import Artifact, ArtifactError
from plancc.runtime.crew import LocalCrew, WorkersLost
from plancc.runtime.failure import RankFailure
from plancc.runtime.leases import Leases
from plancc.runtime.pools import Choice, Guards, Load, PoolManager
from plancc.runtime.server import Limits, Server

LINGER = 30.0


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def plain_artifact(pools=1):
    """A plan with base ranks 0..1, pool sizes 0, 3, 8 by length, and 4 for big batches."""
    boxes = {0: (1, 8), 1: (9, 16), 2: (17, 64)}
    rows = [
        {
            "phase": phase, "variant": variant, "classes": [],
            "bounds": {"batch": [1, 4], "seq_len": list(box)},
        }
        for phase in ("prefill", "decode")
        for variant, box in boxes.items()
    ]  # fmt: skip
    rows += [
        {"phase": "decode", "variant": 3, "classes": [],
         "bounds": {"batch": [5, 8], "seq_len": [1, 64]}},
    ]  # fmt: skip
    grids = {"base": (0, 2), "fa@3": (2, 5), "fa@8": (2, 10), "fa@4": (2, 6)}
    pool = {
        "ranks": list(range(2, 10)), "linger": LINGER,
        "grids": {"1": "fa@3", "2": "fa@8", "3": "fa@4"},
    }  # fmt: skip
    manifest = {
        "world": 10, "programs": rows, "pools": {f"fa{i or ''}": pool for i in range(pools)},
        "grids": {
            name: {"axes": [["sp", hi - lo]], "ranks": list(range(lo, hi))}
            for name, (lo, hi) in grids.items()
        },
    }  # fmt: skip
    return Artifact(Path(), manifest)


GUARDS = Guards(plain_artifact())


def test_what_the_guards_say():
    assert (GUARDS.base, GUARDS.pool) == ((0, 1), tuple(range(2, 10)))
    sizes = [GUARDS.choose(Load("decode", 1, n)).size for n in (1, 8, 9, 16, 17, 64)]
    assert sizes == [0, 0, 3, 3, 8, 8]
    assert GUARDS.choose(Load("decode", 6, 3)) == Choice(3, 4)
    assert GUARDS.choose(Load("decode", 1, 65)) is None
    assert GUARDS.most(1, 5, 8) == 0
    assert GUARDS.most(1, 5, 9) == 3
    assert GUARDS.most(2, 12, 40) == 8


@pytest.mark.parametrize(("available", "size"), [(8, 8), (7, 3), (3, 3), (2, 0), (0, 0)])
def test_too_few_devices_take_the_best_smaller_variant(available, size):
    choice = GUARDS.choose(Load("decode", 1, 40), available)
    assert (choice.size, choice.guarded) == (size, size == 8)


def test_no_variant_does_with_so_few():
    assert GUARDS.choose(Load("decode", 6, 3), 3) is None


@pytest.mark.parametrize("pools", [0, 2])
def test_only_one_pool(pools):
    with pytest.raises(ArtifactError, match="one pool"):
        Guards(plain_artifact(pools))


def test_grows_at_once_and_shrinks_after_linger():
    clock = Clock()
    manager = PoolManager(GUARDS, clock)
    assert manager.decide([Load("decode", 1, 8)]) == 0
    assert manager.decide([Load("decode", 1, 9)]) == 3
    assert manager.decide([Load("decode", 1, 17), Load("decode", 1, 9, holds=3)]) == 8
    clock.now = 29.0
    assert manager.decide([Load("decode", 1, 9, holds=3)]) == 8
    clock.now = 30.0
    assert manager.decide([Load("decode", 1, 9, holds=3)]) == 3
    assert manager.decide([]) == 3
    clock.now = 59.0
    assert manager.decide([Load("decode", 6, 2)]) == 4
    clock.now = 60.0
    assert manager.decide([]) == 4
    clock.now = 88.9
    assert manager.decide([], hurry=False) == 4
    clock.now = 89.0
    assert manager.decide([]) == 0


def test_devices_that_hold_a_cache_are_kept_until_it_has_moved():
    manager = PoolManager(GUARDS, Clock())
    assert manager.decide([Load("decode", 1, 5, holds=8)], hurry=True) == 8
    assert manager.decide([Load("decode", 1, 5)], hurry=True) == 0


LOADS = st.lists(
    st.builds(Load, st.just("decode"), st.integers(1, 4), st.integers(1, 64), st.just(0)),
    max_size=3,
)


@given(st.lists(st.tuples(st.floats(0, 40), LOADS), max_size=20))
@settings(deadline=None)
def test_the_size_is_what_the_guards_say_or_was_within_linger(history):
    clock = Clock()
    manager = PoolManager(GUARDS, clock)
    needs = []
    for wait, loads in history:
        clock.now += wait
        size = manager.decide(loads)
        now = max((GUARDS.choose(load).size for load in loads), default=0)
        needs.append((clock.now, now))
        recent = [need for at, need in needs if clock.now - at < LINGER]
        assert now <= size == max(recent)


def accounts(leases, names, devices):
    """No device is leased twice, none appears, none is lost."""
    held = [device for name in names for device in leases.held(name)]
    assert sorted([*held, *leases.free]) == list(devices)


JOBS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=4)


@given(st.integers(6, 9), st.lists(JOBS, min_size=2, max_size=4), st.randoms())
@settings(deadline=None, max_examples=200)
def test_leases_neither_deadlock_nor_starve(count, sessions, random):
    """Sessions whose jobs grow step by step, in any order: all end."""
    clock = Clock()
    devices = range(count)
    leases = Leases(devices, patience=5.0, clock=clock)
    names = [f"base {i}" for i in range(len(sessions))]
    left = {name: [sorted(job) for job in jobs] for name, jobs in zip(names, sessions, strict=True)}
    at = dict.fromkeys(names, 0)
    rounds = 0
    while any(left.values()):
        rounds += 1
        assert rounds < 200
        clock.now += 1.0
        for name in random.sample(names, len(names)):
            if not left[name]:
                continue
            job = left[name][0]
            if leases.ask(name, job[at[name]], job[-1]):
                assert len(leases.held(name)) == job[at[name]]
                at[name] += 1
            if at[name] == len(job):
                leases.give_back(name)
                left[name].pop(0)
                at[name] = 0
            accounts(leases, names, devices)
    assert len(leases.free) == count


def test_all_or_nothing_and_first_come_first_served():
    leases = Leases(range(8))
    assert leases.ask("a", 5, 5)
    assert not leases.ask("b", 4, 4)
    assert not leases.ask("c", 4, 4)
    assert leases.held("b") == ()
    leases.give_back("a", 1)
    assert len(leases.held("b")) == 4
    assert leases.held("c") == ()
    leases.give_back("b")
    assert len(leases.held("c")) == 4


def test_small_asks_overtake_a_large_one_until_it_has_waited_long():
    clock = Clock()
    leases = Leases(range(8), patience=5.0, clock=clock)
    assert leases.ask("a", 4, 4)
    assert not leases.ask("big", 8, 8)
    assert leases.ask("b", 2, 2)
    clock.now = 5.0
    assert not leases.ask("c", 2, 2)
    leases.give_back("a")
    leases.give_back("b")
    assert len(leases.held("big")) == 8
    leases.give_back("big")
    assert len(leases.held("c")) == 2


def test_two_that_grow_do_not_wait_for_each_other():
    leases = Leases(range(10))
    assert leases.ask("a", 3, 8)
    assert not leases.ask("b", 3, 8)  # a could then never get its 8, nor b
    assert leases.ask("a", 8, 8)
    leases.give_back("a")
    assert leases.ask("b", 3, 8)


def test_a_lost_device_is_not_leased_again():
    leases = Leases(range(4))
    assert leases.ask("a", 3, 4)
    leases.retire("a", 1)
    assert (leases.held("a"), leases.total) == ((0, 2), 3)
    assert leases.ask("a", 3, 3)
    with pytest.raises(ValueError, match="asks for 4"):
        leases.ask("a", 4, 4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return compile_pool(tmp_path_factory.mktemp("pool"))


def local_server(artifact, **options):
    return Server(artifact, LocalCrew(artifact, Guards(artifact)), **options)


def events(server, *kinds):
    """(step, what, size) of the events of these kinds."""
    return [(e.step, e.what, e.size) for e in server.events if e.what in kinds]


def expect_tokens(artifact, server):
    """Every request has the tokens that one device gives."""
    for request in server.requests:
        expected = one_device(artifact, request.ids, request.new_tokens)
        assert request.tokens == expected, request


def test_the_manifest_tells_of_the_pool(artifact):
    guards = Guards(artifact)
    assert artifact.manifest["pools"]["fa"]["linger"] == 20.0
    assert (guards.base, guards.pool, guards.linger) == ((0, 1), (2, 3, 4, 5), 20.0)
    sizes = [guards.choose(Load("prefill", 1, n)).size for n in (8, 9, 16, 17, 96)]
    assert sizes == [0, 2, 2, 4, 4]


def test_the_pool_grows_in_the_middle_of_a_generation(artifact):
    server = local_server(artifact)
    server.submit(prompts(5)[0], 16)
    server.serve()
    assert events(server, "grew") == [(4, "grew", 2), (12, "grew", 4)]
    assert server.requests[0].variants == [0] * 4 + [1] * 8 + [2] * 4
    expect_tokens(artifact, server)


def test_requests_of_many_lengths_in_one_queue(artifact):
    clock = Clock()
    server = local_server(artifact, clock=clock, limits=Limits(at_once=2))
    for ids, count in zip(prompts(5, 12, 5, 20, 3, 12), (6, 8, 4, 3, 5, 2), strict=True):
        server.submit(ids, count)
    while not all(len(r.tokens) == r.new_tokens for r in server.requests):
        clock.now += 1.0
        assert server.step()
    admitted = [event.detail for event in server.events if event.what == "admitted"]
    assert admitted == [
        "request 0, 2 of 5 tokens", "request 1, 5 of 12 tokens", "request 3 of 20 tokens",
        "request 4 of 3 tokens",
    ]  # fmt: skip
    expect_tokens(artifact, server)
    assert server.manager.size == 4
    clock.now += 10.0
    server.tick()
    assert events(server, "released") == []
    clock.now += 20.0
    server.tick()
    assert events(server, "released")[-1][2] == 0
    assert len(server.leases.free) == 4


def test_shrinks_in_steps_while_a_short_request_runs(artifact):
    clock = Clock()
    server = local_server(artifact, clock=clock, limits=Limits(at_once=1))
    long, short = prompts(15, 3)
    server.submit(long, 4)
    server.submit(short, 10)
    while not all(len(r.tokens) == r.new_tokens for r in server.requests):
        clock.now += 5.0
        server.step()
    assert events(server, "grew", "released") == [
        (0, "grew", 2), (2, "grew", 4), (7, "released", 0), (10, "grew", 2)
    ]  # fmt: skip
    expect_tokens(artifact, server)


def test_what_the_plan_does_not_admit_is_refused(artifact):
    server = local_server(artifact)
    with pytest.raises(ArtifactError, match="seq_len = 97"):
        server.submit(prompts(90)[0], 7)
    with pytest.raises(ArtifactError, match="at least one token"):
        server.submit([], 4)


class Fragile(LocalCrew):
    """Loses ranks at chosen calls of `step`."""

    steps = 0

    def __init__(self, artifact, losses):
        super().__init__(artifact, Guards(artifact))
        self.losses = losses

    def step(self, number, phase, tokens, variant):
        self.steps += 1
        if self.steps in self.losses:
            ranks, midway = self.losses[self.steps]
            for rank in ranks:
                del self._seats[rank]
            if midway:
                super().drop(number)
            raise WorkersLost(dict.fromkeys(ranks, "was killed by SIGKILL"), midway)
        return super().step(number, phase, tokens, variant)


def fragile(artifact, losses, **options):
    server = Server(artifact, Fragile(artifact, losses), **options)
    for ids, count in zip(prompts(5, 14), (14, 6), strict=True):
        server.submit(ids, count)
    return server


@pytest.mark.parametrize("midway", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_lost_rank_is_replaced_and_its_cache_computed_again(artifact, rank, midway):
    server = fragile(artifact, {9: ([rank], midway), 15: ([rank, 4], midway)})
    server.serve()
    expect_tokens(artifact, server)
    assert len(events(server, "lost")) == 3
    assert events(server, "recomputes")
    assert not events(server, "fell back")


def test_an_idle_rank_that_is_lost_costs_nothing(artifact):
    server = fragile(artifact, {14: ([5], False)}, limits=Limits(at_once=1))
    server.submit(prompts(3)[0], 3)
    server.crew.losses = {14 + 6 + 2: ([5], False)}
    server.serve()
    assert len(events(server, "lost")) == 1
    assert not events(server, "recomputes")
    expect_tokens(artifact, server)


def test_without_devices_the_base_goes_on_alone(artifact):
    losses = {9: ([2], True), 12: ([2], True), 15: ([2], True), 18: ([2], True)}
    server = fragile(artifact, losses, limits=Limits(restarts=0))
    server.serve()
    expect_tokens(artifact, server)
    assert events(server, "fell back")
    assert server.leases.total == 0


def test_without_a_variant_for_so_few_the_run_fails(artifact, monkeypatch):
    losses = {9: ([2, 3], True), 12: ([2], True)}
    server = fragile(artifact, losses, limits=Limits(restarts=0))
    monkeypatch.setattr(Guards, "size_of", lambda self, variant: self.sizes.get(variant, 2))
    with pytest.raises(RankFailure, match="no variant does with so few"):
        server.serve()


@pytest.mark.parametrize("size", [4, 5, 8])
def test_two_base_groups_share_a_pool(artifact, size):
    leases = Leases(range(size), patience=0.2)
    servers = [local_server(artifact, name=name, leases=leases) for name in ("one", "two")]
    for server, lengths in zip(servers, ((5, 14), (12, 3)), strict=True):
        for ids in prompts(*lengths):
            server.submit(ids, 9)
    most = []

    def serve(server):
        with server:
            server.serve()
            most.append(max(e.size for e in server.events))

    threads = [threading.Thread(target=serve, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    for server in servers:
        expect_tokens(artifact, server)
    assert len(most) == 2
    assert sorted(leases.free) == list(range(size))


def test_who_waits_too_long_goes_on_with_what_it_has(artifact):
    clock = Clock()
    leases = Leases(range(4), clock=clock)
    assert leases.ask("other", 3, 3)
    server = local_server(artifact, leases=leases, clock=clock, limits=Limits(patience=2.0))
    server.submit(prompts(7)[0], 8)
    assert server.step() and server.step()
    assert not server.step()
    clock.now = 1.9
    assert not server.step()
    clock.now = 2.0
    assert server.step()
    assert events(server, "fell back") == [(2, "fell back", 0)]
    leases.give_back("other")
    server.serve()
    assert server.requests[0].variants == [0, 0, 0, 1, 1, 1, 1, 1]
    expect_tokens(artifact, server)


def test_a_server_that_only_lingers_makes_room_at_once(artifact):
    clock = Clock()
    leases = Leases(range(4), clock=clock)
    server = local_server(artifact, leases=leases, clock=clock)
    server.submit(prompts(17)[0], 2)
    server.serve()
    assert len(leases.held("base")) == 4
    assert not leases.ask("other", 1, 4)
    server.tick()
    assert leases.held("base") == ()
    assert len(leases.held("other")) == 1
