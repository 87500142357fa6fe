"""Variants: they cover the declared inputs exactly, and each guard is constant inside each."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.dsl import ResolvedPlan, Source, load_plan

HEAD = """plan sample, edition 1
model m { seq_len in 1..40; batch in 1..6 }
mesh base[tp = 2] on local
place ** on base
"""


def load(text: str) -> ResolvedPlan:
    """The plan of a text without errors."""
    plan, report = load_plan(Source("sample.plan", text))
    assert plan is not None, [d.message for d in report.diagnostics]
    return plan


def test_no_guards() -> None:
    """Without guards there is one variant."""
    plan = load(HEAD)
    assert [v.text for v in plan.variants] == ["always"]
    assert plan.variants[0].bounds == {"seq_len": (1, 40), "batch": (1, 6)}


def test_no_inputs() -> None:
    """A plan without a model block has one variant too."""
    plan = load("plan sample, edition 1\nmesh base[tp = 2] on local\nplace ** on base\n")
    assert [(v.text, v.bounds, v.phase) for v in plan.variants] == [("always", {}, None)]


def test_thresholds() -> None:
    """Two thresholds make three variants, in order."""
    guards = "when seq_len > 8 { place lm_head { split vocab over tp } }\n"
    guards += "when seq_len >= 20 { place layers.*.mlp { split ffn over tp } }\n"
    plan = load(HEAD + guards)
    assert [v.text for v in plan.variants] == [
        "1 <= seq_len <= 8", "9 <= seq_len <= 19", "20 <= seq_len <= 40",
    ]  # fmt: skip
    assert plan.variants[1].guards == {"seq_len > 8": True, "seq_len >= 20": False}
    assert [place.guard.text for place in plan.places[1:] if place.guard] == [
        "seq_len > 8", "seq_len >= 20",
    ]  # fmt: skip


def test_phases() -> None:
    """A guard on the phase makes a variant for each phase."""
    plan = load(HEAD + "when phase == decode { place lm_head { split vocab over tp } }\n")
    assert [(v.phase, v.text) for v in plan.variants] == [
        ("forward", "forward"), ("prefill", "prefill"), ("decode", "decode"),
    ]  # fmt: skip


def test_nested_guards() -> None:
    """The guard of a place is the conjunction of the guards around it."""
    inner = "when batch > 2 { place lm_head { split vocab over tp } }"
    plan = load(HEAD + f"when seq_len > 8 {{\n{inner}\n}}\n")
    assert [v.guards["seq_len > 8 and batch > 2"] for v in plan.variants].count(True) == 1


def test_static_guard() -> None:
    """A guard over parameters alone is decided once."""
    choice = "param wide = {}\nwhen wide {{ place lm_head {{ split vocab over tp }} }}\n"
    assert len(load(HEAD + choice.format("true")).places) == 2
    assert len(load(HEAD + choice.format("false")).places) == 1


def test_empty_tokens() -> None:
    """Boxes that no batch and seq_len reach are left out."""
    guards = "when tokens > 100 { place lm_head { split vocab over tp } }\n"
    guards += "when seq_len > 10 { place norm { split hidden over tp } }\n"
    plan = load(HEAD + guards)
    for variant in plan.variants:
        boxes = variant.bounds
        assert any(
            boxes["tokens"][0] <= b * s <= boxes["tokens"][1]
            for b in range(boxes["batch"][0], boxes["batch"][1] + 1)
            for s in range(boxes["seq_len"][0], boxes["seq_len"][1] + 1)
        )
    assert len(plan.variants) == 3


atoms = st.builds(
    lambda name, op, n: f"{name} {op} {n}",
    st.sampled_from(["seq_len", "batch", "2 * batch * seq_len", "seq_len / 2", "5 - seq_len"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-5, 90),
) | st.builds(
    lambda op, word: f"phase {op} {word}",
    st.sampled_from(["==", "!="]), st.sampled_from(["prefill", "decode"]),
)  # fmt: skip
guards = st.recursive(
    atoms,
    lambda kid: (
        st.builds(lambda a, b: f"({a} and {b})", kid, kid)
        | st.builds(lambda a, b: f"({a} or {b})", kid, kid)
        | kid.map(lambda a: f"not ({a})")
    ),
    max_leaves=3,
)


@settings(max_examples=120, deadline=None)
@given(st.lists(guards, min_size=1, max_size=3))
def test_every_input_has_one_variant(texts: list[str]) -> None:
    """Each point lies in one variant, whose guards have the truth they have at the point."""
    lines = [
        f"when {text} {{ place m{i} {{ split ffn over tp }} }}" for i, text in enumerate(texts)
    ]
    plan, report = load_plan(Source("sample.plan", HEAD + "\n".join(lines) + "\n"))
    if plan is None:
        assert {d.code for d in report.errors} == {"P402"}
        return
    for phase in ("forward", "prefill", "decode"):
        for batch in range(1, 7):
            for seq_len in range(1, 41):
                _check_point(plan, {"phase": phase, "batch": batch, "seq_len": seq_len})


def _check_point(plan: ResolvedPlan, point: dict[str, object]) -> None:
    env = {**point, "tokens": point["batch"] * point["seq_len"]}  # type: ignore[operator]
    inside = [
        variant
        for variant in plan.variants
        if variant.phase in (None, point["phase"])
        and all(lo <= env[name] <= hi for name, (lo, hi) in variant.bounds.items())  # type: ignore[operator]
    ]
    assert len(inside) == 1
    for place in plan.places:
        if place.guard is not None:
            assert place.guard.evaluate(env) is inside[0].guards[place.guard.text]
