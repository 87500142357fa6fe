"""The whole suite can be collected at once: pytest wants one name a test module."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_modules_have_names_of_their_own() -> None:
    """No two files under tests share a module name."""
    files = [f for f in TESTS.rglob("*.py") if f.name != "conftest.py"]
    twice = [name for name, count in Counter(f.name for f in files).items() if count > 1]
    assert twice == []
