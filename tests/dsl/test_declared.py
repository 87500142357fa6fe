"""The parameters that a plan declares, and texts of values that read back as themselves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.dsl import Source
from plancc.dsl import values as v
from plancc.dsl.declared import Declared, declared_params, set_text
from plancc.dsl.parameters import read_text

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = """plan p, edition 1
param tp = 4 in 1..64
param pool = 8 in 0..32 step 8
param size = 64MB in [32MB, 64MB, 1.5GB]
param share = 50% in [50%, 12.5%]
param fast = true
param kind = "GPipe" in ["GPipe", "1F1B"]
param free = 3
param half = tp / 2 in 1..tp
param some = [1, 2]
"""


def declared(text: str, **sets: str) -> dict[str, Declared]:
    params, report = declared_params(Source("p.plan", text), sets)
    assert report.ok
    return {param.name: param for param in params}


def test_domains_and_defaults_as_set_takes_them() -> None:
    found = declared(TEXT)
    assert found["tp"] == Declared("tp", "int", "4", (1, 64, 1))
    assert found["pool"].bounds == (0, 32, 8)
    assert found["size"] == Declared("size", "bytes", "64MB", None, ("32MB", "64MB", "1500MB"))
    assert found["share"].choices == ("50%", "12.5%")
    assert found["fast"].choices == ("true", "false")
    assert found["kind"].choices == ("GPipe", "1F1B")
    assert found["free"].bounds is None and found["free"].choices is None
    assert found["some"].kind == "list" and found["some"].default == "1,2"


def test_domains_follow_what_is_set() -> None:
    assert declared(TEXT)["half"] == Declared("half", "int", "2", (1, 4, 1))
    assert declared(TEXT, tp="16")["half"] == Declared("half", "int", "8", (1, 16, 1))


def test_membership() -> None:
    found = declared(TEXT)
    assert "8" in found["pool"] and "12" not in found["pool"] and "x" not in found["pool"]
    assert "64MB" in found["size"] and "65MB" not in found["size"]
    assert "anything" in found["free"]


def test_imported_parameters_have_their_prefix(tmp_path: Path) -> None:
    (tmp_path / "lib.plan").write_text("plan lib, edition 1\nparam depth = 1 in 1..4\n")
    (tmp_path / "p.plan").write_text('plan p, edition 1\nimport "lib.plan" as lib\nparam tp = 2\n')
    params, report = declared_params(tmp_path / "p.plan")
    assert report.ok and [(p.name, p.bounds) for p in params] == [
        ("tp", None), ("lib.depth", (1, 4, 1)),
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.plan")), ids=lambda p: p.stem)
def test_defaults_of_the_examples_are_in_their_domains(path: Path) -> None:
    params, report = declared_params(path)
    assert report.ok
    assert all(param.default in param for param in params)


def test_wrong_plans_are_reported() -> None:
    for text in ("plan", "plan p, edition 1\nparam tp = nothing\n"):
        params, report = declared_params(Source("p.plan", text))
        assert params == () and not report.ok
    assert not declared_params("no/such.plan")[1].ok


UNITS = st.sampled_from(["B", "KB", "MB", "GB", "TB", "KiB", "GiB"])
TIMES = st.sampled_from(["ns", "ms", "s", "min", "h"])
QUANTITIES = st.one_of(
    st.builds(lambda n, unit: f"{n}{unit}", st.integers(0, 10**6), UNITS),
    st.builds(lambda n, unit: f"{n / 8}{unit}/s", st.integers(0, 10**6), UNITS),
    st.builds(lambda n, unit: f"{n / 4}{unit}", st.integers(0, 10**6), TIMES),
    st.builds(lambda n: f"{n / 8}%", st.integers(0, 1000)),
)  # fmt: skip


@given(QUANTITIES)
def test_quantities_read_back_as_themselves(text: str) -> None:
    value = v.read_quantity(text)
    assert read_text(set_text(value), value) == value


@given(st.one_of(st.booleans(), st.integers(-(10**9), 10**9), st.text("abcXYZ_", min_size=1)))
def test_plain_values_read_back_as_themselves(value: object) -> None:
    assert read_text(set_text(value), value) == value


@given(st.integers(-999, 999), st.sampled_from([2, 4, 5, 8, 10]))
def test_numbers_read_back_as_themselves(over: int, under: int) -> None:
    value = Fraction(over, under)
    if value.denominator > 1:
        assert read_text(set_text(value), value) == value
