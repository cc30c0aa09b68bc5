"""Layer norm in float32 on a CPU, whose gradients are written out, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import runtime, sharding
from openshape_jax.ops import norm


def draw(shape):
    """Arguments of `add_norm`; the first row is constant and the last far from 0."""
    rng = np.random.default_rng(0)
    x, branch = (rng.normal(size=shape) for _ in range(2))
    x[0], branch[0] = 3, -1
    x[-1] += 30
    vectors = [rng.normal(size=shape[-1]) for _ in range(3)]
    return [jnp.asarray(a, jnp.float32) for a in (x, branch, *vectors)]


def by_definition(x, branch, scale, shift, bias):
    total = x + branch + bias
    centred = total - total.mean(-1, keepdims=True)
    return total, centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + shift


def slopes_of(shape):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))


def with_gradients(arguments, slopes):
    out, pull = jax.vjp(norm.add_norm, *arguments)
    return out, pull(slopes)


def assert_near(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "devices"), [((2, 8), 1), ((48, 64), 1), ((48, 64), 8), ((3, 5, 32), 1), ((6, 5, 32), 2)]
)
def test_gradients_are_those_of_the_definition(shape, devices):
    arguments, slopes = draw(shape), slopes_of(shape)
    wanted, pull = jax.vjp(by_definition, *arguments)
    rows = sharding.by_row(sharding.make_mesh(devices=jax.devices()[:devices]))
    arguments[:2] = jax.device_put(arguments[:2], rows)
    run = runtime.jit_of_model("float32")(with_gradients)
    assert_near(run(arguments, slopes), (wanted, pull(slopes)))


def test_gradients_within_shard_map_are_summed_over_devices():
    x, _, scale, shift, _ = draw((6, 32))
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    rows, all_ = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
    run = jax.shard_map(norm.layer_norm, mesh=mesh, in_specs=(rows, all_, all_), out_specs=rows)

    def slopes(run):
        return jax.jit(jax.grad(lambda *arguments: jnp.sin(run(*arguments)).sum(), (0, 1, 2)))

    assert_near(slopes(run)(x, scale, shift), slopes(norm.layer_norm)(x, scale, shift))


def test_many_at_once():
    x, _, scale, shift, _ = draw((4, 6, 32))
    g, _ = slopes_of(x.shape)

    def slopes(x, g):
        return jax.vjp(norm.layer_norm, x, scale, shift)[1](g)

    alone = [slopes(*one) for one in zip(x, g, strict=True)]
    assert_near(jax.vmap(slopes)(x, g), jax.tree.map(lambda *parts: jnp.stack(parts), *alone))
