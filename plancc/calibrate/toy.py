"""The decoder that is run to measure calls as programs make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Width:
    """The sizes of a decoder. Few heads make its products those of a rank under tensor parallelism.

    With `experts` each layer has that many MLPs, of which a token visits two.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    head_dim: int = 64
    experts: int = 0
    length: int = 1024


class _Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [batch, heads, seq, head_dim] turned by the angles of its positions."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class _Attention(nn.Module):
    """Causal attention with as many heads of keys and values as of queries."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        hidden, inner, self.heads = width.hidden, width.heads * width.head_dim, width.heads
        self.q, self.k, self.v = (nn.Linear(hidden, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q = self.q(x).view(batch, seq, self.heads, -1).transpose(1, 2)
        k = self.k(x).view(batch, seq, self.heads, -1).transpose(1, 2)
        v = self.v(x).view(batch, seq, self.heads, -1).transpose(1, 2)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(found.transpose(1, 2).reshape(batch, seq, -1))
        return out


class _MLP(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width.hidden, width.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(width.ffn, width.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class _Experts(nn.Module):
    """Gated MLPs, each token's answers mixed by `share` [batch, seq, experts]."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        shape = (width.experts, width.hidden, width.ffn)
        scale = width.hidden**-0.5
        self.gate_up_proj = nn.Parameter(torch.randn(shape[0], 2 * shape[2], shape[1]) * scale)
        self.down_proj = nn.Parameter(torch.randn(*shape) * scale)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        gate, up = torch.einsum("bth,eih->btei", x, self.gate_up_proj).chunk(2, dim=-1)
        inner = F.silu(gate) * up * share.unsqueeze(-1)
        return torch.einsum("btei,ehi->bth", inner, self.down_proj)


class _Mixture(nn.Module):
    """A router in front of experts."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.router = nn.Linear(width.hidden, width.experts, bias=False)
        self.experts = _Experts(width)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        scores, chosen = logits.topk(2, dim=-1)
        share = torch.zeros_like(logits).scatter(-1, chosen, scores.softmax(dim=-1))
        mixed: Tensor = self.experts(x, share)
        return mixed


class Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.first, self.second = _Norm(width.hidden), _Norm(width.hidden)
        self.attn = _Attention(width)
        self.mlp = _Mixture(width) if width.experts else _MLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.first(x), cos, sin)
        x = x + self.mlp(self.second(x))
        return x


class Decoder(nn.Module):
    """A causal language model: ids [B, T] to logits [B, T, vocabulary]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(width.vocab, width.hidden)
        self.layers = nn.ModuleList(Layer(width) for _ in range(width.layers))
        self.norm = _Norm(width.hidden)
        self.lm_head = nn.Linear(width.hidden, width.vocab, bias=False)
        half = width.head_dim // 2
        angles = torch.outer(torch.arange(width.length), 10000.0 ** (-torch.arange(half) / half))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of token ids."""
        seq = input_ids.shape[1]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, self.cos[:seq], self.sin[:seq])
        logits: Tensor = self.lm_head(self.norm(x))
        return logits
