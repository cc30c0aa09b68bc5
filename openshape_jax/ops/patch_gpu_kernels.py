"""The passes of `patch_train` over all rows as Pallas kernels for NVIDIA GPUs (Triton), and inference.

A tile is as many members of one patch as stand together, and is held by channels, (channels, members):
whatever is of a channel is then of a row, and sums and maxima over members stay within the threads of a row.
A program takes every `programs`-th tile, or patch where a maximum is wanted, and adds up its share of sums
and outer products in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

FEATURES = 16  # of a row: those of a point and zeros, as few as a product takes
HIDDEN = 64  # channels of both hidden layers
CHANNELS = 64  # of the last layer that are held together
BLOCK = 128  # channels of the last layer whose outer products one program adds up
TILE = 64  # most members that are held together


def _in_turn(n: int, programs: int, step: Callable[[Array, Array, Any], Any], first: Any) -> Any:
    """step(number, how many came before, carry) of all the n patches or tiles that are this program's."""
    own = pl.program_id(0)
    count = (n - own + programs - 1) // programs
    return jax.lax.fori_loop(0, count, lambda i, carry: step(own + i * programs, i, carry), first)


def _tiles(members: int) -> list[Any]:
    return [pl.ds(t, min(members, TILE)) for t in range(0, members, TILE)]


def _parts(channels: int) -> list[Any]:
    return [pl.ds(c, CHANNELS) for c in range(0, channels, CHANNELS)]


def _dot(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _relu(x: Array, dtype: Any) -> Array:
    return jnp.maximum(x, 0).astype(dtype)


def _first_layer(x: Float[Array, "T 16"], one, shift) -> Float[Array, "64 T"]:
    return _dot(one, x, (1, 1)) + shift[:, None]


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _more(moments: tuple[Array, Array], y: Float[Array, "C T"], before: Array) -> tuple[Array, Array]:
    """(mean, sum of squares about it) with a tile's rows, after as many tiles as `before`."""
    mean, m2 = moments
    own = y.sum(1) / y.shape[1]
    about = y - own[:, None]
    share = 1 / (before.astype(jnp.float32) + 1)
    apart = own - mean
    m2 = m2 + (about * about).sum(1) + apart * apart * (y.shape[1] * (1 - share))
    return mean + apart * share, m2


def forward(x_ref, one, b1, two, b2, last, b3, out_ref, *, programs: int):
    n, members, _ = x_ref.shape
    one, b1, two, b2 = one[...], b1[...], two[...], b2[...]
    parts = _parts(last.shape[0])
    kernels = [last[part] for part in parts]

    def step(patch, _, carry):
        tops: list[Any] = [None] * len(parts)
        for tile in _tiles(members):
            h1 = _relu(_first_layer(x_ref[patch, tile], one, b1), one.dtype)
            h2 = _relu(_dot(two, h1) + b2[:, None], one.dtype)
            for c, kernel in enumerate(kernels):
                top = _dot(kernel, h2).max(1)
                tops[c] = top if tops[c] is None else jnp.maximum(tops[c], top)
        for part, top in zip(parts, tops, strict=True):
            out_ref[patch, part] = _relu(top + b3[part], out_ref.dtype)
        return carry

    _in_turn(n, programs, step, 0)


def inputs(x_ref, mean, cov_ref, *, programs: int):
    mean = mean[...]

    def step(tile, _, cov):
        about = (x_ref[tile].astype(jnp.float32) - mean[None]).astype(x_ref.dtype)
        return cov + _dot(about, about, (0, 0))

    cov_ref[...] = _in_turn(len(x_ref), programs, step, _zeros(FEATURES, FEATURES))


def second(x_ref, one, shift1, two, mean_ref, m2_ref, *, programs: int):
    one, shift1, two = one[...], shift1[...], two[...]

    def step(tile, before, moments):
        h1 = _relu(_first_layer(x_ref[tile], one, shift1), one.dtype)
        return _more(moments, _dot(two, h1), before)

    mean_ref[...], m2_ref[...] = _in_turn(len(x_ref), programs, step, (_zeros(HIDDEN), _zeros(HIDDEN)))


def third(
    x_ref, one, shift1, two, gain2, shift2, last, top_ref, index_ref, mean_ref, m2_ref, *, programs: int
):
    n, members, _ = x_ref.shape
    one, shift1, two, gain2, shift2 = one[...], shift1[...], two[...], gain2[...], shift2[...]
    tiles, parts = _tiles(members), _parts(last.shape[0])
    kernels = [last[part] for part in parts]

    def step(patch, before, moments):
        moments = list(moments)
        found: list[Any] = [None] * len(parts)
        for t, tile in enumerate(tiles):
            h1 = _relu(_first_layer(x_ref[patch, tile], one, shift1), one.dtype)
            h2 = _relu(_dot(two, h1) * gain2[:, None] + shift2[:, None], one.dtype)
            for c, kernel in enumerate(kernels):
                y = _dot(kernel, h2)
                top = y.max(1)
                member = jax.lax.broadcasted_iota(jnp.int32, y.shape, 1)
                index = jnp.where(y == top[:, None], member, tile.size - 1).min(1) + tile.start
                if found[c] is not None:
                    index = jnp.where(top > found[c][0], index, found[c][1])
                    top = jnp.maximum(top, found[c][0])
                found[c] = (top, index)
                moments[c] = _more(moments[c], y, before * len(tiles) + t)
        for part, (top, index) in zip(parts, found, strict=True):
            top_ref[patch, part], index_ref[patch, part] = top, index
        return tuple(moments)

    first = tuple((_zeros(CHANNELS), _zeros(CHANNELS)) for _ in parts)
    moments = _in_turn(n, programs, step, first)
    for part, (mean, m2) in zip(parts, moments, strict=True):
        mean_ref[part], m2_ref[part] = mean, m2


def third_back(
    x_ref, slope_ref, index_ref, one, shift1, two, gain2, shift2, mean2, rate2, last, mixed, constant,
    d_n2_ref, gram_ref, total_ref, bias_ref, scale_ref, *, programs: int
):  # fmt: skip
    """All of the pass but h2' d3. last: W3, (64, C)."""
    each = len(x_ref) // len(index_ref)
    one, shift1, two, gain2, shift2 = one[...], shift1[...], two[...], gain2[...], shift2[...]
    mean2, rate2, mixed, constant = mean2[...], rate2[...], mixed[...], constant[...]
    parts = _parts(last.shape[1])
    kernels = [last[:, part] for part in parts]

    def step(tile, _, carry):
        gram, total, bias, scale = carry
        h1 = _relu(_first_layer(x_ref[tile], one, shift1), one.dtype)
        y2 = _dot(two, h1)
        n2 = y2 * gain2[:, None] + shift2[:, None]
        h2 = jnp.maximum(n2, 0)
        total = total + h2.sum(1)
        h2 = h2.astype(one.dtype)
        gram = gram + _dot(h2, h2, (1, 1))
        d_h2 = _dot(mixed, h2) + constant[:, None]
        member = _member(n2, tile % each)
        for part, kernel in zip(parts, kernels, strict=True):
            d3 = _slopes(member, slope_ref[tile // each, part], index_ref[tile // each, part], one.dtype)
            d_h2 = d_h2 + _dot(kernel, d3)
        d_n2 = jnp.where(n2 > 0, d_h2, 0)
        d_n2_ref[tile] = d_n2.astype(d_n2_ref.dtype)
        bias = bias + d_n2.sum(1)
        scale = scale + (d_n2 * (y2 - mean2[:, None])).sum(1)
        return gram, total, bias, scale

    first = (_zeros(HIDDEN, HIDDEN), *[_zeros(HIDDEN)] * 3)
    gram_ref[...], total_ref[...], bias_ref[...], scale = _in_turn(len(x_ref), programs, step, first)
    scale_ref[...] = scale * rate2


def outer(x_ref, slope_ref, index_ref, one, shift1, two, gain2, shift2, outer_ref, *, programs: int):
    """d3' h2 of BLOCK channels."""
    each = len(x_ref) // len(index_ref)
    one, shift1, two, gain2, shift2 = one[...], shift1[...], two[...], gain2[...], shift2[...]
    parts = [pl.ds(pl.program_id(1) * BLOCK + c, CHANNELS) for c in range(0, BLOCK, CHANNELS)]

    def step(tile, _, outer):
        h1 = _relu(_first_layer(x_ref[tile], one, shift1), one.dtype)
        n2 = _dot(two, h1) * gain2[:, None] + shift2[:, None]
        h2 = _relu(n2, one.dtype)
        member = _member(n2, tile % each)
        shares = []
        for part, share in zip(parts, outer, strict=True):
            d3 = _slopes(member, slope_ref[tile // each, part], index_ref[tile // each, part], one.dtype)
            shares.append(share + _dot(d3, h2, (1, 1)))
        return tuple(shares)

    shares = _in_turn(len(x_ref), programs, step, tuple(_zeros(CHANNELS, HIDDEN) for _ in parts))
    for part, share in zip(_parts(BLOCK), shares, strict=True):
        outer_ref[part] = share


def _member(n2: Float[Array, "64 T"], tile: Any) -> Array:
    """Numbers of a tile's members; by way of n2, a product's result, so that Triton lays d3 out alike."""
    member = jax.lax.broadcasted_iota(jnp.int32, n2.shape, 1) + tile * n2.shape[1]
    return jnp.where(n2 > -jnp.inf, member, -1)


def _slopes(member: Array, slope: Array, index: Array, dtype: Any) -> Float[Array, "_ T"]:
    """d3 of as many channels as there are slopes."""
    return jnp.where(member == index[:, None], slope[:, None], 0).astype(dtype)


def second_back(
    x_ref, d_n2_ref, one, shift1, two, gain2, back, a2, b2, outer_ref, first_ref, bias_ref, *, programs: int
):
    one, shift1, two, gain2, back = one[...], shift1[...], two[...], gain2[...], back[...]
    a2, b2 = a2[...], b2[...]

    def step(tile, _, carry):
        outer, first, bias = carry
        x = x_ref[tile]
        n1 = _first_layer(x, one, shift1)
        h1 = _relu(n1, one.dtype)
        y2 = _dot(two, h1)
        d_n2 = d_n2_ref[tile].astype(jnp.float32)
        d_y2 = (d_n2 * gain2[:, None] + y2 * b2[:, None] + a2[:, None]).astype(one.dtype)
        d_n1 = jnp.where(n1 > 0, _dot(back, d_y2), 0)
        outer = outer + _dot(h1, d_y2, (1, 1))
        first = first + _dot(d_n1.astype(one.dtype), x)
        return outer, first, bias + d_n1.sum(1)

    first = (_zeros(HIDDEN, HIDDEN), _zeros(HIDDEN, FEATURES), _zeros(HIDDEN))
    outer_ref[...], first_ref[...], bias_ref[...] = _in_turn(len(x_ref), programs, step, first)
