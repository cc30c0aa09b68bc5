"""Compiles the training step of PointBERT-L, XL and XXL for TPU pods, on a machine without one.

    pip install -e '.[tpu-dryrun]' && PYTHONPATH=. python experiments/tpu_dryrun/run.py

Writes results.json beside itself, one compilation in a process of its own after the other (about two minutes
each on two cores; those that are there are not made again, but with --again), and prints the tables of
README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v5p:8x8x8")
NAMES = {4: "L", 5: "XL", 6: "XXL"}
PER_CHIP = {4: 64, 5: 64, 6: 32}  # shapes, without computing blocks again
# (size, topology, shapes of the global batch, fields of the model)
PLAN = [
    (size, topology, PER_CHIP[size] * math.prod(map(int, re.findall(r"\d+", topology.split(":")[1]))), {})
    for topology in TOPOLOGIES
    for size in NAMES
]
LARGE_BATCH = [(size, "v5e:8x8", 32_768, {"microbatches": 8}) for size in (4, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="compile what is in results.json too")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compile_one(*json.loads(options.one))))
        return
    done = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text())
    for case in [] if options.table else [*PLAN, *LARGE_BATCH]:
        if key(*case) in done:
            continue
        command = [sys.executable, __file__, "--one", json.dumps(case)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(f"{key(*case)} failed:\n{ran.stderr}")
        done[key(*case)] = json.loads(ran.stdout.splitlines()[-1])
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")
        print(key(*case), f"{done[key(*case)]['utilisation']:.1%}", flush=True)
    print(tables(done))


def key(size: int, topology: str, batch_size: int, fields: dict) -> str:
    return " ".join([NAMES[size], topology, str(batch_size), *(f"{k}={v}" for k, v in fields.items())])


def compile_one(size: int, topology: str, batch_size: int, fields: dict) -> dict:
    """The report of one compilation as JSON values."""
    from openshape_jax import config as config_lib
    from openshape_jax import dryrun
    from openshape_jax.models import pointbert

    config = config_lib.Config(batch_size=batch_size)
    config.model = dataclasses.replace(pointbert.size(size), dtype="bfloat16", **fields)
    config.data.device_shuffle = True
    made = dryrun.compile_report(config, topology)
    figures = ("seconds", "compute_seconds", "shapes_per_second", "utilisation")
    values = {**dataclasses.asdict(made), **{name: getattr(made, name) for name in figures}}
    return {**values, "hbm": made.chip.hbm, "clock": made.chip.clock, "made": about()}


def about() -> str:
    """Machine, versions and date."""
    import jax
    import libtpu

    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"jax {jax.__version__}, libtpu {libtpu.__version__}; {datetime.date.today()}"
    )


def tables(done: dict) -> str:
    """What README.md shows."""
    lines = [
        "| model | chips | shapes a chip | memory, GiB | of | TFLOP a chip | exchanges | MB | exchange ms "
        "| hidden ms | step ms | shapes/s | model-FLOP utilisation |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in done.items():
        model, topology, _, *fields = name.split()
        runs = ", ".join(f"{c['runs']} {kind}" for kind, c in sorted(r["collectives"].items()))
        hidden = r["exchange_seconds"] - r["exposed_seconds"]
        size = sum(c["bytes"] for c in r["collectives"].values()) / 1e6
        lines.append(
            f"| {' '.join([model, *fields])} | {topology} | {r['batch_size'] // r['chips']} | "
            f"{r['memory'] / 2**30:.2f} | {r['hbm'] / 2**30:.0f} | {r['matrix_flops'] / 1e12:.2f} | {runs} "
            f"| {size:.0f} | {r['exchange_seconds'] * 1e3:.1f} | {hidden * 1e3:.1f} "
            f"| {r['seconds'] * 1e3:.1f} | {r['shapes_per_second']:,.0f} | {r['utilisation']:.1%} |"
        )
    lines += [
        "",
        "| model | shapes/s a chip, 8 x v5e | 256 x v5e | weak-scaling efficiency |",
        "|---|---|---|---|",
    ]
    for size, model in NAMES.items():
        pair = [
            done.get(key(size, t, PER_CHIP[size] * n, {})) for t, n in (("v5e:2x4", 8), ("v5e:16x16", 256))
        ]
        if all(pair):
            few, many = (r["shapes_per_second"] / r["chips"] for r in pair)
            lines.append(f"| {model} | {few:.1f} | {many:.1f} | {many / few:.1%} |")
    groups = sorted({g for r in done.values() for g in r["cycles"]})
    lines += ["", f"| model | chips | {' | '.join(groups)} |", "|---|---|" + "---|" * len(groups)]
    for name, r in done.items():
        model, topology, _, *fields = name.split()
        parts = " | ".join(f"{r['cycles'].get(g, 0) / r['clock'] * 1e3:.1f}" for g in groups)
        lines.append(f"| {' '.join([model, *fields])} | {topology} | {parts} |")
    lines += ["", *sorted({r["made"] for r in done.values()})]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
