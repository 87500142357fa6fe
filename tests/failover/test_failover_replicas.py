"""Which ranks stand in for each other, the programs for fewer of them, what is handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from failover_runs import MODELS, MOE, folder, spares

import plancc
from plancc.failover import spare_programs
from plancc.runtime.artifact import load_artifact
from plancc.runtime.checkpoint import CheckpointError, Piece
from plancc.runtime.failover import FailoverError, find_replicas
from plancc.runtime.failover.drive import counted, named
from plancc.runtime.failover.state import Held
from plancc.runtime.weights import whole


def test_the_plan_says_which_axis_replicates() -> None:
    """`replicate params over rep` goes before the sequence's axis, which holds the same weights, too."""
    found = find_replicas(load_artifact(folder("sp")))
    assert found.name == "attn.rep" and found.ranks == ((0, 1), (2, 3))
    assert found.twins(3) == (1, 3) and found.twins(4) == (4,) and found.of(4) is None
    other = find_replicas(load_artifact(folder("sp")), "attn.sp")
    assert other.ranks == ((0, 2), (1, 3))


def test_who_takes_which_rank() -> None:
    given = spares("sp")
    assert [given.seats(active) for active in ((0, 1), (0,), (1,))] == [
        (0, 1, 2, 3, 4, 5), (0, 1, 4, 5), (2, 3, 4, 5),
    ]  # fmt: skip
    assert given.levels[1].world == 4
    assert [spares("dp3").seats(active) for active in ((0, 2), (1,))] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("name", "axis", "text"),
    [
        ("small", "ep", "ranks 2 and 3 hold different parts of"),
        ("small", "hp", "no mesh has an axis `hp` of several ranks; there are attn.rep, moe.ep"),
        ("small", "nonsense", "there are attn.rep, moe.ep"),
        ("zero_dp", "dp", "ranks 0 and 2 hold different parts of"),
        ("tp", None, "no axis of the plan holds everything several times; base.tp: ranks 0 and 1"),
    ],
)
def test_axes_that_do_not_replicate(name: str, axis: str | None, text: str) -> None:
    with pytest.raises(FailoverError, match=r".*") as error:
        find_replicas(load_artifact(folder(name)), axis)
    assert text in str(error.value)


def test_optimizer_state_may_be_split_within_a_replica() -> None:
    assert find_replicas(load_artifact(folder("zero"))).name == "base.dp"


def test_programs_for_fewer_replicas_are_verified(tmp_path: Path) -> None:
    found = spare_programs(load_artifact(folder("small")), tmp_path, "rep", verify=True)
    assert sorted(found.levels) == [1, 2] and found.levels[1].world == 3


def test_what_counts_after_a_loss() -> None:
    """The step of who is ahead; who has nothing gets it; before all have begun, all begin again."""
    told = {"step": 3, "fresh": [0, 1, 2], "saved_at": -1, "good": None}
    here = {"saved_at": -1, "good": None}
    late, ahead = (
        {"step": 3, "agreed": [9.0, 0.0], **here},
        {"step": 4, "agreed": [5.0, 0.0], **here},
    )
    found = counted(
        told, {0: late, 1: {**ahead, "saved_at": 4, "good": "x"}, 2: {}}, (0, 1, 2, 3), {3}
    )
    assert found == {
        "step": 4, "agreed": [5.0, 0.0], "fresh": [0, 1], "saved_at": 4, "good": "x"
    }  # fmt: skip
    begin = {"step": None, "fresh": [], "saved_at": -1, "good": None}
    assert counted(begin, {0: late, 1: {}}, (0, 1, 2), {2})["step"] is None
    assert counted(begin, {0: late, 1: late}, (0, 1, 2), {2})["step"] == 3


def test_what_is_held_gives_slices_of_itself() -> None:
    x = torch.arange(24.0).view(6, 4)
    piece = Piece("model/w", (12, 4), (((2, 4), (6, 10)), ((0, 4),)), x)

    class Source:
        def shape(self, fqn: str) -> tuple[int, ...]:
            return (3,)

        def read(self, fqn: str, ranges: object) -> torch.Tensor:
            return torch.ones(3)

    held = Held({"step": 1}, [piece], Source(), None)
    part = held.under("model/")
    assert part.shape("w") == (12, 4) and part.shape("other") == (3,)
    assert torch.equal(part.read("other", whole((3,))), torch.ones(3))
    found = part.read("w", (((7, 9),), ((1, 3),)))
    assert torch.equal(found, x[3:5, 1:3])
    found.zero_()
    assert x[3, 1] != 0
    with pytest.raises(CheckpointError, match="is not on this rank"):
        part.read("w", (((4, 7),), ((0, 4),)))


def test_names_of_ranks() -> None:
    assert named([3]) == "rank 3" and named([5, 0, 2, 1]) == "ranks 0-2, 5"


def test_balances_are_refused(tmp_path: Path) -> None:
    """A rank that comes back would not know where the experts have gone."""
    plan = tmp_path / "balanced.plan"
    plan.write_text(
        "plan balanced, edition 1\nmodel m { mode = train }\n"
        "mesh attn[rep = 2] on local[0:2]\nmesh moe[ep = 2] on local[2:4]\n"
        "place ** on attn\nplace layers.* { replicate params over rep; split batch over rep }\n"
        "place layers.*.moe.experts on moe {\n"
        "  split experts over ep (spare = 2)\n  route = top(2)\n  balance = dynamic(every = 5)\n}\n"
    )
    out = tmp_path / "out"
    plancc.compile(plan, f"{MODELS}:moe", out, model_args=MOE, verify=False)
    with pytest.raises(FailoverError, match="balance"):
        spare_programs(load_artifact(out), tmp_path, "rep")
