"""Models with corners: frozen and unused parameters, a loss of their own, values of two stages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowered import captured, lower
from model_zoo import randomise
from plans import HEAD, LLAMA, grid, stages, three, written
from torch import Tensor, nn
from unit_checks import train

from plancc.passes.capture import capture
from plancc.passes.derive_training import NotTrainable
from plancc.runtime.artifact import ArtifactError
from plancc.runtime.failure import RankFailure
from plancc.runtime.local import run_local
from plancc.runtime.training.step import TrainRunner
from plancc.verification import Verification

TWO = "mesh x[tp = 2] on local[0:2]\nmesh y[tp = 3] on local[2:5]\nplace ** on x\n"
ONE = "mesh x[tp = 2] on local[0:2]\nplace ** on x\n"
SPLIT = "place up { split ffn over tp }\nplace first { split vocab over tp }\n"


class Corners(nn.Module):
    """Two tables, one read at the end; a buffer, a dead branch, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Embedding(60, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.last, self.unused = nn.Embedding(60, 16), nn.Linear(16, 16)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("shift", torch.linspace(-1, 1, 16))
        self.head = nn.Linear(16, 60)

    def body(self, input_ids: Tensor) -> Tensor:
        """What the heads of all kinds take."""
        x = self.first(input_ids)
        y = x + self.down(torch.tanh(self.up(x))) * self.gain + self.shift
        return y + self.last(input_ids) + self.unused(x).detach()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(input_ids))


class OwnLoss(Corners):
    """A scalar is its only output."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the model's own loss: how well a token foretells itself."""
        logits = self.head(self.body(input_ids))
        return -F.log_softmax(logits, -1).gather(-1, input_ids.unsqueeze(-1)).mean()


class Choice(Corners):
    """Only whole numbers come out."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the likeliest tokens."""
        return self.head(self.body(input_ids)).argmax(-1)


def captured_frozen():
    """A captured model that trains nothing."""
    return capture(randomise(Corners()).requires_grad_(False))


def corners(kind: type[nn.Module] = Corners, frozen: str = ""):
    """A captured graph; parameters of module `frozen` need no gradient."""
    model = randomise(kind())
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    return capture(model)


@pytest.mark.parametrize("where", [ONE, TWO, TWO + "place last, head on y\n"])
def test_unused_and_scalar_parameters_and_values_of_two_stages(where: str) -> None:
    """Whatever a dead branch holds has no gradient; a scalar's is summed over the split."""
    train(HEAD + where + SPLIT, corners())


@pytest.mark.parametrize("module", ["up", "first", "head"])
def test_a_frozen_module(module: str) -> None:
    """The others' gradients are right, and the frozen ones have none."""
    train(HEAD + ONE + SPLIT, corners(frozen=module))
    lowered = lower(HEAD + ONE + SPLIT, corners(frozen=module), phases=("train",))
    unit = lowered.compiled.units[0]
    assert unit.training is not None and unit.training.gradients
    assert not [name for name in unit.training.gradients if f"_{module}_" in name]


def test_a_frozen_model_is_refused() -> None:
    """There would be nothing to train."""
    with pytest.raises(NotTrainable, match="frozen"):
        lower(HEAD + ONE, captured_frozen(), phases=("train",))


@pytest.mark.parametrize("where", [ONE, TWO + "place last, head on y\n"])
def test_a_loss_of_the_models_own(where: str) -> None:
    train(HEAD + where + SPLIT, corners(OwnLoss))


def test_a_model_without_a_floating_output_is_refused() -> None:
    """Nothing could have a gradient, and the error says so."""
    with pytest.raises(NotTrainable, match="no floating output"):
        lower(HEAD + ONE, corners(Choice), phases=("train",))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_micro_batches_add_up(count: int) -> None:
    """Uneven ones too; the scale is that of the whole step."""
    train(written(three(LLAMA, 1, 2, 2, count), "dense"), captured("dense"))


def test_more_micro_batches_than_sequences_are_refused() -> None:
    """Before anything runs, with both numbers."""
    text = HEAD + grid(("pp", 2)) + "place ** on base\n" + stages(LLAMA, 2, 4)
    lowered = lower(written(text, "dense"), captured("dense"), phases=("train",))
    work = Verification(lowered.compiled, lowered.artifact)
    ids = torch.zeros(3, 5, dtype=torch.long)
    inputs = {"input_ids": ids, "targets": ids, "scale": torch.tensor(1.0)}

    def step(transport):
        runner = TrainRunner(lowered.artifact, transport, work.source(), dtype=torch.float64)
        return runner.step(inputs)

    with pytest.raises((ArtifactError, RankFailure), match=r"a batch of 3.* 4 micro-batches"):
        run_local(lowered.artifact.world, step)


@pytest.mark.parametrize("split", ["heads", "seq", "batch"])
def test_tied_tables_on_two_stages(split: str) -> None:
    """A tied head on the last stage: the exchange sums what both ends gave."""
    from small_models import graph_of

    text = HEAD + grid(("pp", 2), ("tp", 2)) + (
        f"place ** on base\nplace layers.* {{ split layers over pp; split {split} over tp }}\n"
        "place embed_tokens, positions on base[pp = 0]\nplace norm, lm_head on base[pp = -1]\n"
        "place embed_tokens { split vocab over tp }\n"
    )  # fmt: skip
    lowered, _ = train(text, graph_of("fused_tied"))
    assert "_tied" in (lowered.artifact.folder / "train_v0_c0.py").read_text()
