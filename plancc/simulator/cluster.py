"""Clusters: hardware as data. A file of constants, each with its source, and a plan's ranks placed on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plancc.simulator.hardware import Hardware
from plancc.simulator.hardware_forms import ClusterError, Kind, Link, Measured
from plancc.simulator.parse_cluster import (
    ROOT,
    SCHEMA,
    Reader,
    brief,
    join,
    parse_groups,
    parse_kind,
    parse_links,
    parse_measured,
    parse_text,
)

__all__ = ["Cluster", "ClusterError", "read_cluster"]

HONEST, IDEAL = "honest", "ideal"
"""The presets of every cluster: the file as it is; all peaks reached and no latencies."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as its file tells it; `sources` and `values` have every constant by its dotted path.

    `groups` are (kind, count) in the order of device numbers; each begins a node of its own. `cores` counts
    the CPU cores of a node that its devices, which are processes, share (0: every device is its own).
    `changed` says what differs from the file.
    """

    name: str
    about: str
    groups: tuple[tuple[str, int], ...]
    kinds: Mapping[str, Kind]
    links: Mapping[str, Link]
    measured: Measured
    cores: int
    presets: tuple[str, ...]
    sources: Mapping[str, str]
    values: Mapping[str, float]
    raw: Mapping[str, Any] = field(repr=False)
    origin: str = ""
    changed: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many devices there are."""
        return sum(count for _, count in self.groups)

    def place(self, devices: Sequence[int]) -> Hardware:
        """The hardware of ranks that live on these device numbers; ClusterError if there are fewer."""
        kinds, nodes, slots = [], [], []
        first = 0
        for kind, count in self.groups:
            per_node = self.kinds[kind].per_node
            kinds += [self.kinds[kind]] * count
            nodes += [first + index // per_node for index in range(count)]
            slots += [index % per_node for index in range(count)]
            first = nodes[-1] + 1
        wrong = [device for device in devices if not 0 <= device < len(kinds)]
        if wrong:
            raise ClusterError(
                f"{self.name} has {len(kinds)} devices, 0 to {len(kinds) - 1}; "
                f"the plan also uses {listed(wrong)}"
            )
        return Hardware(
            tuple(kinds[d] for d in devices),
            tuple(nodes[d] for d in devices),
            tuple(slots[d] for d in devices),
            self.links,
            self.measured,
            self.cores,
            self.changed,
        )

    def preset(self, name: str) -> Cluster:
        """The cluster with a preset: "honest", "ideal", or one of the file; ClusterError for another."""
        if name == HONEST:
            return self
        if name == IDEAL:
            return self._changed_to(idealised(self.raw), "ideal: all peaks reached, no latencies")
        if name not in self.presets:
            there = ", ".join((HONEST, IDEAL, *self.presets))
            raise ClusterError(f"{self.name} has no preset `{name}`; there are {there}")
        raw = deepcopy(dict(self.raw))
        for path, constant in raw["presets"][name]["set"].items():
            put(raw, path, constant)
        return self._changed_to(raw, f"{name}: {raw['presets'][name]['about']}")

    def with_(self, *settings: str) -> Cluster:
        """The cluster with some constants set: "links.network.nics=1"; ClusterError for unknown paths."""
        raw, problems, changed = deepcopy(dict(self.raw)), [], []
        for setting in settings:
            path, _, text = (part.strip() for part in setting.partition("="))
            try:
                put(raw, path, json.loads(text) if path.startswith("devices.") else
                    {"value": json.loads(text), "source": "set by hand"})  # fmt: skip
            except json.JSONDecodeError:
                problems.append(f"`{setting}`: write path=number, as in links.network.nics=1")
            except ClusterError as problem:
                problems += problem.problems
            before = self.values.get(path)
            changed.append(
                f"{path} = {text}" + (f" instead of {before:g}" if before is not None else "")
            )
        if problems:
            raise ClusterError(problems)
        return self._changed_to(raw, *changed)

    def _changed_to(self, raw: Mapping[str, Any], *changed: str) -> Cluster:
        return parse_cluster(raw, self.origin, (*self.changed, *changed))


def read_cluster(path_or_name: str | Path, near: str | Path = ".") -> Cluster:
    """The cluster of a file, or of `clusters/NAME.json` in `near`; ClusterError with all problems."""
    path = Path(path_or_name)
    folder = Path(near) / "clusters"
    if not path.is_file():
        path = folder / f"{path_or_name}.json"
    if not path.is_file():
        there = sorted(found.stem for found in folder.glob("*.json"))
        told = f"{folder} has {', '.join(there) or 'none'}"
        raise ClusterError(f"no cluster file `{path_or_name}`; {told}")
    try:
        raw, problems = parse_text(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise ClusterError(f"{path}: {problem}") from problem
    if problems:
        raise ClusterError([f"{path}: {problem}" for problem in problems])
    return parse_cluster(raw, str(path))


def parse_cluster(raw: Any, origin: str = "", changed: tuple[str, ...] = ()) -> Cluster:
    """The cluster of a file's data; ClusterError with everything that is wrong, each with its place."""
    read = Reader()
    found = read.table(raw, "", ROOT)
    if found.get("schema") != SCHEMA:
        read.wrong("schema", f"{brief(found.get('schema'))} where {brief(SCHEMA)} must stand")
    links = parse_links(read, found.get("links", {}))
    kinds = {
        name: parse_kind(read, name, value, links)
        for name, value in read.table(found.get("kinds"), "kinds").items()
    }
    cluster = Cluster(
        read.text(found.get("name"), "name"),
        read.text(found.get("about"), "about"),
        parse_groups(read, found.get("devices"), kinds),
        kinds,
        links,
        parse_measured(read, found.get("collectives", [])),
        int(read.constant(found, "cores", "", "count")) if "cores" in found else 0,
        parse_presets(read, found.get("presets", {}), found),
        read.sources,
        read.values,
        found,
        origin,
        changed,
    )
    if read.problems:
        raise ClusterError([f"{origin}: {text}" if origin else text for text in read.problems])
    return cluster


def parse_presets(read: Reader, value: Any, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the file's presets, each of which must give a right cluster."""
    table = read.table(value, "presets")
    for name, item in table.items():
        at = join("presets", name)
        if name in (HONEST, IDEAL):
            read.wrong(at, f"`{name}` is a preset of every cluster")
        found = read.table(item, at, ("about", "set"))
        read.text(found.get("about"), join(at, "about"))
        made = deepcopy({key: part for key, part in raw.items() if key != "presets"})
        before = len(read.problems)
        for path, constant in read.table(found.get("set"), join(at, "set")).items():
            try:
                put(made, path, constant)
            except ClusterError as problem:
                read.wrong(join(at, "set"), problem.problems[0])
        if before == len(read.problems) == 0:
            try:
                parse_cluster(made)
            except ClusterError as problem:
                read.problems += [f"{at}.set: {text}" for text in problem.problems]
    return tuple(table)


def put(raw: dict[str, Any], path: str, constant: Any) -> None:
    """Set a constant by its dotted path; only its last part may be new. ClusterError for an unknown path."""
    *parents, last = path.split(".")
    owner: Any = raw
    for depth, name in enumerate(parents):
        index: Any = int(name) if isinstance(owner, list) and name.isdecimal() else name
        try:
            owner = owner[index]
        except (KeyError, IndexError, TypeError):
            at = ".".join(parents[:depth])
            raise ClusterError(f"`{path}`: no `{join(at, name)}`; {known(owner, at)}") from None
    if not isinstance(owner, dict) or not last or not (parents or last == "cores"):
        raise ClusterError(f"`{path}` is no constant")
    owner[last] = constant


def known(owner: Any, at: str) -> str:
    """What there is in a part of a file."""
    names: Sequence[Any] = sorted(owner) if isinstance(owner, dict) else ()
    if isinstance(owner, list):
        names = range(len(owner))
    return (
        f"there are {', '.join(join(at, name) for name in names)}" if names else "there is nothing"
    )


def idealised(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A file with all peaks reached, no latencies and nothing measured."""
    made: dict[str, Any] = deepcopy(dict(raw))
    made.pop("collectives", None)
    for kind in made["kinds"].values():
        for name in ("tables", "calls", "host"):
            kind.pop(name, None)
        for name in ("efficiency", "streaming"):
            for constant in kind[name].values():
                constant |= {"value": 1.0, "source": IDEAL}
        kind["launch"] = {"value": 0.0, "source": IDEAL}
    for link in made.get("links", {}).values():
        if "peak" in link:
            link["bandwidth"] = link["peak"]
            link.pop("message_bandwidth", None)
        link.pop("message_overhead", None)
        for name in ("latency", "step", "message_latency"):
            link[name] = {"value": 0.0, "source": IDEAL}
    return made


def listed(numbers: Sequence[int], most: int = 6) -> str:
    """Some numbers in a message."""
    tail = ", ..." if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + tail
