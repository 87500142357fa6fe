"""The parser tables: plan.lark in, a lark parser out, in a few milliseconds.

Building the LALR tables takes 0.2 s, so they are kept as JSON beside the grammar.
`python -m plancc.dsl` rewrites them; a test holds them in step with plan.lark.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
from lark.grammar import Rule
from lark.lexer import PatternRE, PatternStr, TerminalDef

GRAMMAR = Path(__file__).with_name("plan.lark")
TABLE = Path(__file__).with_name("plan.table.json")
_SHIFT = 0  # how lark writes a shift; 1 is a reduction, whose argument is a rule


@lru_cache(maxsize=1)
def parser() -> lark.Lark:
    """The plan parser, from the table if this lark wrote it, else from the grammar."""
    table = json.loads(TABLE.read_text("utf-8")) if TABLE.exists() else {}
    if table.get("lark") != lark.__version__ or table.get("grammar") != grammar_hash():
        return build()
    memo = _int_keys(table["memo"])
    tables = table["data"]["parser"]["parser"]
    tables["states"] = {int(key): _int_keys(row) for key, row in tables["states"].items()}
    tables["tokens"] = _int_keys(tables["tokens"])
    loaded: lark.Lark = lark.Lark.load({"data": table["data"], "memo": memo})
    return loaded


def build(strict: bool = False) -> lark.Lark:
    """Build the parser from plan.lark; `strict` refuses every conflict and collision."""
    return lark.Lark(
        GRAMMAR.read_text("utf-8"),
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
        maybe_placeholders=True,
        strict=strict,
        edit_terminals=_whole_words,
    )


def table_text() -> str:
    """The content plan.table.json must have."""
    data, memo = build().memo_serialize([TerminalDef, Rule])
    data["options"]["edit_terminals"] = None
    data["parser"]["parser"] = _renumbered(data["parser"]["parser"])
    head = {"lark": lark.__version__, "grammar": grammar_hash()}
    table = {**head, "data": data, "memo": memo}
    return json.dumps(table, separators=(",", ":"), default=sorted) + "\n"


def _renumbered(table: dict[str, Any]) -> dict[str, Any]:
    """The same LALR table with tokens and states numbered by name: lark's numbers vary by run."""
    names = sorted(table["tokens"].values())
    number = {name: place for place, name in enumerate(names)}
    rows = {
        state: sorted((number[table["tokens"][token]], action) for token, action in row.items())
        for state, row in table["states"].items()
    }
    order: dict[int, int] = {}
    waiting = list(table["start_states"].values())
    while waiting:
        state = waiting.pop()
        if state in order:
            continue
        order[state] = len(order)
        waiting += [arg for _, (action, arg) in reversed(rows[state]) if action == _SHIFT]
    states = {
        place: {
            token: (action, order[arg] if action == _SHIFT else arg)
            for token, (action, arg) in rows[state]
        }
        for state, place in order.items()
    }
    ends = {
        kind: {name: order[state] for name, state in table[kind].items()}
        for kind in ("start_states", "end_states")
    }
    return {**table, "tokens": dict(enumerate(names)), "states": states, **ends}


def grammar_hash() -> str:
    """SHA-256 of plan.lark."""
    return hashlib.sha256(GRAMMAR.read_bytes()).hexdigest()


def _whole_words(terminal: TerminalDef) -> None:
    """Let a keyword end only at the end of a word: `placed` is not `place d`."""
    pattern = terminal.pattern
    if isinstance(pattern, PatternStr) and pattern.value.isalpha():
        terminal.pattern = PatternRE(pattern.value + r"(?![A-Za-z0-9_])")
        terminal.priority = 3


def _int_keys(table: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in table.items()}
