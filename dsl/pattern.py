"""Module patterns: `*` one segment, `**` any, `{a,b}`, `[lo:hi]` a range of layers.

A pattern matches paths such as `layers.3.mlp.up_proj`; it covers what lies below them too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_SEGMENT = re.compile(r"([^\[\]]*)((?:\[[^\[\]]*\])*)")


class PatternError(ValueError):
    """A pattern that is not well formed."""


@dataclass(frozen=True, slots=True)
class _Deep:
    """`**`: any number of segments."""


@dataclass(frozen=True, slots=True)
class _Glob:
    """One segment: a literal, or a regular expression where it holds `*` or `{}`."""

    text: str
    regex: re.Pattern[str] | None

    def matches(self, part: str) -> bool:
        return part == self.text if self.regex is None else self.regex.fullmatch(part) is not None


@dataclass(frozen=True, slots=True)
class _Slice:
    """A numbered segment from `lo` up to, not including, `hi` (None: no end)."""

    lo: int
    hi: int | None

    def matches(self, part: str) -> bool:
        inside = part.isascii() and part.isdecimal() and len(part) < 10
        return inside and self.lo <= int(part) and (self.hi is None or int(part) < self.hi)


_Segment = _Deep | _Glob | _Slice


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; `text` is as written."""

    text: str
    segments: tuple[_Segment, ...]

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Pattern:
        """Parse a pattern whose slices are numbers; PatternError if it is not well formed."""
        segments: list[_Segment] = []
        for part in _split(text):
            match = _SEGMENT.fullmatch(part)
            if match is None or not match[1]:
                raise PatternError(f"`{text}` is not a pattern")
            segments.append(_glob(match[1], text))
            segments += [_slice(inner, text) for inner in _BRACKETS.findall(match[2])]
        return Pattern(text, tuple(segments))

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` fits."""
        return self._run(_parts(path), below=False)

    def covers(self, path: str) -> bool:
        """Whether `path`, or a module that holds it, fits."""
        return self._run(_parts(path), below=True)

    def expand(self, paths: Iterable[str]) -> list[str]:
        """The paths that match, in their order."""
        return [path for path in paths if self.matches(path)]

    def overlaps(self, other: Pattern) -> bool:
        """Whether both may cover one module (True when in doubt)."""
        for a, b in zip(self.segments, other.segments, strict=False):
            if isinstance(a, _Deep) or isinstance(b, _Deep):
                return True
            if isinstance(a, _Glob) and a.regex is None and not b.matches(a.text):
                return False
            if isinstance(b, _Glob) and b.regex is None and not a.matches(b.text):
                return False
            if isinstance(a, _Slice) and isinstance(b, _Slice) and not _meet(a, b):
                return False
        return True

    def includes(self, other: Pattern) -> bool:
        """Whether this covers all that `other` covers (False when in doubt)."""
        if self.segments == (_Deep(),):
            return True
        if len(self.segments) > len(other.segments):
            return False
        pairs = zip(self.segments, other.segments, strict=False)
        return all(_segment_includes(a, b) for a, b in pairs)

    def _run(self, parts: list[str], below: bool) -> bool:
        ends = len(self.segments)
        states = self._closed({0})
        for part in parts:
            if below and ends in states:
                return True
            after = set()
            for state in states:
                if state == ends:
                    continue
                segment = self.segments[state]
                if isinstance(segment, _Deep):
                    after.add(state)
                elif segment.matches(part):
                    after.add(state + 1)
            if not after:
                return False
            states = self._closed(after)
        return ends in states

    def _closed(self, states: set[int]) -> set[int]:
        for state in sorted(states):
            while state < len(self.segments) and isinstance(self.segments[state], _Deep):
                state += 1
                states.add(state)
        return states


def fill_slices(text: str, number: Callable[[str], int | None]) -> str | None:
    """Replace names and negative numbers in the slices of a pattern; None if one fails."""
    failed = False

    def fill(match: re.Match[str]) -> str:
        nonlocal failed
        ends = []
        for end in match[1].split(":"):
            value = number(end) if end not in ("", "*") else end
            failed = failed or value is None
            ends.append(str(value))
        return f"[{':'.join(ends)}]"

    filled = _BRACKETS.sub(fill, text)
    return None if failed else filled


def suggest(text: str, paths: Iterable[str]) -> list[str]:
    """Up to three patterns of existing paths that look like `text`."""
    shapes = {re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths}
    plain = _BRACKETS.sub(".*", text)
    return get_close_matches(plain, sorted(shapes), n=3, cutoff=0.6)


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []


def _split(text: str) -> list[str]:
    """Split at dots outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "{[") - (char in "}]")
        if char == "." and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _glob(text: str, whole: str) -> _Segment:
    if text == "**":
        return _Deep()
    if "**" in text:
        raise PatternError(f"`**` stands for whole segments in `{whole}`")
    out = ""
    for piece in re.findall(r"\{[^{}]*\}|.", text, re.DOTALL):
        if piece == "*":
            out += "[^.]*"
        elif piece[0] == "{" and len(piece) > 1:
            choices = piece[1:-1].split(",")
            if not all(choices):
                raise PatternError(f"`{piece}` has an empty choice in `{whole}`")
            out += "(?:" + "|".join(_starred(choice) for choice in choices) + ")"
        elif piece in "{}":
            raise PatternError(f"unmatched `{piece}` in `{whole}`")
        else:
            out += re.escape(piece)
    special = any(char in text for char in "*{")
    return _Glob(text, re.compile(out) if special else None)


def _starred(text: str) -> str:
    return re.escape(text).replace(r"\*", "[^.]*")


def _slice(inner: str, whole: str) -> _Segment:
    ends = inner.split(":")
    if inner == "*":
        return _Glob("*", re.compile("[^.]*"))
    if len(ends) > 2 or any(e and not (e.isascii() and e.isdecimal()) for e in ends) or not inner:
        raise PatternError(f"`[{inner}]` is not a range of layers in `{whole}`")
    if any(len(end) > 9 for end in ends):
        raise PatternError(f"`[{inner[:20]}]` is too large in `{whole[:60]}`")
    lo = int(ends[0] or 0)
    if len(ends) == 1:
        return _Slice(lo, lo + 1)
    hi = int(ends[1]) if ends[1] else None
    if hi is not None and hi <= lo:
        raise PatternError(f"`[{inner}]` holds no layers in `{whole}`")
    return _Slice(lo, hi)


def _meet(a: _Slice, b: _Slice) -> bool:
    return (a.hi is None or b.lo < a.hi) and (b.hi is None or a.lo < b.hi)


def _segment_includes(a: _Segment, b: _Segment) -> bool:
    if isinstance(a, _Deep) or isinstance(b, _Deep):
        return isinstance(a, _Deep) and isinstance(b, _Deep)
    if a == b or (isinstance(a, _Glob) and a.text == "*"):
        return True
    if isinstance(b, _Glob):
        return b.regex is None and a.matches(b.text)
    if isinstance(a, _Slice):
        return a.lo <= b.lo and (a.hi is None or (b.hi is not None and b.hi <= a.hi))
    return False
