"""Seconds, bytes and counts as people read them."""

from __future__ import annotations

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds_text(seconds: float, micro: str = "us") -> str:
    """`1.25 s`, `3.40 ms`, `12.0 us`: three figures. `micro` is how microseconds are called."""
    for size, unit in _SECONDS:
        if abs(seconds) >= 0.9995 * size:
            return f"{_three(seconds / size)} {micro if unit == 'us' else unit}"
    return "0 s" if not seconds else f"{seconds * 1e9:.2g} ns"


def time_text(seconds: float) -> str:
    """The same with a real micro sign."""
    return seconds_text(seconds, "µs")


def bytes_text(count: float) -> str:
    """`17.7 GB`, `3.20 MB`, `512 B`: three figures, powers of ten."""
    for size, unit in _BYTES:
        if abs(count) >= 0.9995 * size:
            return f"{_three(count / size)} {unit}"
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """`1.20 T`, `350 G`, `12`: three figures and a prefix."""
    for size, unit in _COUNTS:
        if abs(count) >= 0.9995 * size:
            return f"{_three(count / size)} {unit}"
    return f"{count:g}"


def share_text(share: float) -> str:
    """`12.5 %`; tiny shares keep a figure."""
    return f"{share:.1%}".replace("%", " %")


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
