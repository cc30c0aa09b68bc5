"""Layer norm in float32 on a CPU, whose gradients are written out, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import norm


def draw(shape):
    rng = np.random.default_rng(0)
    x, branch, g, beside = (jnp.asarray(2 + rng.normal(size=shape), jnp.float32) for _ in range(4))
    return x, branch, *(jnp.asarray(rng.normal(size=shape[-1]), jnp.float32) for _ in range(3)), g, beside


def by_definition(x, branch, scale, shift, bias):
    total = x + branch + bias
    centred = total - total.mean(-1, keepdims=True)
    return total, centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + shift


@pytest.mark.parametrize(
    ("shape", "devices"), [((1, 8), 1), ((48, 64), 1), ((48, 64), 8), ((3, 5, 32), 1), ((6, 5, 32), 2)]
)
def test_gradients_are_those_of_the_definition(shape, devices):
    *arguments, g, beside = draw(shape)
    wanted, pull = jax.vjp(by_definition, *arguments)
    slopes = pull((beside, g))
    rows = sharding.by_row(sharding.make_mesh(devices=jax.devices()[:devices]))
    arguments[:2] = jax.device_put(arguments[:2], rows)
    got, mine = jax.jit(_with_gradients)(arguments, (beside, g))
    for a, b in zip((*got, *mine), (*wanted, *slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def _with_gradients(arguments, slopes):
    out, pull = jax.vjp(norm.add_norm, *arguments)
    return out, pull(slopes)


def test_many_at_once():
    x, _, scale, shift, _, g, _ = draw((4, 6, 32))

    def slope(x, g):
        return jax.vjp(lambda x: norm.layer_norm(x, scale, shift), x)[1](g)[0]

    alone = [slope(*one) for one in zip(x, g, strict=True)]
    np.testing.assert_allclose(jax.vmap(slope)(x, g), alone, rtol=1e-5, atol=1e-6)
