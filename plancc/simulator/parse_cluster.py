"""A cluster file -> its constants, with all that is wrong with it, each problem with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from typing import Any

from plancc.simulator.hardware_forms import (
    HOST,
    VERBS,
    Curve,
    Kind,
    Link,
    Measured,
    MeasuredCalls,
    Table,
)

SCHEMA = "plancc.cluster/1"
WORK = ("matmul", "attention", "memory")
DTYPES = ("f64", "f32", "bf16", "f16")
"""The dtypes that peaks are given for; the short names of emitted programs."""
ANY = "any"
"""In a table: whatever the dtype."""
ROOT = ("schema", "name", "about", "devices", "kinds", "links", "collectives", "cores", "presets")
KIND = ("per_node", "memory", "flops", "efficiency", "bandwidth", "streaming", "launch", "power",
        "node", "network", "tables", "calls", "host")  # fmt: skip
LINK = (
    "bandwidth",
    "message_bandwidth",
    "peak",
    "latency",
    "one_way",
    "step",
    "message_latency",
    "message_overhead",
    "nics",
)
MEASURED = ("kind", "ranks", "nodes", "bytes", "seconds")


@dataclass(slots=True)
class Reader:
    """Reads parts of a file, keeps what is wrong, and remembers where each constant comes from."""

    problems: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def wrong(self, at: str, text: str) -> None:
        """Keep a problem."""
        self.problems.append(f"{at}: {text}" if at else text)

    def table(self, value: Any, at: str, known: Iterable[str] = ()) -> Mapping[str, Any]:
        """A JSON object whose keys are `known` (no keys: any); an empty one if it is something else."""
        if not isinstance(value, dict):
            self.wrong(at, f"{brief(value)} where an object {{...}} must stand")
            return {}
        names = tuple(known)
        for key in value:
            if names and key not in names:
                near = get_close_matches(key, names, 1)
                told = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
                self.wrong(join(at, key), f"unknown; {told}")
        return value

    def text(self, value: Any, at: str) -> str:
        """A string that says something."""
        if not isinstance(value, str) or not value.strip():
            self.wrong(at, f"{brief(value)} where a text must stand")
            return ""
        return value

    def number(self, value: Any, at: str, rule: str = "positive") -> float:
        """A number by a rule of RULES; 1 where it is none."""
        test, told = RULES[rule]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            self.wrong(at, f"{brief(value)} where a number must stand")
            return 1.0
        if not test(value):
            self.wrong(at, f"{value} is no {at.rpartition('.')[2]}: it must be {told}")
            return 1.0
        return value

    def constant(
        self, owner: Mapping[str, Any], name: str, at: str, rule: str = "positive"
    ) -> float:
        """The value of {"value": number, "source": text}, kept with its source; 1 where it is none."""
        path = join(at, name)
        if name not in owner:
            self.wrong(path, 'missing; {"value": ..., "source": "..."} must stand here')
            return 1.0
        if not isinstance(owner[name], dict):
            self.wrong(
                path, f'{brief(owner[name])} where {{"value": ..., "source": "..."}} must stand'
            )
            return 1.0
        found = self.table(owner[name], path, ("value", "source"))
        self.sources[path] = self.text(found.get("source"), join(path, "source"))
        self.values[path] = value = self.number(found.get("value"), path, rule)
        return value

    def constants(self, value: Any, at: str, known: Iterable[str], rule: str) -> dict[str, float]:
        """An object of constants."""
        found = self.table(value, at, known)
        return {name: self.constant(found, name, at, rule) for name in found}


RULES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "positive": (lambda x: x > 0, "more than 0"),
    "time": (lambda x: x >= 0, "0 or more"),
    "share": (lambda x: 0 < x <= 1, "more than 0 and at most 1"),
    "count": (lambda x: x >= 1 and x == int(x), "a whole number of at least 1"),
}


def parse_text(text: str) -> tuple[Any, list[str]]:
    """The JSON of a file; no key may stand twice, no number be infinite or none."""
    problems: list[str] = []

    def keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        problems.extend(
            f"`{name}` stands twice" for name in dict.fromkeys(names) if names.count(name) > 1
        )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=keys), problems
    except (json.JSONDecodeError, RecursionError) as problem:
        return {}, [f"no JSON: {problem}"]


def join(at: str, name: str | int) -> str:
    """The dotted path of a part."""
    return f"{at}.{name}" if at else str(name)


def brief(value: Any) -> str:
    """A value as messages show it."""
    if value is None:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def parse_groups(
    read: Reader, value: Any, kinds: Mapping[str, Kind]
) -> tuple[tuple[str, int], ...]:
    """The devices in the order of their numbers: (kind, count) of each group."""
    if not isinstance(value, list) or not value:
        read.wrong("devices", 'a list of {"kind": ..., "count": ...} must stand here')
        return ()
    groups = []
    for index, item in enumerate(value):
        at = join("devices", index)
        found = read.table(item, at, ("kind", "count"))
        kind = read.text(found.get("kind"), join(at, "kind"))
        if kind and kind not in kinds:
            read.wrong(join(at, "kind"), f"`{kind}` is not in kinds ({', '.join(kinds) or 'none'})")
        groups.append((kind, int(read.number(found.get("count"), join(at, "count"), "count"))))
    for name in set(kinds) - {kind for kind, _ in groups}:
        read.wrong(join("kinds", name), "no devices are of this kind")
    return tuple(groups)


def parse_kind(read: Reader, name: str, value: Any, links: Mapping[str, Link]) -> Kind:
    """One kind of device."""
    at = join("kinds", name)
    found = read.table(value, at, KIND)
    flops = read.constants(found.get("flops"), join(at, "flops"), DTYPES, "positive")
    power = None
    if "power" in found:
        both = read.table(found["power"], join(at, "power"), ("busy", "idle"))
        power = tuple(
            read.constant(both, part, join(at, "power"), "time") for part in ("busy", "idle")
        )
    ends = {}
    for end in ("node", "network"):
        ends[end] = read.text(found.get(end, end), join(at, end))
        if end in found and ends[end] not in links:
            read.wrong(
                join(at, end), f"`{ends[end]}` is not in links ({', '.join(links) or 'none'})"
            )
    network = links.get(ends["network"])
    if network is not None and not network.nics:
        read.wrong(f"links.{network.name}.nics", "missing; nodes are joined by NICs")
    bandwidth = read.constant(found, "bandwidth", at)
    return Kind(
        name,
        int(read.constant(found, "per_node", at, "count")),
        read.constant(found, "memory", at),
        flops,
        read.constants(found.get("efficiency"), join(at, "efficiency"), WORK[:2], "share"),
        bandwidth,
        read.constants(found.get("streaming"), join(at, "streaming"), WORK, "share"),
        read.constant(found, "launch", at, "time"),
        (power[0], power[1]) if power else None,
        ends["node"],
        ends["network"],
        parse_tables(read, found["tables"], join(at, "tables"), flops, bandwidth)
        if "tables" in found
        else {},
        parse_calls(read, found.get("calls", {}), join(at, "calls")),
        read.constants(found.get("host", {}), join(at, "host"), HOST, "time"),
    )


def parse_calls(read: Reader, value: Any, at: str) -> dict[tuple[str, str], MeasuredCalls]:
    """Measured rows [FLOPs, bytes, seconds] by operator (or kind of work) and dtype.

    All of a name have FLOPs or none has; those of products and attention have.
    """
    found = {}
    for name, by_dtype in read.table(value, at).items():
        for dtype, rows in read.table(by_dtype, join(at, name), DTYPES).items():
            where = join(join(at, name), dtype)
            points = list(parse_rows(read, rows, where))
            has = {flops > 0 for flops, _, _ in points}
            if len(has) > 1:
                read.wrong(where, "some rows have FLOPs, others have none")
            elif name in WORK and has == {name == WORK[2]}:
                read.wrong(where, f"rows of {name} have {'no ' if name == WORK[2] else ''}FLOPs")
            elif points:
                found[name, dtype] = MeasuredCalls.of_points(points)
    return found


def parse_tables(
    read: Reader, value: Any, at: str, flops: Mapping[str, float], bandwidth: float
) -> dict[tuple[str, str], Table]:
    """Measured rows [FLOPs, bytes, seconds] by kind of work and dtype.

    A row counts where it is decided: for the curve over FLOPs if FLOPs / peak exceeds bytes / bandwidth, else
    for the curve over bytes (rows of "memory" always do).
    """
    tables = {}
    for work, by_dtype in read.table(value, at, WORK).items():
        for dtype, rows in read.table(by_dtype, join(at, work), (*DTYPES, ANY)).items():
            where = join(join(at, work), dtype)
            if work != "memory" and dtype not in flops:
                read.wrong(
                    where, f"no peak for `{dtype}` in flops, which tells what its rows are bound by"
                )
                continue
            peak = flops.get(dtype, 1.0)
            found = list(parse_rows(read, rows, where))
            bound = [work != "memory" and f / peak > b / bandwidth for f, b, _ in found]
            by_flops = [(f, s) for (f, _, s), heavy in zip(found, bound, strict=True) if heavy]
            by_bytes = [(b, s) for (_, b, s), heavy in zip(found, bound, strict=True) if not heavy]
            curves = [
                Curve.of_points(points) if points else None for points in (by_flops, by_bytes)
            ]
            tables[work, dtype] = Table(*curves)
    return tables


def parse_rows(read: Reader, rows: Any, at: str) -> Iterator[tuple[float, float, float]]:
    """The rows [FLOPs, bytes, seconds] of one table that are right."""
    if not isinstance(rows, list) or not rows:
        read.wrong(at, "rows [FLOPs, bytes, seconds] must stand here")
        return
    for index, row in enumerate(rows):
        where = join(at, index)
        if not isinstance(row, list) or len(row) != 3:
            read.wrong(where, f"{brief(row)} where [FLOPs, bytes, seconds] must stand")
            continue
        f, b, s = row
        before = len(read.problems)
        f = read.number(f, join(where, "FLOPs"), "time")
        b, s = read.number(b, join(where, "bytes")), read.number(s, join(where, "seconds"))
        if len(read.problems) == before:
            yield f, b, s


def parse_links(read: Reader, value: Any) -> dict[str, Link]:
    """The links by name; those with NICs join nodes."""
    links = {}
    for name, item in read.table(value, "links").items():
        at = join("links", name)
        found = read.table(item, at, LINK)
        bandwidth = read.constant(found, "bandwidth", at)
        links[name] = Link(
            name,
            bandwidth,
            read.constant(found, "latency", at, "time"),
            read.constant(found, "one_way", at, "share"),
            read.constant(found, "step", at, "time"),
            read.constant(found, "message_latency", at, "time"),
            read.constant(found, "message_bandwidth", at)
            if "message_bandwidth" in found
            else bandwidth,
            read.constant(found, "message_overhead", at, "time")
            if "message_overhead" in found
            else 0.0,
            read.constant(found, "peak", at) if "peak" in found else None,
            int(read.constant(found, "nics", at, "count")) if "nics" in found else 0,
        )
        peak = links[name].peak
        for part in ("bandwidth", "message_bandwidth"):
            reached = getattr(links[name], part)
            if peak is not None and part in found and reached > peak:
                read.wrong(join(at, part), f"{reached:g} is more than its peak, {peak:g}")
    return links


def parse_measured(read: Reader, value: Any) -> Measured:
    """The measured collectives."""
    points: dict[tuple[str, int], dict[int, list[tuple[float, float]]]] = {}
    if not isinstance(value, list):
        read.wrong("collectives", f"{brief(value)} where a list must stand")
        value = []
    for index, row in enumerate(value):
        at = join("collectives", index)
        found = read.table(row, at, MEASURED)
        kind = read.text(found.get("kind"), join(at, "kind"))
        if kind and kind not in VERBS:
            read.wrong(join(at, "kind"), f"`{kind}` is none of {', '.join(VERBS)}")
        ranks = int(read.number(found.get("ranks"), join(at, "ranks"), "count"))
        nodes = int(read.number(found.get("nodes", 1), join(at, "nodes"), "count"))
        size = read.number(found.get("bytes"), join(at, "bytes"))
        seconds = read.number(found.get("seconds"), join(at, "seconds"))
        points.setdefault((kind, nodes), {}).setdefault(ranks, []).append((size, seconds))
    return Measured(
        {
            key: {ranks: Curve.of_points(found) for ranks, found in sorted(by_ranks.items())}
            for key, by_ranks in points.items()
        }
    )
