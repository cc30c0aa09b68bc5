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
import torch_pointbert
from torch import nn

SIZE = torch_pointbert.Size(32, 2, 2, 48, 16, 24, 0.35, 16, 40)  # the fixture's


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
        model = torch_pointbert.Projected(SIZE)
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
    model = torch_pointbert.Projected(SIZE)
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
