"""Compiles every form of the geometry operations for TPUs, on a machine without one, and prints a table.

    pip install 'jax[tpu]' && python experiments/tpu_kernels/compile.py [v4:2x2x1 v5e:2x2 ...]

Columns: the seconds of `cost_analysis()["optimal_seconds"]` (a bound from bytes and flops, each loop body
counted once); cycles as XLA's own `estimated_cycles` of every operation, times the trip counts of the
loops around it; for a Pallas kernel, which XLA does not estimate, the instruction bundles of its final
program (one bundle issues in a cycle) times its trip counts, without stalls; the operations that XLA's
sum lacks because they carry no estimate, gathers above all; the temporary memory.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

CLOUDS, POINTS, CENTRES, RADIUS, MEMBERS = 32, 10_000, 384, 0.2, 64  # the released model's
TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
FORMS = ("fps loop", "fps one-hot", "fps pallas", "ball loop", "ball count", "ball one-hot", "ball pallas")
# Trip counts of a kernel's inner loops in the order of its program, and its number of programs.
FPS_TRIPS, FPS_PROGRAMS = (-(-POINTS // 512), CENTRES - 1), CLOUDS // 8
BALL_TRIPS, BALL_PROGRAMS = (8, 8), CLOUDS * (CENTRES // 64)


def main(topologies: list[str]) -> None:
    print("| TPU | form | optimal s | cycles, million | not estimated | temporary MB |")
    print("|---|---|---|---|---|---|")
    for topology in topologies:
        for form in FORMS:
            with tempfile.TemporaryDirectory() as dump:
                env = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
                if form.endswith("pallas"):
                    env["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
                # A process each: libtpu reads its flags once.
                command = [sys.executable, __file__, "--one", topology, form]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{topology}, {form}: the compiler failed\n{done.stderr}")
                row = json.loads(done.stdout.splitlines()[-1])
                if form.endswith("pallas"):
                    row["cycles"] += kernel_cycles(dump, form)
            print(
                f"| {topology} | {form} | {row['optimal']:.2g} | {row['cycles'] / 1e6:.2f} | "
                f"{row['missing']} | {row['temp'] / 1e6:.0f} |",
                flush=True,
            )


def compile_one(topology: str, form: str) -> None:
    """Compiles one form for one chip of a topology and prints its numbers as JSON."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    place = jax.sharding.SingleDeviceSharding(chip)
    operation, name = form.split(" ", 1)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=place)
    xyz = shape((CLOUDS, POINTS, 3))
    start = jax.ShapeDtypeStruct((CLOUDS,), jnp.int32, sharding=place)
    other = start if operation == "fps" else shape((CLOUDS, CENTRES, 3))
    compiled = jax.jit(functions(operation)[name], out_shardings=place).lower(xyz, other).compile()
    text = compiled.as_text()
    row = {
        "missing": len(re.findall(r" (?:gather|scatter|fusion)\((?!.*estimated_cycles)", text)),
        "optimal": compiled.cost_analysis()["optimal_seconds"],
        "temp": compiled.memory_analysis().temp_size_in_bytes,
        "cycles": program_cycles(text),
    }
    print(json.dumps(row))


def functions(operation: str) -> dict:
    """The forms of "fps" or "ball", each of a batch of clouds."""
    import jax

    from experiments.tpu_kernels import forms
    from openshape_jax.ops.ball_query import first_in_ball
    from openshape_jax.ops.ball_query_tpu import ball_query_tpu
    from openshape_jax.ops.fps import farthest_points
    from openshape_jax.ops.fps_tpu import fps_tpu

    if operation == "fps":
        return {
            "loop": jax.vmap(lambda x, s: farthest_points(x, CENTRES, s)),
            "one-hot": jax.vmap(lambda x, s: forms.fps_onehot(x, CENTRES, s)),
            "pallas": lambda x, s: fps_tpu(x, CENTRES, s),
        }
    return {
        "loop": jax.vmap(lambda x, c: first_in_ball(x, c, RADIUS, MEMBERS)),
        "count": jax.vmap(lambda x, c: forms.ball_query_count(x, c, RADIUS, MEMBERS)),
        "one-hot": jax.vmap(lambda x, c: forms.ball_query_onehot(x, c, RADIUS, MEMBERS)),
        "pallas": lambda x, c: ball_query_tpu(x, c, RADIUS, MEMBERS),
    }


def program_cycles(hlo: str) -> int:
    """XLA's estimated cycles of a compiled program, loops multiplied by their trip counts."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%([^\s(]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)

    @functools.cache
    def cycles(computation: str) -> int:
        total = 0
        for line in bodies[computation]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(found[1])
            if loop := re.search(r"condition=%([^\s,]+), body=%([^\s,]+)", line):
                limits = re.findall(r"s32\[\][^ ]* constant\((\d+)\)", "\n".join(bodies[loop[1]]))
                total += max(map(int, limits), default=1) * cycles(loop[2])
        return total

    return cycles(entry)


def kernel_cycles(dump: str, form: str) -> int:
    """Instruction bundles that a Pallas kernel issues, from the compiler's dump of its final program."""
    operation = "fps" if form.startswith("fps") else "ball_query"
    trips, programs = (FPS_TRIPS, FPS_PROGRAMS) if operation == "fps" else (BALL_TRIPS, BALL_PROGRAMS)
    pattern = f"{dump}/*{operation}_tpu*final_bundles.txt"
    (path,) = [p for p in glob.glob(pattern) if "schedule-analysis" not in p]
    outer, inner = 0, []
    with open(path) as file:
        for line in file:
            bundle = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?:?\s*((?:>\s*)*)", line)
            depth = bundle[2].count(">") if bundle else 0
            if depth == 1:
                outer += 1
            elif depth > 1:
                if bundle and bundle[1] == "LB":
                    inner.append(0)
                inner[-1] += 1
    if len(inner) != len(trips):
        raise ValueError(
            f"{path} has {len(inner)} inner loops, expected {len(trips)}: adapt the trip counts."
        )
    return programs * (outer + sum(n * t for n, t in zip(inner, trips, strict=True)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        compile_one(*sys.argv[2:])
    else:
        main(sys.argv[1:] or list(TOPOLOGIES))
