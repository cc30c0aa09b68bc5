"""The transformer as TPUs and GPUs compute it, kernels interpreted, against the plain form in float32."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from openshape_jax.config import ModelConfig
from openshape_jax.models import transformer
from openshape_jax.ops import attention_gpu, attention_tpu, gelu, gelu_gpu, norm, norm_gpu, norm_tpu

attention = importlib.import_module("openshape_jax.ops.attention")  # ops.attention is the function

CLOUDS, TOKENS = 16, 5  # not whole registers of tokens; the class tokens are a strip of rows


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig(dim=128, depth=2, heads=2, mlp_dim=256)


@pytest.fixture(scope="module")
def case(config) -> tuple:
    """(parameters, tokens, factors of paths, gradient to the output); no bias or scale is left at 0 or 1."""
    rng = np.random.default_rng(0)
    params = nnx.state(transformer.Transformer(config, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape) if x.ndim == 2 else x, params)
    tokens = jnp.asarray(rng.normal(size=(CLOUDS, TOKENS, config.dim)), jnp.float32)
    paths = jnp.asarray(rng.choice([0.0, 1.25], (config.depth, 2, CLOUDS)), jnp.float32)
    return params, tokens, paths, jnp.asarray(rng.normal(size=(CLOUDS, config.dim)), jnp.float32)


def value_and_slopes(config: ModelConfig, case: tuple, with_paths: bool) -> tuple:
    """(output, gradients to parameters and tokens), float32."""
    params, tokens, paths, g = case
    graph = nnx.graphdef(transformer.Transformer(config, rngs=nnx.Rngs(0)))

    def run(params, tokens):
        x = tokens.astype(config.dtype)
        return nnx.merge(graph, params)(x, paths if with_paths else None).astype(jnp.float32)

    out, pull = jax.vjp(jax.jit(run), params, tokens)
    return out, pull(g)


@pytest.fixture(scope="module")
def plain(config, case) -> dict[bool, tuple]:
    """(exact, in bfloat16) of the plain form, without and with paths."""
    half = dataclasses.replace(config, dtype="bfloat16")
    return {p: tuple(value_and_slopes(c, case, p) for c in (config, half)) for p in (False, True)}


@pytest.fixture
def platform_of(monkeypatch):
    """Makes programs as for a platform, with its kernels interpreted."""

    def choose(name: str) -> None:
        for module in (transformer, attention, norm):
            monkeypatch.setattr(module, "platform", lambda x: name)
        for module in (attention, gelu, norm):
            monkeypatch.setattr(module, "gpu_kernels", lambda x: name == "gpu")
        for module in (attention_gpu, attention_tpu, norm_gpu, norm_tpu):
            for kernel in ("forward", "backward"):
                interpreted = functools.partial(getattr(module, kernel), interpret=True)
                monkeypatch.setattr(module, kernel, interpreted)
        interpreted = functools.partial(gelu_gpu.backward, interpret=True)
        monkeypatch.setattr(gelu_gpu, "backward", interpreted)

    return choose


# A bias is added late only where no path is dropped, a sum only where blocks are not made again.
@pytest.mark.parametrize(
    ("name", "with_paths", "options"),
    [
        ("tpu", False, {}),
        ("tpu", True, {}),
        ("tpu", False, {"remat": True}),
        ("gpu", False, {}),
        ("gpu", True, {}),
        ("gpu", False, {"remat": True}),
    ],
)
def test_forms_of_accelerators_equal_the_plain_one(
    config, case, plain, platform_of, name, with_paths, options
):
    platform_of(name)
    got = value_and_slopes(dataclasses.replace(config, dtype="bfloat16", **options), case, with_paths)
    wanted, rounded = plain[with_paths]
    assert np.any(got[0] != rounded[0])  # it is another program
    # As near to the exact result as plain bfloat16 comes.
    for (path, exact), one, other in zip(
        jax.tree.leaves_with_path(wanted), jax.tree.leaves(got), jax.tree.leaves(rounded), strict=True
    ):
        allowed = 0.01 + 2 * difference(other, exact)
        assert difference(one, exact) < allowed < 0.2, jax.tree_util.keystr(path)


def difference(got, wanted) -> float:
    """Length of the difference over that of what is wanted."""
    return float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
