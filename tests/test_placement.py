"""Exchanges of rows between eight devices against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from openshape_jax import hlo, sharding
from openshape_jax.ops import placement


def on_devices(fsdp: int, fn, x: np.ndarray):
    """(compiled, result) of fn(a device's share of x, axes), whose results are put together as rows."""
    mesh = sharding.make_mesh(fsdp)
    rows = PartitionSpec(mesh.axis_names)
    call = jax.shard_map(
        lambda own: fn(own, mesh.axis_names), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    made = jax.jit(call, in_shardings=sharding.by_row(mesh)).lower(x).compile()
    return made, np.asarray(made(x))


def parted(monkeypatch, most: int) -> None:
    """Exchanges of more devices than this take two steps, as on TPUs; of 8 and 4: groups of 2 and of 4."""
    monkeypatch.setattr(placement, "platform", lambda x: "tpu")
    for name in ("SCATTERED", "GATHERED", "NEIGHBOURS"):
        monkeypatch.setattr(placement, name, most)


@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize(("most", "steps"), [(16, [8]), (4, [2, 4]), (1, [8])])
def test_each_device_gets_its_own_rows_of_the_sum(monkeypatch, most, steps, fsdp):
    """In one step, in two, and where the devices do not part into groups."""
    parted(monkeypatch, most)
    every = np.random.default_rng(0).normal(size=(8, 24, 5)).astype(np.float32)  # of each device
    made, got = on_devices(fsdp, lambda own, axes: placement.scatter_sum(own[0], axes), every)
    np.testing.assert_allclose(got, every.sum(0), rtol=1e-5, atol=1e-5)
    sums = [op for op in hlo.operations(made.as_text()) if op.kind == "reduce-scatter"]
    # Of 24 rows of 5 numbers and what the first step has left of them.
    assert [hlo.exchanged(op) / (24 * 5 * 4) for op in sums] == [1, 1 / steps[0]][: len(steps)]


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3}}",
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "mesh['a'=2,'b'=4] {'b'}",
        "mesh['a'=8] {'a':(2)4}",
    ],
)
def test_a_scatter_is_counted_with_what_all_of_a_group_give(groups):
    line = f"  ROOT %r = f32[3,5]{{1,0}} reduce-scatter(%x), replica_groups={groups}, dimensions={{0}}"
    [op] = hlo.operations("ENTRY %main () -> f32[3,5] {\n" + line + "\n}\n")
    assert hlo.exchanged(op) == 3 * 5 * 4 * 4


@pytest.mark.parametrize("most", [16, 4])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int32, np.bool_])
def test_gathered_rows_are_what_was_sent(monkeypatch, kind, most):
    parted(monkeypatch, most)
    x = (np.random.default_rng(0).normal(size=(16, 3)) * 3).astype(kind)
    made, got = on_devices(1, lambda own, axes: placement.gather_rows(own, axes)[None], x)
    gathers = [op for op in hlo.operations(made.as_text()) if op.kind == "all-gather"]
    assert len(gathers) == (1 if most == 16 else 2)
    assert got.dtype == kind
    for seen in got:
        np.testing.assert_array_equal(seen, x)


def test_one_device_keeps_its_rows():
    x = jnp.arange(6.0).reshape(3, 2)
    assert placement.scatter_sum(x, ()) is x and placement.gather_rows(x, ()) is x
