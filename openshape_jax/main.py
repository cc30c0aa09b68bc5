"""Training, and evaluation of what was trained, from the command line.

    python -m openshape_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Any field is overridden by --config.PATH=VALUE, e.g. --config.optim.learning_rate=3e-4; FILE:smoke is a minute
on synthetic shapes. --mode=eval evaluates the run's checkpoint (--config.eval.suite=all). --mode=dryrun
--topology=v5e:16x16 compiles the step for TPUs on a machine without one: whether it fits, how fast it may be.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from absl import app, flags

from openshape_jax.overrides import split_argv

_CONFIG = flags.DEFINE_string("config", None, "FILE.py or FILE.py:variant that returns the Config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<config name>[-variant].")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "dryrun"], "dryrun: compile for --topology.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", "TPU chips of a dry run, e.g. v5e:2x4, v5p:8x8x8.")
_RESUME = flags.DEFINE_enum("resume", "auto", ["auto", "force"], "force: go on with a changed config.")


def main(argv: Sequence[str], overrides: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options are in --help.")
    if not _CONFIG.value:
        raise app.UsageError("--config is missing, e.g. --config=configs/quickstart.py")
    from pathlib import Path

    from absl import logging

    from openshape_jax import config as config_lib

    logging.set_verbosity(logging.WARNING)  # orbax reports every file it writes
    file, _, variant = _CONFIG.value.partition(":")
    workdir = _WORKDIR.value or f"runs/{Path(file).stem}" + (f"-{variant}" if variant else "")
    try:
        config = config_lib.load(_CONFIG.value, [*overrides, f"resume={_RESUME.value}"])
        if _MODE.value == "dryrun":
            from openshape_jax import dryrun

            dryrun.run(config, _TOPOLOGY.value)
            return
        from openshape_jax import runtime

        runtime.join_cluster()
        runtime.prepare(config.cpu_devices)
        from openshape_jax import evaluate, sharding, train
        from openshape_jax.data import build
        from openshape_jax.evals import summary

        names = [*(() if _MODE.value == "eval" else config.data.datasets), *config.eval.datasets]
        sharding.in_turn(lambda: build.build_synthetic(names, config.data.data_dir))
        if _MODE.value == "eval":
            evaluate.run(config, workdir)
            return
        train.run(config, workdir, shlex.join([sys.executable, "-m", "openshape_jax.main", *sys.argv[1:]]))
        if sharding.is_first_host():
            print(summary.table(workdir))
    except KeyboardInterrupt:
        print("\ninterrupted; what was saved stays. The same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from openshape_jax.errors import explain

        sys.exit(explain(error))


def entry() -> None:
    """Parses flags and runs; the function behind `python -m openshape_jax.main`."""
    rest, overrides = split_argv(sys.argv)
    app.run(lambda argv: main(argv, overrides), argv=rest)


if __name__ == "__main__":
    entry()
