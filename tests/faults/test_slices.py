"""Ranges that are off by one: weights, local slices, starts of tables, experts and queries."""

from __future__ import annotations

import re
from functools import cache

import pytest
from lowered import Lowered, captured, lower
from plans import HEAD, experts, grid, sequence, tp, written
from planting import edited, verified_with_shift

from plancc.runtime.artifact import ArtifactError, load_artifact
from plancc.verification import Verification

QUERIES = HEAD + grid(("sp", 3)) + "place ** on base\nplace layers.*, norm { split seq over sp }\n"
PLANS = {
    "tp": (tp(2), "llama"), "fused": (tp(3), "gpt2"), "sequence": (sequence(3), "dense"),
    "experts": (experts(4, "mlp"), "mixtral"), "queries": (QUERIES, "qwen3"),
}  # fmt: skip


@cache
def lowered(plan: str, *phases: str) -> Lowered:
    """One of PLANS; the forward phase alone unless told otherwise."""
    text, model = PLANS[plan]
    return lower(written(text, model), captured(model), phases=phases or ("forward",))


def cut_weights(plan: str) -> list[tuple[str, int]]:
    """(name, dim) of every parameter that is cut."""
    rows = lowered(plan).artifact.manifest["programs"][0]["classes"][-1]["weights"]
    return [
        (row["fqns"][0], dim)
        for row in rows
        for dim, tree in enumerate(row["dims"])
        if row["kind"] == "param" and re.search(r"\['\w+\.\w+", str(tree))
    ]


@pytest.mark.parametrize("plan", ["tp", "fused", "experts"])
def test_every_weight_slice_shifted_by_one_is_caught(plan: str) -> None:
    """One rank reads one parameter one index further on; the divergence names rank and module."""
    weights = cut_weights(plan)
    assert len(weights) > 6
    for fqn, dim in weights:
        result = verified_with_shift(lowered(plan), fqn, dim, rank=1)
        assert not result.ok, fqn
        found = result.first_divergence
        assert found.rank in (0, 1) and fqn.startswith(found.path.removesuffix(".weight")), found


def sabotaged(plan: str, pattern: str, new: str, *phases: str) -> list[tuple[str, bool]]:
    """Each match of `pattern` in a plan's programs replaced in turn: (line, whether caught)."""
    base, out = lowered(plan, *phases), []
    for row in base.artifact.manifest["programs"]:
        for cls in row["classes"]:
            for line in (base.artifact.folder / cls["file"]).read_text().splitlines():
                wrong = re.sub(pattern, new, line, count=1)
                if wrong != line and " def " not in line:
                    folder = edited(base, cls["file"], line, wrong)
                    result = Verification(base.compiled, load_artifact(folder)).run()
                    out.append((line, not result.ok))
    return out


FAULTS = {
    "table_start": ("tp", r"r\.start\((vocab\w*)\)", r"r.start(\1) + 1"),
    "first_expert": ("experts", r"first=r\.start\((\w+)\)", r"first=r.start(\1) + 1"),
    "query_start": ("queries", r"q_start=r\.start\((\w+)\)", r"q_start=r.start(\1) + 1"),
    "query_start_missing": ("queries", r"q_start=r\.start\((\w+)\)", r"q_start=0"),
    "local_slice": (
        "queries",
        r"comm\.shard\((\w+), (\d), (.*?)\)  .*$",
        r"comm.shard(\1, \2, \3).roll(1, \2)",
    ),
    "local_size": ("fused", r"(= r\.dim\('heads', )6", r"\g<1>5"),
    "causal": ("tp", r"causal=True", r"causal=False"),
    "sum": ("tp", r"comm\.all_reduce\((\w+), .*$", r"\1"),
    "axis": ("sequence", r"comm\.all_gather\((\w+), 1,", r"comm.all_gather(\1, 0,"),
    "bias": ("fused", r"comm\.once\((.*?), 'tp'\)", r"\1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_emitted_text_are_caught(fault: str) -> None:
    """Every place of a program where the fault fits; the seal is made good each time."""
    found = sabotaged(*FAULTS[fault])
    assert found, "the fault fits nowhere"
    assert [line for line, caught in found if not caught] == []


def test_faults_in_a_cached_step_are_caught() -> None:
    """Positions and caches of decode: rope slices, the slot of a cache."""
    for pattern, new in (
        (r"1, P, P \+ T\)", r"1, P + 1, P + T + 1)"),
        (r"kv\.append\((.*), 1\)", r"kv.append(\1, 0)"),
    ):
        found = sabotaged("tp", pattern, new, "prefill", "decode")
        assert all(caught for line, caught in found), found
    assert sabotaged("tp", r"kv\.append\((.*), 1\)", r"kv.append(\1, 0)", "prefill", "decode")


def test_a_changed_artifact_is_refused() -> None:
    """Without the right hashes nothing of it is run: program, manifest, plan."""
    base = lowered("tp")
    changes = {
        "forward_v0_c0.py": ("tp", "ep"), "resolved-plan.json": ("tp", "ep"),
        "manifest.json": ('"world": 2', '"world": 4'),
    }  # fmt: skip
    for file, (old, new) in changes.items():
        with pytest.raises(ArtifactError, match="was changed after it was"):
            load_artifact(edited(base, file, old, new, seal=False))
