"""Weights that are stored cut and gathered for use (ZeRO-3): their memory is given back after the forward.

Recorded segments keep referring to the gathered tensor; before they run backwards it is gathered again, into
the same storage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from plancc.ir.program import Collective, Held, Leaf, Release, operands
from plancc.passes.gradients.activity import Entry


def released_weights(
    entries: Sequence[Entry], weights: Mapping[str, Held], kept: Collection[str]
) -> tuple[list[Entry], dict[str, list[Entry]]]:
    """The forward with a Release behind the last use of each gathered weight, and how to gather it again.

    `kept` are weights that stay gathered until their backward (`free = after_backward`).
    """
    chains = gather_chains(entries, weights, kept)
    leaves = {
        step.out.name: step.operand
        for _, step in entries
        if isinstance(step, Leaf) and step.operand in chains
    }
    last: dict[str, int] = {}
    for index, (_, step) in enumerate(entries):
        for name in operands(step):
            value = leaves.get(name, name)
            if value in chains:
                last[value] = index
    chains = {name: chain for name, chain in chains.items() if name in set(leaves.values())}
    dead: dict[int, list[str]] = {}
    for name in chains:
        dead.setdefault(last[name], []).append(name)
    out: list[Entry] = []
    for index, entry in enumerate(entries):
        out.append(entry)
        for name in dead.get(index, ()):
            stage = entry[0][0]
            out.append(((stage,), Release(name, stage)))
    return out, chains


def gather_chains(
    entries: Sequence[Entry], weights: Mapping[str, Held], kept: Collection[str]
) -> dict[str, list[Entry]]:
    """Gathered value -> the moves that make it from its weight, at least one of them a gathering."""
    chains: dict[str, list[Entry]] = {}
    for stages, step in entries:
        if not isinstance(step, Collective) or step.kind == "once":
            continue
        if step.operand in weights and step.operand not in kept:
            chains[step.out.name] = [(stages, step)]
        elif step.operand in chains:
            chains[step.out.name] = [*chains[step.operand], (stages, step)]
    return {
        name: chain
        for name, chain in chains.items()
        if any(isinstance(s, Collective) and s.kind == "all_gather" for _, s in chain)
    }
