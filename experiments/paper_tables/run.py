"""The tables of the paper (arXiv 2305.10764), one command each: trains, evaluates, prints the table.

    python experiments/paper_tables/run.py table1       # train sets x encoder x three benchmarks
    python experiments/paper_tables/run.py ablations
    python experiments/paper_tables/run.py scaling      # sizes of the encoder, shares of the data
    python experiments/paper_tables/run.py table1 --proof        # minutes, synthetic and Sweet Home 3D shapes
    python experiments/paper_tables/run.py table1 --print        # only the commands

At full size the data sets openshape_ensemble, objaverse_lvis, modelnet40 and scanobjectnn/obj_only must be
built, and a row takes some 300 A100-hours (the authors'). --proof runs the same kinds of rows, as far as the
small data have what they vary, with a small encoder: it proves the commands, not the numbers. Every row is a
training run and an evaluation in runs/paper_tables/...; started again, the command goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
BENCHMARKS = ("objaverse_lvis", "modelnet40", "scanobjectnn/obj_only")
PROOF_BENCHMARKS = ("sweethome3d", "primitives")
SHARES = (1, 10, 30, 100)  # per cent of the training shapes


class Row(NamedTuple):
    """One line of a table: a training run."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    authors: str = ""  # their top-1, LVIS / ModelNet40 / ScanObjectNN where they gave it
    mined_from: str = ""  # the row whose model finds the neighbours of a second stage
    share: int = 100  # per cent of the training shapes


PAPER = "configs/paper/pointbert_l.py"
TABLE1 = (
    Row("ShapeNet", f"{PAPER}:shapenet_only", authors="10.8 / 70.3 / 51.3"),
    Row("all, no LVIS", f"{PAPER}:no_lvis", authors="39.1 / 85.3 / 47.2"),
    Row("all", PAPER, authors="46.8 / 84.4 / 52.2"),
)
ABLATIONS = (  # the authors' numbers are of another encoder, SparseConv
    Row("full", PAPER, authors="42.0 / 83.1"),
    Row("hard negatives", f"{PAPER}:hard_negatives", authors="43.4 / 83.4", mined_from="full"),
    Row("no text filter", f"{PAPER}:no_text_filter", authors="41.4 / 82.9"),
    Row("no captions, no retrieval", f"{PAPER}:no_enrichment", authors="37.0 / 82.9"),
    Row("no rgb", f"{PAPER}:no_rgb", authors="39.6 / 83.6"),
    Row("no text loss", f"{PAPER}:no_text", authors="23.3 / 67.4"),
    Row("no image loss", f"{PAPER}:no_image", authors="41.0 / 81.0"),
    Row("no Objaverse", f"{PAPER}:no_objaverse", authors="13.9 / 75.5"),
)


def size_overrides(scaling: int) -> tuple[str, ...]:
    """Overrides that make an encoder of a published size."""
    from openshape_jax.models import pointbert

    fields = dataclasses.asdict(pointbert.size(scaling))
    names = ("dim", "depth", "heads", "mlp_dim", "sa_dim", "patches", "radius", "nsample")
    return tuple(f"model.{name}={fields[name]}" for name in names)


def scaling_rows() -> tuple[Row, ...]:
    """Encoders of 5 to 72 M parameters on all data, and the released one on shares of the data."""
    sizes = ((1, "5 M"), (2, "13 M"), (3, "26 M"), (4, "32 M"), (5, "72 M"))
    by_size = tuple(Row(f"{name}, all data", PAPER, size_overrides(k)) for k, name in sizes)
    by_share = tuple(
        Row(f"32 M, {share} % of the data", PAPER, (f"data.split=share_{share}",), share=share)
        for share in SHARES[:-1]
    )
    return by_size + by_share


# The same kinds of rows on data that everybody has.
SMALL = (
    "steps=240", "batch_size=32", "log_every=20", "checkpoint_every=1000", "cpu_devices=1", "fsdp=1",
    "model.dim=128", "model.depth=2", "model.heads=2", "model.mlp_dim=256", "model.sa_dim=64",
    "model.patches=48", "model.train_patches=24", "data.num_points=1024", "data.weights=()", "optim.ema=0.97",
    "optim.warmup_steps=20", "eval.every=0", "eval.views=1", "eval.num_points=1024", "eval.report=false",
)  # fmt: skip
QUICK = "configs/quickstart.py"
BOTH = "data.datasets=sweethome3d,primitives"
REAL = "data.datasets=sweethome3d"
# Which rows the small data can show: they have no captions, no image features and no judged texts.
PROOF = {
    "table1": (
        Row("narrow: primitives", QUICK, ("data.datasets=primitives",)),
        Row("real: sweethome3d", QUICK, (REAL,)),
        Row("all: both", QUICK, (BOTH,)),
    ),
    "ablations": (
        Row("full", QUICK, (REAL,)),
        Row("hard negatives", QUICK, (REAL, "batch_size=30", "data.group_size=5"), mined_from="full"),
        Row("more texts (synonyms, names)", QUICK, (REAL, "data.text_sources=class,synonym")),
        Row("no rgb", QUICK, (REAL, "augment.gray=1.0", "eval.gray=true")),
        Row("no augmentation", QUICK, (REAL, "augment.enabled=false")),
    ),
    "scaling": (
        *(
            Row(f"width {dim}, {depth} blocks, all data", QUICK,
                (REAL, f"model.dim={dim}", f"model.depth={depth}", f"model.mlp_dim={2 * dim}",
                 f"model.heads={dim // 64}"))
            for dim, depth in ((64, 1), (128, 2), (192, 3))
        ),
        *(
            Row(f"width 128, 2 blocks, {share} % of the data", QUICK, (REAL, f"data.split=share_{share}"),
                share=share)
            for share in SHARES[1:-1]
        ),
    ),
}  # fmt: skip


def write_share(dataset: str, share: int, data_dir: str) -> None:
    """Lists `share` per cent of the data set's training records, drawn evenly, as its split share_N."""
    from openshape_jax.data import sources

    path = sources.find(dataset, data_dir) / f"subset.share_{share}.npy"
    if not path.exists():
        total = len(sources.open_split(dataset, "train", data_dir)[0])
        chosen = np.random.default_rng(0).permutation(total)[: max(round(total * share / 100), 1)]
        np.save(path, np.sort(chosen))


def run(command: list[str], only_print: bool) -> None:
    """Runs one command of the package in a process of its own."""
    print(f"$ {shlex.join(['python', *command])}", flush=True)
    if not only_print:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def one_row(
    row: Row, folder: Path, args: argparse.Namespace, benchmarks: tuple[str, ...]
) -> dict[str, float]:
    """{benchmark: top-1} of a row, trained and evaluated where that has not been done."""
    workdir = folder / "".join(c if c.isalnum() else "_" for c in row.name)
    small = SMALL if args.proof else ()
    trained = next(
        (o.partition("=")[2] for o in row.overrides if o.startswith("data.datasets=")), "openshape_ensemble"
    )
    if row.share < 100 and not args.print:
        write_share(trained, row.share, args.data_dir)
    flags = [f"--config.{o}" for o in (*small, *row.overrides)]
    if args.data_dir:
        flags.append(f"--config.data.data_dir={args.data_dir}")
    flags.append(f"--config.eval.datasets={','.join(benchmarks)}")
    if row.mined_from:
        first = folder / "".join(c if c.isalnum() else "_" for c in row.mined_from)
        mined = folder / "neighbours.npz"
        if args.print or not mined.exists():
            where = ["--data_dir", args.data_dir] if args.data_dir else []
            mine = ["-m", "openshape_jax.cli.main", "mine", "--checkpoint", str(first), "--data", trained]
            run([*mine, "--out", str(mined), *where], args.print)
        flags.append(f"--config.data.hard_negatives={mined}")
    main = ["-m", "openshape_jax.main", f"--config={row.config}", f"--workdir={workdir}", *flags]
    if args.print or not (workdir / "eval.json").exists():
        run(main, args.print)
        run([*main, "--mode=eval"], args.print)
    if args.print:
        return {}
    result = json.loads((workdir / "eval.json").read_text())["datasets"]
    return {name: result[name]["zero_shot"][name.replace("/", "_")]["top1"] for name in benchmarks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=("table1", "ablations", "scaling"))
    parser.add_argument("--proof", action="store_true", help="a few minutes on small data")
    parser.add_argument("--print", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--only", metavar="ROW", default="", help="rows whose name contains it")
    parser.add_argument("--data_dir", default="")
    args = parser.parse_args()
    full = {"table1": TABLE1, "ablations": ABLATIONS, "scaling": scaling_rows()}
    rows = [row for row in (PROOF if args.proof else full)[args.table] if args.only in row.name]
    benchmarks = PROOF_BENCHMARKS if args.proof else BENCHMARKS
    folder = ROOT / "runs" / "paper_tables" / (args.table + ("_proof" if args.proof else ""))
    started, found = time.perf_counter(), {}
    for row in rows:
        found[row.name] = one_row(row, folder, args, benchmarks)
    if args.print:
        return
    import jax

    minutes, machine = (time.perf_counter() - started) / 60, jax.devices()[0].device_kind
    print(f"\n{args.table}: top-1 in per cent; {minutes:.1f} min, {machine}, {time.strftime('%Y-%m-%d')},")
    print(f"Python {platform.python_version()}, jax {jax.__version__}\n")
    print(f"| trained on / with | {' | '.join(benchmarks)} | authors' LVIS / ModelNet40 / ScanObjectNN |")
    print("|---|" + "---|" * (len(benchmarks) + 1))
    for row in rows:
        cells = " | ".join(f"{100 * found[row.name][name]:.1f}" for name in benchmarks)
        print(f"| {row.name} | {cells} | {row.authors or '-'} |")


if __name__ == "__main__":
    main()
