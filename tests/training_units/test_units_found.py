"""Plans whose gradients were once wrong, by name: what the random ones and the zoo found."""

from __future__ import annotations

import pytest
from lowered import captured
from plans import tp, written
from small_models import graph_of
from unit_checks import train

HEAD = "plan found, edition 1\n"
PLANS = {
    # a rank that holds a tied weight for two stages counted its gradient twice
    "tied_on_overlapping_meshes": (
        "fused_tied",
        """
mesh x[a = 3] on local[0:3]
mesh y[a = 3] on local[1:4]
place ** on x
place embed_tokens on y
""",
    ),
    "tied_on_one_device": (
        "fused_tied",
        """
mesh x[a = 2] on local[0:2]
mesh y[a = 2] on local[0:2]
place ** on x
place embed_tokens on y { split batch over a }
""",
    ),
    # a transfer within a rank was recorded by autograd
    "transfer_within_a_rank": (
        "mixtral",
        """
mesh m0[a = 1, b = 2, c = 2] on local[0:4]
mesh m1[a = 2] on local[3:5]
place ** on m0
place layers.*.mlp.experts on m1
place layers.*.mlp { split ffn over a }
place layers.* { split batch over a (block = balanced) }
place layers.1 { split seq over a }
""",
    ),
    # one projection makes q and k, which are split, and v, which is whole
    "split_and_whole_pieces": (
        "gated",
        """
mesh m0[a = 2] on local[0:2]
place ** on m0
place layers.*.self_attn { split head_dim over a }
""",
    ),
    # a gathered weight of which a rank keeps a strided view was given back, and too little came again
    "a_view_of_a_gathered_weight": (
        "phi",
        """
mesh m0[a = 3, b = 2] on local[0:6]
place ** on m0
place layers.*.self_attn { split heads over b }
place layers.*.self_attn.dense.weight { split heads over a }
place layers.* { split heads over a, b (block = balanced) }
""",
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_whose_gradients_were_once_wrong(case: str) -> None:
    model, text = PLANS[case]
    train(HEAD + text, graph_of(model))


def test_buffers_record_nothing_and_the_padding_row_has_no_gradient() -> None:
    """Llama's rotary frequencies are used by several segments; row 0 of its table is padding."""
    train(written(tp(2), "llama"), captured("llama"))


def test_gradients_pass_through_complex_values() -> None:
    """DeepSeek V2 rotates its queries and keys as complex numbers."""
    from tests.test_architectures import plan_text

    graph = captured("deepseek_v2")
    train(plan_text(graph, 2), graph)
