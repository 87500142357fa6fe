"""Which ranks are copies of each other: the replicas along one axis, and who sits where without some."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plancc.runtime.artifact import Artifact, ArtifactError
from plancc.runtime.training.slices import slice_ranges
from plancc.runtime.view import View


class FailoverError(ArtifactError):
    """The plan has no replicas that could stand in for each other: the user's side."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas along `mesh.axis`: `ranks[k]` are those of replica k, the rest of the grid in order."""

    mesh: str
    axis: str
    ranks: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The axis as plans write it."""
        return f"{self.mesh}.{self.axis}"

    def of(self, rank: int) -> int | None:
        """The replica that a rank belongs to; None for one that is in no replica."""
        return next((k for k, ranks in enumerate(self.ranks) if rank in ranks), None)

    def twins(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same slices, one in each replica; a rank of no replica has only itself."""
        mine = self.of(rank)
        if mine is None:
            return (rank,)
        place = self.ranks[mine].index(rank)
        return tuple(ranks[place] for ranks in self.ranks)


@dataclass(frozen=True, slots=True)
class Spares:
    """The programs for each number of replicas; the greatest is the plan's own."""

    replicas: Replicas
    levels: Mapping[int, Artifact]

    @property
    def full(self) -> Artifact:
        """The plan's own programs."""
        return self.levels[len(self.replicas.ranks)]

    def seats(self, active: Sequence[int]) -> tuple[int, ...]:
        """The plan's rank that takes each rank of the programs for these replicas."""
        small = self.levels[len(active)]
        found: dict[int, int] = {}
        for name, grid in small.grids.items():
            whole = {tuple(at.items()): rank for rank, at in self.full.grids[name].coords.items()}
            for rank, at in grid.coords.items():
                there = dict(at)
                if name == self.replicas.mesh:
                    there[self.replicas.axis] = active[at[self.replicas.axis]]
                found[rank] = whole[tuple(there.items())]
        return tuple(found[rank] for rank in range(small.world))

    def checked(self) -> Spares:
        """Raise FailoverError unless every rank holds the same slices under all programs."""
        for count, small in self.levels.items():
            for rank, seat in enumerate(self.seats(range(count))):
                if held(small, rank) != held(self.full, seat):
                    raise FailoverError(
                        f"with {count} replicas over {self.replicas.name} rank {seat} would hold "
                        "other slices of the parameters: nothing can take over for it"
                    )
        return self


def find_replicas(artifact: Artifact, axis: str | None = None) -> Replicas:
    """The replicas along `axis` ("rep" or "attn.rep"), or along the first axis that has some.

    An axis that the plan names in `replicate params` goes first. Raises FailoverError.
    """
    if artifact.manifest["pools"]:
        raise FailoverError(
            "a plan with a pool has no replicas: its pool's ranks come and go anyway"
        )
    grids = artifact.grids
    known = [(mesh, name) for mesh, grid in grids.items() for name, size in grid.axes if size > 1]
    if axis is not None:
        asked = [one for one in known if axis in (one[1], ".".join(one))]
        if len(asked) != 1:
            shown = ", ".join(".".join(one) for one in known) or "none"
            many = "several meshes have" if asked else "no mesh has"
            raise FailoverError(f"{many} an axis `{axis}` of several ranks; there are {shown}")
        problem = why_not(artifact, *asked[0])
        if problem:
            raise FailoverError(f"`{axis}` does not replicate: {problem}")
        return replicas_along(artifact, *asked[0])
    stated = stated_axes(artifact)
    known.sort(key=lambda one: one[1] not in stated)
    problems = []
    for one in known:
        problem = why_not(artifact, *one)
        if problem is None:
            return replicas_along(artifact, *one)
        problems.append(f"{'.'.join(one)}: {problem}")
    raise FailoverError(
        "; ".join(["no axis of the plan holds everything several times", *problems])
    )


def replicas_along(artifact: Artifact, mesh: str, axis: str) -> Replicas:
    """The replicas along an axis."""
    grid = artifact.grids[mesh]
    found = tuple(grid.members({axis: k}) for k in range(grid.sizes[axis]))
    return Replicas(mesh, axis, found)


def why_not(artifact: Artifact, mesh: str, axis: str) -> str | None:
    """Why the ranks along an axis cannot stand in for each other; None if they can."""
    found = replicas_along(artifact, mesh, axis)
    for name, grid in artifact.grids.items():
        if name != mesh and set(grid.ranks) & set(artifact.grids[mesh].ranks):
            return f"its ranks are those of mesh `{name}`, too"
    for ranks in found.ranks[1:]:
        for one, other in zip(found.ranks[0], ranks, strict=True):
            differ = different(held(artifact, one), held(artifact, other))
            if differ:
                return f"ranks {one} and {other} hold different parts of `{differ}`"
    return None


def held(artifact: Artifact, rank: int) -> set[tuple[Any, ...]]:
    """What a rank computes with, and what its optimizer updates: (kind, phase, name, ranges)."""
    found = set()
    for row in artifact.manifest["programs"]:
        cls = next(one for one in row["classes"] if rank in one["ranks"])
        names = {}
        for weight in cls["weights"]:
            names[weight["key"]] = (weight["fqns"] or [weight["key"]])[0]
            if weight["kind"] == "param":
                found.add(("weight", names[weight["key"]], ranges_of(artifact, rank, weight)))
        for key, place in cls.get("gradients", {}).items():
            found.add(("optimizer", names[key], ranges_of(artifact, rank, place)))
    return found


def ranges_of(artifact: Artifact, rank: int, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The ranges of a manifest row on a rank."""
    return slice_ranges(View(rank, artifact.grids, row["stage"]["mesh"]), row, rank)


def different(mine: Collection[tuple[Any, ...]], theirs: Collection[tuple[Any, ...]]) -> str | None:
    """The first parameter in which two ranks differ."""
    differ = set(mine) ^ set(theirs)
    return min(name for _, name, _ in differ) if differ else None


def stated_axes(artifact: Artifact) -> set[str]:
    """The axes that the plan names in `replicate params over AXES`."""
    plan = json.loads((artifact.folder / "resolved-plan.json").read_text())
    return {
        axis
        for place in plan["places"]
        for rule in place["rules"]
        if rule.get("verb") == "replicate" and "params" in rule.get("dims", ())
        for axis in rule["axes"]
    }
