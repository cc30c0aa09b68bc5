"""Learning-rate schedules, weight decay and the moving average against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from openshape_jax import optim, state
from openshape_jax.config import Config, ModelConfig, OptimConfig


def rates(steps, count, **fields):
    schedule = optim.schedule(OptimConfig(learning_rate=0.1, **fields), steps)
    return [float(schedule(step)) for step in range(count)]


def test_step_schedule_falls_by_the_rate_every_so_many_steps():
    got = rates(100, 31, schedule="step", decay_rate=0.5, decay_every=10)
    np.testing.assert_allclose(got, [0.1] * 10 + [0.05] * 10 + [0.025] * 10 + [0.0125], rtol=1e-6)


def test_cosine_schedule_falls_to_zero_after_the_warm_up():
    got = rates(20, 20, schedule="cosine", warmup_steps=4)
    np.testing.assert_allclose(got[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    expected = [0.05 * (1 + np.cos(np.pi * t / 16)) for t in range(16)]
    np.testing.assert_allclose(got[4:], expected, rtol=1e-5)


def test_constant_schedule():
    assert rates(5, 8, schedule="constant") == pytest.approx([0.1] * 8)


def test_weight_decay_falls_on_every_parameter():
    tx = optim.optimizer(OptimConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant"), 10)
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 2.0), "logit_scale": jnp.asarray(1.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for name, value in params.items():
        np.testing.assert_allclose(updates[name], -0.1 * 0.5 * value, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    fields = dict(learning_rate=1.0, weight_decay=0.0, schedule="constant", b1=0.0, b2=0.0)
    grads = {"a": jnp.asarray([30.0, 40.0])}
    for clip, moved in ((0.0, grads["a"]), (1.0, jnp.asarray([0.6, 0.8]))):
        tx = optim.optimizer(OptimConfig(clip_norm=clip, **fields), 10)
        _, opt_state = tx.update(grads, tx.init(grads), grads)
        first_moment = next(
            x.mu["a"]
            for x in jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "mu"))
            if hasattr(x, "mu")
        )
        np.testing.assert_allclose(first_moment, moved, rtol=1e-6)


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "transformer": {"qkv": (2, 32, 96), "norm1_scale": (2, 32)},
        "lift": {"kernel": (24, 32), "bias": (32,)},
        "sa": {"kernel": (9, 64)},
        "proj": {"kernel": (32, 40)},
    }
    params = {
        "encoder": jax.tree.map(
            lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
        ),
        "logit_scale": np.float32(2),
    }
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    fields = dict(learning_rate=0.1, schedule="constant", weight_decay=0.0)
    muon = optim.optimizer(OptimConfig(name="muon", **fields), 10)
    adam = optax.adamw(0.1, nesterov=True, weight_decay=0.0)
    updates = [tx.update(grads, tx.init(params), params)[0] for tx in (muon, adam)]
    a, b = (u["encoder"] for u in updates)
    for matrix in (*a["transformer"]["qkv"], a["lift"]["kernel"]):
        sizes = np.linalg.svd(matrix, compute_uv=False)
        assert sizes.max() < 2.2 * sizes.min()  # five iterations bring them to 0.7 to 1.2 of one value
        np.testing.assert_allclose(np.sqrt(np.square(matrix).mean()), 0.1 * 0.2, rtol=0.25)
    same = [("transformer", "norm1_scale"), ("lift", "bias"), ("sa", "kernel"), ("proj", "kernel")]
    for group, leaf in same:
        np.testing.assert_allclose(a[group][leaf], b[group][leaf], rtol=1e-4)
    np.testing.assert_allclose(updates[0]["logit_scale"], updates[1]["logit_scale"], rtol=1e-4)


def test_evaluation_uses_the_moving_average_where_there_is_one():
    model = ModelConfig(dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8, patches=4, nsample=4, embed_dim=8)
    config = Config(model=model)
    plain = state.init(config)
    assert state.evaluated(plain)["encoder"] is plain.params["encoder"]
    config.optim.ema = 0.9
    averaged = state.init(config)
    averaged.ema["encoder"]["cls_token"] = averaged.ema["encoder"]["cls_token"] + 1
    got = state.evaluated(averaged)["encoder"]["cls_token"] - averaged.params["encoder"]["cls_token"]
    np.testing.assert_allclose(got, 1, rtol=1e-5)


def test_training_learns_sixteen_shapes_by_heart():
    rng = np.random.default_rng(0)
    model = ModelConfig(
        dim=32, depth=1, heads=1, mlp_dim=32, sa_dim=32, patches=8, nsample=8, radius=0.5, embed_dim=16
    )
    config = Config(model=model, steps=60, batch_size=16)
    config.augment.enabled = False
    config.optim.learning_rate, config.optim.ema = 3e-3, 0.9
    text = rng.normal(size=(16, 16)).astype(np.float32)
    batch = {
        "xyz": (rng.integers(0, 65536, (16, 64, 3)) // rng.integers(1, 9, (16, 1, 3))).astype(np.uint16),
        "rgb": rng.integers(0, 256, (16, 1, 3)).astype(np.uint8).repeat(64, 1),
        "text": text[:, None], "has_text": np.ones((16, 1), bool),
        "text_id": np.arange(16)[:, None], "text_ids": np.arange(16)[:, None],
        "image": np.zeros_like(text)[:, None], "has_image": np.zeros((16, 1), bool),
    }  # fmt: skip
    step = jax.jit(state.make_train_step(config))
    now = state.init(config)
    for _ in range(60):
        now, values = step(now, batch)
    assert values["text_top1"] == 1.0
    assert values["loss"] < 0.2
    weights = state.evaluated(now)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights["encoder"], now.params["encoder"])
    assert max(jax.tree.leaves(moved)) > 1e-6  # the average lags behind
