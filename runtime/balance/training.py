"""Balance while training: what an optimizer keeps of an expert moves with the expert's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from plancc.runtime.balance.balancer import Change, placed_text
from plancc.runtime.balance.tables import Key, key_of
from plancc.runtime.optimizer import Owned
from plancc.runtime.training.slices import OwnedSlice

if TYPE_CHECKING:
    from plancc.runtime.training.loop import Training


def owned_of(slices: Sequence[OwnedSlice], names: Mapping[str, str]) -> list[Owned]:
    """The slices as an optimizer has them."""
    return [
        Owned(names[s.key], s.tensor, s.shape, s.ranges, s.counts, s.rows) for s in slices
    ]  # fmt: skip


def follow_tables(training: Training) -> None:
    """Have the optimizer's tensors move when a table changes."""
    training.runner.balance.states = lambda key: states_of(training, key)


def states_of(training: Training, key: Key) -> list[Tensor]:
    """What an optimizer keeps of a layer's experts besides the weights that are computed with."""
    runner, job = training.runner, training.job
    _, cls = runner.program_for(job.batch, job.seq_len)
    view, _, weights = runner.ready(cls)
    out, names = [], set()
    for item in sorted(training.slices, key=lambda one: one.key):
        text = placed_text(cls["gradients"][item.key])
        if text and key_of(view.part(text)) == key:
            names.add(training.names[item.key])
            if item.tensor.data_ptr() != weights[item.key].data_ptr():
                out.append(item.tensor)
    pieces = [p for p in training.optimizer.state_pieces() if p.name in names and not p.whole]
    return out + [p.tensor for p in sorted(pieces, key=lambda p: (p.name, p.kind))]


def settle_experts(training: Training) -> list[Change]:
    """Look at the tables after a step, where it is time; slices then say what they hold from here on."""
    found = training.runner.balance.after(training.row)
    if any(change.moves for change in found):
        training.slices = training.runner.owned(training.job.batch, training.job.seq_len)
        training.optimizer.relocate(owned_of(training.slices, training.names))
    return found
