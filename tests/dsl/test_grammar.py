"""The grammar has no conflicts, and its tables are in step with it."""

from __future__ import annotations

from pathlib import Path

import lark
import pytest

from plancc.dsl import grammar

ROOT = Path(__file__).parents[2]
PLANS = sorted([*ROOT.glob("examples/**/*.plan"), *ROOT.glob("tests/golden/check/sample_*.plan")])


def test_strict() -> None:
    """No conflict between rules, no collision of terminals."""
    pytest.importorskip("interegular")
    grammar.build(strict=True)


def test_table_in_step() -> None:
    """plan.table.json is what `python -m plancc.dsl` would write."""
    written = grammar.TABLE.read_text("utf-8")
    if f'"lark":"{lark.__version__}"' not in written[:100]:
        pytest.skip("the table is of another version of lark")
    assert written == grammar.table_text()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_table_and_grammar_agree(path: Path) -> None:
    """The parser from the table and the one from the grammar give the same trees."""
    text = path.read_text("utf-8")
    assert grammar.parser().parse(text) == _built().parse(text)


_PARSERS: list[lark.Lark] = []


def _built() -> lark.Lark:
    if not _PARSERS:
        _PARSERS.append(grammar.build())
    return _PARSERS[0]


def test_other_lark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of another lark is not used: the grammar is built instead."""
    monkeypatch.setattr(grammar.lark, "__version__", "0.0.0")
    grammar.parser.cache_clear()
    assert grammar.parser().parse("plan a, edition 1\n")
    grammar.parser.cache_clear()


KEYWORDS = ("step", "by", "from", "else", "in", "as", "on", "edition", "devices", "plan", "mesh")


@pytest.mark.parametrize("word", KEYWORDS)
def test_contextual_keywords(word: str) -> None:
    """Keywords remain usable as names where they cannot be keywords."""
    grammar.parser().parse(f"plan {word}, edition 1\nlet {word} = 1\nlet x = {word} + 1\n")


@pytest.mark.parametrize("line", ["placed ** on base", "place ** onto base", "usellama.x(a)"])
def test_keywords_are_whole_words(line: str) -> None:
    """A keyword does not end inside a word."""
    with pytest.raises(lark.exceptions.UnexpectedInput):
        grammar.parser().parse(f"plan a, edition 1\n{line}\n")
