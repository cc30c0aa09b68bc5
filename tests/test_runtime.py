"""What is settled before JAX starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import openshape_jax
from openshape_jax import runtime, sharding, state, train
from openshape_jax.ops.attention import LONG, plain, self_attention
from tests.small_run import small
from tests.test_clip import TRANSFORMERS

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
PRODUCTS = ["INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION"]


@pytest.mark.parametrize(
    ("version", "flags", "dtype", "platform", "kinds"),
    [
        ("0.12.0.1", f"--{YNNPACK}=-reduce", "float32", "cpu", ["REDUCE"]),
        ("0.12.0.1", "", "bfloat16", "cpu", PRODUCTS),
        ("0.12.0.1", f"--{YNNPACK}=dot", "float32", "cpu", None),
        ("0.12.0.1", f"--{YNNPACK}=-reduce,-individual_dot", "float32", "cpu", None),
        ("0.12.0.1", "", "bfloat16", "gpu", None),
        ("0.10.2", "", "float32", "cpu", None),
    ],
)  # fmt: skip
def test_what_a_cpu_leaves_to_ynnpack(version, flags, dtype, platform, kinds, monkeypatch):
    monkeypatch.setattr(runtime, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    options = runtime.compiler_options(dtype, platform)
    assert options == (kinds and {YNNPACK: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_before_a_maximum_are_right_with_the_options(dtype):
    x = jax.random.normal(jax.random.key(0), (2048, 64), dtype)
    kernels = list(jax.random.normal(jax.random.key(1), (3, 64, 64), dtype))

    def chain(x, kernels):
        for kernel in kernels:
            x = jax.nn.relu(x @ kernel)
        return x.max(0)

    options = runtime.compiler_options(dtype, "cpu")
    got = jax.jit(chain, compiler_options=options)(x, kernels)
    wanted = chain(*jax.tree.map(lambda a: np.asarray(a, np.float32), (x, kernels)))
    np.testing.assert_allclose(np.asarray(got, np.float32), wanted, rtol=1e-4 if dtype == "float32" else 0.02)


def test_attentions_gradient_is_right_with_the_options():
    # The gradient of a sum is a constant broadcast: left in front of a product and a sum, it comes out wrong.
    qkv = jax.random.normal(jax.random.key(0), (2, LONG, 3 * 3 * 16))

    def slope(attend):
        return jax.grad(lambda qkv: attend(qkv).sum())

    def definition(qkv):
        return plain(*jnp.moveaxis(qkv.reshape(2, LONG, 3, 3, 16), 2, 0))

    got = runtime.jit_of_model("float32")(slope(lambda qkv: self_attention(qkv, 3, LONG)))(qkv)
    np.testing.assert_allclose(got, slope(definition)(qkv), atol=1e-5)


def test_all_programs_with_a_model_get_the_options(trained, monkeypatch):
    made = []
    monkeypatch.setattr(runtime, "compiler_options", lambda *which: {"for": which})
    monkeypatch.setattr(jax, "jit", lambda fn, compiler_options=None, **_: made.append(compiler_options))
    openshape_jax.load(trained)
    openshape_jax.load_clip(TRANSFORMERS)
    assert made == [{"for": ("float32", "cpu")}] * 4  # unit vectors and others, texts and images
    config, mesh = small("nowhere", "model.dtype=bfloat16"), sharding.make_mesh()
    train.make_embed(config, mesh)
    state.jit_train_step(config, mesh, sharding.replicated(mesh))
    assert made[4:] == [{"for": ("bfloat16", "cpu")}] * 2


def test_embeddings_that_are_not_finite_are_an_error(trained):
    model = openshape_jax.load(trained)
    model._embed = lambda weights, xyz, rgb, count: np.where(np.arange(len(xyz))[:, None] == 1, np.nan, 1.0)
    with pytest.raises(FloatingPointError, match=r"clouds \[1\]"):
        model.embed(np.random.default_rng(0).random((2, 50, 3), np.float32))
