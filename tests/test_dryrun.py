# ruff: noqa: E501
"""The dry run's report: counts from program texts, formulas, errors, and the TPU compiler where there is
one."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from openshape_jax import config as config_lib
from openshape_jax import dryrun, hlo, models, sharding, state
from openshape_jax.models import flops

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
%condition (p: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
%body (p.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.1 = (s32[], f32[8,128]) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %sum.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %y = f32[8,128]{1,0:T(8,128)} fusion(%sum.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(transformer)/add"}, backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8,128]) tuple(%i.1, %y)
}
%spread (q: f32[4,128]) -> (f32[4,128], f32[8,128]) {
  %q = f32[4,128] parameter(0)
  %g = f32[8,128] all-gather(%q), channel_id=2, dimensions={0}
  ROOT %begun = (f32[4,128], f32[8,128]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.1 (q.1: f32[4,128]) -> (f32[4,128], f32[8,128]) {
  %q.1 = f32[4,128] parameter(0)
  %g.1 = f32[8,128] all-gather(%q.1), channel_id=2, dimensions={0}
  ROOT %both = (f32[4,128], f32[8,128]) tuple(%q.1, %g.1)
}
%ends (q.2: f32[4,128]) -> f32[8,128] {
  %q.2 = f32[4,128] parameter(0)
  %g.2 = f32[8,128] all-gather(%q.2), channel_id=2, dimensions={0}
  ROOT %ended = f32[8,128] custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (in: f32[8,128], w: bf16[128,64]) -> f32[8,128] {
  %in = f32[8,128]{1,0} parameter(0)
  %w = bf16[128,64]{1,0} parameter(1)
  %dot.1 = f32[8,64]{1,0} dot(%in, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %f1 = (f32[4,128], f32[8,128]) fusion(%in), kind=kCustom, calls=%spread
  %f2 = (f32[4,128], f32[8,128]) fusion(%f1), kind=kCustom, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"5"}
  %f3 = f32[8,128] fusion(%f2), kind=kCustom, calls=%ends
  %s = f32[4,128]{1,0} reduce-scatter(%in), channel_id=1, replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  %kernel.1 = s32[64,128]{1,0} custom-call(%in), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/fps_tpu"}, backend_config={"cost_estimate":{"flops":1000}}
  %unknown = f32[640,128]{1,0} gather(%in, %kernel.1), offset_dims={1}
  %loop = (s32[], f32[8,128]) while(%in), condition=%condition, body=%body
  ROOT %out = f32[8,128] get-tuple-element(%loop), index=1
}
"""


def test_exchanges_are_counted_with_loops_and_once_where_several_fusions_share_them():
    found = hlo.collectives(PROGRAM)
    array = 8 * 128 * 4
    assert found == {
        "all-reduce": hlo.Collective(count=1, runs=12, bytes=12 * array),
        "all-gather": hlo.Collective(count=1, runs=1, bytes=array),
        "reduce-scatter": hlo.Collective(count=1, runs=1, bytes=array),
    }


def test_what_is_computed_during_an_exchange_hides_it():
    assert hlo.hidden_cycles(PROGRAM, {}) == {"g": 5}
    pair = """ENTRY %main (in: f32[8]) -> f32[8] {
  %in = f32[8] parameter(0)
  %a = (f32[8], f32[16]) all-gather-start(%in), channel_id=1
  %b = (f32[8], f32[32]) all-gather-start(%in), channel_id=1
  %c = f32[8] fusion(%in), backend_config={"estimated_cycles":"6"}
  %d = f32[16] all-gather-done(%a)
  %e = f32[8] custom-call(%c), custom_call_target="tpu_custom_call"
  %f = f32[32] all-gather-done(%b)
  ROOT %g = f32[8] fusion(%e), backend_config={"estimated_cycles":"100"}
}
"""
    assert hlo.hidden_cycles(pair, {"e": 10.0}) == {"a": 3, "b": 13}


def test_trip_counts_come_from_the_compiler_or_the_condition():
    bodies, entry = hlo.computations(PROGRAM)
    (loop,) = [line for line in bodies[entry] if " while(" in line]
    assert hlo.trips(loop, bodies) == 12
    known = loop + ', backend_config={"known_trip_count":{"n":"7"}}'
    assert hlo.trips(known, bodies) == 7


def test_cycles_are_summed_by_group_and_the_unknown_is_named():
    got = hlo.cycles(PROGRAM, {"kernel.1": 30.0}, dryrun.GROUPS)
    assert got.groups == {"rest of the transformer": 1200.0, "other": 5.0, "geometry": 30.0}
    assert got.total == 1235
    assert [name.split()[0] for name in got.missing] == ["f1", "unknown"]


def test_matrix_flops_of_dots_and_kernels():
    assert hlo.matrix_flops(PROGRAM) == 2 * 8 * 64 * 128 + 1000


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,4]{1,0}", 128),
        ("(bf16[3], pred[2,2])", 10),
        ("s32[]", 4),
        ("f8e4m3fn[16]", 16),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, expected):
    assert hlo.size(shape) == expected


def test_bundles_of_nested_loops():
    text = """
     0   :  { %a = start }
   0x1 LB: > { %p1 = scmp.ge.s32.totalorder %s1, 6 /* loop exit test */ }
   0x2   :  {} /* End region 3 */
   0x3 LB: >> { %b = vadd }
   0x4   : > { %moved = smov 0 }
   0x5   : >> { %p2 = scmp.ge.s32.totalorder %s2, 10 /* loop exit test */ }
   0x6   : > { %c = sbr }
   0x7   :  { %d = end }
"""
    assert hlo.bundles(text) == 2 + 6 * (3 + 10 * 3)


def test_kernels_take_as_long_as_their_program_or_their_memory(tmp_path):
    """Two equal kernels of which one is compiled, and one without many instructions but with much to read."""
    call = (
        '  %{name} = f32[1024]{{0}} custom-call(%a), custom_call_target="tpu_custom_call", '
        "operand_layout_constraints={{f32[{size}]{{0}}, s32[4]{{0}}}}, metadata={{}}, "
        'backend_config={{"custom_call_config":{{"body":"{body}"}}}}'
    )
    kernels = [("one.1", 1024, "AA"), ("one.2", 1024, "AA"), ("two.1", 1 << 20, "BB")]
    lines = [call.format(name=name, size=size, body=body) for name, size, body in kernels]
    text = "\n".join(["ENTRY %main (a: f32[1]) -> f32[1024] {", *lines, "}", ""])
    for number, name, bundles in ((0, "one.1", 5000), (1, "two.1", 10)):
        program = "\n".join(f"  {i:#x}   :  {{ %a = vadd }}" for i in range(bundles))
        (tmp_path / f"{number}-{name}-77-final_bundles.txt").write_text(program)
    chip = dryrun.Chip(flops=1.0, hbm=1.0, bandwidth=4e9, link=1.0, clock=2e9)
    found = dryrun.kernel_cycles(tmp_path, text, chip)
    assert found == {"one.1": 5000, "one.2": 5000, "two.1": (4096 + (4 << 20) + 16) / 2}


def test_formula_of_model_flops_against_xla():
    """XLA counts sums, norms and the search for patches too: up to 5 % more at this size. The program does
    without keys and values of the last block, which the formula has."""
    m = config_lib.ModelConfig(
        dim=512, depth=4, heads=8, mlp_dim=1024, sa_dim=256, patches=32, nsample=32, embed_dim=256
    )
    weights = jax.eval_shape(lambda: models.split(models.build(m, nnx.Rngs(0))))
    points = jax.ShapeDtypeStruct((2, 64, 3), jnp.float32)  # one chunk: a loop would be counted once
    forward = jax.jit(lambda weights, xyz, rgb: models.apply(m, *weights, xyz, rgb)[0])
    counted = forward.lower(weights, points, points).compile().cost_analysis()["flops"]
    unmade = 2 * (m.patches + 1) * 2 * m.dim * m.heads * 64
    assert 0.95 < 2 * (sum(flops.forward(m).values()) - unmade) / counted < 1


def test_formula_counts_the_patches_that_are_used():
    m = config_lib.ModelConfig()
    assert flops.training(dataclasses.replace(m, train_patches=m.patches)) == flops.training(m)
    assert flops.training(dataclasses.replace(m, train_patches=192)) < flops.training(m) / 2


@pytest.fixture(scope="module")
def tiny() -> config_lib.Config:
    model = config_lib.ModelConfig(
        dim=128, depth=2, heads=2, mlp_dim=256, sa_dim=32, patches=16, radius=0.4, nsample=8, embed_dim=64
    )
    config = config_lib.Config(batch_size=16, fsdp=4, model=model)
    config.data = dataclasses.replace(config.data, num_points=64)
    return config


@pytest.fixture(scope="module")
def compiled(tiny):
    return dryrun.compile_step(tiny, jax.devices()[:8])


def test_report_of_a_program_for_eight_cpu_devices(tiny, compiled):
    program, mesh, parameters = compiled
    report = dryrun.report(program, tiny, "v5e:2x4", mesh, parameters)
    memory = program.memory_analysis()
    shapes = jax.eval_shape(lambda: state.init(tiny))
    assert report.parameters == sum(x.size for x in jax.tree.leaves(shapes.params))
    assert (report.chips, report.mesh) == (8, {"data": 2, "fsdp": 4})
    parts = (report.arguments, report.outputs, report.temporaries, report.code, -report.aliased)
    assert report.memory == sum(parts) and report.arguments == memory.argument_size_in_bytes
    # The state is donated, and most of it split over four devices.
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    assert 0.25 * whole < report.aliased < 0.6 * whole
    assert report.collectives["all-reduce"].runs > 0 and report.collectives["all-gather"].bytes > 0
    assert report.exchange_seconds > 0
    assert report.model_flops == flops.training(tiny.model) * 2
    assert 0.5 < report.matrix_flops / report.model_flops < 2 or report.matrix_flops == 0


def test_text_of_the_report(tiny, compiled):
    program, mesh, parameters = compiled
    report = dataclasses.replace(
        dryrun.report(program, tiny, "v5e:2x4", mesh, parameters),
        cycles={"attention": 1.5e9},
        exchange_seconds=4.0,
        exposed_seconds=1.0,
    )
    assert report.seconds == 2.0 and report.shapes_per_second == 8
    assert report.utilisation == pytest.approx(report.model_flops / (2 * 197e12))
    text = report.text()
    for part in (
        "compiles: yes",
        "of 16 GiB",
        "all-reduce: ",
        "attention: 1000.0 ms",
        "exchanges: 4000.0 ms, 3000.0 of them",
        "8 shapes/s",
        "An estimate",
    ):
        assert part in text, text


def test_batch_that_does_not_divide(tiny):
    bad = dataclasses.replace(tiny, batch_size=12)
    with pytest.raises(ValueError, match="batch_size is 12 but there are 8 devices"):
        dryrun.compile_step(bad, jax.devices()[:8])


def test_nothing_but_shapes_is_made(tiny, monkeypatch):
    """The step of 171 M parameters is traced without one of them."""

    def refuse(*args, **kwargs):
        raise AssertionError("an array was made")

    monkeypatch.setattr(sharding, "put_batch", refuse)
    big = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, dim=1 << 14, mlp_dim=1 << 16))
    shapes = jax.eval_shape(lambda: state.init(big))
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) > 4e9


def test_without_libtpu_one_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(dryrun.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        dryrun.DryRunError, match=r"Python module libtpu .*pip install 'openshape_jax\[tpu-dryrun\]'"
    ):
        dryrun.prepare(str(tmp_path))
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/nowhere/libtpu.so")
    with pytest.raises(dryrun.DryRunError, match="/nowhere/libtpu.so of TPU_LIBRARY_PATH"):
        dryrun.prepare(str(tmp_path))


@pytest.mark.parametrize("name", ["", "v5e", "h100:8", "v5e:4", "v5e:4x4x4x4", "v5e:16x"])
def test_a_wrong_topology_gets_examples(name):
    with pytest.raises(dryrun.DryRunError, match="examples: v4:4x4x4, v5e:2x4"):
        dryrun.describe(name)


def test_a_step_too_large_says_so(tiny, monkeypatch):
    """The compiler's message becomes one sentence with what to change."""

    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
                "Used 18.34G of 15.75G hbm. Exceeded hbm capacity by 2.59G."
            )

    step = SimpleNamespace(lower=lambda *args: Lowered())
    monkeypatch.setattr(jax, "jit", lambda *args, **kwargs: step)
    with pytest.raises(
        dryrun.DryRunError, match="compiles: no. 2 shapes a chip .*Used 18.34G of 15.75G hbm. Use"
    ):
        dryrun.compile_step(tiny, jax.devices()[:8], "v5e:2x4")


def test_the_command_says_what_is_missing_or_compiles():
    """`--mode=dryrun` in a process of its own, from the flags on: for real where libtpu is installed."""
    shrunk = ("batch_size=16", "model.depth=1", "model.patches=16", "model.nsample=16", "data.num_points=256")
    command = [sys.executable, "-m", "openshape_jax.main", "--config=configs/pointbert_l.py", "--mode=dryrun"]
    command += ["--topology=v5e:2x4", "--config.model.dtype=bfloat16", *(f"--config.{s}" for s in shrunk)]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if importlib.util.find_spec("libtpu"):
        assert done.returncode == 0, done.stderr
        assert "compiles: yes" in done.stdout and "geometry" in done.stdout
        assert "WARNING" not in done.stderr
    else:
        assert done.returncode == 1 and "openshape_jax[tpu-dryrun]" in done.stderr
        assert "Traceback" not in done.stderr
