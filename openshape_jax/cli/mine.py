"""`openshape mine --checkpoint PATH --data NAME`: the nearest neighbours of every shape of a training set."""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openshape_jax.cli.arguments import add_checkpoint, add_data_dir

if TYPE_CHECKING:
    import numpy as np

EMBEDDED = 512  # shapes of a file of embeddings: what an interruption costs at most
ROWS = 8192  # shapes of a file of neighbours
CPU_QUERIES = 1024  # shapes compared at once by a CPU, whose caches are small


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "mine",
        help="nearest neighbours of a training set, for training with hard negatives",
        description="Embeds a data set and finds the k nearest neighbours of every shape by cosine. To train "
        "with them: --config.data.hard_negatives=FILE. After an interruption the same command goes on.",
    )
    add_checkpoint(p)
    p.add_argument("--data", required=True, metavar="NAME", help="data set, NAME or NAME/CONFIG")
    p.add_argument("--split", default="train", help="split, or part of one (default train)")
    add_data_dir(p)
    p.add_argument("--k", type=int, default=31, help="neighbours of each shape (default 31, as OpenShape)")
    p.add_argument("--out", metavar="FILE", help="default: neighbours-NAME-SPLIT.npz")
    p.add_argument("--batch", type=int, metavar="B", help="shapes embedded at once (default 32 a device)")
    p.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the comparison; bfloat16 is several times faster on accelerators and slower on CPUs, and "
        "close neighbours may change places (default float32)",
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file of neighbours and prints its path; the exit status.

    Raises:
      DatasetMissing: not built. CheckpointError or ConversionError: no model there. ValueError: k is too
        large, or FILE is something else. OSError: the disk is full; what is done is kept.
    """
    out = Path(args.out or f"neighbours-{args.data.replace('/', '-')}-{args.split}.npz")
    if out.suffix != ".npz":
        raise ValueError(f"--out is {str(out)!r}; its name must end in .npz.")
    try:
        mine(args, out)
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command goes on with what is in {_work(out)}", file=sys.stderr)
        return 130
    return 0


def mine(args: argparse.Namespace, out: Path) -> None:
    """As `run`."""
    import jax

    from openshape_jax import api, runtime, sharding
    from openshape_jax.data import files, mining, sources
    from openshape_jax.version import __version__

    records, _ = sources.open_split(args.data, args.split, args.data_dir)
    if not 0 < args.k < len(records):
        raise ValueError(
            f"--k is {args.k} but {args.data!r} has {len(records)} shapes in its split {args.split!r}: "
            f"choose k from 1 to {len(records) - 1}."
        )
    runtime.prepare()
    if jax.process_count() > 1:
        raise ValueError(
            f"openshape mine runs in one process, with all its devices, but there are {jax.process_count()}: "
            "start it on one host."
        )
    mesh = sharding.make_mesh()
    batch = 32 * mesh.size if args.batch is None else args.batch
    if batch < 1:
        raise ValueError(f"--batch is {batch}; it must be at least 1.")
    sharding.check_batch_size(batch, mesh)
    weights, metadata, step = api.read(args.checkpoint)
    uids = sources.uids(records)
    embedded = {
        "weights": files.digest_of_arrays(weights),
        "metadata": {k: metadata.get(k) for k in ("model", "num_points", "views", "up", "mirrored")},
        "data": [args.data, args.split, len(uids), records.num_bytes, files.digest("\n".join(uids))],
    }
    described = json.dumps(embedded, sort_keys=True)
    job = files.digest(json.dumps([described, args.k, args.precision]))
    if _is_done(out, job):
        return
    work = _prepare(out, {"embeddings": files.digest(described), "job": job})
    model = api.Model(weights, metadata, step)
    emb = _embed(model, mesh, records, batch, work)
    index, similarity = _compare(emb, len(uids), args.k, args.precision, mesh, work)
    told = {
        "dataset": args.data,
        "split": args.split,
        "checkpoint": str(args.checkpoint),
        "step": step,
        "num_shapes": len(uids),
        "k": args.k,
        "precision": args.precision,
        "version": __version__,
        "job": job,
    }
    mining.write(out, mining.Neighbours(uids, index, similarity, told))
    shutil.rmtree(work)
    print(
        f"{len(uids)} shapes, {args.k} neighbours each: {out} ({out.stat().st_size / 1e6:.1f} MB)\n"
        f"train with them: --config.data.hard_negatives={out}"
    )


def _is_done(out: Path, job: str) -> bool:
    """Whether `out` is this job's result; says so, or that another job's is going to be replaced."""
    from openshape_jax.data import mining

    if not out.exists():
        return False
    try:
        old = mining.read(out).metadata
    except ValueError as error:
        raise ValueError(f"--out: {error} Take it away, or name another file.") from error
    if old.get("job") == job:
        print(f"{out} is there already: nothing to do.")
        return True
    print(
        f"{out} is of another checkpoint, data set or setting ({old.get('checkpoint')} at step "
        f"{old.get('step')}, {old.get('dataset')} {old.get('split')}, k {old.get('k')}): starting again. It "
        "is replaced when the new one is complete."
    )
    return False


def _work(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _prepare(out: Path, job: dict[str, str]) -> Path:
    """The folder of what is done, without what an interrupted run of another job left in it."""
    from openshape_jax.data import files

    work, described = _work(out), _work(out) / "job.json"
    try:
        old = json.loads(described.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        old = {}
    if old and old.get("embeddings") != job["embeddings"]:
        print(f"{work} is of another checkpoint or data set: starting again.")
    elif old and old != job:
        print(f"{work} was made with another k or precision: its embeddings are kept.")
    work.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        kept = old == job or (path.name.startswith("emb-") and old.get("embeddings") == job["embeddings"])
        if path.suffix == ".tmp" or (path != described and not kept):
            path.unlink()
    files.write(described, json.dumps(job))
    return work


def _embed(model: Any, mesh: Any, records: Any, batch: int, work: Path) -> np.ndarray:
    """(P, D) float32 unit vectors of all records, padded with zeros for `knn.nearest`."""
    import numpy as np
    from tqdm import tqdm

    from openshape_jax.data import files
    from openshape_jax.ops import knn

    n = len(records)
    paths = {first: work / f"emb-{first:08d}.npy" for first in range(0, n, EMBEDDED)}
    emb = np.zeros((knn.padded_size(n), model.config.embed_dim), np.float32)
    spans, done = [], 0
    for first, path in paths.items():
        last = min(first + EMBEDDED, n)
        if path.exists():
            emb[first:last] = np.load(path, allow_pickle=False)
            done += last - first
        else:
            spans += [(at, min(at + batch, last)) for at in range(first, last, batch)]
    with (
        closing(_clouds(records, spans, batch, model.num_points)) as ahead,
        tqdm(total=n, initial=done, unit="shape", desc="embed") as bar,
    ):
        for (first, last), clouds in zip(spans, ahead, strict=True):
            found = np.asarray(model.embed_stored(*clouds, mesh=mesh))[: last - first]
            if not np.isfinite(found).all():
                raise FloatingPointError(
                    f"the embedding of a shape from {first} to {last - 1} is NaN or infinite: this model is "
                    "broken, take another checkpoint."
                )
            emb[first:last] = found
            bar.update(last - first)
            block = first // EMBEDDED * EMBEDDED
            if last == min(block + EMBEDDED, n):
                files.write(paths[block], functools.partial(np.save, arr=emb[block:last]))
    return emb


def _clouds(
    records: Any, spans: list[tuple[int, int]], batch: int, num_points: int
) -> Generator[tuple[np.ndarray, ...]]:
    """(xyz (B, N, 3) codes, rgb, count (B,)) of each span, read ahead; the last rows may be padding."""
    import grain
    import numpy as np

    from openshape_jax.data.pipeline import points_to_embed

    def read(span: tuple[int, int]) -> tuple[np.ndarray, ...]:
        rows = [points_to_embed(records[i], i, num_points) for i in range(*span)]
        rows += [rows[-1]] * (batch - len(rows))
        return tuple(np.stack([row[key] for row in rows]) for key in ("xyz", "rgb", "count"))

    if not spans:
        return
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    ahead: Any = iter(grain.MapDataset.source(spans).map(read).to_iter_dataset(options))
    try:
        yield from ahead
    finally:
        ahead.close()


def _compare(
    emb: np.ndarray, n: int, k: int, precision: str, mesh: Any, work: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(indices (n, k) int32, cosines (n, k) float16) of the neighbours, the nearest first."""
    import jax
    import numpy as np
    from tqdm import tqdm

    from openshape_jax import sharding
    from openshape_jax.data import files
    from openshape_jax.ops import knn

    local = min(CPU_QUERIES if jax.default_backend() == "cpu" else ROWS, -(-n // mesh.size))
    queries = min(local, max(ROWS // mesh.size, 1)) * mesh.size
    whole, rows = sharding.replicated(mesh), sharding.by_row(mesh)

    def nearest(vectors: Any, own: Any, database: Any) -> Any:
        return knn.nearest(vectors, own, database, n, k, precision=precision)

    step = jax.jit(
        jax.shard_map(
            nearest,
            mesh=mesh,
            in_specs=(rows.spec, rows.spec, whole.spec),
            out_specs=rows.spec,
            check_vma=False,
        )
    )
    paths = {first: work / f"knn-{first:08d}.npz" for first in range(0, n, ROWS)}
    missing = [first for first, path in paths.items() if not path.exists()]
    database = jax.device_put(emb, whole) if missing else None
    done = n - sum(min(ROWS, n - first) for first in missing)
    with tqdm(total=n, initial=done, unit="shape", desc="compare") as bar:
        for first in missing:
            last = min(first + ROWS, n)
            found = []
            for at in range(first, last, queries):
                own = np.arange(at, at + queries, dtype=np.int32)
                inside = np.minimum(own, n - 1)  # rows beyond the last are computed and left out
                placed = sharding.put_batch({"vectors": emb[inside], "own": own}, mesh)
                index, sims = step(placed["vectors"], placed["own"], database)
                keep = min(queries, last - at)
                found.append((np.asarray(index)[:keep], np.asarray(sims)[:keep].astype(np.float16)))
                bar.update(keep)
            index, sims = (np.concatenate(part) for part in zip(*found, strict=True))
            files.write(paths[first], functools.partial(np.savez, index=index, similarity=sims))
    parts = []
    for path in paths.values():
        with np.load(path, allow_pickle=False) as file:
            parts.append((file["index"], file["similarity"]))
    index, similarity = (np.concatenate(part) for part in zip(*parts, strict=True))
    return index, similarity
