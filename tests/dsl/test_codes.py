"""Every code has a page whose examples are true, a golden pair, and a row in the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import plancc.dsl
from plancc.dsl import CODES, Source, code_page, load_plan

GOLDEN = Path(__file__).parents[1] / "golden" / "check"
FOLDER = Path(plancc.dsl.__file__).parent
# Codes that need a model, a compilation or a run: their tests are with the passes and the runtime.
LATER = {
    "P306", "P307", "P310", "P311", "P312", "P314", "P315", "P316", "P317", "P318", "P503", "P507",
    "P602", "P701", "P702", "P703", "P901",
}  # fmt: skip
HERE = sorted(set(CODES) - LATER)
BLOCK = re.compile(r"```plan\n(.*?)```", re.DOTALL)
LIBRARIES = {
    "wrong": "plan lib, edition 1\nplace layers.* { split seq over tp }\n",
    "right": "plan lib, edition 1\n"
    "template sequence(axis) { place layers.* { split seq over axis } }\n",
}


@pytest.mark.parametrize("code", sorted(CODES))
def test_page(code: str, tmp_path: Path) -> None:
    """The wrong example of a page has the code, the right one has nothing to report."""
    page = code_page(code)
    assert page is not None and page.startswith(f"# {code}: {CODES[code]}\n")
    wrong, right = BLOCK.findall(page)
    for text, kind in ((wrong, "wrong"), (right, "right")):
        (tmp_path / "lib.plan").write_text(LIBRARIES[kind])
        _, report = load_plan(Source(str(tmp_path / "page.plan"), text))
        found = {d.code for d in report.diagnostics}
        assert found == ({code} if kind == "wrong" and code in HERE else set())


@pytest.mark.parametrize("code", HERE)
def test_golden_pair(code: str) -> None:
    """A code that needs no model has a golden file that shows it."""
    outs = [path.read_text() for path in GOLDEN.glob(f"{code}_*.out")]
    assert any(f"[{code}]" in text for text in outs)


def test_no_stray_pages() -> None:
    """There is no page without a code."""
    assert {path.stem for path in (FOLDER / "codes").glob("*.md")} == set(CODES)


def test_unknown_code() -> None:
    """An unknown code has no page."""
    assert code_page("P999") is None
