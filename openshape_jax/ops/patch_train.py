"""Set abstraction's MLP in training: its BatchNorms take the batch's own moments.

y1 = x W1, h1 = relu(n1(y1)), y2 = h1 W2, h2 = relu(n2(y2)), y3 = h2 W3, out = relu(max n3(y3)) over
a patch, n(y) = s (y - mean) / sqrt(var + eps) + b over all rows. Left to automatic differentiation every
layer passes through memory a dozen times, and on CPUs that is the time of a training step. Here chunks that
fit the caches go through as few passes as the moments allow, two forward and two backward, and of all rows
only y2 and the gradient of n2(y2) are kept:

- The moments of y1 are those of x turned: mean W, diag(W' C W).
- The last norm and relu grow with |s|, so they follow the maximum (of y3 times the sign of s), whose first
  index is kept: then they cost S rows, not S x K.
- What the moments of a layer add to its gradient is a + b y with vectors a and b; of y3 = h2 W3 that is a
  product of h2 with W3 diag(b) W3', so y3 need not be made again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.placement import split_rows

EPS = 1e-5


class Layer(NamedTuple):
    """A linear map without bias (one in front of a norm cancels) and the norm behind it."""

    kernel: Float[Array, "F G"]
    scale: Float[Array, " G"]
    bias: Float[Array, " G"]


class Norm(NamedTuple):
    """A layer's moments, and its norm as y gain + shift."""

    mean: Float[Array, " G"]
    var: Float[Array, " G"]
    rate: Float[Array, " G"]  # 1 / sqrt(var + eps)
    gain: Float[Array, " G"]
    shift: Float[Array, " G"]


@jax.custom_vjp
def patch_training(
    x: Float[Array, "G shares K R F"], layers: list[Layer]
) -> tuple[Float[Array, "G shares R C"], list[tuple[Array, Array]]]:
    """(features of each patch, (mean, var) of each layer's y over all rows, var biased).

    No gradient flows to x, nor from the moments that are returned.

    Args:
      x: G chunks of rows, each split over the devices' shares and by member K of R patches; products are
        made in its type, sums and norms in float32.
    """
    return _forward(x, layers)[0]


def _forward(x: Array, layers: list[Layer]) -> tuple[Any, Any]:
    one, two, three = layers
    mean, cov = _moments_of_inputs(x)
    norm1 = _norm(mean @ one.kernel, (one.kernel * (cov @ one.kernel)).sum(0), one)

    def second(x: Array) -> tuple[Array, ...]:
        y = _dense(jax.nn.relu(_first(x, one, norm1)), two.kernel, x.dtype)
        return y.astype(x.dtype), *_share_moments(y)

    y2, *found = jax.lax.map(second, x)
    norm2 = _norm(*_together(*found), two)
    sign = jnp.where(three.scale < 0, -1.0, 1.0)

    def third(y2: Array) -> tuple[Array, ...]:
        y = _dense(jax.nn.relu(y2 * norm2.gain + norm2.shift), three.kernel * sign, y2.dtype)
        top = y.max(1)
        member = jnp.arange(y.shape[1])[:, None, None]
        return top, jnp.where(y == top[:, None], member, y.shape[1]).min(1), *_share_moments(y)

    top, index, *found = jax.lax.map(third, y2)
    norm3 = _norm(*_together(*found), Layer(three.kernel, jnp.abs(three.scale), three.bias))
    out = jax.nn.relu(top * norm3.gain + norm3.shift).astype(x.dtype)
    moments = [(n.mean, n.var) for n in (norm1, norm2, norm3._replace(mean=norm3.mean * sign))]
    return (out, moments), (x, y2, top, index, (mean, cov), (norm1, norm2, norm3), layers)


def _backward(kept: tuple[Any, ...], slopes: tuple[Array, Any]) -> tuple[Any, Any]:
    x, y2, top, index, (mean, cov), (norm1, norm2, norm3), (one, two, three) = kept
    rows = x.size // x.shape[-1]
    sign = jnp.where(three.scale < 0, -1.0, 1.0)
    kernel3 = three.kernel * sign

    slope = jnp.where(top * norm3.gain + norm3.shift > 0, slopes[0].astype(jnp.float32), 0)
    bias3 = slope.sum((0, 1, 2))
    scale3 = (slope * (top - norm3.mean) * norm3.rate).sum((0, 1, 2))
    a3, b3 = _from_moments(norm3, scale3, bias3, rows)
    mixed, constant = (kernel3 * b3) @ kernel3.T, kernel3 @ a3

    def third(chunk: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        y2, slope, index = chunk
        n2 = y2 * norm2.gain + norm2.shift
        h2 = jax.nn.relu(n2)
        member = jnp.arange(y2.shape[1])[:, None, None]
        d3 = jnp.where(member == index[:, None], slope[:, None], 0)
        d_h2 = _dense(d3, kernel3.T, x.dtype) + _dense(h2, mixed, x.dtype) + constant
        d_n2 = jnp.where(n2 > 0, d_h2, 0)
        centred = (y2 - norm2.mean) * norm2.rate
        sums = (h2.sum((1, 2)), d_n2.sum((1, 2)), (d_n2 * centred).sum((1, 2)))
        return d_n2.astype(x.dtype), _outer(h2, jnp.concatenate([d3, h2], -1), x.dtype), *sums

    d_n2, *shares = jax.lax.map(third, (y2, slope * norm3.gain, index))
    outer, total, bias2, scale2 = (share.sum((0, 1)) for share in shares)
    outer, gram = jnp.split(outer, [kernel3.shape[1]], 1)
    d_kernel3 = (outer + gram @ kernel3 * b3 + total[:, None] * a3) * sign
    a2, b2 = _from_moments(norm2, scale2, bias2, rows)

    def second(chunk: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        x, y2, d_n2 = chunk
        n1 = _first(x, one, norm1)
        d_y2 = d_n2 * norm2.gain + y2 * b2 + a2
        d_n1 = jnp.where(n1 > 0, _dense(d_y2, two.kernel.T, x.dtype), 0)
        return _outer(jax.nn.relu(n1), d_y2, x.dtype), _outer(x, d_n1, x.dtype), d_n1.sum((1, 2))

    d_kernel2, outer, bias1 = (share.sum((0, 1)) for share in jax.lax.map(second, (x, y2, d_n2)))
    about_mean = outer - mean[:, None] * bias1  # sum over rows of (x - mean) times the slope
    scale1 = norm1.rate * (one.kernel * about_mean).sum(0)
    d_kernel1 = norm1.gain * (about_mean - norm1.rate * scale1 * (cov @ one.kernel))
    slopes1 = Layer(d_kernel1, scale1, bias1)
    slopes2 = Layer(d_kernel2, scale2, bias2)
    return jnp.zeros_like(x), [slopes1, slopes2, Layer(d_kernel3, scale3 * sign, bias3)]


patch_training.defvjp(_forward, _backward)


def _norm(mean: Array, var: Array, layer: Layer) -> Norm:
    var = jnp.maximum(var, 0)
    rate = jax.lax.rsqrt(var + EPS)
    return Norm(mean, var, rate, layer.scale * rate, layer.bias - mean * layer.scale * rate)


def _from_moments(norm: Norm, scale: Array, bias: Array, rows: int) -> tuple[Array, Array]:
    """(a, b) of the gradient a + b y that a norm's own moments add, from those of its scale and bias."""
    b = -norm.gain * norm.rate * scale / rows
    return -norm.gain * bias / rows - b * norm.mean, b


def _first(x: Array, layer: Layer, norm: Norm) -> Array:
    return _dense(x, layer.kernel * norm.gain, x.dtype) + norm.shift


def _dense(x: Float[Array, "... F"], kernel: Float[Array, "F G"], dtype: Any) -> Float[Array, "... G"]:
    """x W in float32, of factors in `dtype`."""
    flat = split_rows(x).reshape(-1, x.shape[-1]).astype(dtype)
    y = jnp.matmul(flat, kernel.astype(dtype), preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _outer(x: Float[Array, "D K R F"], y: Float[Array, "D K R G"], dtype: Any) -> Float[Array, "D F G"]:
    """The sums over the rows of each share of x' y."""
    left, right = (split_rows(t).reshape(len(t), -1, t.shape[-1]).astype(dtype) for t in (x, y))
    return jnp.einsum("dnf,dng->dfg", left, right, preferred_element_type=jnp.float32)


def _share_moments(y: Float[Array, "D K R G"]) -> tuple[Array, Array]:
    """(mean, mean square about it) of each share's rows, (D, G)."""
    mean = y.mean((1, 2))
    return mean, jnp.square(y - mean[:, None, None]).mean((1, 2))


def _together(mean: Float[Array, "G D C"], var: Float[Array, "G D C"]) -> tuple[Array, Array]:
    """(mean, var) over all rows, of shares of equal size."""
    whole = mean.mean((0, 1))
    return whole, (var + jnp.square(mean - whole)).mean((0, 1))


def _moments_of_inputs(x: Float[Array, "G D K R F"]) -> tuple[Float[Array, " F"], Float[Array, "F F"]]:
    """(mean, covariance) of all rows."""
    rows = x.size // x.shape[-1]
    mean = x.astype(jnp.float32).sum((0, 2, 3)).sum(0) / rows

    def share(chunk: Array) -> Array:
        about = chunk.astype(jnp.float32) - mean
        return _outer(about, about, jnp.float32)

    return mean, jax.lax.map(share, x).sum((0, 1)) / rows
