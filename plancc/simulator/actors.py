"""Who acts: the ranks of a plan gathered into actors, and which actors meet at a collective.

Small worlds have an actor for each rank. In large ones ranks are one actor that run one program with the
same local sizes and whose groups lie on the nodes in the same way: the cost then does not grow with ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod

from plancc.ir.layout import CutLeaf, Part
from plancc.ir.mesh import Grid, mesh_of
from plancc.ir.program import Instruction, Merge, ProgramSet, RankProgram
from plancc.passes.run_programs import together
from plancc.runtime.owners import is_owned
from plancc.simulator.forms import Actor
from plancc.simulator.place import Place, Sizes, cut_leaves

FEW = 64
"""Worlds up to this many ranks have an actor for each rank."""

Groups = Mapping[int, tuple[int, ...]]
"""Rank -> the ranks that it meets along some parts, itself among them, sorted."""


class Cast:
    """The actors of a set of programs. `program_of` is by actor, `actor_of` by rank."""

    def __init__(
        self, programs: ProgramSet, grids: Mapping[str, Grid], sizes: Sizes,
        node: Callable[[int], int], few: int = FEW,
    ) -> None:  # fmt: skip
        self.grids = grids
        self._groups: dict[tuple[Part, ...], Groups] = {}
        self._meets: dict[tuple[Part, ...], dict[int, tuple[int, ...]]] = {}
        self.actors: list[Actor] = []
        self.program_of: list[RankProgram] = []
        self.actor_of: dict[int, int] = {}
        alone = sum(len(program.ranks) for program in programs.programs) <= few
        for program in programs.programs:
            for ranks in self._alike(program, sizes, node, alone):
                for rank in ranks:
                    self.actor_of[rank] = len(self.actors)
                self.actors.append(Actor(_name(program, ranks), ranks, _home(program)))
                self.program_of.append(program)

    def _alike(
        self, program: RankProgram, sizes: Sizes, node: Callable[[int], int], alone: bool
    ) -> list[tuple[int, ...]]:
        if alone:
            return [(rank,) for rank in program.ranks]
        leaves = uneven_leaves(program, sizes)
        patterns = [self.groups(parts) for parts in dict.fromkeys(meeting_parts(program))]
        found: dict[object, list[int]] = {}
        for rank in program.ranks:
            place = Place(rank, self.grids, sizes, tuple(_owned(leaves))) if leaves else None
            local = tuple(int(place.dim(leaf)) for leaf in leaves) if place is not None else ()
            spread = tuple(_pattern(groups.get(rank, ()), node) for groups in patterns)
            found.setdefault((local, spread), []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def groups(self, parts: tuple[Part, ...]) -> Groups:
        """The groups of a mesh along `parts`."""
        key = tuple(part.group for part in parts)
        if key not in self._groups:
            self._groups[key] = groups_along(self.grids[parts[0].mesh], key)
        return self._groups[key]

    def meets(self, actor: int, parts: tuple[Part, ...]) -> tuple[int, ...]:
        """The actors that must come together when `actor` meets its groups along `parts`, sorted."""
        key = tuple(part.group for part in parts)
        if key not in self._meets:
            self._meets[key] = joined(
                {self.actor_of[rank] for rank in group if rank in self.actor_of}
                for group in set(self.groups(parts).values())
            )
        return self._meets[key].get(actor, (actor,))


def groups_along(grid: Grid, parts: tuple[Part, ...]) -> Groups:
    """Rank -> its group: the ranks whose coordinates differ along `parts` only."""
    found: dict[tuple[int, ...], list[int]] = {}
    keys: dict[int, tuple[int, ...]] = {}
    for rank, at in grid.coords.items():
        rest = dict(at)
        for part in parts:
            rest[part.axis] -= at[part.axis] // part.stride % part.count * part.stride
        keys[rank] = tuple(rest.values())
        found.setdefault(keys[rank], []).append(rank)
    tuples = {key: tuple(sorted(ranks)) for key, ranks in found.items()}
    return {rank: tuples[key] for rank, key in keys.items()}


def joined(sets: Iterable[set[int]]) -> dict[int, tuple[int, ...]]:
    """Member -> all members of the sets that hang together with its own."""
    home: dict[int, set[int]] = {}
    for one in sets:
        whole = set(one)
        for member in one:
            whole |= home.get(member, set())
        for member in whole:
            home[member] = whole
    return {member: tuple(sorted(whole)) for member, whole in home.items()}


def meeting_parts(program: RankProgram) -> Iterator[tuple[Part, ...]]:
    """The parts along which the instructions of a program meet others."""
    for step in program.instructions:
        parts = parts_of(step)
        if parts:
            yield tuple(part.group for part in parts)


def parts_of(step: Instruction) -> tuple[Part, ...]:
    """The parts along which one instruction meets others, () if it does not."""
    if not together(step):
        return ()
    return (step.part,) if isinstance(step, Merge) else step.parts


def uneven_leaves(program: RankProgram, sizes: Sizes) -> list[CutLeaf]:
    """The leaves of which the ranks of a program do not all hold equally much."""
    found: dict[CutLeaf, None] = {}
    for leaf in cut_leaves(program):
        plain = all(part.rule in ("balanced", "block") for part in leaf.parts)
        even = sizes.value(leaf.size) % prod(part.count for part in leaf.parts) == 0
        if not (plain and even):
            found[leaf] = None
    return list(found)


def _owned(leaves: Iterable[CutLeaf]) -> Iterator[Part]:
    return (part for leaf in leaves for part in leaf.parts if is_owned(part))


def _pattern(group: Sequence[int], node: Callable[[int], int]) -> tuple[int, ...]:
    return tuple(sorted(Counter(node(rank) for rank in group).values()))


def _home(program: RankProgram) -> str:
    return mesh_of(program.stages[0].mesh) if program.stages else ""


def _name(program: RankProgram, ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"{program.name} rank {ranks[0]}"
    return f"{program.name} ranks {ranks[0]}..{ranks[-1]} ({len(ranks)})"
