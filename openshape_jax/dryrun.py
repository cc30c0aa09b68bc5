"""The training step compiled for a TPU topology on a machine without one, and what the compiler says of it.

Nothing is computed: the step is lowered from shapes alone, for the devices of a description that libtpu
gives. All times are estimates (`Report.seconds`); experiments/tpu_dryrun tells how far they can be trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openshape_jax import hlo
from openshape_jax.config import Config

EXAMPLES = "v4:4x4x4, v5e:2x4, v5e:16x16, v5p:4x4x4, v5p:8x8x8, v6e:16x16"
GROUPS = {  # what an operation is for, by its name and its place in the program; the first that matches
    r"fps_tpu|ball_query_tpu|gather_tpu|\bgeometry\b": "geometry",
    r"attention_tpu|attention_grad_tpu": "attention",
    r"\btransformer\b": "rest of the transformer",
    r"\bset_abstraction\b": "set abstraction",
    r"jvp": "loss and the rest of the encoder",
}
SECONDS_PER_HOP = 1e-6  # from chip to chip, jax-ml.github.io/scaling-book, "TPU networking"


@dataclass(frozen=True)
class Chip:
    """Cloud TPU's documentation (cloud.google.com/tpu/docs/v5e and so on), its links from the scaling
    book."""

    flops: float  # bfloat16 a second
    hbm: float  # bytes
    bandwidth: float  # bytes a second, of the HBM
    link: float  # bytes a second, one link in one direction
    clock: float  # cycles a second: flops / (2 x the matrix units' multipliers), all cores; v6e: assumed


CHIPS = {  # by the kind that libtpu gives its devices
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 45e9, 1.5e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 90e9, 1.75e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1640e9, 90e9, 1.75e9),
}


class DryRunError(ValueError):
    """The topology, the batch or libtpu is not what it must be, or the step does not fit the chips."""


@dataclass(frozen=True)
class Report:
    """What is known of a compiled step; bytes, operations and times are those of one chip and one step."""

    topology: str
    kind: str  # of the chips
    chips: int
    mesh: dict[str, int]
    batch_size: int  # shapes of the global batch
    parameters: int
    arguments: int  # bytes
    outputs: int
    temporaries: int
    aliased: int  # outputs that take the place of arguments
    code: int
    memory: int  # bytes in all
    xla_flops: float  # cost_analysis(): the body of a loop once, kernels not at all
    xla_bytes: float  # likewise
    matrix_flops: float  # of all products of matrices, loops counted
    collectives: dict[str, hlo.Collective]
    exchange_seconds: float  # if nothing else happened meanwhile
    exposed_seconds: float  # of these, what no computation hides
    cycles: dict[str, float]  # by what they are for
    missing: list[str]  # operations without an estimate
    model_flops: float  # that the model needs for its shapes, forward and backward
    compile_seconds: float = 0.0

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def compute_seconds(self) -> float:
        """The compiler's cycles over the chip's clock."""
        return sum(self.cycles.values()) / self.chip.clock

    @property
    def seconds(self) -> float:
        """Of a step: its cycles, and what they do not hide of its exchanges."""
        return self.compute_seconds + self.exposed_seconds

    @property
    def shapes_per_second(self) -> float:
        """Of all chips together."""
        return self.batch_size / self.seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs over what the chip could do in that time."""
        return self.model_flops / (self.seconds * self.chip.flops)

    def text(self) -> str:
        """The report as lines for a terminal."""
        c, gib = self.chip, 2.0**30
        share = self.batch_size // self.chips
        mesh = " x ".join(f"{k} {v}" for k, v in self.mesh.items())
        memory = ", ".join(
            f"{name} {value / gib:.2f}"
            for name, value in (
                ("arguments", self.arguments), ("outputs", self.outputs), ("temporaries", self.temporaries),
                ("code", self.code), ("aliased", -self.aliased),
            )
        )  # fmt: skip
        lines = [
            f"{self.topology}: {self.chips} x {self.kind}, mesh {mesh}; {self.parameters / 1e6:.1f} M "
            f"parameters, {self.batch_size} shapes, {share} a chip",
            f"compiles: yes, in {self.compile_seconds:.0f} s",
            f"memory of a chip: {self.memory / gib:.2f} of {c.hbm / gib:.0f} GiB ({memory})",
            f"operations of a chip: {self.matrix_flops / 1e12:.2f} TFLOP in products of matrices; the model "
            f"needs {self.model_flops / 1e12:.2f} (XLA's own count, loops once: {self.xla_flops / 1e12:.2f} "
            f"TFLOP, {self.xla_bytes / 1e9:.1f} GB)",
            "exchanges of a step, size of the whole arrays:",
        ]
        lines += [
            f"  {kind}: {one.count} in the program, run {one.runs} times, {one.bytes / 1e6:.1f} MB"
            for kind, one in sorted(self.collectives.items())
        ] or ["  none"]
        total = sum(self.cycles.values()) or 1.0
        lines.append(f"time by the compiler's cycles at {c.clock / 1e9:.2f} GHz:")
        lines += [
            f"  {name}: {value / c.clock * 1e3:.1f} ms ({value / total:.0%})"
            for name, value in sorted(self.cycles.items(), key=lambda item: -item[1])
        ]
        taken, hidden = self.exchange_seconds * 1e3, (self.exchange_seconds - self.exposed_seconds) * 1e3
        lines.append(f"  exchanges: {taken:.1f} ms, {hidden:.1f} of them during computation")
        if self.missing:
            names = ", ".join(name.split()[0] for name in self.missing[:4])
            lines.append(f"  without an estimate: {len(self.missing)} operations ({names} ...)")
        lines += [
            f"step: {self.seconds * 1e3:.1f} ms, {self.shapes_per_second:,.0f} shapes/s "
            f"({self.shapes_per_second / self.chips:,.0f} a chip)",
            f"model-FLOP utilisation: {self.utilisation:.1%} of {c.flops / 1e12:.0f} TFLOP/s",
            "An estimate, not a measurement: experiments/tpu_dryrun/README.md.",
        ]
        return "\n".join(lines)


def run(config: Config, topology: str) -> None:
    """Compiles and prints the report.

    Raises:
      DryRunError: no libtpu, an unknown topology, or too much for a chip's memory. ValueError: the batch size
        does not divide over the chips.
    """
    print(compile_report(config, topology).text())


def compile_report(config: Config, topology: str) -> Report:
    """The report of the step of `config` on a topology, e.g. "v5e:16x16".

    Raises:
      as `run`.
    """
    with tempfile.TemporaryDirectory(prefix="openshape-dryrun-") as dump:
        prepare(dump)
        with _quiet():
            devices = describe(topology)
        started = time.perf_counter()
        with _quiet():
            compiled, mesh, parameters = compile_step(config, devices, topology)
        taken = time.perf_counter() - started
        kernels = kernel_cycles(Path(dump), compiled.as_text(), CHIPS[devices[0].device_kind])
        made = report(compiled, config, topology, mesh, parameters, kernels)
        return dataclasses.replace(made, compile_seconds=taken)


def prepare(dump: str) -> None:
    """Settings that must be made before libtpu loads: it looks for no TPU, and writes its kernels to `dump`.

    Raises:
      DryRunError: there is no libtpu.
    """
    path = os.environ.get("TPU_LIBRARY_PATH", "")
    if not (Path(path).is_file() if path else importlib.util.find_spec("libtpu")):
        sought = f"the file {path} of TPU_LIBRARY_PATH" if path else "the Python module libtpu"
        raise DryRunError(
            f"the dry run needs the TPU compiler: {sought} is not there. It runs on any x86-64 Linux: "
            "pip install 'openshape_jax[tpu-dryrun]'"
        )
    import jax

    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(name, value)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    flags += " --xla_jf_dump_llo_pass_label_regex=^final_bundles"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")
    # A program from the cache would not be compiled, and leave no dump.
    jax.config.update("jax_enable_compilation_cache", False)


def describe(topology: str) -> list[Any]:
    """The devices of a topology such as "v5e:2x4".

    Raises:
      DryRunError: libtpu does not know it.
    """
    from jax.experimental import topologies

    wrong = f"--topology={topology!r} is no TPU topology that libtpu knows; examples: {EXAMPLES}"
    if not re.fullmatch(r"v\d\w*:\d+(x\d+){1,2}", topology):
        raise DryRunError(f"{wrong}.")
    try:
        # The two cores of a v4 chip are one device, as on the machines themselves.
        options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # its type is not part of JAX's interface
        raise DryRunError(f"{wrong}. ({str(error).splitlines()[0][:200]})") from error
    if devices[0].device_kind not in CHIPS:
        raise DryRunError(f"{wrong}; {devices[0].device_kind} chips are not known here.")
    return list(devices)


def compile_step(config: Config, devices: list[Any], topology: str = "") -> tuple[Any, Any, int]:
    """(compiled training step, mesh, number of parameters) for `devices`, from shapes alone.

    Raises:
      DryRunError: it needs more memory than a chip has. ValueError: the batch size does not divide.
    """
    import jax

    from openshape_jax import sharding, state

    shapes = jax.eval_shape(lambda: state.init(config))
    count = sum(int(x.size) for x in jax.tree.leaves(shapes.params))
    hosts = [d.process_index for d in devices]
    mesh = sharding.make_mesh(sharding.choose_fsdp(config.fsdp, count, hosts.count(hosts[0])), devices)
    sharding.check_batch_size(config.batch_size, mesh, config.model.microbatches)
    places, rows = sharding.of_state(shapes, mesh), sharding.by_row(mesh)
    step = state.jit_train_step(config, mesh, places)

    def placed(shape: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    batch = {k: placed(v, rows) for k, v in state.batch_shapes(config).items()}
    lowered = step.lower(jax.tree.map(placed, shapes, places), batch)
    try:
        return lowered.compile(), mesh, count
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used [^.]*\.\S* of [^.]*\.\S* hbm", str(error))
        share = config.batch_size // len(devices)
        raise DryRunError(
            f"compiles: no. {share} shapes a chip do not fit {topology}: "
            f"{used[0] if used else str(error)[:300]}. Use more chips or a smaller batch_size, or "
            "model.remat=True, model.microbatches=4, fsdp=4."
        ) from error


def kernel_cycles(dump: Path, text: str, chip: Chip) -> dict[str, float]:
    """Cycles of operations that XLA has no estimate of, by name: the bundles of their programs, or what the
    chip's memory takes for their operands and results where that is longer."""
    files = {}
    for path in sorted(dump.glob("*-final_bundles.txt")):
        found = re.match(r"\d+-(.+)-\d+-final_bundles\.txt", path.name)
        if found:
            files[found[1]] = path
    unknown = [op for op in hlo.operations(text) if op.cycles is None]
    # One of several equal kernels is compiled.
    bundles = {
        hlo.kernel_program(op): hlo.bundles(files[op.name].read_text()) for op in unknown if op.name in files
    }
    return {
        op.name: max(bundles[hlo.kernel_program(op)], hlo.kernel_bytes(op) / chip.bandwidth * chip.clock)
        for op in unknown
        if hlo.kernel_program(op) in bundles
    }


def report(
    compiled: Any,
    config: Config,
    topology: str,
    mesh: Any,
    parameters: int,
    kernels: dict[str, float] | None = None,
) -> Report:
    """The report of a compiled step; a chip of unknown kind counts as a v5e, for tests on CPUs."""
    from openshape_jax.models import flops

    text, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis() or {}
    kind = mesh.devices.flat[0].device_kind
    kind = kind if kind in CHIPS else "TPU v5 lite"
    sides = [int(n) for n in re.findall(r"\d+", topology.partition(":")[2])] or [mesh.size]
    estimate = hlo.cycles(text, kernels or {}, GROUPS)
    exchanges = exchange_seconds(text, CHIPS[kind], sides)
    hidden = {name: c / CHIPS[kind].clock for name, c in hlo.hidden_cycles(text, kernels or {}).items()}
    total = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    return Report(
        topology=topology,
        kind=kind,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        parameters=parameters,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        memory=total,
        xla_flops=cost.get("flops", 0.0),
        xla_bytes=cost.get("bytes accessed", 0.0),
        matrix_flops=hlo.matrix_flops(text),
        collectives=hlo.collectives(text),
        exchange_seconds=sum(exchanges.values()),
        exposed_seconds=sum(max(0.0, taken - hidden.get(name, 0.0)) for name, taken in exchanges.items()),
        cycles=estimate.groups,
        missing=estimate.missing,
        model_flops=flops.training(config.model) * config.batch_size / mesh.size,
    )


def exchange_seconds(text: str, chip: Chip, sides: list[int]) -> dict[str, float]:
    """Seconds of each exchange of a step, by name, on a ring of all chips in both directions.

    Each moves its array once (all-reduce: twice) past every chip and waits for the hops across the torus.
    """
    phases = {
        "all-reduce": 2,
        "all-gather": 1,
        "reduce-scatter": 1,
        "all-to-all": 0.25,
        "collective-permute": 1,
    }
    hops = sum(sides) / 2
    taken: dict[str, float] = {}
    for op in hlo.unique_exchanges(text):
        one = phases[op.kind] * (hlo.exchanged(op) / (2 * chip.link) + hops * SECONDS_PER_HOP)
        taken[op.name] = taken.get(op.name, 0.0) + op.times * one
    return taken


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """libtpu writes to the process's standard error that it finds no TPU: nothing goes there meanwhile."""
    if os.environ.get("OPENSHAPE_DEBUG"):
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
