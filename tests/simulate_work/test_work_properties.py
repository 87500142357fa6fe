"""What must hold of all sizes: ranks share products out, and more tokens are more work."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cases import ONE, TENSOR, compiled, of_ranks, products, programs, total

from plancc.simulator.forms import Work
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.work import ProgramWork

SIX = (("heads", 6), ("hidden", 48), ("ffn", 50))
SEQUENCE = "mesh base[sp = 3] on local\nplace ** on base { split seq over sp (block = balanced) }\n"
POOL = (
    "mesh base[tp = 2] on local[0:2]\nmesh pool[fa = 3] on local[2:5]\nplace ** on base\n"
    "place op attention in layers.*.self_attn on pool {\n"
    "  split kv_seq over fa (block = balanced); combine out by logsumexp over fa\n}\n"
)
PLANS = {"one": ONE, "tensor": TENSOR.format(tp=4), "sequence": SEQUENCE}
SIZES = st.builds(Sizes, st.integers(1, 9), st.integers(1, 17), st.just(0))
STEPS = st.builds(Sizes, st.integers(1, 9), st.just(1), st.integers(1, 40))


def flops(work: Work) -> int:
    return work.flops


def moved(work: Work) -> int:
    return work.moved


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 5, 7]), SIZES, st.sampled_from(["forward", "train"]))
def test_split_products_add_up(ranks: int, sizes: Sizes, phase: str) -> None:
    """Heads, ffn and vocabulary cut into any number of parts are the whole."""
    found = compiled(TENSOR.format(tp=ranks), "dense", SIX, phase)
    assert total(found, sizes, flops) == total(compiled(ONE, "dense", SIX, phase), sizes, flops)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(1, 5), st.sampled_from(["forward", "train"]))
def test_products_of_parts_of_a_batch_add_up(sizes: Sizes, more: int, phase: str) -> None:
    """FLOPs are linear in the number of sequences."""
    found = compiled(ONE, "dense", SIX, phase)
    parts = [Sizes(sizes.batch, sizes.tokens), Sizes(more, sizes.tokens)]
    whole = Sizes(sizes.batch + more, sizes.tokens)
    assert total(found, whole, flops) == sum(total(found, part, flops) for part in parts)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("phase", ["forward", "train", "decode"])
def test_more_is_more(plan: str, phase: str) -> None:
    """FLOPs and bytes of all ranks grow with the batch, the tokens, and what is cached."""

    @settings(max_examples=15, deadline=None)
    @given(STEPS if phase == "decode" else SIZES)
    def check(sizes: Sizes) -> None:
        found = compiled(PLANS[plan], "dense", SIX, phase)
        larger = [Sizes(sizes.batch + 1, sizes.tokens, sizes.past)]
        if phase == "decode":
            larger.append(Sizes(sizes.batch, sizes.tokens, sizes.past + 1))
        else:
            larger.append(Sizes(sizes.batch, sizes.tokens + 1))
        for one in larger:
            for count in (flops, moved):
                assert total(found, one, count) > total(found, sizes, count)

    check()


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_a_pool_sees_every_key_once(step: Sizes) -> None:
    """Attention over keys that ranks of a pool share out is that of one device."""
    both = (compiled(plan, "dense", SIX, "decode") for plan in (POOL, ONE))
    pool, one = (total(found, step, lambda w: w.flops * (w.kind == "attention")) for found in both)
    assert pool == one > 0


def test_equal_layers_are_one_recipe() -> None:
    """Twelve layers have no more recipes than three, in any phase; places of equal sizes share lists."""
    for phase in ("forward", "decode", "train"):
        counts = []
        for layers in (3, 12):
            found = compiled(TENSOR.format(tp=2), "dense", (*SIX, ("layers", layers)), phase)
            (program,) = programs(found)
            work = ProgramWork(program)
            counts.append(len(work.recipes.recipes.found))
            places = [
                Place(rank, found.world.grids, Sizes(2, 1, 8), owned_parts(program))
                for rank in program.ranks
            ]
            first, second = (work.works(place) for place in places)
            assert first is second and len(first) == len(program.instructions)
        assert counts[0] == counts[1]


def test_gradients_add_up_where_there_are_several_micro_batches() -> None:
    """Each weight's new gradient is added to the old one: read twice, written once."""
    found, sizes = compiled(ONE, "dense", SIX, "train"), Sizes(2, 5)
    weights = 0
    for program in programs(found):
        place = Place(0, found.world.grids, sizes)
        trained = [one.held for one in program.weights if one.held.name in program.gradients]
        weights += sum(place.nbytes(held) for held in trained)
    more = total(found, sizes, moved, batches=2) - total(found, sizes, moved)
    assert more == 3 * weights


def test_late_gradients_are_those_of_the_weights() -> None:
    """Zero bubble leaves one product of each linear layer to W: as many FLOPs as its forward."""
    text = (
        "mesh base[pp = 2] on local\nplace ** on base\nplace layers.* { split layers over pp }\n"
        "place embed_tokens on base[pp = 0]\nplace norm, lm_head on base[pp = -1]\n"
        "pipeline over base.pp { schedule = zero_bubble; microbatches = 2 }\n"
    )
    found, sizes = compiled(text, "dense", SIX, "train"), Sizes(2, 5)
    late = 0
    for program in programs(found):
        work = ProgramWork(program, batches=2)
        place = Place(program.ranks[0], found.world.grids, sizes, owned_parts(program))
        (mine,) = work.later(place).values()
        assert {one.kind for one in mine} == {"matmul"}
        late += sum(one.flops for one in mine)
    assert late == total(compiled(ONE, "dense", SIX), sizes, products)
    assert {*of_ranks(found, sizes)} == {0, 1}
