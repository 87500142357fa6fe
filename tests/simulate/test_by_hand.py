"""Compiled plans of tiny models on a made-up cluster, against times that were worked out with a pencil.

The devices do 50 FLOP/s and move 100 bytes/s, with no launch. An all-reduce takes 1 s and goes at 10 bytes/s,
the other verbs take 0.5 s; a message takes 0.5 s and goes at 16 bytes/s. All values are float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_cluster import const, plain
from torch import Tensor, nn

from plancc.calibrate.toy import Decoder, Width
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.passes.capture import capture
from plancc.simulator.cluster import parse_cluster
from plancc.simulator.forms import COMPUTE
from plancc.simulator.rows import make_row
from plancc.simulator.step import Outcome
from plancc.simulator.subject import Subject


def slow_cluster() -> dict[str, Any]:
    """One node of the devices above."""
    raw = plain(8)
    ones = {kind: const(1) for kind in ("matmul", "attention", "memory")}
    raw["kinds"]["gpu"] |= {
        "flops": {"f32": const(50)}, "efficiency": {k: ones[k] for k in ("matmul", "attention")},
        "bandwidth": const(100), "streaming": ones, "launch": const(0),
    }  # fmt: skip
    raw["links"]["node"] = {
        "bandwidth": const(10), "message_bandwidth": const(16), "latency": const(1),
        "one_way": const(0.5), "step": const(0), "message_latency": const(0.5),
    }  # fmt: skip
    return raw


def outcome_of(
    folder: Path, model: nn.Module, plan: str, phase: str, batch: int, tokens: int,
    example: Mapping[str, Tensor] | None = None, cluster: Mapping[str, Any] | None = None,
) -> Outcome:  # fmt: skip
    """What the simulation says of a plan."""
    path = folder / "hand.plan"
    path.write_text(f"plan hand, edition 1\n{plan}")
    resolved, report = load_plan(str(path), {})
    assert resolved is not None, report.diagnostics
    graph = capture(model, example)
    subject = Subject(
        compile_graph(resolved, graph, report), parse_cluster(cluster or slow_cluster())
    )
    _, outcome = make_row(subject, phase, batch, tokens, spans=True)
    assert outcome is not None
    return outcome


def done(outcome: Outcome, actor: int, until: float = 1e9) -> list[tuple[str, float, float]]:
    """(kind, begin, end) of what an actor did, waiting left out."""
    spans = [s for s in outcome.timeline.spans if s.actor == actor and s.stream == COMPUTE]
    return [
        (s.kind, round(s.begin, 9), round(s.end, 9))
        for s in sorted(spans, key=lambda s: s.begin)
        if s.kind != "wait" and s.begin < until
    ]


class Mlp(nn.Module):
    """4 -> 8 -> 4."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Layers(nn.Module):
    """Some layers, one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Two heads of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            part(x).view(batch, tokens, 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(batch, tokens, 8))


class Causal(nn.Module):
    """Eight words of width 8, one attention, no residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn = nn.Embedding(8, 8), Attention()
        self.head = nn.Linear(8, 8, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.attn(self.embed(input_ids)))


class Experts(nn.Module):
    """Two experts 4 -> 8 -> 4."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(2, 8, 4)), nn.Parameter(torch.zeros(2, 4, 8))

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        inner = F.relu(torch.einsum("bth,eih->btei", x, self.up)) * share.unsqueeze(-1)
        return torch.einsum("btei,ehi->bth", inner, self.down)


class Mixture(nn.Module):
    """Each token goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(8, 4), nn.Linear(4, 2, bias=False)
        self.experts = Experts()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        logits = self.router(x)
        scores, chosen = logits.topk(1, dim=-1)
        share = torch.zeros_like(logits).scatter(-1, chosen, scores.softmax(dim=-1))
        return x + self.experts(x, share)


FLOATS = {"x": torch.zeros(3, 13, 4)}


def test_one_all_reduce(tmp_path: Path) -> None:
    """An MLP of 6 tokens over two ranks.

    up: [6, 4] x [4, 4], 192 FLOP, 3.84 s (256 bytes are 2.56 s). relu: 96 bytes read and 96 written, 1.92 s.
    down as up. The sum of 96 bytes over 2 ranks in a ring: 1 s + 2 * 1/2 * 96 / 10 = 10.6 s.
    """
    plan = "mesh m[tp = 2] on local\nplace ** on m\nplace layers.* { split ffn over tp }\n"
    outcome = outcome_of(tmp_path, Layers(Mlp()), plan, "forward", 2, 3, FLOATS)
    steps = [("matmul", 3.84), ("memory", 1.92), ("matmul", 3.84), ("all_reduce", 10.6)]
    for actor in (0, 1):
        found = done(outcome, actor)
        assert [kind for kind, _, _ in found] == [kind for kind, _ in steps]
        assert [end - begin for _, begin, end in found] == pytest.approx([s for _, s in steps])
    assert outcome.seconds == pytest.approx(20.2)
    assert [tally.sent for tally in outcome.tallies] == [96, 96]


def test_one_pipeline(tmp_path: Path) -> None:
    """Two layers on two stages, two micro-batches of one sequence of 3 tokens.

    A layer: [3, 4] x [4, 4], 96 FLOP, 1.92 s. A message of 48 bytes: 3 s on the link, there 0.5 s later.
    The first one leaves at 1.92 and is there at 5.42; the second is ready at 3.84, but the link is busy
    until 4.92: there at 8.42. The second stage ends at 8.42 + 1.92.
    """
    model = Layers(*(nn.Linear(4, 4, bias=False) for _ in range(2)))
    plan = (
        "mesh m[pp = 2] on local\nplace ** on m\nplace layers.* { split layers over pp }\n"
        "pipeline over m.pp { microbatches = 2 }\n"
    )
    outcome = outcome_of(tmp_path, model, plan, "forward", 2, 3, FLOATS)
    assert done(outcome, 0) == [("matmul", 0, 1.92), ("matmul", 1.92, 3.84)]
    matmuls = [row for row in done(outcome, 1) if row[0] == "matmul"]
    assert matmuls == [("matmul", 5.42, 7.34), ("matmul", 8.42, 10.34)]
    assert outcome.seconds == pytest.approx(10.34)
    assert [tally.sent for tally in outcome.tallies] == [96, 0]


def test_one_pool_step(tmp_path: Path) -> None:
    """Decode of one sequence with 7 cached tokens: a base of one rank, a pool of two in blocks of 4 keys.

    Base: embedding 72 bytes, 0.72 s; q, k and v [1, 8] x [8, 8] of 320 bytes, 3.2 s each: at 3.92, 7.12 and
    10.32. q goes to both (64 bytes, the link until 7.92, there at 8.42); the second owns position 7 and also
    gets k (32 bytes, from 7.92 to 9.92, there at 10.42) and v (10.32 to 12.32, there at 12.82).
    Pool: attention over 4 keys reads 32 + 128 + 128 bytes and writes 32 + 8: 3.28 s. The first has ended at
    11.7; the second appends (64 read, 64 written: 1.28 s) from 12.82 on and has ended at 17.38. They swap
    heads: 0.5 s + half of 40 bytes at 10 bytes/s = 2.5 s. The merge reads and writes 40 bytes, reads 2 x 20
    and writes 20: 1.4 s, until 21.28. Each sends its head, 16 bytes, 1 s; both come in by the base's port one
    after the other: 21.28 + 2. Base: o 3.2, head 3.2, argmax 40 bytes 0.4: 30.08. The token goes to two
    ranks, 8 bytes each: 0.5 + 2 * 0.5. A step takes 31.58 s.
    """
    plan = """
model any { seq_len in 1..64 }
mesh m[tp = 1] on local[0:1]
mesh fa[sp = 2] on local[1:3]
place ** on m
place op attention on fa {
  split kv_seq over sp (block = ceil(seq_len / sp))
  combine out by logsumexp over sp
}
"""
    outcome = outcome_of(tmp_path, Causal(), plan, "decode", 1, 8)
    ends = {actor: [end for _, _, end in done(outcome, actor, 31)] for actor in range(3)}
    assert ends[0] == [0.72, 3.92, 7.12, 10.32, 23.28, 26.48, 29.68, 30.08]
    assert ends[1] == [8.42, 11.7, 19.88, 21.28]
    assert ends[2] == [8.42, 10.42, 12.82, 14.1, 17.38, 19.88, 21.28]
    assert outcome.seconds == pytest.approx(31.58)
    sent = [tally.sent / outcome.steps for tally in outcome.tallies]
    assert sent == [64 + 32 + 32, 20 + 16, 20 + 16]


def test_one_dispatch(tmp_path: Path) -> None:
    """Four tokens of one rank to one of two experts each, on two other ranks; a router that is even.

    Embedding 160 bytes, 1.6 s; router [4, 4] x [4, 2] 64 FLOP, 1.28 s; topk and softmax 80 + 32 bytes,
    1.12 s; route 56 bytes, 0.56 s: 4.56. Two of the four tokens go to each rank: counts of 8 bytes (16 in
    all: 1 s on the link), rows of 32 bytes (4 s), choices of 16 (2 s) and weights of 8 (1 s), there at 6.06,
    10.06, 12.06 and 13.06. An expert is in use with probability 1 - 1/2^4, so 120 of its 128 bytes are read.
    Experts: zeros 32 and a gather of 32 + 32 bytes, 0.96 s; up [2, 4] x [4, 8] 128 FLOP, 2.56 s; relu 64 + 64
    bytes, 1.28 s; down 2.56 s; weights 32 + 32 and sum 64 + 32 bytes, 1.6 s: 22.02. Results of 32 bytes take
    2 s each through the port of the first rank: 26.02. The sum with the tokens: 192 bytes, 1.92 s.
    """
    plan = """
mesh m[tp = 1] on local[0:1]
mesh moe[ep = 2] on local[1:3]
place ** on m
place experts on moe { split experts over ep; route = top(1) }
"""
    outcome = outcome_of(tmp_path, Mixture(), plan, "forward", 1, 4)
    assert [end for _, _, end in done(outcome, 0)] == [1.6, 2.88, 4.0, 4.56, 26.02, 27.94]
    for actor in (1, 2):
        ends = [end for _, _, end in done(outcome, actor)]
        assert ends == [6.06, 10.06, 12.06, 13.06, 14.02, 16.58, 17.86, 20.42, 22.02]
    assert outcome.seconds == pytest.approx(27.94)
    assert [tally.sent for tally in outcome.tallies] == [2 * (8 + 32 + 16 + 8), 32, 32]


STAGES = """mesh base[pp = 2] on local
place ** on base
place layers.* { split layers over pp }
place embed_tokens on base[pp = 0]
place norm, lm_head on base[pp = -1]
"""


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_it_is_all_one_whether_a_message_waits_with_its_sender_or_on_its_way(
    tmp_path: Path, phase: str
) -> None:
    """One micro-batch goes from stage to stage, and its token back: half a second each time, either way."""
    model, found = Decoder(Width(2, 16, 2, 16, 260, 8)), []
    for overhead in (0.0, 0.2, 0.5):
        raw = slow_cluster()
        raw["links"]["node"] |= {
            "message_latency": const(0.5 - overhead), "message_overhead": const(overhead)
        }  # fmt: skip
        outcome = outcome_of(tmp_path, model, STAGES, phase, 1, 8, cluster=raw)
        found.append(outcome.seconds)
        first = outcome.tallies[0]
        sends = [s for s in outcome.timeline.spans if s.actor == 0 and s.kind == "exchange"]
        assert first.exposed >= overhead * (0.99 if sends else 0)
    assert found == pytest.approx([found[0]] * 3)
