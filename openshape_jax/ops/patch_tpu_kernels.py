"""The passes of `patch_train` over all rows as Pallas kernels for TPUs (Mosaic), and inference.

A tile has the members of eight patches, their features side by side with those of the tile's other half of
members: products with weights twice on the diagonal then fill the 128 lanes with the 64 channels of a member
of either half. Sums over rows are of both halves, products of rows with rows have the wanted sums on their
diagonal (`patch_tpu.folded` adds them up).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

SUBLANES = 8  # patches of a tile
TOGETHER = 4  # tiles whose instructions the compiler may mix: one waits for its products meanwhile
FEATURES = 16  # that the points of a tile have in the kernels, those given and zeros


def _tiles(x_ref, step: Callable[[Array], None], sums: tuple[Any, ...] = ()) -> None:
    """step(number) of a program's tiles; the sums over all programs of a share start as zeros."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    together = next(t for t in range(TOGETHER, 0, -1) if x_ref.shape[0] % t == 0)

    def some(i, _):
        for tile in range(together):
            step(i * together + tile)

    jax.lax.fori_loop(0, x_ref.shape[0] // together, some, None)


def _dot(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _halves(x: Float[Array, "F 8K"]) -> Float[Array, "32 4K"]:
    """The features, and zeros, of the first half of the members above those of the other, float32."""
    f, width = x.shape
    x = jnp.concatenate([x.astype(jnp.float32), jnp.zeros((FEATURES - f, width))])
    return jnp.concatenate([x[:, : width // 2], x[:, width // 2 :]])


def _first(x: Float[Array, "32 M"], one, shift1) -> Float[Array, "M 128"]:
    """The first hidden layer, float32."""
    return jnp.maximum(_dot(x.T.astype(one.dtype), one[...]) + shift1[...], 0)


def _add(total, x: Float[Array, "M C"]) -> None:
    total[...] += x.sum(0, keepdims=True)


def _add_moments(total, outer, h: Float[Array, "M 128"], pivot) -> None:
    """Adds the sum of the rows, less the pivot, and of their products with themselves."""
    about = h.astype(jnp.float32) - pivot[...]
    _add(total, about)
    about = about.astype(h.dtype)
    outer[...] += _dot(about, about, (0, 0))


def forward(x_ref, one, shift1, two, shift2, last, bias3, out_ref):
    def step(i):
        h1 = _first(_halves(x_ref[i]), one, shift1).astype(one.dtype)
        h2 = jnp.maximum(_dot(h1, two[...]) + shift2[...], 0).astype(one.dtype)
        top = functools.reduce(jnp.maximum, _by_member(h2, last)).max(0)
        out_ref[i] = jnp.maximum(top + bias3[...], 0).astype(out_ref.dtype)

    _tiles(x_ref, step)


def _by_member(h2: Float[Array, "M 128"], last) -> list[Float[Array, "M/8 8 C"]]:
    """The last layer, of either half of the members."""
    channels = last.shape[1] // 2
    y = _dot(h2, last[...])
    return [half.reshape(-1, SUBLANES, channels) for half in (y[:, :channels], y[:, channels:])]


def inputs(x_ref, pivot, total, outer):
    """The moments of the features about the pivot."""

    def step(i):
        about = _halves(x_ref[i]) - pivot[...]
        total[...] += about.sum(1, keepdims=True)
        about = about.astype(x_ref.dtype)
        outer[...] += _dot(about, about, (1, 1))

    _tiles(x_ref, step, (total, outer))


def second(x_ref, one, shift1, pivot1, total, outer):
    """The moments of the first hidden layer about the pivot."""

    def step(i):
        h1 = _first(_halves(x_ref[i]), one, shift1).astype(one.dtype)
        _add_moments(total, outer, h1, pivot1)

    _tiles(x_ref, step, (total, outer))


def third(x_ref, one, shift1, two, gain, shift2, last, pivot2, top_ref, index_ref, total, outer):
    """The moments of the second hidden layer about the pivot; maxima of the last and who has them first."""

    def step(i):
        h1 = _first(_halves(x_ref[i]), one, shift1).astype(one.dtype)
        h2 = jnp.maximum(_dot(h1, two[...]) * gain[...] + shift2[...], 0).astype(one.dtype)
        _add_moments(total, outer, h2, pivot2)
        parts = _by_member(h2, last)
        members = len(parts[0])
        top = parts[0][0]
        index = jnp.zeros(top.shape, jnp.int32)
        for member in range(1, 2 * members):
            y = parts[member // members][member % members]
            index = jnp.where(y > top, member, index)
            top = jnp.maximum(y, top)
        top_ref[i] = top
        index_ref[i] = index

    _tiles(x_ref, step, (total, outer))


def third_back(
    x_ref, slope, index, one, shift1, two, gain, shift2, mean2, turned, mixed, constant,
    d_ref, outer, gram, total, bias2, scale2,
):  # fmt: skip
    """As `patch_passes.Passes` has it; scale2 without the norm's rate. turned: the last layer's W3', of both
    halves."""

    def step(i):
        h1 = _first(_halves(x_ref[i]), one, shift1).astype(one.dtype)
        y2 = _dot(h1, two[...])
        n2 = y2 * gain[...] + shift2[...]
        h2 = jnp.maximum(n2, 0)
        _add(total, h2)
        across = h2.T.astype(one.dtype)
        h2 = h2.astype(one.dtype)
        gram[...] += _dot(across, h2)
        members, channels = len(h2) // SUBLANES, slope.shape[2]
        width = len(across) // 2
        d_h2 = _dot(h2, mixed[...]) + constant[...]
        for part in range(2):
            member = jax.lax.broadcasted_iota(jnp.int32, (members, SUBLANES, channels), 0) + part * members
            d3 = jnp.where(index[i] == member, slope[i], 0).reshape(-1, channels).astype(one.dtype)
            outer[...] += _dot(across[part * width : (part + 1) * width], d3)
            d_h2 += _dot(d3, turned[part * channels : (part + 1) * channels])
        d_n2 = jnp.where(n2 > 0, d_h2, 0)
        _add(bias2, d_n2)
        _add(scale2, d_n2 * (y2 - mean2[...]))
        d_ref[i] = d_n2.astype(d_ref.dtype)

    _tiles(x_ref, step, (outer, gram, total, bias2, scale2))


def second_back(x_ref, d_n2, one, shift1, two, gain, turned, a2, b2, d_kernel2, outer, bias1):
    """As `patch_passes.Passes` has it. turned: W2'."""

    def step(i):
        x = _halves(x_ref[i])
        h1 = _first(x, one, shift1)
        across, low = h1.T.astype(one.dtype), h1.astype(one.dtype)
        d_y2 = d_n2[i].astype(jnp.float32) * gain[...] + _dot(low, two[...]) * b2[...] + a2[...]
        d_y2 = d_y2.astype(one.dtype)
        d_kernel2[...] += _dot(across, d_y2)
        d_n1 = jnp.where(h1 > 0, _dot(d_y2, turned[...]), 0)
        _add(bias1, d_n1)
        outer[...] += _dot(x.astype(one.dtype), d_n1.astype(one.dtype))

    _tiles(x_ref, step, (d_kernel2, outer, bias1))
