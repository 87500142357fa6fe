"""Give every leaf a short name for programs and manifests: heads, ffn, batch, d64.

Leaves of one name have one size; a second size of the same name gets a suffix.
"""

from __future__ import annotations

from collections.abc import Mapping

from plancc.ir.graph import BATCH, PAST, TOKENS, Size
from plancc.ir.shape import NamedGraph, leaves

ORDER = (
    "batch", "seq", "hidden", "vocab", "heads", "kv_heads", "head_dim", "experts", "ffn", "layers"
)  # fmt: skip
SYMBOLS: Mapping[Size, str] = {BATCH: "batch", TOKENS: "seq", PAST: "past"}


PAIR = -1
"""The leaf of the two columns (logsumexp, target's logit) of a cross-entropy over cut columns."""


ROWS = -2
"""The leaf of the rows that a rank of experts is sent: as many as choose it, known only at run time."""


def name_leaves(named: NamedGraph) -> dict[int, str]:
    """Leaf id -> name, the same for all leaves of one meaning and size."""
    wanted: dict[int, tuple[int, str]] = {}
    for anchor in named.anchors:
        rank = ORDER.index(anchor.name) if anchor.name in ORDER else len(ORDER)
        for position, leaf in enumerate(anchor.leaves):
            name = anchor.name if len(anchor.leaves) == 1 else f"{anchor.name}_{position}"
            if anchor.name == "heads" and position == 1:
                name = "group"  # query heads of one kv head
            rank_here = rank if len(anchor.leaves) == 1 else rank + 100
            wanted[leaf.id] = min(wanted.get(leaf.id, (999, name)), (rank_here, name))
    sizes: dict[str, dict[Size, str]] = {}
    out: dict[int, str] = {PAIR: "pair", ROWS: "rows"}
    for dims in named.shapes.values():
        for dim in dims:
            for leaf in leaves(dim):
                if leaf.id not in out:
                    base = wanted.get(leaf.id, (0, unnamed(leaf.size)))[1]
                    known = sizes.setdefault(base, {})
                    suffix = f"_{len(known) + 1}" if known else ""
                    out[leaf.id] = known.setdefault(leaf.size, base + suffix)
    return out


def unnamed(size: Size) -> str:
    """A name for a leaf that no anchor names."""
    if isinstance(size, int):
        return f"d{size}"
    text = "".join(c if c.isalnum() else "_" for c in str(size))
    return SYMBOLS.get(size, f"n_{text}".strip("_"))
