"""GPT as Megatron-LM and MPT have it: layer norms, biases, one projection for q, k and v, a GELU MLP.

Dropout is not in the programs that plancc makes, and so not in the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Core(nn.Module):
    """Attention of q, k and v, each [batch, heads, seq, head_dim]; `fused` is one kernel.

    Without it, products, mask and softmax are kernels of their own, written as einsums, so that
    capture leaves them as they are.
    """

    def __init__(self, head_dim: int, fused: bool) -> None:
        super().__init__()
        self.fused, self.scale = fused, head_dim**-0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        seq = q.shape[2]
        hidden = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(hidden, -1e4)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), v)


class Attention(nn.Module):
    """Self attention; the rows of `qkv` are [heads, (q, k, v), head_dim]."""

    def __init__(self, hidden: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, hidden // heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.core = Core(self.head_dim, fused)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = self.qkv(x).view(batch, seq, self.heads, 3, self.head_dim).unbind(3)
        found = self.core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(found.transpose(1, 2).reshape(batch, seq, -1))


class MLP(nn.Module):
    """hidden -> ffn -> hidden with GELU."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, ffn)
        self.down = nn.Linear(ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One layer."""

    def __init__(self, hidden: int, heads: int, ffn: int, fused: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads, fused)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden, ffn)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """Token ids [batch, seq] to logits [batch, seq, vocab]; positions are learned."""

    def __init__(
        self, layers: int, hidden: int, heads: int, ffn: int, vocab: int, seq_len: int, fused: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, hidden)
        self.positions = nn.Parameter(torch.zeros(seq_len, hidden))
        self.layers = nn.ModuleList(Block(hidden, heads, ffn, fused) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def gpt(
    layers: int, hidden: int, heads: int, ffn: int, vocab: int, seq_len: int, fused: bool = False
) -> nn.Module:
    """Build one; the head has the weights of the token embedding."""
    model = GPT(layers, hidden, heads, ffn, vocab, seq_len, fused)
    model.head.weight = model.tokens.weight
    return model
