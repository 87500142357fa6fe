"""Small causal models whose sizes divide badly: grouped heads, fused projections."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from lowered import dense, moe
from model_zoo import ZOO, randomise
from torch import Tensor, nn

from plancc.ir.graph import Graph
from plancc.passes.capture import capture


class FusedAttention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        parts = self.c_attn(x).split(width, dim=-1)
        q, k, v = (p.view(batch, seq, self.heads, self.size).transpose(1, 2) for p in parts)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.transpose(1, 2).reshape(batch, seq, width))


class Feed(nn.Module):
    def __init__(self, hidden: int, ffn: int, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, (2 if gated else 1) * ffn)
        self.down = nn.Linear(ffn, hidden)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.down(F.silu(gate) * inner)
        return self.down(F.gelu(inner))


class FusedBlock(nn.Module):
    def __init__(self, hidden: int, heads: int, ffn: int, parallel: bool, gated: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden)
        self.self_attn = FusedAttention(hidden, heads)
        self.ln_2 = nn.LayerNorm(hidden)
        self.mlp = Feed(hidden, ffn, gated)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            return x + self.self_attn(self.ln_1(x)) + self.mlp(self.ln_2(x))
        x = x + self.self_attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Fused(nn.Module):
    """Learned positions, fused qkv, biases everywhere; a tied head on request."""

    def __init__(
        self, layers: int, hidden: int, heads: int, ffn: int, vocab: int, *,
        parallel: bool = False, gated: bool = False, tied: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, hidden)
        self.positions = nn.Embedding(64, hidden)
        blocks = [FusedBlock(hidden, heads, ffn, parallel, gated) for _ in range(layers)]
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits [batch, seq, vocab]."""
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed_tokens(input_ids) + self.positions(at)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


MODELS = {
    "dense": lambda: dense(layers=2, hidden=24, heads=6, ffn=20, vocab=50),
    "dense3": lambda: dense(layers=3, hidden=20, heads=5, ffn=18, vocab=47),
    "grouped": lambda: dense(layers=2, hidden=32, heads=8, kv_heads=2, ffn=20, vocab=50),
    "grouped3": lambda: dense(layers=2, hidden=24, heads=12, kv_heads=4, ffn=26, vocab=50),
    "one_kv": lambda: dense(layers=2, hidden=24, heads=6, kv_heads=1, ffn=20, vocab=51),
    "moe": lambda: moe(layers=2, hidden=24, heads=6, experts=5, ffn=14, vocab=50),
    "moe_grouped": lambda: moe(
        layers=2, hidden=24, heads=6, kv_heads=3, experts=6, ffn=10, vocab=50
    ),
    "fused": lambda: randomise(Fused(2, 24, 6, 20, 50)),
    "fused_tied": lambda: randomise(Fused(2, 20, 5, 22, 49, tied=True)),
    "parallel": lambda: randomise(Fused(2, 24, 4, 20, 50, parallel=True, gated=True)),
    "gated": lambda: randomise(Fused(3, 16, 4, 10, 50, gated=True)),
    "mixtral": ZOO["mixtral"],
    "phi": ZOO["phi"],
}


@cache
def graph_of(name: str) -> Graph:
    """The captured graph of one of MODELS."""
    return capture(MODELS[name]())


PATTERNS = {
    "**": ("batch", "seq", "hidden", "vocab"),
    "layers.*": ("batch", "seq", "hidden", "heads", "ffn"),
    "layers.1": ("batch", "seq", "hidden", "heads", "ffn"),
    "layers.*.self_attn": (
        "heads",
        "kv_heads",
        "batch",
        "seq",
        "hidden",
        "head_dim",
        "kv_seq",
        "q_seq",
    ),
    "layers.0.self_attn": ("heads", "kv_heads", "seq", "batch"),
    "embed_tokens": ("vocab", "hidden", "batch", "seq"),
    "lm_head": ("vocab", "hidden", "batch", "seq"),
    "norm": ("batch", "seq", "hidden"),
    "op attention": ("heads", "batch", "seq", "q_seq"),
    "op linear in layers.*": ("batch", "seq", "hidden"),
}
FEEDS = {"layers.*.mlp": ("ffn", "hidden", "batch", "seq"), "layers.1.mlp": ("ffn", "batch")}
EXPERTS = {
    "layers.*.moe": ("experts", "ffn", "hidden", "batch", "seq"),
    "layers.*.moe.experts": ("experts", "ffn", "hidden", "batch"),
    "layers.*.moe.router": ("experts", "hidden", "seq"),
}
MIXTURE = {
    "layers.*.mlp": ("ffn", "batch", "seq", "experts", "hidden"),
    "layers.*.mlp.experts": ("experts", "ffn", "hidden", "batch"),
    "op experts": ("experts", "ffn", "batch"),
}
PROJECTIONS = dict.fromkeys(
    ("fused", "fused_tied", "parallel", "gated"), "layers.*.self_attn.c_proj"
) | {"phi": "layers.*.self_attn.dense"}  # fmt: skip


def patterns(name: str) -> dict[str, tuple[str, ...]]:
    """Targets in a model, with the dims that may be split there."""
    found = PATTERNS | (
        EXPERTS if name.startswith("moe") else MIXTURE if name == "mixtral" else FEEDS
    )
    if name == "phi":
        found = {k.replace("norm", "final_layernorm"): dims for k, dims in found.items()}
    proj = PROJECTIONS.get(name, "layers.*.self_attn.o_proj")
    stored = dict.fromkeys(("embed_tokens.weight", "lm_head.weight"), ("hidden", "vocab"))
    return (
        found | stored | {f"{proj}.weight": ("hidden", "heads"), proj: ("seq", "heads", "hidden")}
    )
