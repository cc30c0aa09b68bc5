"""The PyTorch model of `run.py --peer`, in a process of its own, as those who use it have it.

    python experiments/encoder_speed/peer.py MODULE:FUNCTION SCALING POINTS.npz

NEEDS TORCH. MODULE:FUNCTION of the scaling makes a torch.nn.Module that maps xyz (B, N, 3) and features
(B, N, 6) to (B, D) embeddings; POINTS.npz has xyz and rgb. For every line that it reads, "forward" or "step",
it does one and prints the seconds that took.
"""

from __future__ import annotations

import importlib
import sys
import time

import numpy as np
import torch


def main(spec: str, scaling: str, file: str) -> None:
    """Answers until its input ends."""
    module, _, function = spec.partition(":")
    model = getattr(importlib.import_module(module), function)(int(scaling))
    with np.load(file) as arrays:
        xyz, rgb = (torch.from_numpy(arrays[name]) for name in ("xyz", "rgb"))
    features = torch.cat([xyz, rgb], -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    with torch.no_grad():
        target = torch.nn.functional.normalize(torch.randn_like(model(xyz, features)), dim=-1)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(xyz, features)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        emb = torch.nn.functional.normalize(model(xyz, features), dim=-1)
        logits, labels = 14.28 * emb @ target.T, torch.arange(len(emb))
        cross = torch.nn.functional.cross_entropy
        (0.5 * (cross(logits, labels) + cross(logits.T, labels))).backward()
        optimizer.step()

    calls = {"forward": forward, "step": step}
    for line in sys.stdin:
        start = time.perf_counter()
        calls[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
