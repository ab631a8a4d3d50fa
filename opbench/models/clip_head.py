"""Attention pooling, the head of InternImage-H."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CLIP_HEADS", "AttentionPooling"]

CLIP_HEADS = 16


class AttentionPooling(nn.Module):
    """The mean token attends to all tokens; its output is the pooled vector.

    Args:
        dim: channels of the tokens.
        num_heads: a divisor of `dim`.
        out_dim: channels of the result.

    Source: Wang et al., InternImage, CVPR 2023; the authors call it AttentionPoolingBlock.
    """

    def __init__(self, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        # Each in a container of its own, which is in the authors' parameter names: norm1_q.0.weight.
        self.norm1_q = nn.Sequential(nn.LayerNorm(dim, eps=1e-6))
        self.norm1_k = nn.Sequential(nn.LayerNorm(dim, eps=1e-6))
        self.norm1_v = nn.Sequential(nn.LayerNorm(dim, eps=1e-6))
        self.cross_dcn = CrossAttention(dim, num_heads, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, dim) to (N, out_dim)."""
        query = self.norm1_q(x.mean(1, keepdim=True))
        pooled: torch.Tensor = self.cross_dcn(query, self.norm1_k(x), self.norm1_v(x))
        return pooled.squeeze(1)


class CrossAttention(nn.Module):
    """Attention with biases that are parameters beside the Linears, as the authors name them."""

    def __init__(self, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in ("q", "k", "v"):
            self.add_module(name, nn.Linear(dim, dim, bias=False))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(dim)))
        self.proj = nn.Linear(dim, out_dim)

    def _heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, C) to (N, heads, tokens, head_dim), by the Linear of this name."""
        # Not get_parameter: torch.func.functional_call puts plain tensors in the place of parameters.
        projected: torch.Tensor = getattr(self, name)(x) + getattr(self, f"{name}_bias")
        heads: torch.Tensor = projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = F.scaled_dot_product_attention(self._heads("q", query), self._heads("k", key), self._heads("v", value))
        projected: torch.Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected
