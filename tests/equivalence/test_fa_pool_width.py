"""At the paper's true width.

5,000 tokens prefilled and a few decoded through the pool, equal to one device.
"""

from __future__ import annotations

import pytest
import torch
from lowered import EXAMPLES, example_models, lower
from torch import Tensor

from plancc.passes.capture import capture
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner, Sequence
from plancc.verification.reference import buffers_of

TOKENS, NEW = 5000, 4


def true_width() -> torch.nn.Module:
    """The paper's model: 4 layers, hidden 4096, 32 heads, FFN 16384."""
    torch.manual_seed(0)
    return example_models().dense(max_len=TOKENS + NEW + 1).eval()


def on_one_device(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits of the last NEW positions [NEW, vocab].

    Only those, for 5,000 x 32,000 of them take room.
    """
    kept = {}
    hook = model.norm.register_forward_hook(lambda _, __, out: kept.update(x=out))
    head, model.lm_head = model.lm_head, torch.nn.Identity()
    with torch.no_grad():
        model(ids)
        logits = head(kept["x"][0, -NEW:])
    hook.remove()
    model.lm_head = head
    return logits


@pytest.mark.slow
def test_the_papers_width_through_the_pool() -> None:
    """Tokens equal, logits close.

    Prefill of 5,000 tokens, then decode, all 40 ranks in this process.
    """
    model = true_width()
    graph = capture(model)
    lowered = lower(EXAMPLES / "fa_pool.plan", graph, phases=("prefill", "decode"))
    source = Loaded(dict(model.named_parameters()), buffers_of(graph, torch.float32))
    ids = torch.randint(32000, (1, TOKENS), generator=torch.Generator().manual_seed(1))

    def one(transport) -> tuple[list[int], list[Tensor], tuple[int, ...]]:
        runner, state = Runner(lowered.artifact, transport, source), Sequence()
        tokens, logits, variants = [], [], []
        step, phase = ids, "prefill"
        for _ in range(NEW):
            placed = runner.run(phase, {runner.input_name(phase): step}, state)
            token = runner.everywhere(placed["next_token"])
            if transport.rank < 8:
                logits.append(placed["logits"].pieces[0][0, -1].clone())
            tokens.append(int(token))
            variants.append(state.row["variant"])
            step, phase = token.unsqueeze(1), "decode"
        return tokens, logits, tuple(variants)

    with torch.no_grad():
        found = run_local(40, one)
    tokens = found[0][0]
    assert all(rank[0] == tokens for rank in found)
    assert set(found[0][2]) == {1}
    expected = on_one_device(model, torch.cat([ids, torch.tensor([tokens[:-1]])], 1))
    mine = torch.stack([torch.cat([found[r][1][i] for r in range(8)]) for i in range(NEW)])
    gap = float((mine - expected).abs().max() / expected.abs().max())
    assert gap < 1e-4
    assert expected.argmax(-1).tolist() == tokens
