"""Loss and every gradient of trained pipelines against one device, in float64."""

from __future__ import annotations

import pytest
import torch
from lowered import Lowered, explain_failure, lower
from model_zoo import randomise
from pipe_cases import ENDS, HEAD, STAGES, TENSOR, beside, plain, schedule, table, three, trained
from torch import Tensor, nn

from plancc.passes.capture import capture

LIMIT = 1e-9
NAMED = [("GPipe", 1), ("1F1B", 1), ("interleaved", 2), ("interleaved", 3), ("zero_bubble", 1),
         ("zero_bubble", 2), ("zero_bubble", 3)]  # fmt: skip


def equal(lowered: Lowered) -> None:
    """Verify a unit of training."""
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    (found,) = result.variants
    assert found.phase == "train" and found.max_rel_error <= LIMIT


@pytest.mark.parametrize("batches", [1, 2, 3, 6])
@pytest.mark.parametrize("pp", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "virtual"), NAMED)
def test_every_schedule(name: str, virtual: int, pp: int, batches: int) -> None:
    """Micro-batches fewer than stages, as many, and more; up to three stages a rank."""
    equal(trained(plain(pp, schedule(name, batches, virtual)), max(4, pp * virtual)))


@pytest.mark.parametrize("batches", [2, 3, 4, 5])
def test_batches_that_do_not_divide(batches: int) -> None:
    """Seven sequences in micro-batches of two sizes."""
    equal(trained(plain(3, schedule("zero_bubble", batches), batch=7)))


TABLES = [
    ("F0 F1 F2 B2 B1 B0", "F0 F1 F2 B2 B1 B0"),
    ("F2 F0 F1 B2 I0 W0 B1", "F2 B2 F0 I0 F1 W0 B1"),
    ("F0 F1 F2 I0 I1 W1 I2 W0 W2", "F0 F1 I0 F2 I1 I2 W2 W1 W0"),
]


@pytest.mark.parametrize("rows", TABLES)
def test_tables(rows: tuple[str, ...]) -> None:
    """Schedules that no name has: backwards in reverse, micro-batches out of order, split backwards."""
    equal(trained(plain(2, table(*rows))))


def test_table_with_virtual_stages() -> None:
    """Breadth first: all micro-batches through one chunk, then through the next."""
    rows = ("F0.0 F1.0 F0.1 F1.1 B0.1 B1.1 B0.0 I1.0 W1.0",) * 2
    equal(trained(plain(2, table(*rows, virtual=2))))


CHAIN = """mesh front[tp = 2] on local[0:2]
mesh middle[tp = 1] on local[2:3]
mesh back[tp = 3] on local[3:6]
place ** on front
place layers.1, layers.2 on middle
place layers.3, norm, lm_head on back
"""


@pytest.mark.parametrize("name", ["GPipe", "1F1B", "zero_bubble"])
@pytest.mark.parametrize("batches", [1, 4])
def test_chains_of_meshes(name: str, batches: int) -> None:
    """Stages of different widths."""
    line = f'pipeline front -> middle -> back {{ schedule = "{name}"; microbatches = {batches} }}\n'
    rules = TENSOR.replace("{ split", "{ split").replace("over tp", "over tp (block = balanced)")
    equal(trained(HEAD + CHAIN + rules + line))


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(("name", "virtual"), [("1F1B", 1), ("interleaved", 2), ("zero_bubble", 2)])
def test_three_axes(name: str, virtual: int, sequence: bool) -> None:
    """dp x tp x pp, plain and with sequence parallelism."""
    equal(trained(three(2, 2, 2, schedule(name, 3, virtual), sequence)))


@pytest.mark.parametrize("name", ["GPipe", "1F1B", "zero_bubble"])
@pytest.mark.parametrize("pp", [2, 1])
def test_tied_embedding(name: str, pp: int) -> None:
    """One parameter on the first and on the last stage: its gradients are added."""
    equal(trained(plain(pp, schedule(name, 3)), model="llama_tied"))


def test_tied_embedding_in_parts() -> None:
    """The same with the vocabulary cut, and two data-parallel copies."""
    equal(trained(three(2, 2, 2, schedule("zero_bubble", 2)), model="llama_tied"))


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


@pytest.mark.parametrize(("name", "pp", "virtual"), [
    ("GPipe", 4, 1), ("1F1B", 3, 1), ("interleaved", 2, 3), ("interleaved", 3, 2),
    ("zero_bubble", 4, 1), ("zero_bubble", 2, 2),
])  # fmt: skip
@pytest.mark.parametrize("batches", [1, 5])
def test_values_that_skip_stages(name: str, pp: int, virtual: int, batches: int) -> None:
    """A value of the first layer goes to all stages, and its gradients come back from all."""
    text = plain(pp, schedule(name, batches, virtual))
    text = text.replace("embed_tokens", "embed").replace("norm, lm_head", "head")
    equal(lower(text, capture(randomise(Skipping())), phases=("train",)))


@pytest.mark.parametrize("rule", [
    "split heads over hp", "split kv_seq over hp", "split seq over hp"
])  # fmt: skip
@pytest.mark.parametrize(("name", "virtual"), [("GPipe", 1), ("1F1B", 1), ("interleaved", 2),
                                               ("zero_bubble", 2)])  # fmt: skip
def test_attention_beside_the_pipeline(name: str, virtual: int, rule: str) -> None:
    """A mesh that works for all stages runs in step with them, under any schedule."""
    equal(trained(beside(schedule(name, 3, virtual), rule=rule)))


@pytest.mark.parametrize("name", ["GPipe", "1F1B", "zero_bubble"])
def test_attention_on_the_stages_themselves(name: str) -> None:
    """A mesh of the pipeline's own devices: ranks that work for their stage and for others."""
    equal(trained(beside(schedule(name, 4), first=0)))


@pytest.mark.parametrize("overlap", ["batches = 2", "depth = 2"])
def test_overlap_in_training(overlap: str) -> None:
    """What takes turns while inferring runs in the order of the schedule."""
    line = schedule("1F1B", 4) + f"comm base <-> far {{ overlap = async({overlap}) }}\n"
    equal(trained(beside(line)))


@pytest.mark.parametrize("module", ["embed_tokens", "norm, lm_head", "lm_head"])
@pytest.mark.parametrize("name", ["1F1B", "zero_bubble"])
def test_ends_beside_the_pipeline(name: str, module: str) -> None:
    """The ends of the model on a mesh of their own, not named in the pipeline."""
    other = f"mesh other[tp = 2] on local[2:4]\nplace {module} on other\n"
    equal(trained(plain(2, other + schedule(name, 3))))


@pytest.mark.parametrize("ends", [
    ENDS.replace("place embed_tokens on base[pp = 0]\n", ""), ENDS.replace(", lm_head", ""), ""
])  # fmt: skip
def test_modules_on_every_stage(ends: str) -> None:
    """Modules that the plan leaves on all ranks of the pipeline."""
    equal(trained(plain(2, schedule("1F1B", 3), ends=ends)))


EXPERTS = f"""mesh base[pp = 2] on local[0:2]
mesh sparse[ep = 2] on local[2:4]
place ** on base
{STAGES}{ENDS}place layers.*.moe.experts on sparse {{ split experts over ep }}
"""


@pytest.mark.parametrize("name", ["1F1B", "zero_bubble"])
def test_experts_beside_the_pipeline(name: str) -> None:
    """Experts of all layers on a mesh of their own."""
    equal(trained(HEAD + EXPERTS + schedule(name, 3), model="moe"))
