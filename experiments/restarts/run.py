"""Kills a training run at random moments until it ends, and compares its losses with those of an unbroken
one.

    python experiments/restarts/run.py --kills 20

Half of the kills (SIGKILL) come at a random moment, half in the middle of the writing of a checkpoint; every
fifth restart is stopped by SIGTERM instead, as a scheduler preempts. The run is configs/quickstart.py:smoke.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openshape_jax import metrics

ROOT = Path(__file__).resolve().parents[2]
TEMPORARY = "*.orbax-checkpoint-tmp*"  # how orbax names a checkpoint that is being written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        start(args.steps, whole).wait()
        expected = losses(whole)
        assert len(expected) == args.steps, f"the unbroken run has {len(expected)} of {args.steps} losses"
        rows = [kill(args.steps, broken, rng, number) for number in range(args.kills)]
        print("| kill | signal | when | exit code | last step logged | checkpoint it left | steps lost |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(map(str, row)) + " |")
        code = start(args.steps, broken).wait()
        found = losses(broken)
        equal = sum(found.get(step) == loss for step, loss in expected.items())
        print(f"\nexit code {code}; {equal} of {args.steps} losses are bit-identical to the unbroken run's")
        sys.exit(equal != args.steps or code != 0)


def start(steps: int, workdir: Path) -> subprocess.Popen:
    overrides = {
        "steps": steps, "log_every": 1, "checkpoint_every": 5, "batch_size": 8, "eval.report": "false",
        "eval.datasets": "", "optim.warmup_steps": 10,
    }  # fmt: skip
    command = [sys.executable, "-m", "openshape_jax.main", "--config=configs/quickstart.py:smoke"]
    command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in overrides.items())]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(steps: int, workdir: Path, rng: random.Random, number: int) -> tuple:
    """Starts the run, kills it while it trains, and says what was lost."""
    before = max(losses(workdir), default=0)
    process = start(steps, workdir)
    writing = number % 2 == 1
    until = before + rng.randrange(1, max(2 * (steps - before) // (25 - min(number, 20)), 2))
    wait_for(process, lambda: max(losses(workdir), default=0) > min(until, steps - 2))
    if writing:
        wait_for(process, lambda: any((workdir / "checkpoints").glob(TEMPORARY)))
    else:
        time.sleep(rng.random() * 0.1)
    how = signal.SIGTERM if number % 5 == 4 else signal.SIGKILL
    process.send_signal(how)
    code = process.wait()
    reached = max(losses(workdir), default=0)
    kept = max((int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()), default=0)
    when = "while saving" if writing else "at random"
    return number + 1, how.name, when, code, reached, kept, max(reached - kept, 0)


def wait_for(process: subprocess.Popen, ready) -> None:
    while process.poll() is None and not ready():
        time.sleep(0.002)


def losses(workdir: Path) -> dict[int, float]:
    """The loss of each logged step, as its exact decimal says it."""
    try:
        lines = metrics.read(workdir)
    except (OSError, json.JSONDecodeError):  # just being replaced
        return {}
    return {int(line["step"]): line["train/loss"] for line in lines if "train/loss" in line}


if __name__ == "__main__":
    main()
