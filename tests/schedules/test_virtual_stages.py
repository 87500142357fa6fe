"""Several stages a rank: which chunk holds what, and that inference still equals one device."""

from __future__ import annotations

import pytest
import torch
from lowered import captured, explain_failure, lower
from model_zoo import randomise
from plans import NAMES, TENSOR, VOCAB, Template, grid, stages
from torch import Tensor, nn

from plancc.dsl import PlanError
from plancc.passes.capture import capture
from plancc.passes.give_chunks import layer_run

HEAD = "plan inline, edition 1\n"


def plan_text(model: str, pp: int, virtual: int, tp: int = 1, batches: int = 3) -> str:
    """Layers over pp in virtual stages, with tensor parallelism inside where `tp` is above 1."""
    names = NAMES[model]
    axes = (("pp", pp), ("tp", tp)) if tp > 1 else (("pp", pp),)
    inner = Template(TENSOR + VOCAB).substitute(names) if tp > 1 else ""
    return (
        HEAD + grid(*axes) + "place ** on base\n" + stages(names, pp) + inner
        + f"pipeline over base.pp {{ schedule = interleaved; virtual = {virtual}; "
        f"microbatches = {batches} }}\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "layers", "pp", "virtual", "tp"),
    [
        ("dense", 4, 2, 2, 1),
        ("dense", 5, 2, 2, 1),
        ("dense", 4, 2, 2, 2),
        ("dense", 6, 1, 3, 1),
        ("dense", 8, 4, 2, 1),
        ("moe", 6, 3, 2, 1),
    ],
)
def test_inference_equals_one_device(
    model: str, layers: int, pp: int, virtual: int, tp: int
) -> None:
    """Forward, prefill and decode of small models."""
    lowered = lower(plan_text(model, pp, virtual, tp), captured(model, (("layers", layers),)))
    result = lowered.verify()
    assert result.ok, explain_failure(result)


def test_which_chunk_holds_what() -> None:
    """Run c of the layers lives on coordinate c % stages, what follows the layers in the last chunk."""
    lowered = lower(plan_text("dense", 2, 2), captured("dense", (("layers", 4),)))
    unit = lowered.compiled.unit("forward")
    where = {node.path: str(unit.places[node.name].stage)
             for node in unit.graph.nodes if node.name in unit.places}  # fmt: skip
    assert where["embed_tokens"] == "base[pp=0]"
    assert [where[f"layers.{n}.mlp"] for n in range(4)] == [
        "base[pp=0]", "base[pp=1]", "base[pp=0]#1", "base[pp=1]#1",
    ]  # fmt: skip
    assert where["norm"] == where["lm_head"] == "base[pp=1]#1"


def test_runs_are_balanced() -> None:
    """Consecutive runs whose sizes differ by one at most."""
    for runs in range(1, 9):
        for layers in range(runs, 30):
            found = [layer_run(index, layers, runs) for index in range(layers)]
            sizes = [found.count(run) for run in range(runs)]
            assert found == sorted(found) and max(sizes) - min(sizes) <= 1


def test_too_few_layers() -> None:
    """P509 when the model has a layer less than the stages need."""
    with pytest.raises(PlanError) as told:
        lower(plan_text("dense", 2, 2), captured("dense", (("layers", 3),)))
    assert [d.code for d in told.value.diagnostics if d.level == "error"] == ["P509"]


class Gated(nn.Module):
    """A layer that makes a gate if it is given none."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.main, self.gate = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next hidden state, and the gate."""
        gate = torch.tanh(self.gate(x)) if gate is None else gate
        return x + torch.relu(self.main(x)) * gate, gate


class Skipping(nn.Module):
    """Every layer uses a value of the first one."""

    def __init__(self, layers: int = 6, size: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, size)
        self.layers = nn.ModuleList(Gated(size) for _ in range(layers))
        self.head = nn.Linear(size, 30)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x, gate = self.embed(ids), None
        for layer in self.layers:
            x, gate = layer(x, gate)
        return self.head(x)


@pytest.mark.parametrize(("pp", "virtual"), [(2, 2), (2, 3), (3, 2)])
def test_values_that_skip_stages(pp: int, virtual: int) -> None:
    """Messages of all virtual stages of two ranks come in one order."""
    text = plan_text("dense", pp, virtual)
    text = text.replace("embed_tokens", "embed").replace("norm, lm_head", "head")
    result = lower(text, capture(randomise(Skipping()))).verify()
    assert result.ok, explain_failure(result)


FAR = """plan inline, edition 1
model m { seq_len in 1..32 }
mesh base[pp = 2] on local[0:2]
mesh far[hp = 2] on local[2:4]
place ** on base
place layers.* { split layers over pp }
place embed_tokens on base[pp = 0]
place norm, lm_head on base[pp = -1]
place op attention in layers.*.self_attn on far { split heads over hp }
comm base <-> far { overlap = async(OVERLAP) }
pipeline over base.pp { schedule = interleaved; virtual = 2; microbatches = 4 }
"""


@pytest.mark.parametrize("overlap", ["batches = 2", "depth = 2"])
def test_attention_elsewhere_overlaps(overlap: str) -> None:
    """Micro-batches take turns on a mesh whose ranks come back to themselves."""
    lowered = lower(FAR.replace("OVERLAP", overlap), captured("dense", (("layers", 4),)))
    result = lowered.verify()
    assert result.ok, explain_failure(result)
