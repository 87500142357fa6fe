"""Generation with experts that move and have copies: tokens of one device, and less for the fullest rank."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from balanced_plans import MOE, compiled, plan
from lowered import Lowered, captured, explain_failure, lower, prompt, tokens_of_one

from plancc.dsl import PlanError
from plancc.runtime.generate import generate
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.verification.reference import buffers_of, random_params

EVERY1 = "balance = dynamic(every = 1, tolerance = 0%)"


def skewed(graph) -> dict[str, torch.Tensor]:
    """Weights whose routers send every token to experts 0 and 1, which are on one rank at first."""
    params = random_params(graph, torch.float64)
    for name, tensor in params.items():
        if name == "embed_tokens.weight":
            tensor[:, 0] = 100.0
        elif name.endswith("post_norm.weight"):
            tensor[0] = 1.0
        elif name.endswith("router.weight"):
            tensor[:, 0] = torch.tensor([9.0, 8.0, *[0.0] * (len(tensor) - 2)])
    return params


def run(lowered: Lowered, params: Mapping[str, torch.Tensor], new: int = 6, timed: bool = False):
    """Per rank the tokens, the changes, and the table of each layer, generating a batch of 4."""
    graph = lowered.compiled.graph
    source = Loaded(params, buffers_of(graph, torch.float64))
    ids = prompt(graph, 4, 9)

    def one(transport):
        runner = Runner(lowered.artifact, transport, source, dtype=torch.float64)
        runner.tables.measures = timed
        found = generate(runner, ids, new)
        return found.tokens, runner.balance.changes, dict(runner.tables.found)

    return ids, run_local(lowered.artifact.world, one)


@pytest.mark.parametrize("spare", [0, 4, 8, 24])
@pytest.mark.parametrize("timed", [False, True])
def test_tokens_of_one_device(spare: int, timed: bool) -> None:
    """Whatever was measured and wherever experts went."""
    lowered = compiled(EVERY1, spare)
    graph = lowered.compiled.graph
    ids, found = run(lowered, random_params(graph, torch.float64), timed=timed)
    want = tokens_of_one(graph, ids, 6)
    for tokens, changes, tables in found:
        assert torch.equal(tokens, want)
        assert changes == found[0][1] and len(changes) == 12
        assert tables == found[0][2]


@pytest.mark.parametrize("spare", [4, 8])
def test_fullest_rank_gets_less(spare: int) -> None:
    """Counted tokens: two experts get all of them; their copies on other ranks share them out."""
    _, still = run(compiled("balance = dynamic(every = 1, tolerance = 10000%)"), skewed(graph()))
    _, found = run(compiled(EVERY1, spare), skewed(graph()))
    assert all(c.tokens == 4.0 for c in still[0][1])
    assert all(c.tokens <= 2.0 for c in found[0][1] if c.step > 1)
    assert all(c.moves == 0 and c.before == c.after for c in still[0][1])
    assert any(c.moves for c in found[0][1])
    assert all(c.after <= c.before for c in found[0][1])


def graph():
    """The model's."""
    return captured("moe", MOE)


def test_same_again() -> None:
    """Without times the tables follow from the tokens alone."""
    first, again = (run(compiled(EVERY1, 4), skewed(graph()))[1] for _ in range(2))
    assert first[0][1] == again[0][1] and first[0][2] == again[0][2]


def test_every_phase() -> None:
    """All programs equal one device with copies, with experts cut further, on shrunk sizes too."""
    for options in ({"spare": 4}, {"spare": 2, "ep": 2, "tp": 2}):
        result = lower(plan(EVERY1, **options), graph()).verify()
        assert result.ok, explain_failure(result)


def test_programs_without_copies_are_as_before() -> None:
    """`static`, and no copies: not a line changes."""
    plain, static = (lower(plan(balance), graph()).artifact for balance in ("", "balance = static"))
    for file in plain.folder.glob("*.py"):
        assert file.read_text() == (static.folder / file.name).read_text()


WRONG = {
    "P318": [plan("", 3), plan("", 32), plan("balance = dynamic(every = 5)", ep=3)],
    "P110": [plan("balance = dynamic(every = 0)"), plan("balance = dynamic(policy = best)")],
    "P316": [
        plan() + "place layers.*.self_attn { balance = dynamic(every = 5) }\n",
    ],
    "P901": [
        plan(EVERY1).replace("route = top(2);", ""),
        plan("", 4).replace("route = top(2);", ""),
        plan("", 4).replace("over ep", "over ep, tp").replace("ep = 4", "ep = 2, tp = 2"),
    ],
    "P104": [plan().replace("split batch over rep", "split batch over rep (spare = 2)")],
}


@pytest.mark.parametrize(("code", "text"), [(c, t) for c, texts in WRONG.items() for t in texts])
def test_wrong_plans(code: str, text: str) -> None:
    """Each with its code."""
    with pytest.raises(PlanError) as problem:
        lower(text, graph())
    assert code in {d.code for d in problem.value.diagnostics}
