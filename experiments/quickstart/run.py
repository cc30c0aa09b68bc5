"""Trains the quickstart with several seeds and prints the mean accuracies.

    python experiments/quickstart/run.py [--seeds 0,1,2] [--modelnet10 FILE.npz] [--config.PATH=VALUE ...]

Results go to runs/quickstart_study/NAME/seed<k>. With --modelnet10 (xyz, label, classes; y-up; academic use
only, so it is not shipped) the cross-data-set accuracy is measured too. Every further --config override is
passed on, which is how the ablations of README.md were made (--name keeps them apart).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]


def one_run(workdir: Path, seed: int, overrides: list[str], modelnet10: str) -> dict[str, float]:
    """The accuracies and the training time of one seed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "openshape_jax.main", "--config=configs/quickstart.py"]
    flags = [f"--workdir={workdir}", f"--config.seed={seed}", "--config.eval.report=false", *overrides]
    subprocess.run([*command, *flags], cwd=ROOT, check=True)
    result = {"minutes": (time.perf_counter() - started) / 60}
    for path in sorted((workdir / "eval").glob("*.json")):
        values = json.loads(path.read_text())
        result |= {f"{path.stem} {k}": values[k] for k in ("top1", "top5", "mean_class")}
    if modelnet10:
        output = workdir / "modelnet10.json"
        arguments = ["eval", "--checkpoint", str(workdir), "--npz", modelnet10, "--up", "y"]
        call = [sys.executable, "-m", "openshape_jax.cli.main", *arguments, f"--output={output}"]
        subprocess.run(call, cwd=ROOT, check=True)
        values = json.loads(output.read_text())
        result |= {f"modelnet10 {k}": values[k] for k in ("top1", "mean_class")}
    return result


def main() -> None:
    """Runs all seeds and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--name", default="default")
    parser.add_argument("--modelnet10", default="", metavar="FILE.npz")
    args, overrides = parser.parse_known_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    base = ROOT / "runs" / "quickstart_study" / args.name
    results = [one_run(base / f"seed{s}", s, overrides, args.modelnet10) for s in seeds]
    print(f"\n{args.name} {' '.join(overrides)}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}")
    for key in results[0]:
        values = [r[key] for r in results]
        print(f"{key:<36}{np.mean(values):8.3f}   " + "  ".join(f"{v:.3f}" for v in values))


if __name__ == "__main__":
    main()
