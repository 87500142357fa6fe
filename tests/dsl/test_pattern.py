"""Module patterns: what they match, cover and include."""

from __future__ import annotations

import time

import pytest

from plancc.dsl import Pattern, PatternError, suggest

MATCHES = [
    ("**", "", True), ("**", "layers.3.mlp", True), ("*", "layers", True), ("*", "a.b", False),
    ("layers.*", "layers.3", True), ("layers.*", "layers.3.mlp", False),
    ("layers.*.mlp", "layers.3.mlp", True), ("layers.3", "layers.3", True),
    ("layers[0:4]", "layers.3", True), ("layers[0:4]", "layers.4", False),
    ("layers[2:]", "layers.77", True), ("layers[:2]", "layers.1", True),
    ("layers[3]", "layers.3", True), ("layers[3]", "layers.4", False),
    ("layers[*].mlp", "layers.9.mlp", True), ("layers[0:2]", "layers.x", False),
    ("layers.*.mlp.{gate,up}_proj", "layers.0.mlp.up_proj", True),
    ("layers.*.mlp.{gate,up}_proj", "layers.0.mlp.down_proj", False),
    ("{a,b*}", "bcd", True), ("*_proj", "up_proj", True), ("*_proj", "up.x_proj", False),
    ("**.mlp", "layers.3.mlp", True), ("**.mlp", "mlp", True), ("a.**.b", "a.b", True),
    ("a.**.b", "a.x.y.b", True), ("a.**.b", "a.x.y.c", False), ("a.**", "a", True),
    ("**.layers[0:2].**.w", "x.layers.1.y.z.w", True),
    ("embed_tokens.weight", "embed_tokens.weight", True), ("a+b", "aab", False),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES)
def test_matches(pattern: str, path: str, expected: bool) -> None:
    """Whole paths."""
    assert Pattern.parse(pattern).matches(path) is expected


def test_covers() -> None:
    """A module holds what is below it."""
    pattern = Pattern.parse("layers.*.mlp")
    assert pattern.covers("layers.0.mlp") and pattern.covers("layers.0.mlp.up.weight")
    assert not pattern.covers("layers.0") and not pattern.covers("layers.0.attn")


def test_expand() -> None:
    """Expansion keeps the order of the modules."""
    paths = ["", "layers", "layers.1", "layers.0", "layers.1.mlp"]
    assert Pattern.parse("layers[0:2]").expand(paths) == ["layers.1", "layers.0"]


INCLUDES = [
    ("**", "layers.*", True), ("layers.*", "layers.*.mlp", True), ("layers.*", "layers[0:4]", True),
    ("layers[0:8]", "layers[2:4].mlp", True), ("layers[0:3]", "layers[2:4]", False),
    ("layers.*.mlp", "layers.*", False), ("layers.*", "**", False), ("a*", "ab", True),
    ("layers[0:2]", "layers.1", True),
]  # fmt: skip


@pytest.mark.parametrize(("big", "small", "expected"), INCLUDES)
def test_includes(big: str, small: str, expected: bool) -> None:
    """Inclusion of patterns; what includes also overlaps."""
    a, b = Pattern.parse(big), Pattern.parse(small)
    assert a.includes(b) is expected
    assert not expected or (a.overlaps(b) and b.overlaps(a))


def test_overlaps() -> None:
    """Patterns that cannot meet are known to."""
    assert not Pattern.parse("layers[0:4]").overlaps(Pattern.parse("layers[4:8]"))
    assert not Pattern.parse("lm_head").overlaps(Pattern.parse("layers.*"))
    assert Pattern.parse("layers.*.mlp").overlaps(Pattern.parse("**.up"))


BAD = ["", ".", "a..b", "a.", "a**", "{a", "a}", "{a,}", "a[", "a[x]", "a[1:2:3]", "a[]", "a[-1]",
       "[3]", "a[4:2]", "a[99999999999]"]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    """Malformed patterns are refused."""
    with pytest.raises(PatternError):
        Pattern.parse(text)


def test_suggest() -> None:
    """A misspelt pattern is compared with the shapes of the paths that exist."""
    paths = [f"layers.{i}.{m}" for i in range(80) for m in ("self_attn", "mlp")]
    assert suggest("layers.*.self_atn", paths)[0] == "layers.*.self_attn"
    assert suggest("layers[0:4].mpl", paths)[0] == "layers.*.mlp"


def test_speed() -> None:
    """Twenty patterns over 4200 modules take a fraction of a second."""
    paths = [f"layers.{i}.m{j}.weight" for i in range(80) for j in range(53)]
    start = time.process_time()
    for number in range(20):
        assert len(Pattern.parse(f"layers.*.m{number}.**").expand(paths)) == 80
    assert time.process_time() - start < 0.5
