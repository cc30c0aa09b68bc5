"""The passes over all rows that `patch_train` makes, in plain XLA: chunks that fit the caches, one by one.

y2 and the gradient of n2(y2) are kept from one pass to the next, of all rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from openshape_jax.ops.placement import batch_axes, split_rows

# Most grouped points that pass the layers together; on a CPU as many as fit its caches.
CHUNK_ROWS, CPU_CHUNK_ROWS = 1 << 18, 1 << 11


class Norm(NamedTuple):
    """A layer's moments, and its norm as y gain + shift."""

    mean: Float[Array, " G"]
    var: Float[Array, " G"]
    rate: Float[Array, " G"]  # 1 / sqrt(var + eps)
    gain: Float[Array, " G"]
    shift: Float[Array, " G"]


class Hidden(NamedTuple):
    """Both hidden layers: n1 = x kernel1 + shift1, y2 = relu(n1) kernel2, n2 = its norm, once it is known."""

    kernel1: Float[Array, "F H"]
    shift1: Float[Array, " H"]
    bias1: Float[Array, " H"]  # the mean of n1
    kernel2: Float[Array, "H H"]
    norm2: Norm | None


class Passes(NamedTuple):
    """Functions of all rows; products in x's type, moments, sums and slopes in float32.

    count: x -> how many rows it has.
    inputs: x -> mean (F,) and covariance (F, F).
    second: x, hidden -> y2 or what serves in its place, its mean and var.
    third: x, y2, hidden, kernel3 -> maxima of y3 = h2 kernel3 over each patch, the first members that have
      them, the mean and var of y3.
    third_back: x, y2, hidden, kernel3, slope and index of the maxima, mixed, constant -> the gradient of n2,
      d_n2 = d3 kernel3' + h2 mixed + constant where n2 > 0, else 0, and the sums h2' d3, h2' h2, of h2, of
      d_n2, and of d_n2 times the normed y2; d3 is the slope where a member has the index, else 0.
    second_back: x, y2, d_n2, hidden, a2, b2 -> with d_y2 = d_n2 gain + y2 b2 + a2, the sums h1' d_y2 and
      x' d_n1, and of d_n1.
    """

    count: Callable[[Array], int]
    inputs: Callable[..., tuple[Array, Array]]
    second: Callable[..., tuple[Any, Array, Array]]
    third: Callable[..., tuple[Array, Array, Array, Array]]
    third_back: Callable[..., tuple[Array, ...]]
    second_back: Callable[..., tuple[Array, ...]]


def of_kernels(count: Callable[[Array], int], *forms: Callable[..., Any]) -> tuple[Passes, Passes]:
    """(compiled, interpreted) passes of forms that take `interpret`; to be made once, as a form is part of a
    program's key."""
    compiled, interpreted = ([functools.partial(f, interpret=i) for f in forms] for i in (False, True))
    return Passes(count, *compiled), Passes(count, *interpreted)


def chunk(grouped: Float[Array, "B S K F"], where: str) -> Float[Array, "G shares K R F"]:
    """The groups in G chunks of centres, the fewest in which no device has more than CHUNK_ROWS points.

    A chunk has an axis of devices' shares, then the members: a sum or maximum over them adds whole arrays.
    """
    b, s, k, f = grouped.shape
    devices = batch_axes(grouped)[2]
    shares = devices if b % devices == 0 else 1
    limit = CPU_CHUNK_ROWS if where == "cpu" else CHUNK_ROWS
    count = next(g for g in range(1, s + 1) if s % g == 0 and (b * s * k // (g * shares) <= limit or g == s))
    parts = grouped.reshape(shares, b // shares, count, s // count, k, f).transpose(2, 0, 4, 1, 3, 5)
    return split_rows(parts.reshape(count, shares, k, -1, f), 1)


def unchunk(patch: Float[Array, "G shares R C"], shape: tuple[int, ...]) -> Float[Array, "B S C"]:
    """Features of the patches of `chunk`'s chunks, in the order of the centres, which have this shape."""
    count, shares = patch.shape[:2]
    b, s, _ = shape
    parts = patch.reshape(count, shares, b // shares, s // count, -1).transpose(1, 2, 0, 3, 4)
    return parts.reshape(b, s, -1)


def count(x: Float[Array, "... F"]) -> int:
    return x.size // x.shape[-1]


def _inputs(x: Float[Array, "G D K R F"]) -> tuple[Float[Array, " F"], Float[Array, "F F"]]:
    rows = count(x)
    mean = x.astype(jnp.float32).sum((0, 2, 3)).sum(0) / rows

    def share(chunk: Array) -> Array:
        about = chunk.astype(jnp.float32) - mean
        return _outer(about, about, jnp.float32)

    return mean, jax.lax.map(share, x).sum((0, 1)) / rows


def _second(x: Array, hidden: Hidden) -> tuple[Array, Array, Array]:
    def step(x: Array) -> tuple[Array, ...]:
        y = _dense(jax.nn.relu(_first(x, hidden)), hidden.kernel2, x.dtype)
        return y.astype(x.dtype), *_share_moments(y)

    y2, *found = jax.lax.map(step, x)
    return y2, *_together(*found)


def _third(x: Array, y2: Array, hidden: Hidden, kernel3: Array) -> tuple[Array, Array, Array, Array]:
    norm2 = hidden.norm2
    assert norm2 is not None

    def step(y2: Array) -> tuple[Array, ...]:
        y = _dense(jax.nn.relu(y2 * norm2.gain + norm2.shift), kernel3, y2.dtype)
        top = y.max(1)
        member = jnp.arange(y.shape[1])[:, None, None]
        return top, jnp.where(y == top[:, None], member, y.shape[1]).min(1), *_share_moments(y)

    top, index, *found = jax.lax.map(step, y2)
    return top, index, *_together(*found)


def _third_back(
    x: Array,
    y2: Array,
    hidden: Hidden,
    kernel3: Array,
    slope: Array,
    index: Array,
    mixed: Array,
    constant: Array,
) -> tuple[Array, ...]:
    norm2 = hidden.norm2
    assert norm2 is not None

    def step(chunk: tuple[Array, Array, Array]) -> tuple[Array, ...]:
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

    d_n2, *shares = jax.lax.map(step, (y2, slope, index))
    outer, *sums = (share.sum((0, 1)) for share in shares)
    return d_n2, *jnp.split(outer, [kernel3.shape[1]], 1), *sums


def _second_back(x: Array, y2: Array, d_n2: Array, hidden: Hidden, a2: Array, b2: Array) -> tuple[Array, ...]:
    norm2 = hidden.norm2
    assert norm2 is not None

    def step(chunk: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        x, y2, d_n2 = chunk
        n1 = _first(x, hidden)
        d_y2 = d_n2 * norm2.gain + y2 * b2 + a2
        d_n1 = jnp.where(n1 > 0, _dense(d_y2, hidden.kernel2.T, x.dtype), 0)
        return _outer(jax.nn.relu(n1), d_y2, x.dtype), _outer(x, d_n1, x.dtype), d_n1.sum((1, 2))

    return tuple(share.sum((0, 1)) for share in jax.lax.map(step, (x, y2, d_n2)))


def _first(x: Array, hidden: Hidden) -> Array:
    return _dense(x, hidden.kernel1, x.dtype) + hidden.shift1


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


chunked = Passes(count, _inputs, _second, _third, _third_back, _second_back)
