"""The shared MLP of set abstraction and its maximum over each patch on NVIDIA GPUs: calls of the kernels.

Activations never leave a multiprocessor: what a pass needs is computed again from the points, which takes
less time than to read it. The factors of products are in the points' type, bfloat16, all else is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from openshape_jax.ops import patch_gpu_kernels as kernels
from openshape_jax.ops.dispatch import by_device
from openshape_jax.ops.patch_gpu_kernels import CHANNELS, FEATURES, HIDDEN
from openshape_jax.ops.patch_passes import Hidden, Passes, count, of_kernels

PROCESSORS = 132  # of an H100
# Programs for each of them, and the warps of a program. One that adds up products writes as much as it holds
# at its end: there are as many as run at once, of the others many, whose ends fall apart.
EACH = {"forward": 16, "inputs": 16, "second": 14, "third": 16, "third_back": 2, "outer": 3, "second_back": 2}
WARPS: dict[str, int] = {}
STAGES = 2


def arrange(grouped: Float[Array, "B S K F"], dtype: Any) -> Float[Array, "n K 16"]:
    """The members of each patch in `dtype`, their features followed by zeros."""
    b, s, k, f = grouped.shape
    return jnp.pad(grouped.reshape(b * s, k, f).astype(dtype), ((0, 0), (0, 0), (0, FEATURES - f)))


def forward(x: Float[Array, "n K 16"], *weights: Array, interpret: bool = False) -> Float[Array, "n C"]:
    """Maxima in x's type over the members of each patch of relu(relu(relu(x W1 + b1) W2 + b2) W3 + b3).

    Args:
      x: of `arrange`; K a power of two from 16.
      weights: W1 (F, 64), b1, W2, b2, W3 (64, C), b3 in float32; products are of x's type, sums float32.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    one, b1, two, b2, three, b3 = weights
    last = _last(three, x.dtype)
    b3 = jnp.pad(b3, (0, len(last) - len(b3)))
    inputs = (x, _turned(one, x.dtype, FEATURES), b1, _turned(two, x.dtype), b2, last, b3)
    outputs = [_whole((len(x), len(last)), x.dtype)]
    (out,) = _call(kernels.forward, inputs, outputs, interpret)
    return out[:, : three.shape[1]]


def passes(interpret: bool = False) -> Passes:
    """Those of training for x of `arrange`; each device runs them on its own patches if there is a mesh."""
    return _interpreted if interpret else _compiled


def _inputs(x: Array, *, interpret: bool) -> tuple[Array, Array]:
    mean = x.astype(jnp.float32).sum(1).sum(0) / count(x)

    def each(x: Array, mean: Array) -> Array:
        outputs = [_share((FEATURES, FEATURES))]
        return _call(kernels.inputs, (_tiles(x), mean), outputs, interpret)[0]

    return mean, by_device(each, 1)(x, mean).sum(0) / count(x)


def _second(x: Array, hidden: Hidden, *, interpret: bool) -> tuple[None, Array, Array]:
    def each(x: Array, *weights: Array) -> tuple[Array, ...]:
        outputs = [_share((HIDDEN,)), _share((HIDDEN,))]
        found = _call(kernels.second, (_tiles(x), *weights), outputs, interpret)
        return *found, _members(_tiles(x), len(found[0]))

    weights = _weights(x, hidden)[:3]
    return None, *_together(*by_device(each, len(weights))(x, *weights))


def _third(
    x: Array, y2: None, hidden: Hidden, kernel3: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    last, channels = _last(kernel3, x.dtype), kernel3.shape[1]

    def each(x: Array, *weights: Array) -> tuple[Array, ...]:
        outputs = [
            _whole((len(x), len(last)), jnp.float32),
            _whole((len(x), len(last)), jnp.int32),
            _share((len(last),)),
            _share((len(last),)),
        ]
        top, index, *found = _call(kernels.third, (x, *weights), outputs, interpret)
        return top, index, *found, _members(x, len(found[0]))

    weights = (*_weights(x, hidden)[:5], last)
    top, index, *found = by_device(each, len(weights))(x, *weights)
    mean, var = _together(*found)
    return top[:, :channels], index[:, :channels], mean[:channels], var[:channels]


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
    last, channels = _last(kernel3, x.dtype, kernels.BLOCK), kernel3.shape[1]
    spare = ((0, 0), (0, len(last) - channels))

    def each(x: Array, slope: Array, index: Array, *weights: Array) -> tuple[Array, ...]:
        x = _tiles(x)
        outputs = [
            _whole((len(x), HIDDEN, x.shape[1]), x.dtype),
            _share((HIDDEN, HIDDEN)),
            *[_share((HIDDEN,))] * 3,
        ]
        rest = _call(kernels.third_back, (x, slope, index, *weights), outputs, interpret)
        blocks = len(last) // kernels.BLOCK
        outputs = [_share((kernels.BLOCK, HIDDEN))]
        (outer,) = _call(kernels.outer, (x, slope, index, *weights[:5]), outputs, interpret, blocks)
        return outer, *rest

    weights = (*_weights(x, hidden), last.T, _turned(mixed, x.dtype), constant)
    by_patch = (jnp.pad(slope, spare), jnp.pad(index, spare))
    outer, d_n2, *shares = by_device(each, len(weights))(x, *by_patch, *weights)
    return d_n2, outer.sum(0)[:channels].T, *(share.sum(0) for share in shares)


def _second_back(
    x: Array, y2: None, d_n2: Array, hidden: Hidden, a2: Array, b2: Array, *, interpret: bool
) -> tuple[Array, ...]:
    def each(x: Array, *inputs: Array) -> tuple[Array, ...]:
        outputs = [_share((HIDDEN, HIDDEN)), _share((HIDDEN, FEATURES)), _share((HIDDEN,))]
        return tuple(_call(kernels.second_back, (_tiles(x), *inputs), outputs, interpret))

    kernel2 = hidden.kernel2.astype(x.dtype)
    weights = (*_weights(x, hidden)[:4], kernel2, a2, b2)
    shares = by_device(each, len(weights))(x, d_n2, *weights)
    d_kernel2, outer, bias1 = (share.sum(0) for share in shares)
    return d_kernel2, outer.T, bias1


def _tiles(x: Float[Array, "n K 16"]) -> Float[Array, "m T 16"]:
    return x.reshape(-1, min(x.shape[1], kernels.TILE), x.shape[2])


def _weights(x: Array, hidden: Hidden) -> tuple[Array, ...]:
    """W1', shift, W2', gain, shift, mean and rate of both hidden layers."""
    one, two = _turned(hidden.kernel1, x.dtype, FEATURES), _turned(hidden.kernel2, x.dtype)
    norm = hidden.norm2
    return (one, hidden.shift1, two) if norm is None else (
        one, hidden.shift1, two, norm.gain, norm.shift, norm.mean, norm.rate
    )  # fmt: skip


def _turned(kernel: Float[Array, "F G"], dtype: Any, features: int = 0) -> Float[Array, "G F"]:
    """W' in the type of products, with zeros for up to `features` inputs."""
    return jnp.pad(kernel, ((0, max(features - len(kernel), 0)), (0, 0))).T.astype(dtype)


def _last(kernel: Float[Array, "64 C"], dtype: Any, block: int = CHANNELS) -> Float[Array, "_ 64"]:
    """W3' in the type of products, with channels of zeros to a multiple of `block`."""
    return _turned(jnp.pad(kernel, ((0, 0), (0, -kernel.shape[1] % block))), dtype)


def _members(x: Array, programs: int) -> Float[Array, " programs"]:
    """How many rows each program takes."""
    n, k, _ = x.shape
    return jnp.asarray((n - np.arange(programs) + programs - 1) // programs * k, jnp.float32)


def _together(mean: Float[Array, "P C"], m2: Float[Array, "P C"], members: Float[Array, " P"]) -> Any:
    """(mean, var) over all rows, of shares' means and sums of squares about them."""
    share = members[:, None] / members.sum()
    whole = (mean * share).sum(0)
    return whole, m2.sum(0) / members.sum() + (jnp.square(mean - whole) * share).sum(0)


def _whole(shape: tuple[int, ...], dtype: Any) -> tuple[jax.ShapeDtypeStruct, bool]:
    return jax.ShapeDtypeStruct(shape, dtype), False


def _share(shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, bool]:
    """An output of which every program writes its own."""
    return jax.ShapeDtypeStruct(shape, jnp.float32), True


def _call(
    kernel: Callable[..., None],
    inputs: Sequence[Array],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, bool]],
    interpret: bool,
    blocks: int = 1,
) -> list[Array]:
    """The kernel's outputs. blocks: parts of a share, along its first axis, each of a program of its own."""
    name = kernel.__name__
    programs = min(len(inputs[0]), EACH[name] * PROCESSORS)

    def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i, j: (0,) * len(shape))

    def own(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda i, j: (i, j, *[0] * (len(shape) - 1)))

    def shares(s: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((programs, blocks * s.shape[0], *s.shape[1:]), s.dtype)

    return pl.pallas_call(
        functools.partial(kernel, programs=programs),
        [shares(s) if shared else s for s, shared in outputs],
        grid=(programs, blocks),
        in_specs=[whole(x.shape) for x in inputs],
        out_specs=[own(s.shape) if shared else whole(s.shape) for s, shared in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS.get(name, 4), num_stages=STAGES),
        interpret=interpret,
        name=f"patch_{name}_gpu",
    )(*inputs)


_compiled, _interpreted = of_kernels(count, _inputs, _second, _third, _third_back, _second_back)
