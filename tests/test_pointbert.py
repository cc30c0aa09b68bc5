"""PointBERT against the PyTorch original: outputs, gradients, five training steps, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from openshape_jax import models, optim, state
from openshape_jax.config import Config, ModelConfig
from openshape_jax.models import pointbert
from openshape_jax.ops import patch_passes
from tests import torch_names


@pytest.fixture(scope="module")
def weights(golden):
    w = torch_names.group(golden, "weights/")
    return jax.tree.map(jnp.asarray, (torch_names.encoder(w), torch_names.stats(w)))


def compiled(config, **kwargs):
    """`models.apply` of a config: eagerly every operation would be a program of its own."""
    return jax.jit(functools.partial(models.apply, config, **kwargs))


def largest_difference(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.parametrize(("train", "name"), [(False, "out_eval"), (True, "out_train")])
def test_outputs_of_the_original(golden, golden_model, weights, train, name, chunks):
    out, _ = compiled(golden_model, train=train)(*weights, golden["xyz"], golden["rgb"])
    np.testing.assert_allclose(out, golden[name], atol=1e-5)


@pytest.fixture(params=[1 << 12, 1 << 7], ids=["one chunk", "several chunks"])
def chunks(request, monkeypatch) -> None:
    """The set abstraction's points all at once, and in chunks."""
    monkeypatch.setattr(patch_passes, "CPU_CHUNK_ROWS", request.param)


def test_parameter_tree_is_exactly_the_original_s(golden_model, weights):
    params, stats = jax.eval_shape(lambda: models.split(models.build(golden_model, nnx.Rngs(0))))
    assert jax.tree.map(jnp.shape, (params, stats)) == jax.tree.map(jnp.shape, weights)


def test_five_training_steps_of_the_original(golden, golden_model, weights, chunks):
    config = Config(model=golden_model)
    config.optim.schedule = "constant"
    rows = len(golden["xyz"])
    batch = {
        "text": golden["text_feat"][:, None], "has_text": golden["has_text"][:, None],
        "image": golden["image_feat"][:, None], "has_image": np.ones((rows, 1), bool),
        "text_id": np.arange(rows)[:, None], "text_ids": np.arange(rows)[:, None],
    }  # fmt: skip
    params = {"encoder": weights[0], "logit_scale": jnp.float32(golden["logit_scale_log"][0])}
    stats = weights[1]
    tx = optim.optimizer(config.optim, 5)
    opt_state = tx.init(params)

    @jax.jit
    def next_step(params, stats, opt_state):
        wanted = jax.value_and_grad(
            lambda p: state.loss(config, p, stats, golden["xyz"], golden["rgb"], batch), has_aux=True
        )
        (_, (stats, values)), grads = wanted(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, values, grads

    seen = []
    for step in range(5):
        params, stats, opt_state, values, grads = next_step(params, stats, opt_state)
        if step == 0:
            expected = torch_names.encoder(torch_names.group(golden, "grad_step0/"))
            assert largest_difference(grads["encoder"], expected) < 1e-5
            assert abs(grads["logit_scale"] - golden["grad_logit"]) < 1e-5
        seen.append([values["loss"], values["image_loss"], values["text_loss"]])
    golden_losses = np.stack([golden["losses"], golden["image_losses"], golden["text_losses"]], 1)
    np.testing.assert_allclose(seen, golden_losses, atol=1e-4)

    final = torch_names.group(golden, "weights_step5/")
    encoder, expected = params["encoder"], torch_names.encoder(final)
    for i in range(3):  # biases before a BatchNorm have no gradient: Adam amplifies rounding noise there
        del encoder["sa"]["convs"][i]["bias"], expected["sa"]["convs"][i]["bias"]
    assert largest_difference(encoder, expected) < 1e-4
    assert abs(float(params["logit_scale"]) - golden["logit_scale_log"][1]) < 1e-5
    variances = [stats["sa"]["norms"][i]["var"] for i in range(3)]
    expected = [torch_names.stats(final)["sa"]["norms"][i]["var"] for i in range(3)]
    assert largest_difference(variances, expected) < 1e-5


@pytest.mark.parametrize(
    ("scaling", "millions"),
    [
        (1, 5.10),
        (2, 13.35),
        (3, 25.95),
        (4, 32.33),
        (5, 72.07),
        (6, 171.3),
        ("demo_l14", 25.69),
        ("demo_b32", 25.30),
    ],
)
def test_parameter_counts_of_the_paper(scaling, millions):
    params, _ = jax.eval_shape(lambda: models.split(models.build(pointbert.size(scaling), nnx.Rngs(0))))
    count = sum(np.prod(p.shape) for p in jax.tree.leaves(params)) / 1e6
    assert abs(count - millions) < 0.051 if millions > 100 else abs(count - millions) < 0.0051


def test_embedding_depends_neither_on_the_batch_nor_on_its_order(golden, golden_model, weights):
    embed = jax.jit(state.make_embed(golden_model))
    w = {"encoder": weights[0], "stats": weights[1]}
    whole = embed(w, golden["xyz"], golden["rgb"])
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embed(w, golden["xyz"][::-1], golden["rgb"][::-1])[::-1], whole, atol=1e-6)
    moved = golden["xyz"] * 8 + np.float32(16)
    np.testing.assert_allclose(embed(w, moved, golden["rgb"]), whole, atol=1e-4)


def test_rematerialisation_changes_nothing(golden, golden_model, weights):
    def grads(config):
        apply = compiled(config)
        return jax.grad(lambda p: apply(p, weights[1], golden["xyz"], golden["rgb"])[0].sum())(weights[0])

    again = dataclasses.replace(golden_model, remat=True)
    assert largest_difference(grads(golden_model), grads(again)) < 1e-4


def test_errors_name_value_and_fix(golden, golden_model, weights):
    few = golden["xyz"][:, :20], golden["rgb"][:, :20]
    with pytest.raises(ValueError, match="xyz has 20 points; this PointBERT needs at least 24"):
        models.apply(golden_model, *weights, *few)
    with pytest.raises(ValueError, match=r"must both be \(B, N, 3\)"):
        models.apply(golden_model, *weights, golden["xyz"], golden["rgb"][:, :5])
    with pytest.raises(ValueError, match="unknown PointBERT size 9; known: 1, 2"):
        pointbert.size(9)
    with pytest.raises(ValueError, match=r"embed_dim \(7\) must be dim \(8\)"):
        models.build(ModelConfig(dim=8, embed_dim=7, project=False), nnx.Rngs(0))


def test_keeping_all_patches_in_any_order_changes_nothing_and_fewer_do(golden, golden_model, weights):
    inputs, apply = (*weights, golden["xyz"], golden["rgb"]), compiled(golden_model)
    whole, _ = apply(*inputs)
    order = jnp.broadcast_to(jnp.asarray(np.random.default_rng(0).permutation(24)), (6, 24))
    np.testing.assert_allclose(apply(*inputs, keep=order)[0], whole, atol=1e-5)
    assert np.abs(apply(*inputs, keep=order[:, :12])[0] - whole).max() > 1e-3


def test_drawn_patches_are_distinct_and_differ_between_shapes(golden_model):
    assert state.draw_patches(jax.random.key(0), golden_model, 6) is None
    config = dataclasses.replace(golden_model, train_patches=10)
    drawn = np.asarray(state.draw_patches(jax.random.key(0), config, 6))
    assert drawn.shape == (6, 10)
    assert all(len(set(row)) == 10 and max(row) < 24 for row in drawn)
    assert len({tuple(sorted(row)) for row in drawn}) == 6


@pytest.mark.parametrize("views", [1, 3])
def test_a_short_cloud_in_a_batch_embeds_as_if_alone(golden, golden_model, weights, views):
    w = {"encoder": weights[0], "stats": weights[1]}
    embed = jax.jit(state.make_embed(golden_model, views))
    xyz, rgb, count = golden["xyz"].copy(), golden["rgb"].copy(), np.array([600, 599, 311, 150, 60, 24])
    for row, n in enumerate(count):
        xyz[row], rgb[row] = np.resize(xyz[row, :n], (600, 3)), np.resize(rgb[row, :n], (600, 3))
    together = embed(w, xyz, rgb, count)
    for row, n in enumerate(count):
        alone = embed(w, golden["xyz"][row : row + 1, :n], golden["rgb"][row : row + 1, :n])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_views_average_over_headings(golden, golden_model, weights):
    w = {"encoder": weights[0], "stats": weights[1]}
    four = jax.jit(state.make_embed(golden_model, 4))
    base = four(w, golden["xyz"], golden["rgb"])
    np.testing.assert_allclose(np.linalg.norm(base, axis=1), 1, atol=1e-6)
    one = jax.jit(state.make_embed(golden_model))
    by_hand = []
    for view in range(4):
        c, s = np.cos(np.pi / 2 * view), np.sin(np.pi / 2 * view)
        turned = golden["xyz"] @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
        by_hand.append(one(w, np.roll(turned, 150 * view, 1), np.roll(golden["rgb"], 150 * view, 1)))
    mean = np.mean(by_hand, 0)
    np.testing.assert_allclose(base, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_class_token_stands_in_front(monkeypatch, platform):
    monkeypatch.setattr(pointbert, "platform", lambda x: platform)
    token, tokens = jnp.arange(4.0), jnp.arange(24.0).reshape(2, 3, 4) + 10
    got, pull = jax.vjp(pointbert._put_in_front, token, tokens)
    np.testing.assert_array_equal(got, np.concatenate([np.tile(token, (2, 1, 1)), tokens], 1))
    to_token, to_tokens = pull(got)
    np.testing.assert_array_equal(to_token, 2 * token)
    np.testing.assert_array_equal(to_tokens, tokens)
