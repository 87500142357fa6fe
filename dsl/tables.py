"""The tables of REFERENCE.md, written from the vocabulary and the registry of codes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from plancc.dsl.codes import CODES
from plancc.dsl.support import UNSUPPORTED
from plancc.dsl.vocabulary import (
    COMBINE_BY,
    DIMS,
    FUNCTIONS,
    INPUTS,
    OPERATORS,
    OPTION_DIMS,
    PHASE_WORDS,
    SCHEDULES,
    SETTINGS,
    TENSOR_CLASSES,
    WIRE_TYPES,
)

REFERENCE = Path(__file__).with_name("REFERENCE.md")
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The reference with each marked table written anew."""
    tables = {
        "dims": _dims(), "words": _words(), "settings": _settings(), "codes": _codes(),
        "unsupported": _unsupported(),
    }  # fmt: skip
    return _MARK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _listed(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _dims() -> str:
    classes = dict.fromkeys(DIMS.values())
    rows = [(name, _listed(d for d, c in DIMS.items() if c == name)) for name in classes]
    return _table(("class", "dims"), rows)


def _words() -> str:
    rows = (
        ("operators", OPERATORS), ("inputs", INPUTS), ("phases", PHASE_WORDS),
        ("functions", FUNCTIONS), ("tensors", TENSOR_CLASSES), ("combine by", COMBINE_BY),
        ("schedules", SCHEDULES), ("wire types", tuple(WIRE_TYPES)),
        ("of these lossy", tuple(name for name, lossy in WIRE_TYPES.items() if lossy)),
    )  # fmt: skip
    return _table(("what", "words"), [(name, _listed(words)) for name, words in rows])


def _settings() -> str:
    rows = []
    for owner, settings in SETTINGS.items():
        for name, kind in settings.items():
            only = f", of {' '.join(OPTION_DIMS[name])}" if name in OPTION_DIMS else ""
            rows.append((f"`{owner}`", f"`{name}`", kind.text + only))
    return _table(("of", "setting", "value"), rows)


def _codes() -> str:
    return _table(
        ("code", "meaning"), [(f"[{c}](codes/{c}.md)", text) for c, text in CODES.items()]
    )


def _unsupported() -> str:
    rows = [(f"{where} `{name}`", text) for (where, name), text in UNSUPPORTED.items()]
    return _table(("written as", "what"), rows)
