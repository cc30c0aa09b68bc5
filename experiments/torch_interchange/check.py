"""Proves with PyTorch itself that converted files load into a PointBERT of the original's form.

NEEDS TORCH, which nothing else of this repository does: run it with the Python of a scratch environment
that has torch (CPU is enough), numpy and safetensors, not with the package's. See README.md beside it.

    python check.py check GOLDEN.npz FIXTURE.pt FILE...    loads every FILE strictly and compares
    python check.py write GOLDEN.npz DIR                   writes files by torch.save, for `openshape info`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

DIM, DEPTH, HEADS, MLP, SA, PATCHES, RADIUS, NSAMPLE, WIDTH = 32, 2, 2, 48, 16, 24, 0.35, 16, 40


class PreNorm(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(DIM), fn

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv = nn.Linear(DIM, 3 * HEADS * 64, bias=False)
        self.to_out = nn.Sequential(nn.Linear(HEADS * 64, DIM))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (HEADS, 64)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, MLP), nn.GELU(), nn.Dropout(0.0), nn.Linear(MLP, DIM))

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        pairs = (nn.ModuleList([PreNorm(Attention()), PreNorm(FeedForward())]) for _ in range(DEPTH))
        self.layers = nn.ModuleList(pairs)

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class Grouping(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [(9, 64), (64, 64), (64, SA)]
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in widths)
        self.mlp_bns = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)

    def forward(self, xyz, rgb):
        centres = farthest(xyz)
        distance = (xyz[:, None] - centres[:, :, None]).square().sum(-1)
        inside = distance <= RADIUS**2
        order = torch.where(inside, torch.arange(xyz.shape[1]), xyz.shape[1]).sort(-1).values[..., :NSAMPLE]
        index = torch.where(order == xyz.shape[1], order[..., :1], order)
        near = torch.stack([torch.cat([p, c], -1)[i] for p, c, i in zip(xyz, rgb, index, strict=True)])
        x = torch.cat([near[..., :3] - centres[:, :, None], near], -1).permute(0, 3, 2, 1)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = torch.relu(norm(conv(x)))
        return centres, x.max(2).values


def farthest(xyz):
    rows = torch.arange(len(xyz))
    chosen = [torch.zeros(len(xyz), dtype=torch.long)]
    distance = torch.full(xyz.shape[:2], torch.inf)
    while len(chosen) < PATCHES:
        distance = distance.minimum((xyz - xyz[rows, chosen[-1]][:, None]).square().sum(-1))
        chosen.append(distance.argmax(-1))
    return torch.stack([xyz[rows, c] for c in chosen], 1)


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.sa = Grouping()
        self.lift = nn.Sequential(nn.Conv1d(SA + 3, DIM, 1), Swap(), nn.LayerNorm([DIM]))
        self.cls_token = nn.Parameter(torch.randn(DIM))
        self.transformer = Transformer()

    def forward(self, xyz, rgb):
        centres, patch = self.sa(xyz, rgb)
        tokens = self.lift(torch.cat([centres.transpose(1, 2), patch], 1))
        cls = self.cls_token.expand(len(tokens), 1, DIM)
        return self.transformer(torch.cat([cls, tokens], 1))[:, 0]


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.ppat, self.proj = Encoder(), nn.Linear(DIM, WIDTH)

    def forward(self, xyz, rgb):
        return self.proj(self.ppat(xyz, rgb))


def read(path: str, mmap: bool = False):
    """(state dict, the checkpoint around it) as torch and safetensors read them."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path), {}
    whole = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    return whole.get("state_dict", whole), whole


def check(golden: str, fixture: str, files: list[str]) -> None:
    values = np.load(golden)
    inputs = [torch.from_numpy(values[k]) for k in ("xyz", "rgb")]
    original, around = read(fixture)
    for path in files:
        state, whole = read(path)
        model = Projected()
        wrapped = nn.ModuleDict({"module": model})
        prefixed = next(iter(state)).startswith("module.")
        print(path, (wrapped if prefixed else model).load_state_dict(state, strict=True))
        model.eval()
        with torch.no_grad():
            difference = (model(*inputs) - torch.from_numpy(values["out_eval"])).abs().max().item()
        print(f"  largest difference of its outputs from the original's: {difference:.1e}")
        assert difference < 1e-4
        plain = {k.removeprefix("module."): v for k, v in original.items()}
        named = {k.removeprefix("module."): v for k, v in state.items()}
        assert named.keys() == plain.keys()
        for name, x in plain.items():
            assert named[name].dtype == x.dtype and torch.equal(named[name], x), name
        print(f"  {len(plain)} tensors bit-identical to the fixture's, with type and shape")
        if whole:
            scale = "module.logit_scale" if prefixed else "logit_scale"
            assert torch.equal(whole["logit_scale"][scale], around["logit_scale"]["module.logit_scale"])
            mapped, _ = read(path, mmap=True)
            assert all(torch.equal(mapped[k], v) for k, v in state.items())
            aligned = all(v.data_ptr() % 64 == 0 for v in mapped.values())
            print(f"  logit scale identical; memory-mapped load identical, 64-byte aligned: {aligned}")
            assert aligned


def write(golden: str, folder: str) -> None:
    """Files as different writers make them, for the package to read."""
    values = np.load(golden)
    prefix = "weights/"
    state = {k[len(prefix) :]: torch.from_numpy(v) for k, v in values.items() if k.startswith(prefix)}
    model = Projected()
    model.load_state_dict(state, strict=True)
    optimizer = torch.optim.AdamW(model.parameters())
    model(*(torch.from_numpy(values[k]) for k in ("xyz", "rgb"))).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    whole = {
        "state_dict": nn.ModuleDict({"module": model}).state_dict(),
        "logit_scale": {"module.logit_scale": torch.tensor(2.659)},
        "text_proj": None, "image_proj": None, "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(), "epoch": 3, "step": 1234,
        "best_lvis_acc": np.float64(0.468), "best_modelnet40_overall_acc": torch.tensor(0.84),
    }  # fmt: skip
    torch.save(whole, out / "trained.pt")
    torch.save(model.state_dict(), out / "bare.pt")
    torch.save(model.half().state_dict(), out / "half.pt")
    torch.save(model.bfloat16().state_dict(), out / "bfloat16.pt")
    torch.save(model.float().state_dict(), out / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({f"pc_encoder.{k}": v for k, v in model.state_dict().items()}, out / "demo.pt")
    torch.save(model, out / "whole_module.pt")
    print("\n".join(map(str, sorted(out.iterdir()))))


if __name__ == "__main__":
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}")
    if sys.argv[1] == "check":
        check(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        write(sys.argv[2], sys.argv[3])
