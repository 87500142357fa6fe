"""Generation whose ranks are killed gives the same tokens; what `plancc run` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from failover_runs import Killer, folder, nothing_left, spares

from plancc.cli.main import main
from plancc.runtime.deploy import Deployment
from plancc.runtime.failover import Event
from plancc.runtime.failover.drive import Course
from plancc.runtime.failover.generation import generate_with_failover
from plancc.runtime.failure import RankFailure


def generate(
    name: str, first: Callable[[Killer], None], then: Callable[[Killer], None] | None = None,
    tokens: int = 24,
) -> tuple[dict[str, Any], list[list[int]]]:  # fmt: skip
    """Tokens with a rank killed after three steps, another once it is back; and those in peace."""
    given, killer, todo = spares(name, "infer"), Killer(), {3: first}
    ids = torch.randint(0, 260, (4, 9), generator=torch.Generator().manual_seed(0))

    def opened(course: Course) -> None:
        killer.opened(course)
        keep = course.on_row

        def row(found: dict[str, Any]) -> None:
            keep(found)
            todo.pop(found["step"], lambda killer: None)(killer)

        course.on_row = row

    def event(found: Event) -> None:
        if found.what == "back" and then is not None:
            todo[found.step + 2] = then

    try:
        found = generate_with_failover(given, ids, tokens, event, opened=opened)
    finally:
        nothing_left(killer)
    return found, Deployment(given.full).generate(ids, tokens).tokens.tolist()


def test_a_rank_of_each_replica_dies() -> None:
    """First of one, in the experts' dispatch; once it is back, of the other."""
    found, expected = generate("small", lambda k: k.at(0, "dispatch"), lambda k: k.kill(1), 120)
    assert found["tokens"] == expected
    lost = [event for event in found["failover"] if event["event"] == "lost"]
    assert [event["ranks"] for event in lost][:2] == [(0,), (1,)]
    size = 9 + lost[0]["step"]
    assert f"caches of all sequences are computed again, {size} positions each" in lost[0]["detail"]


def test_an_expert_rank_dies() -> None:
    with pytest.raises(RankFailure, match=r"is in no replica of attn\.rep"):
        generate("small", lambda k: k.kill(3))


def test_from_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Course.run

    def disturbed(course: Course) -> Any:
        killer = Killer()
        killer.opened(course)
        keep = course.on_row

        def row(found: dict[str, Any]) -> None:
            keep(found)
            if found["step"] == 2:
                killer.kill(1)

        course.on_row = row
        return run(course)

    monkeypatch.setattr(Course, "run", disturbed)
    words = (
        "run",
        str(folder("small", "infer")),
        "--tokens",
        "6",
        "--batch",
        "2",
        "--new-tokens",
        "9",
    )
    more = (
        "--backend",
        "gloo",
        "--failover",
        "rep",
        "--no-rejoin",
        "--no-verify",
        "--check",
        "--json",
    )
    code = main([*words, *more])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert code == 0 and found["matches_reference"]
    assert [event["event"] for event in found["failover"]] == ["lost", "done again"]
    assert "rank 1, of replica 1 of attn.rep, was killed by SIGKILL" in err
    assert main([*words, "--failover"]) == 1
    assert "--backend gloo" in capsys.readouterr().err
