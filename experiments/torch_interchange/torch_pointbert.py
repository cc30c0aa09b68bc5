"""A PointBERT in plain PyTorch with the original's names, layouts and operations, of any size.

NEEDS TORCH, which nothing else of this repository does. `make(scaling)` is a peer for
experiments/encoder_speed/run.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Size(NamedTuple):
    """As the table in openshape_jax/models/pointbert.py names them."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    sa_dim: int
    patches: int
    radius: float
    nsample: int
    embed_dim: int = 1280


SIZES = {
    1: Size(256, 6, 4, 1024, 96, 64, 0.40, 256),
    2: Size(512, 6, 8, 1024, 128, 64, 0.40, 256),
    3: Size(512, 12, 8, 1024, 128, 128, 0.35, 128),
    4: Size(512, 12, 8, 1536, 256, 384, 0.20, 64),
    5: Size(768, 12, 12, 2304, 256, 512, 0.20, 64),
    6: Size(768, 24, 12, 3072, 256, 512, 0.20, 64),
}


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * 64, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * 64, dim))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, 64)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Dropout(0.0), nn.Linear(inner, dim))

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(size.dim, Attention(size.dim, size.heads)),
                    PreNorm(size.dim, FeedForward(size.dim, size.mlp_dim)),
                ]
            )
            for _ in range(size.depth)
        )

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class Grouping(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        widths = [(9, 64), (64, 64), (64, size.sa_dim)]
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in widths)
        self.mlp_bns = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)

    def forward(self, xyz, rgb):
        centres = farthest(xyz, self.size.patches)
        index = ball(xyz, centres, self.size.radius, self.size.nsample)
        near = torch.stack([torch.cat([p, c], -1)[i] for p, c, i in zip(xyz, rgb, index, strict=True)])
        x = torch.cat([near[..., :3] - centres[:, :, None], near], -1).permute(0, 3, 2, 1)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = torch.relu(norm(conv(x)))
        return centres, x.max(2).values


@torch.no_grad()
def farthest(xyz, patches):
    """(B, patches, 3) centres by farthest point sampling from the first point on."""
    rows = torch.arange(len(xyz))
    chosen = [torch.zeros(len(xyz), dtype=torch.long)]
    distance = torch.full(xyz.shape[:2], torch.inf)
    while len(chosen) < patches:
        distance = distance.minimum((xyz - xyz[rows, chosen[-1]][:, None]).square().sum(-1))
        chosen.append(distance.argmax(-1))
    return torch.stack([xyz[rows, c] for c in chosen], 1)


@torch.no_grad()
def ball(xyz, centres, radius, nsample):
    """(B, S, nsample) first points within the radius: all indices are sorted, as the original does."""
    count = xyz.shape[1]
    inside = torch.cdist(centres, xyz, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    order = torch.where(inside, torch.arange(count), count).sort(-1).values[..., :nsample]
    return torch.where(order == count, order[..., :1], order)


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Encoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.sa = Grouping(size)
        self.lift = nn.Sequential(nn.Conv1d(size.sa_dim + 3, size.dim, 1), Swap(), nn.LayerNorm([size.dim]))
        self.cls_token = nn.Parameter(torch.randn(size.dim))
        self.transformer = Transformer(size)

    def forward(self, xyz, rgb):
        centres, patch = self.sa(xyz, rgb)
        tokens = self.lift(torch.cat([centres.transpose(1, 2), patch], 1))
        cls = self.cls_token.expand(len(tokens), 1, -1)
        return self.transformer(torch.cat([cls, tokens], 1))[:, 0]


class Projected(nn.Module):
    """xyz (B, N, 3), rgb (B, N, 3) to embeddings (B, D)."""

    def __init__(self, size):
        super().__init__()
        self.ppat, self.proj = Encoder(size), nn.Linear(size.dim, size.embed_dim)

    def forward(self, xyz, rgb):
        return self.proj(self.ppat(xyz, rgb))


class Peer(Projected):
    """The same from xyz and features (B, N, 6), as experiments/encoder_speed calls it."""

    def forward(self, xyz, features):
        return super().forward(xyz, features[..., 3:])


def make(scaling):
    """The model of the paper's size `scaling`, 1 to 6."""
    return Peer(SIZES[scaling])
