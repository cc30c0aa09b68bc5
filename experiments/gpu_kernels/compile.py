"""Compiles an encoder for an H100, on a machine without one, and prints what its kernels take.

    pip install 'jax[cuda13]>=0.11.2'                              # 3 GB; no driver and no GPU
    PYTHONPATH=. python experiments/gpu_kernels/compile.py [--scaling 4] [--batch 256]

The compiler's figure for memory and the calls of each pass; then for each Pallas kernel the registers of a
thread, the bytes that spill out of them, and instructions of Hopper's matrix units (wgmma) and older (mma).
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What the compiler wants to know of an H100 SXM5 80 GB (NVIDIA's data sheet and CUDA's device query).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scaling", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--points", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as dump:
        # Nothing can be tuned without the device, and Triton's products need that.
        flags = f"--xla_gpu_autotune_level=0 --xla_dump_to={dump} --xla_dump_emitter_re=ptx"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        os.environ["JAX_PLATFORMS"] = "cpu"
        compile_passes(args.scaling, args.batch, args.points)
        print("\n| kernel | registers | spilled bytes | wgmma | mma |\n|---|---|---|---|---|")
        for row in sorted(set(kernels(Path(dump)))):
            print("| " + " | ".join(map(str, row)) + " |")


def compile_passes(scaling: int, batch: int, points: int) -> None:
    """Compiles the forward pass and its gradient in training, and prints their memory and calls."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from openshape_jax import models, runtime
    from openshape_jax.models import pointbert

    runtime.prepare()
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache dumps nothing
    h100 = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices
    mesh = Mesh(h100, ("data",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    c = pointbert.size(scaling)
    c.dtype = "bfloat16"

    def shapes(tree):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)

    params, stats = shapes(jax.eval_shape(lambda: models.split(models.build(c, nnx.Rngs(0)))))
    cloud = jax.ShapeDtypeStruct((batch, points, 3), jnp.float32, sharding=place)

    def forward(p, s, x, r):
        return models.apply(c, p, s, x, r)[0]

    def gradient(p, s, x, r):
        return jax.grad(lambda p: jnp.square(models.apply(c, p, s, x, r, train=True)[0]).sum())(p)

    jax.set_mesh(mesh)
    for name, call in (("forward", forward), ("gradient", gradient)):
        compiled = jax.jit(call).lower(params, stats, cloud, cloud).compile()
        calls = collections.Counter(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text()))
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e9
        print(
            f"{name}: {memory:.2f} GB; " + ", ".join(f"{n} {kind}" for kind, n in calls.items()), flush=True
        )


def kernels(dump: Path) -> list[tuple[str, int, int, int, int]]:
    """(name, registers, spilled bytes, wgmma, mma) of each Pallas kernel in the compiler's dump."""
    ptxas = shutil.which("ptxas") or next(
        (str(p) for root in sys.path for p in Path(root).glob("nvidia/*/bin/ptxas")), None
    )
    if ptxas is None:
        sys.exit("ptxas was not found; pip install nvidia-cuda-nvcc brings it.")
    rows = []
    for file in dump.glob("*.ptx"):
        text = file.read_text()
        found = re.findall(r"\.entry (\w+_gpu)\w*\(", text)
        if len(found) != 1:
            continue  # XLA's own kernels
        command = [ptxas, "-v", "-arch=sm_90a", str(file), "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers = max(map(int, re.findall(r"Used (\d+) registers", said)))
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
        rows.append((found[0], registers, spilled, text.count("wgmma.mma_async"), text.count("mma.sync")))
    return rows


if __name__ == "__main__":
    main()
