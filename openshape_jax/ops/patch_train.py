"""Set abstraction's MLP in training: its BatchNorms take the batch's own moments.

y1 = x W1, h1 = relu(n1(y1)), y2 = h1 W2, h2 = relu(n2(y2)), y3 = h2 W3, out = relu(max n3(y3)) over
a patch, n(y) = s (y - mean) / sqrt(var + eps) + b over all rows. Left to automatic differentiation every
layer passes through memory a dozen times, and on CPUs that is the time of a training step. Here all rows go
through as few passes as the moments allow, two forward and two backward, and what lies between the passes is
written out below. A pass is in plain XLA (`patch_passes`) or a kernel (`patch_tpu`, `patch_gpu`):

- The moments of y1 are those of x turned: mean W, diag(W' C W).
- The last norm and relu grow with |s|, so they follow the maximum (of y3 times the sign of s), whose first
  index is kept: then they cost S rows, not S x K.
- What the moments of a layer add to its gradient is a + b y with vectors a and b; of y3 = h2 W3 that is a
  product of h2 with W3 diag(b) W3', so y3 need not be made again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.norm import EPS
from openshape_jax.ops.patch_passes import Hidden, Norm, Passes, chunked


class Layer(NamedTuple):
    """A linear map without bias (one in front of a norm cancels) and the norm behind it."""

    kernel: Float[Array, "F G"]
    scale: Float[Array, " G"]
    bias: Float[Array, " G"]


def patch_training(
    x: Float[Array, ...], layers: list[Layer], passes: Passes = chunked
) -> tuple[Float[Array, "... C"], list[tuple[Array, Array]]]:
    """(features of each patch, (mean, var) of each layer's y over all rows, var biased).

    No gradient flows to x, nor from the moments that are returned.

    Args:
      x: the rows as `passes` takes them; products are made in its type, sums and norms in float32. Of
        `chunked`: (G, shares, K, R, F), G chunks, each split over the devices' shares and by member K of R
        patches; of `patch_gpu.passes`: (n, K, 16), by patch; of `patch_tpu.passes`: tiles of eight patches.
        Features (G, shares, R, C), (n, C) or (n, 8, C).
    """
    done: Any = _training(passes, x, layers)
    return done


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _training(passes: Passes, x: Array, layers: list[Layer]) -> Any:
    return _forward(passes, x, layers)[0]


def _forward(passes: Passes, x: Array, layers: list[Layer]) -> tuple[Any, Any]:
    one, two, three = layers
    mean, cov = passes.inputs(x)
    features = len(one.kernel)  # rows may have more, zeros
    mean, cov = mean[:features], cov[:features, :features]
    norm1 = _norm(_dot(mean, one.kernel), (one.kernel * _dot(cov, one.kernel)).sum(0), one)
    hidden = Hidden(one.kernel * norm1.gain, norm1.shift, one.bias, two.kernel, None)
    y2, mean2, var2 = passes.second(x, hidden)
    norm2 = _norm(mean2, var2, two)
    hidden = hidden._replace(norm2=norm2)
    sign = jnp.where(three.scale < 0, -1.0, 1.0)
    top, index, mean3, var3 = passes.third(x, y2, hidden, three.kernel * sign)
    norm3 = _norm(mean3, var3, Layer(three.kernel, jnp.abs(three.scale), three.bias))
    out = jax.nn.relu(top * norm3.gain + norm3.shift).astype(x.dtype)
    moments = [(n.mean, n.var) for n in (norm1, norm2, norm3._replace(mean=norm3.mean * sign))]
    return (out, moments), (x, y2, top, index, (mean, cov), (norm1, norm3), hidden, layers)


def _backward(passes: Passes, kept: tuple[Any, ...], slopes: tuple[Array, Any]) -> tuple[Any, Any]:
    x, y2, top, index, (mean, cov), (norm1, norm3), hidden, (one, _, three) = kept
    norm2 = hidden.norm2
    rows, patches = passes.count(x), tuple(range(top.ndim - 1))
    sign = jnp.where(three.scale < 0, -1.0, 1.0)
    kernel3 = three.kernel * sign

    slope = jnp.where(top * norm3.gain + norm3.shift > 0, slopes[0].astype(jnp.float32), 0)
    bias3 = slope.sum(patches)
    scale3 = (slope * (top - norm3.mean) * norm3.rate).sum(patches)
    a3, b3 = _from_moments(norm3, scale3, bias3, rows)
    mixed, constant = _dot(kernel3 * b3, kernel3.T), _dot(kernel3, a3)
    slope3 = slope * norm3.gain

    d_n2, outer, gram, total, bias2, scale2 = passes.third_back(
        x, y2, hidden, kernel3, slope3, index, mixed, constant
    )
    d_kernel3 = (outer + _dot(gram, kernel3) * b3 + total[:, None] * a3) * sign
    a2, b2 = _from_moments(norm2, scale2, bias2, rows)

    d_kernel2, outer, bias1 = passes.second_back(x, y2, d_n2, hidden, a2, b2)
    outer = outer[: len(one.kernel)]
    about_mean = outer - mean[:, None] * bias1  # sum over rows of (x - mean) times the slope
    scale1 = norm1.rate * (one.kernel * about_mean).sum(0)
    d_kernel1 = norm1.gain * (about_mean - norm1.rate * scale1 * _dot(cov, one.kernel))
    slopes1 = Layer(d_kernel1, scale1, bias1)
    slopes2 = Layer(d_kernel2, scale2, bias2)
    return jnp.zeros_like(x), [slopes1, slopes2, Layer(d_kernel3, scale3 * sign, bias3)]


_training.defvjp(_forward, _backward)


def _dot(a: Array, b: Array) -> Array:
    """Of moments and weights: few numbers, of which differences are taken."""
    return jnp.matmul(a, b, precision="highest")


def _norm(mean: Array, var: Array, layer: Layer) -> Norm:
    var = jnp.maximum(var, 0)
    rate = jax.lax.rsqrt(var + EPS)
    return Norm(mean, var, rate, layer.scale * rate, layer.bias - mean * layer.scale * rate)


def _from_moments(norm: Norm, scale: Array, bias: Array, rows: int) -> tuple[Array, Array]:
    """(a, b) of the gradient a + b y that a norm's own moments add, from those of its scale and bias."""
    b = -norm.gain * norm.rate * scale / rows
    return -norm.gain * bias / rows - b * norm.mean, b
