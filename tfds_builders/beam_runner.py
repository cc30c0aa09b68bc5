"""Building the shards of a data set on Apache Beam: here, on Dataflow, Spark or Flink.

The pipeline is `Create(plans) | Reshuffle() | Map(write)`. Nothing but names of files travels through it: a
shard's plan and what became of it lie in a folder that all workers reach, the data set's own or a bucket's.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openshape_jax.data import files
from tfds_builders.sharded import Shard, Written, write_shard

POLL_SECONDS = 2.0
GRACE_SECONDS = 90.0  # a shared folder may show other machines' files so late (NFS: up to 60 s)


def flags(options: Sequence[str]) -> tuple[str, ...]:
    """("--k=v", ...) of "k=v,k=v" strings, TFDS's way of giving pipeline options.

    A string that starts with "--" is one flag, commas and all.
    """
    given: list[str] = []
    for text in options:
        if text.startswith("--"):
            given.append(text)
        else:
            given += [f"--{part.strip()}" for part in text.split(",") if part.strip()]
    return tuple(given)


class BeamRunner(NamedTuple):
    """A `runner` for ShardedBuilder.

    Attributes:
      runner: Beam's name of it, "DirectRunner", "DataflowRunner", "SparkRunner", "FlinkRunner", ...
      options: its pipeline options, ("--project=P", ...).
      exchange: where workers do not share the data set's folder: a folder's URL ("gs://bucket/tmp", or what
        else Beam's file systems reach) through which plans and shards travel; emptied at the end.
    """

    runner: str
    options: tuple[str, ...] = ()
    exchange: str = ""

    def check(self) -> None:
        """Returns if Beam is there.

        Raises:
          ValueError: it is not installed.
        """
        _beam(self.runner, self.options)

    def __call__(self, shards: Sequence[Shard]) -> Iterator[tuple[str, Written]]:
        """(name, what was written) of every shard, as the files say it that the workers left.

        Raises:
          ValueError: Beam is not installed, or does not know the runner or lacks an option of it.
          OSError: the pipeline failed, or its workers wrote elsewhere; finished shards are kept.
        """
        if not shards:
            return
        beam, options = _beam(self.runner, self.options)
        here = Path(shards[0].folder)
        # Named by its plan: a folder there may hold the shards of an earlier try, but of no other plan.
        url = f"{self.exchange.rstrip('/')}/{_plan_name(here)}" if self.exchange else ""
        look = _Exchange(url) if url else _shared
        plans = [_put_plan(shard, url) for shard in shards]
        left = {shard.name: shard for shard in shards}
        result, how, cause = None, "", None
        try:
            pipeline = beam.Pipeline(options=options)
            _ = (
                pipeline
                | "Plans" >> beam.Create(plans, reshuffle=False)
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.Map(write_to_exchange if url else write_planned)
            )
            result = pipeline.run()
            yield from _watch(result, left, look)
            how = f"ended {result.state}"
        except ValueError:  # of the options
            raise
        except Exception as error:  # runners raise what they like, the workers' tracebacks in the text
            how, cause = f"failed ({_last_line(error)})", error
            yield from _finished(left, look)
        finally:
            _cancel(result)
            if not url:
                for plan in plans:
                    Path(plan).unlink(missing_ok=True)
        if left:
            done = f"{len(shards) - len(left)} of {len(shards)} shards are done and kept in {here}"
            raise OSError(
                f"the Beam pipeline {how}; {done}. The same command goes on from there; the runner's log "
                "says more. If it ended well, its workers do not share that folder with this machine: give a "
                "--data_dir that all of them mount at the same path, or --beam_exchange URL."
            ) from cause
        if isinstance(look, _Exchange):
            look.clear()


def write_planned(plan: str) -> str:
    """Writes the shard of a plan file beside it, unless an earlier attempt did; its name."""
    shard: Shard = pickle.loads(Path(plan).read_bytes())  # written by `_put_plan`, no stranger's file
    if not Path(shard.folder, f"{shard.name}.json").is_file():
        write_shard(shard)
    return shard.name


def write_to_exchange(plan: str) -> str:
    """Writes the shard of a plan file here and copies it beside the plan, unless it is there; its name."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(plan) as file:
        shard: Shard = pickle.loads(file.read())
    url = plan.rpartition("/")[0]
    if FileSystems.exists(f"{url}/{shard.name}.json"):
        return shard.name
    with tempfile.TemporaryDirectory() as local:
        write_shard(shard._replace(folder=local))
        for suffix in ("array_record", "json"):  # the sidecar last: it says that the shard is complete
            path = Path(local, f"{shard.name}.{suffix}")
            with path.open("rb") as source, FileSystems.create(f"{url}/{path.name}") as target:
                shutil.copyfileobj(source, target, 1 << 22)
    return shard.name


def _beam(runner: str, flags: Sequence[str]) -> tuple[Any, Any]:
    """(Beam, its options)."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--runner {runner} needs Apache Beam ({error}): pip install 'openshape_jax[beam]', or leave "
            "--runner out and use --jobs."
        ) from error
    # Beam's DirectRunner fetches a program from the network and takes this one where it cannot.
    name = "FnApiRunner" if runner.lower() in ("direct", "directrunner") else runner
    return beam, PipelineOptions([f"--runner={name}", *flags])


def _plan_name(folder: Path) -> str:
    return (folder / "plan.txt").read_text()[:32]  # written by ShardedBuilder


def _put_plan(shard: Shard, url: str) -> str:
    """The path of a file with all that a worker needs to write the shard.

    In the pipeline itself the items of a big data set would pass Dataflow's limit of 10 MB for a job.
    """
    data = pickle.dumps(shard)
    if not url:
        path = Path(shard.folder, f"{shard.name}.plan")
        path.write_bytes(data)
        return str(path)
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.create(f"{url}/{shard.name}.plan") as file:
        file.write(data)
    return f"{url}/{shard.name}.plan"


# ---------------------------------------------------------------- waiting

# {name: shard} of those that are missing -> names of those of them whose files lie in their folder by now
Look = Callable[[dict[str, Shard]], list[str]]


def _shared(left: dict[str, Shard]) -> list[str]:
    return [name for name, shard in left.items() if Path(shard.folder, f"{name}.json").is_file()]


class _Exchange:
    """Fetches shards from a folder with a URL."""

    def __init__(self, url: str):
        self._url = url

    def __call__(self, left: dict[str, Shard]) -> list[str]:
        names = [name for name in self._names("*.json") if name.removesuffix(".json") in left]
        for name in names:
            shard = left[name.removesuffix(".json")]
            self._fetch(f"{shard.name}.array_record", shard.folder)
            self._fetch(f"{shard.name}.json", shard.folder)
        return [name.removesuffix(".json") for name in names]

    def _names(self, pattern: str) -> list[str]:
        from apache_beam.io.filesystems import FileSystems

        found = FileSystems.match([f"{self._url}/{pattern}"])[0].metadata_list
        return [entry.path.replace("\\", "/").rpartition("/")[2] for entry in found]

    def _fetch(self, name: str, folder: str) -> None:
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.open(f"{self._url}/{name}") as source, files.new_file(Path(folder, name)) as target:
            shutil.copyfileobj(source, target, 1 << 22)

    def clear(self) -> None:
        """Deletes the files there."""
        from apache_beam.io.filesystems import FileSystems

        FileSystems.delete([f"{self._url}/{name}" for name in self._names("*")])


def _watch(result: Any, left: dict[str, Shard], look: Look) -> Iterator[tuple[str, Written]]:
    """The shards as they appear, until all are there or the pipeline has ended."""
    from apache_beam.runners.runner import PipelineState

    while left and not PipelineState.is_terminal(result.state):
        yield from _finished(left, look)
        time.sleep(POLL_SECONDS)
    state = result.wait_until_finish()  # raises if it failed
    end = time.monotonic() + GRACE_SECONDS
    yield from _finished(left, look)
    while left and state == PipelineState.DONE and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        yield from _finished(left, look)


def _finished(left: dict[str, Shard], look: Look) -> Iterator[tuple[str, Written]]:
    """The shards that are done by now; takes them out of `left`."""
    for name in look(left):
        sidecar = Path(left.pop(name).folder, f"{name}.json")
        yield name, Written.read(sidecar)


def _cancel(result: Any) -> None:
    """Stops a pipeline that still runs: after an interruption nobody waits for it."""
    with contextlib.suppress(Exception):
        from apache_beam.runners.runner import PipelineState

        if result is not None and not PipelineState.is_terminal(result.state):
            result.cancel()


def _last_line(error: Exception) -> str:
    """What happened, from the end of a worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "Error: " in line or "Exception: " in line] or lines
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
