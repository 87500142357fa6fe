"""Two plain causal language models, written as anyone would: no plancc in sight.

plancc compile examples/tp8_pp2.plan --model examples/models.py:dense --model-arg layers=2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotary_tables(head_dim: int, max_len: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [max_len, head_dim]."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [batch, heads, seq, head_dim] by the angles of its positions."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, hidden // heads
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q = self.q_proj(x).view(batch, seq, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, seq, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, seq, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.kv_heads != self.heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(out.transpose(1, 2).reshape(batch, seq, -1))


class MLP(nn.Module):
    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, hidden: int, ffn: int, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * ffn, hidden) / hidden**0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, ffn) / ffn**0.5)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """Mix every expert's answer to x [batch, seq, hidden] by `share` [batch, seq, experts]."""
        gate, up = torch.einsum("bth,eih->btei", x, self.gate_up_proj).chunk(2, dim=-1)
        inner = F.silu(gate) * up * share.unsqueeze(-1)
        return torch.einsum("btei,ehi->bth", inner, self.down_proj)


class MoE(nn.Module):
    def __init__(self, hidden: int, ffn: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.router = nn.Linear(hidden, experts, bias=False)
        self.experts = Experts(hidden, ffn, experts)
        self.top_k = top_k

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        scores, chosen = logits.topk(self.top_k, dim=-1)
        share = torch.zeros_like(logits).scatter(-1, chosen, scores.softmax(dim=-1))
        return self.experts(x, share)


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(hidden)
        self.self_attn = Attention(hidden, heads, kv_heads)
        self.post_norm = RMSNorm(hidden)


class DenseBlock(Block):
    def __init__(self, hidden: int, heads: int, kv_heads: int, ffn: int) -> None:
        super().__init__(hidden, heads, kv_heads)
        self.mlp = MLP(hidden, ffn)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        return x + self.mlp(self.post_norm(x))


class MoEBlock(Block):
    def __init__(self, hidden: int, heads: int, kv_heads: int, moe: MoE) -> None:
        super().__init__(hidden, heads, kv_heads)
        self.moe = moe

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        return x + self.moe(self.post_norm(x))


class CausalLM(nn.Module):
    def __init__(self, blocks: list[nn.Module], hidden: int, heads: int, vocab: int, max_len: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, vocab, bias=False)
        cos, sin = rotary_tables(hidden // heads, max_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits [batch, seq, vocab] of token ids [batch, seq]."""
        seq = input_ids.shape[1]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, self.cos[:seq], self.sin[:seq])
        return self.lm_head(self.norm(x))


def dense(
    layers: int = 4,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = None,
    ffn: int = 16384,
    vocab: int = 32000,
    max_len: int = 4096,
) -> nn.Module:
    """Build a dense causal language model; `kv_heads` defaults to `heads`."""
    blocks = [DenseBlock(hidden, heads, kv_heads or heads, ffn) for _ in range(layers)]
    return CausalLM(blocks, hidden, heads, vocab, max_len)


def moe(
    layers: int = 4,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = None,
    experts: int = 16,
    top_k: int = 2,
    ffn: int = 14336,
    vocab: int = 32000,
    max_len: int = 4096,
) -> nn.Module:
    """Build a mixture-of-experts causal language model with `top_k` of `experts` per token."""
    blocks = [
        MoEBlock(hidden, heads, kv_heads or heads, MoE(hidden, ffn, experts, top_k))
        for _ in range(layers)
    ]
    return CausalLM(blocks, hidden, heads, vocab, max_len)
