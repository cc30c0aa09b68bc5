"""Speed of the exact neighbour search as a share of a plain matrix product of the same shape.

    python experiments/mining/run.py [--n 40000] [--queries 4096] [--repeats 2] [--precision float32]

Unit vectors around random centres, D = 1280, as shape embeddings are. Every form takes the same block of
queries against the same database, in turn, so that noise falls on all; a share is the median of the ratios
of times taken side by side, also of processor time, which other processes hardly disturb. The plain product
is `jnp.matmul` with each block, nothing else.

| form | what it does with a block's similarities |
|---|---|
| search | `knn.nearest`: the few groups of 32 that hold an entry for the list |
| k groups | the same, always with the k best groups |
| top_k | `jax.lax.top_k` of all of them with the list so far |
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openshape_jax import runtime
from openshape_jax.ops import knn

D, K, BLOCK_QUERIES = 1280, 31, 1024
FULL = 876_000  # shapes of OpenShape's ensembled training set
# Published peaks of dense products without sparsity, TFLOP/s: NVIDIA's H100 SXM data sheet (float32 without
# tensor cores), Google's v5e page times 8 chips; float32 there is six bfloat16 passes (precision HIGHEST).
PEAKS = {
    "H100 SXM": {"float32": 67.0, "bfloat16": 989.0},
    "v5e-8": {"float32": 8 * 197 / 6, "bfloat16": 8 * 197.0},
}


def vectors(n: int) -> np.ndarray:
    """(n, D) unit vectors, float32: 40 around each centre, the centres at random."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(n, D)).astype(np.float32)
    centres = rng.normal(size=(n // 40 + 1, D)).astype(np.float32)
    out += centres[rng.integers(len(centres), size=n)]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def seconds(call: Any) -> tuple[float, float]:
    """(wall time, processor time of all threads) of a call."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - start[0], time.process_time() - start[1]


def wrong(index: np.ndarray, queries: np.ndarray, own: np.ndarray, rows: np.ndarray) -> int:
    """Neighbours whose similarity is not that of NumPy's full sort, to 1e-6."""
    sims = queries @ rows.T
    sims[np.arange(len(own)), own] = -np.inf
    best = -np.sort(-sims, axis=1)[:, : index.shape[1]]
    return int((np.abs(np.take_along_axis(sims, index, 1) - best) > 1e-6).sum())


def form(name: str, count: int, precision: str) -> Any:
    """The compiled form (queries (Q, D), own (Q,), database (P, D)) -> (indices, similarities)."""

    def whole_block(queries: jax.Array, own: jax.Array, database: jax.Array) -> Any:
        def one_block(b: jax.Array, best: Any) -> Any:
            first = b * knn.BLOCK
            sims = knn._product(queries, jax.lax.dynamic_slice_in_dim(database, first, knn.BLOCK), precision)
            number = jnp.broadcast_to(first + jnp.arange(knn.BLOCK, dtype=jnp.int32), sims.shape)
            sims = jnp.where((number < count) & (number != own[:, None]), sims, -jnp.inf)
            values, place = jax.lax.top_k(jnp.concatenate([best[0], sims], 1), K)
            index = jnp.concatenate([best[1], number], 1)
            return values, jnp.take_along_axis(index, place, 1)

        start = jnp.full((len(queries), K), -jnp.inf), jnp.zeros((len(queries), K), jnp.int32)
        values, index = jax.lax.fori_loop(0, len(database) // knn.BLOCK, one_block, start)
        return index, values

    def grouped(queries: jax.Array, own: jax.Array, database: jax.Array) -> Any:
        before = knn.FEW
        try:
            knn.FEW = K if name == "k groups" else before  # read when it is traced
            return knn.nearest(queries, own, database, count, K, precision=precision)
        finally:
            knn.FEW = before

    return jax.jit(whole_block if name == "top_k" else grouped)


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--n", type=int, default=40_000)
    parser.add_argument("--queries", type=int, default=4096, help="of the n, compared in each repeat")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", choices=knn.PRECISIONS, default="float32")
    args = parser.parse_args()
    runtime.prepare()
    rows = vectors(args.n)
    database = jnp.asarray(np.pad(rows, ((0, -args.n % knn.BLOCK), (0, 0))))
    blocks = [database[a : a + knn.BLOCK] for a in range(0, len(database), knn.BLOCK)]
    forms = {name: form(name, args.n, args.precision) for name in ("search", "k groups", "top_k")}
    plain = jax.jit(lambda a, b: knn._product(a, b, args.precision))

    def calls(first: int) -> dict[str, Any]:
        own = np.arange(first, first + BLOCK_QUERIES, dtype=np.int32) % args.n
        given = jnp.asarray(rows[own]), jnp.asarray(own), database
        searches = {name: functools.partial(call, *given) for name, call in forms.items()}
        return {"product": lambda: [plain(given[0], b).block_until_ready() for b in blocks], **searches}

    some = np.arange(256)
    errors = {}
    for name, call in calls(0).items():  # compiled, and warm
        result = jax.block_until_ready(call())
        if name != "product":
            errors[name] = wrong(np.asarray(result[0])[:256], rows[:256], some, rows)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("product", *forms)}
    for _ in range(args.repeats):
        for first in range(0, args.queries, BLOCK_QUERIES):
            turn = list(calls(first).items())
            for name, call in turn[len(taken["product"]) % 4 :] + turn[: len(taken["product"]) % 4]:
                taken[name].append(seconds(call))
    print(
        f"{platform.machine()}, {jax.default_backend()} x {jax.device_count()}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, {args.precision}; n {args.n}, D {D}, k {K}, "
        f"{len(taken['product'])} turns of {BLOCK_QUERIES} queries"
    )
    work = 2.0 * BLOCK_QUERIES * len(database) * D / 1e9
    times = {name: np.array(values) for name, values in taken.items()}  # (turns, 2)
    for name, values in times.items():
        ratio = np.median(times["product"] / values, axis=0)
        low, high = np.quantile(times["product"] / values, (0.25, 0.75), axis=0)[:, 0]
        print(
            f"{name:<9}{work / np.median(values[:, 0]):7.1f} GFLOP/s; share of the product's rate "
            f"{ratio[0]:6.1%} (quartiles {low:.1%} to {high:.1%}), by processor time {ratio[1]:.1%}"
            + (f"; {errors[name]} of {256 * K} neighbours wrong" if name in errors else "")
        )
    share = float(np.median(times["product"][:, 0] / times["search"][:, 0]))
    print(f"PROJECTED, not measured: {FULL:,} shapes at published peak x {share:.1%}")
    total = 2.0 * FULL**2 * D / 1e12
    for name, peaks in PEAKS.items():
        print(
            f"  {name:<9}"
            + ", ".join(f"{kind} {total / (peak * share):.1f} s" for kind, peak in peaks.items())
        )
    hours = total * 1000 / (work / np.median(times["search"][:, 0])) / 3600
    print(f"  here     {args.precision} {hours:.1f} h")


if __name__ == "__main__":
    main()
