"""The gradient of GELU behind a product as one Pallas kernel for NVIDIA GPUs (Triton).

XLA makes it of three passes over the widest array of a block, besides the product's own. Here the product
leaves its registers as the gradient, and the sum over rows, which a bias in front wants, is made beside it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from openshape_jax.ops.gelu import slope_by_tanh

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of the tile that a program makes, and of a step of its product
WARPS, STAGES = 4, 3


def backward(
    g: Float[Array, "R D"],
    h: Float[Array, "R F"],
    kernel: Float[Array, "F D"],
    interpret: bool = False,
) -> tuple[Float[Array, "R F"], Float[Array, "n F"]]:
    """(g kernel^T GELU'(h) in h's type, its sums over rows as shares in float32 to be summed).

    GELU is `gelu.by_tanh`, its tanh the GPU's own (2^-11 off at most).

    Args:
      g, kernel: of h's type. F: a multiple of COLUMNS, D: of DEPTH.
      interpret: run on any platform by Pallas' interpreter, for tests.
    """
    (rows, width), depth = h.shape, g.shape[1]
    tiles = pl.cdiv(rows, ROWS)

    def run(g_ref, h_ref, kernel_ref, out_ref, share_ref):
        at = pl.ds(pl.program_id(1) * ROWS, ROWS)
        columns = pl.ds(pl.program_id(0) * COLUMNS, COLUMNS)
        there = None if rows % ROWS == 0 else (pl.program_id(1) * ROWS + jnp.arange(ROWS) < rows)[:, None]
        other = None if there is None else 0.0

        def step(i, total):
            part = pl.ds(i * DEPTH, DEPTH)
            left = plgpu.load(g_ref.at[at, part], mask=there, other=other)
            return total + plgpu.dot(left, plgpu.load(kernel_ref.at[columns, part]), trans_b=True)

        total = jax.lax.fori_loop(0, depth // DEPTH, step, jnp.zeros((ROWS, COLUMNS), jnp.float32))
        x = plgpu.load(h_ref.at[at, columns], mask=there, other=other).astype(jnp.float32)
        grad = total * slope_by_tanh(x, jnp.tanh if interpret else plgpu.approx_tanh)
        plgpu.store(out_ref.at[at, columns], grad.astype(out_ref.dtype), mask=there)
        # Rows that are not there have a product of 0.
        plgpu.store(share_ref.at[columns], jnp.sum(grad, axis=0))

    whole = lambda shape: pl.BlockSpec(shape, lambda i, j: (0, 0))  # noqa: E731
    return pl.pallas_call(
        run,
        (jax.ShapeDtypeStruct(h.shape, h.dtype), jax.ShapeDtypeStruct((tiles, width), jnp.float32)),
        grid=(width // COLUMNS, tiles),
        in_specs=[whole(g.shape), whole(h.shape), whole(kernel.shape)],
        out_specs=(whole(h.shape), pl.BlockSpec((None, width), lambda i, j: (j, 0))),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="gelu_grad_gpu",
    )(g, h, kernel)
