"""Any text gives a plan or diagnostics, never a traceback; every message can be rendered."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plancc.dsl import Source, load_plan, render_github, render_json, render_text

GOLDEN = Path(__file__).parents[1] / "golden" / "check"
SAMPLES = [path.read_text("utf-8", "replace") for path in sorted(GOLDEN.glob("*.plan"))]
TOKEN = re.compile(r"\s+|[A-Za-z_]\w*|[0-9]\w*|\"[^\"]*\"|\S")
TOKENS = sorted({token for text in SAMPLES for token in TOKEN.findall(text) if len(token) < 40})
ODD = ["\0", "\ufeff", "\u2028", "\r", "9" * 10_000, str(2**70), "1e999", "0", "-", "{", "((", "é"]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def survives(text: str) -> None:
    """Load and render a text; a plan comes out exactly when there is no error."""
    plan, report = load_plan(Source(str(GOLDEN / "fuzz.plan"), text))
    assert (plan is None) == (not report.ok)
    for render in (render_text, render_json, render_github):
        assert isinstance(render(report.diagnostics), str)


def kind_of(token: str) -> str:
    """Name, number, string, space or other."""
    first = token[0]
    if first.isascii() and (first.isalpha() or first == "_"):
        return "name"
    return "number" if first.isdecimal() else "string" if first == '"' else "other"


BY_KIND = {kind: [t for t in TOKENS if kind_of(t) == kind] for kind in ("name", "number", "string")}


def exchange(text: str, seed: int) -> str:
    """Replace a few names, numbers and strings by others: mostly right syntax, wrong meaning."""
    rng = random.Random(seed)
    tokens = TOKEN.findall(text)
    places = [at for at, token in enumerate(tokens) if kind_of(token) in BY_KIND]
    names = [tokens[at] for at in places]
    for at in rng.sample(places, min(len(places), rng.randint(1, 4))):
        kind = kind_of(tokens[at])
        same = [name for name in names if kind_of(name) == kind]
        tokens[at] = rng.choice(same if rng.random() < 0.7 else BY_KIND[kind])
    return "".join(tokens)


def mutate(text: str, seed: int) -> str:
    """Drop, double, swap or replace a few tokens."""
    rng = random.Random(seed)
    tokens = TOKEN.findall(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(tokens))
        kind = rng.randrange(4)
        if kind == 0:
            del tokens[at : at + rng.randint(1, 3)]
        elif kind == 1:
            tokens.insert(at, tokens[at])
        elif kind == 2:
            other = rng.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            tokens[at] = rng.choice(TOKENS if rng.random() < 0.8 else ODD)
        tokens = tokens or ["plan"]
    return "".join(tokens)


@settings(max_examples=400, **QUIET)
@given(st.sampled_from(SAMPLES), st.integers(0, 2**32))
def test_token_mutations(text: str, seed: int) -> None:
    """Plans with a few tokens changed."""
    survives(mutate(text, seed))


@settings(max_examples=400, **QUIET)
@given(st.sampled_from(SAMPLES), st.integers(0, 2**32))
def test_exchanged_words(text: str, seed: int) -> None:
    """Plans with a few words exchanged."""
    survives(exchange(text, seed))


@settings(max_examples=150, **QUIET)
@given(st.lists(st.sampled_from([*TOKENS, *ODD]), max_size=60))
def test_token_soup(tokens: list[str]) -> None:
    """Tokens in any order."""
    survives("plan fuzz, edition 1\n" + " ".join(tokens))


@settings(max_examples=150, **QUIET)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Any characters at all, with a header and without."""
    survives(text)
    survives("plan fuzz, edition 1\n" + text)


@settings(max_examples=150, **QUIET)
@given(st.sampled_from(SAMPLES), st.binary(min_size=1, max_size=6), st.integers(0, 10**6))
def test_bytes(tmp_path_factory: pytest.TempPathFactory, text: str, junk: bytes, at: int) -> None:
    """Files with a few bytes written over."""
    data = text.encode()
    at %= len(data)
    path = tmp_path_factory.getbasetemp() / "bytes.plan"
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    plan, report = load_plan(path)
    assert (plan is None) == (not report.ok)
    render_text(report.diagnostics)


HEADER = "plan deep, edition 1\n"
TOWERS = {
    "brackets": "let a = " + "(" * 5000 + "1" + ")" * 5000,
    "open brackets": "let a = " + "[" * 5000,
    "minus": "let a = " + "- " * 5000 + "1",
    "not": "require " + "not " * 5000 + "true",
    "sum": "let a = " + " + ".join(["1"] * 5000),
    "and": "require " + " and ".join(["true"] * 5000),
    "when": "when true {\n" * 5000 + "}\n" * 5000,
    "lets": "\n".join(f"let a{i} = a{i + 1}" for i in range(5000)) + "\nlet a5000 = 1",
    "lets of inputs": "let a0 = seq_len\n"
    + "\n".join(f"let a{i + 1} = a{i} + a{i}" for i in range(80)),
    "templates": "template t0(x) { place ** on x }\n"
    + "\n".join(f"template t{i + 1}(x) {{\nuse t{i}(x)\nuse t{i}(x)\n}}" for i in range(30))
    + "\nmesh m[a = 1] on local\nuse t30(m)",
    "digits": "let a = " + "9" * 10_000,
    "dots": "let a = " + ".".join(["b"] * 5000),
    "edition": "\nlet a = 1.5e" + "9" * 5000,
    "names": "let " + "a" * 100_000 + " = 1",
    "huge mesh": "mesh m[a = 1000000, b = 1000000, c = 1000000] on local",
    "huge pool": "pool m[a = 0..9000000000000000000] on local",
    "huge cluster": "cluster c { devices d[9000000000000000000] }",
    "huge slice": "mesh m[a = 2] on local[0:9000000000000000000]",
    "huge layers": "place layers[0:99999999999999999999] on m",
}


@pytest.mark.parametrize("text", TOWERS.values(), ids=TOWERS.keys())
def test_towers(text: str) -> None:
    """Very deep, very long and very large things."""
    survives(HEADER + text)
