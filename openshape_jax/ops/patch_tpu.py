"""The shared MLP of set abstraction and its maximum over each patch on TPUs: calls of the kernels.

The activations of all grouped points, a thousand times the points themselves, stay in VMEM: XLA writes each
layer's to HBM and reads them again. Only the gradient of the second layer's norm is kept between two passes.
The factors of products are in the points' type, bfloat16, all else is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from openshape_jax.ops import patch_tpu_kernels as kernels
from openshape_jax.ops.dispatch import by_device
from openshape_jax.ops.patch_passes import Hidden, Passes, of_kernels
from openshape_jax.ops.patch_tpu_kernels import FEATURES, SUBLANES

HIDDEN = 64  # channels of both hidden layers
LANES = 128  # the channels of the last layer come in so many
TILES = 8  # of one program
CORES = 2  # of a chip, which add up a share of the sums each; one of a v5e or v6e adds up both
VMEM = 64 << 20  # bytes that the compiler may use


def by_eights(x: Float[Array, "S K ..."]) -> Float[Array, "S/8 8K ..."]:
    """What each member of eight patches has, member by member; S must be a multiple of 8."""
    s, k, *rest = x.shape
    return x.reshape(s // SUBLANES, SUBLANES, k, *rest).swapaxes(1, 2).reshape(-1, SUBLANES * k, *rest)


def arrange(grouped: Float[Array, "B S/8 8K F"], dtype: Any) -> Float[Array, "n F 8K"]:
    """The points of `by_eights` in tiles of 8 patches, features by member; F at most 16."""
    b, s, width, f = grouped.shape
    return grouped.astype(dtype).reshape(b * s, width, f).swapaxes(1, 2)


def rows(x: Float[Array, "n F 8K"]) -> Float[Array, "8n K F"]:
    """The members of each patch, from `arrange`."""
    n, f, width = x.shape
    parts = x.reshape(n, f, width // SUBLANES, SUBLANES).transpose(0, 3, 2, 1)
    return parts.reshape(n * SUBLANES, -1, f)


def forward(x: Float[Array, "n F 8K"], *weights: Array, interpret: bool = False) -> Float[Array, "8n C"]:
    """Maxima in x's type over the members of each patch of relu(relu(relu(x W1 + b1) W2 + b2) W3 + b3).

    Args:
      x: of `arrange`.
      weights: W1 (F, 64), b1, W2, b2, W3 (64, C), b3 in float32; products are of x's type, sums float32.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    one, b1, two, b2, three, b3 = weights
    last = _last(three, x.dtype)
    b3 = jnp.pad(b3, (0, last.shape[1] // 2 - len(b3)))[None]
    inputs = (_twice(_first(one), x.dtype), _pair(b1), _twice(two, x.dtype), _pair(b2), last, b3)
    outputs = [jax.ShapeDtypeStruct((len(x), SUBLANES, b3.shape[1]), x.dtype)]
    (out,) = _call(kernels.forward, (x,), inputs, outputs, [], interpret)
    return out[..., : three.shape[1]].reshape(-1, three.shape[1])


def passes(interpret: bool = False) -> Passes:
    """Those of training for x of `arrange`; each device runs them on its own patches if there is a mesh."""
    return _interpreted if interpret else _compiled


def _count(x: Array) -> int:
    return x.size // x.shape[1]


def _inputs(x: Array, *, interpret: bool) -> tuple[Array, Array]:
    def each(x: Array, pivot: Array) -> list[Array]:
        return _call(kernels.inputs, (x,), (pivot,), [], [(2 * FEATURES, 1), (2 * FEATURES,) * 2], interpret)

    pivot = _pivot(jnp.pad(x[0].astype(jnp.float32).mean(1), (0, FEATURES - x.shape[1])), x)
    total, outer = by_device(each, 1)(x, _pair(pivot).T)
    about, cov = _about(total.mT, outer, _count(x))
    return pivot + about, cov


def _second(x: Array, hidden: Hidden, *, interpret: bool) -> tuple[None, Array, Array]:
    def each(x: Array, *weights: Array) -> list[Array]:
        return _call(kernels.second, (x,), weights, [], [(1, LANES), (LANES, LANES)], interpret)

    pivot = _pivot(jax.nn.relu(hidden.bias1), x)
    weights = (*_weights(x, hidden)[:2], _pair(pivot))
    found = by_device(each, len(weights))(x, *weights)
    return None, *_moments(found, pivot, hidden.kernel2.astype(x.dtype), _count(x))


def _third(
    x: Array, y2: None, hidden: Hidden, kernel3: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    last, channels, norm2 = _last(kernel3, x.dtype), kernel3.shape[1], hidden.norm2
    assert norm2 is not None

    def each(x: Array, *weights: Array) -> list[Array]:
        shape = (len(x), SUBLANES, last.shape[1] // 2)
        outputs = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int32)]
        return _call(kernels.third, (x,), weights, outputs, [(1, LANES), (LANES, LANES)], interpret)

    pivot = _pivot(jax.nn.relu(norm2.mean * norm2.gain + norm2.shift), x)
    weights = (*_weights(x, hidden), last, _pair(pivot))
    top, index, *found = by_device(each, len(weights))(x, *weights)
    moments = _moments(found, pivot, kernel3.astype(x.dtype), _count(x))
    return top[..., :channels], index[..., :channels], *moments


def _pivot(near: Array, x: Array) -> Array:
    """A value near the mean, so that squares about it are small; any will do. Of x's type, as then what is
    near it loses nothing where the difference becomes a factor."""
    return near.astype(x.dtype).astype(jnp.float32)


def _moments(sums: Sequence[Array], pivot: Array, kernel: Array, count: int) -> tuple[Array, Array]:
    """(mean, var) of h W, from the sums over all rows of h - pivot and of its products with itself."""
    total, outer = sums
    about, cov = _about(total, outer, count)
    kernel = kernel.astype(jnp.float32)
    mean = jnp.matmul(pivot + about, kernel, precision="highest")
    return mean, (kernel * jnp.matmul(cov, kernel, precision="highest")).sum(0)


def _about(total: Array, outer: Array, count: int) -> tuple[Array, Array]:
    """(mean, covariance), from the sums over all rows and of their products with themselves."""
    mean = folded(total)[0] / count
    return mean, folded(outer) / count - mean[:, None] * mean


def _third_back(
    x: Array,
    y2: None,
    hidden: Hidden,
    kernel3: Array,
    slope: Array,
    index: Array,
    mixed: Array,
    constant: Array,
    *,
    interpret: bool,
) -> tuple[Array, ...]:
    last, channels, norm2 = _last(kernel3, x.dtype), kernel3.shape[1], hidden.norm2
    assert norm2 is not None
    spare = ((0, 0), (0, 0), (0, last.shape[1] // 2 - channels))

    def each(x: Array, slope: Array, index: Array, *weights: Array) -> list[Array]:
        outputs = [jax.ShapeDtypeStruct((len(x), x.shape[2] // 2, LANES), x.dtype)]
        sums = [(HIDDEN, slope.shape[2]), (LANES, LANES), *[(1, LANES)] * 3]
        return _call(kernels.third_back, (x, slope, index), weights, outputs, sums, interpret)

    weights = (*_weights(x, hidden), _pair(norm2.mean), last.T, _twice(mixed, x.dtype), _pair(constant))
    by_patch = (jnp.pad(slope, spare), jnp.pad(index, spare))
    d_n2, outer, *sums = by_device(each, len(weights))(x, *by_patch, *weights)
    gram, total, bias2, scale2 = map(folded, sums)
    return d_n2, outer.sum(0)[:, :channels], gram, total[0], bias2[0], scale2[0] * norm2.rate


def _second_back(
    x: Array, y2: None, d_n2: Array, hidden: Hidden, a2: Array, b2: Array, *, interpret: bool
) -> tuple[Array, ...]:
    def each(x: Array, d_n2: Array, *weights: Array) -> list[Array]:
        sums = [(LANES, LANES), (2 * FEATURES, LANES), (1, LANES)]
        return _call(kernels.second_back, (x, d_n2), weights, [], sums, interpret)

    weights = (*_weights(x, hidden)[:4], _twice(hidden.kernel2.T, x.dtype), _pair(a2), _pair(b2))
    d_kernel2, outer, bias1 = map(folded, by_device(each, len(weights))(x, d_n2, *weights))
    return d_kernel2, outer, bias1[0]


def folded(sums: Float[Array, "P F G"]) -> Float[Array, "_ _"]:
    """What all programs have added up for both halves of a tile: blocks on the diagonal, or one row."""
    total = sums.sum(0)
    f, g = len(total) // 2, total.shape[1] // 2
    return total[:f, :g] + total[f:, g:] if f else total[:, :g] + total[:, g:]


def _weights(x: Array, hidden: Hidden) -> list[Array]:
    """W1, shift, W2, gain and shift of both hidden layers, for both halves of a tile."""
    one, two = _twice(_first(hidden.kernel1), x.dtype), _twice(hidden.kernel2, x.dtype)
    norm = hidden.norm2
    return [one, _pair(hidden.shift1), two, *([] if norm is None else map(_pair, (norm.gain, norm.shift)))]


def _first(kernel: Float[Array, "F 64"]) -> Float[Array, "16 64"]:
    return jnp.pad(kernel, ((0, FEATURES - len(kernel)), (0, 0)))


def _last(kernel: Float[Array, "64 C"], dtype: Any) -> Float[Array, "128 _"]:
    return _twice(jnp.pad(kernel, ((0, 0), (0, -kernel.shape[1] % LANES))), dtype)


def _twice(kernel: Float[Array, "F G"], dtype: Any) -> Float[Array, "2F 2G"]:
    """The kernel twice on the diagonal, in the type of products."""
    return jnp.kron(jnp.eye(2, dtype=kernel.dtype), kernel).astype(dtype)


def _pair(vector: Float[Array, " G"]) -> Float[Array, "1 2G"]:
    return jnp.tile(vector, 2)[None]


def _call(
    kernel: Callable[..., None],
    by_tile: Sequence[Array],
    weights: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    sums: Sequence[tuple[int, ...]],
    interpret: bool,
) -> list[Array]:
    """The kernel's outputs by tile, and then the sums of these shapes, of each core's share (cores, ...).

    Args:
      by_tile: inputs with an axis of tiles, the points first. weights: those that every program gets whole.
    """
    n, name = len(by_tile[0]), kernel.__name__
    cores = CORES if n % CORES == 0 else 1
    each = next(t for t in range(TILES, 0, -1) if n // cores % t == 0)
    steps = n // cores // each

    def tile(array: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        rest = array.shape[1:]
        return pl.BlockSpec((each, *rest), lambda i, j: (i * steps + j, *[0] * len(rest)))

    def whole(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda i, j: (0,) * array.ndim)

    def share(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda i, j: (i, *[0] * len(shape)))

    flops = 2 * n * by_tile[0].shape[2] * sum(w.size for w in weights if w.ndim > 1)
    touched = sum(x.size * x.dtype.itemsize for x in (*by_tile, *outputs))
    return pl.pallas_call(
        kernel,
        [*outputs, *(jax.ShapeDtypeStruct((cores, *shape), jnp.float32) for shape in sums)],
        grid=(cores, steps),
        in_specs=[*map(tile, by_tile), *map(whole, weights)],
        out_specs=[*map(tile, outputs), *map(share, sums)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=touched),
        interpret=interpret,
        name="patch_tpu" if name == "forward" else f"patch_{name}_tpu",
    )(*by_tile, *weights)


_compiled, _interpreted = of_kernels(_count, _inputs, _second, _third, _third_back, _second_back)
