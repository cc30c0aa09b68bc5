"""`openshape data build NAME [--source DIR] ...`: builds a data set once."""

from __future__ import annotations

import argparse
import sys

from openshape_jax.cli.arguments import add_data_dir

FALLBACK_BUILT = 3  # exit status: NAME could not be had, its fallback was built


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Adds the action."""
    p = actions.add_parser(
        "build",
        help="fetch and convert a data set; does nothing where it is already built",
        description="Writes the records of a data set (ArrayRecord) from its raw files: fetched ones, or "
        "those of --source. An option that the data set does not use is an error.",
    )
    p.add_argument(
        "name",
        metavar="NAME",
        help="e.g. sweethome3d, primitives/tiny (NAME/CONFIG), or mesh_folder/ANY_NAME for files of your "
        "own; all: openshape data list",
    )
    add_data_dir(p)
    p.add_argument(
        "--fallback", metavar="NAME", help="build this if no source of NAME can be reached (exit status 3)"
    )
    raw = p.add_argument_group("raw files of your own")
    raw.add_argument("--source", default="", metavar="DIR", help="folder of the raw files")
    raw.add_argument(
        "--captions",
        default="",
        metavar="FILE",
        help="mesh_folder: CSV or JSON of names, classes and captions",
    )
    raw.add_argument(
        "--up",
        default="",
        choices=("y", "z"),
        help="mesh_folder: up axis; default: y for obj, glb, gltf, else z",
    )
    raw.add_argument(
        "--class-from", default="", choices=("folder",), help="mesh_folder: class of a shape without one"
    )
    big = p.add_argument_group("big data sets")
    big.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one a core)")
    big.add_argument(
        "--max-reject-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="share of unusable shapes above which the build fails (default 0.01)",
    )
    big.add_argument(
        "--runner",
        metavar="RUNNER",
        help="build on Apache Beam: DirectRunner, DataflowRunner, SparkRunner, ...",
    )
    big.add_argument(
        "--beam_pipeline_options",
        action="append",
        default=[],
        metavar="K=V,K=V",
        help="options of the runner, e.g. project=P,region=R; may be given several times, and one that "
        "starts with -- is passed on as it is, commas and all",
    )
    big.add_argument(
        "--beam_exchange",
        default="",
        metavar="URL",
        help="e.g. gs://bucket/tmp: folder through which shards come where workers do not share --data_dir",
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the data set, or its fallback, and prints where it lies; the exit status.

    Raises:
      ValueError: an unknown name or an option that does not apply. SourceNotFound: nothing to build from,
        and no fallback. OSError: the disk is full. In every case no half-built set is left; a sharded
        one keeps its finished shards for the next try.
    """
    import tfds_builders
    from openshape_jax.data.build import build

    for name in filter(None, (args.name, args.fallback)):  # a misspelt fallback must not wait for its turn
        tfds_builders.check_name(name.partition("/")[0])
    options = _options(args)
    current = args.name
    try:
        try:
            build(args.name, args.data_dir, options)
        except tfds_builders.SourceNotFound as error:
            if not args.fallback:
                raise
            line = "!" * 78
            instead = f"{args.name} is NOT built. Building {args.fallback!r} instead."
            print(f"\n{line}\n{error}\n\n{instead}\n{line}\n")
            current = args.fallback
            build(args.fallback, args.data_dir)
            return FALLBACK_BUILT
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_kept(current, args.data_dir)}", file=sys.stderr)
        return 130
    return 0


def _options(args: argparse.Namespace):
    from openshape_jax.data.build import Options

    if args.jobs < 0:
        raise ValueError(f"--jobs is {args.jobs}; give the number of processes, or 0 for one a core.")
    if not 0 <= args.max_reject_fraction <= 1:
        raise ValueError(f"--max-reject-fraction is {args.max_reject_fraction}; it must lie in 0 to 1.")
    if (args.beam_pipeline_options or args.beam_exchange) and not args.runner:
        flag = "--beam_pipeline_options" if args.beam_pipeline_options else "--beam_exchange"
        raise ValueError(f"{flag} needs --runner RUNNER, e.g. --runner=DirectRunner.")
    if args.runner and args.jobs:
        raise ValueError(
            "--jobs counts processes of this machine; tell the runner its own way, e.g. "
            "--beam_pipeline_options=direct_running_mode=multi_processing,direct_num_workers=4."
        )
    runner = None
    if args.runner:
        from tfds_builders.beam_runner import BeamRunner, flags

        runner = BeamRunner(args.runner, flags(args.beam_pipeline_options), args.beam_exchange)
        runner.check()
    return Options(
        source=args.source,
        captions=args.captions,
        up=args.up,
        class_from=args.class_from,
        jobs=args.jobs,
        max_reject_fraction=args.max_reject_fraction,
        runner=runner,
    )


def _kept(name: str, data_dir: str) -> str:
    from openshape_jax.data.build import finished_shards

    shards = finished_shards(name, data_dir)
    if shards:
        count = f"{len(shards)} finished shard{'s are' if len(shards) > 1 else ' is'}"
        return f"{count} kept in {shards[0].parent}. The same command goes on from there."
    if shards is not None:
        return "no shard was finished yet. The same command starts it again."
    return "nothing was kept of the build. The same command starts it again."
