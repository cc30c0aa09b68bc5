"""Linear layers and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import sharding
from openshape_jax.ops import dense


def loss(layer, x, kernel, bias, wanted):
    return (layer(x, kernel, bias).astype(jnp.float32) * wanted).sum()


def plain(x, kernel, bias):
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


@pytest.mark.parametrize(
    ("rows", "parts", "features", "width", "devices"),
    [
        (2310, 3, 96, 160, 1),
        (2310, 3, 160, 96, 1),
        (1024, 2, 99, 256, 1),
        (200, 0, 96, 160, 1),
        (7, 0, 96, 160, 1),
        (2048, 0, 96, 160, 8),  # the devices' shares need not be whole parts
    ],
)
def test_gradients_are_those_of_the_definition(rows, parts, features, width, devices):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (rows, features), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (features, width)) / features**0.5
    bias, wanted = jax.random.normal(keys[2], (width,)), jax.random.normal(keys[3], (len(x), width))
    if devices > 1:
        x = jax.device_put(x, sharding.by_row(sharding.make_mesh()))
    found = []
    jax.jit(lambda x: found.append(dense._parts(x))).lower(x)
    assert found == [parts]
    slopes = jax.jit(jax.grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    got = slopes(dense.dense, x, kernel, bias, wanted)
    exact = slopes(plain, x.astype(jnp.float32), kernel, bias, wanted)
    for mine, right in zip(got, exact, strict=True):
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), right, atol=0.01 * np.abs(np.asarray(right)).max(), rtol=0
        )
    assert got[0].dtype == jnp.bfloat16
    assert got[1].dtype == got[2].dtype == jnp.float32


@pytest.mark.parametrize(
    ("rows", "dtype", "parts"),
    [
        (16 * 385, "bfloat16", 7),
        (1024, "bfloat16", 2),
        (200, "bfloat16", 0),
        (1031, "bfloat16", 0),
        (770, "float32", 0),
    ],
)
def test_parts_are_of_one_size_and_neither_small_nor_large(rows, dtype, parts):
    assert dense._parts(jnp.zeros((rows, 2), dtype)) == parts
