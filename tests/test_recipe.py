"""Each option of the recipe does what its paper says, and nothing where it is off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openshape_jax import api, losses, models, optim, state
from openshape_jax.config import Config, ModelConfig
from openshape_jax.data import vocabulary
from tests.loss_cases import contrastive

B = 8


@pytest.fixture(scope="module")
def config() -> Config:
    model = ModelConfig(
        dim=32, depth=3, heads=1, mlp_dim=48, sa_dim=16, patches=12, nsample=8, radius=0.5, embed_dim=16
    )
    c = Config(model=model, steps=4, batch_size=B)
    c.augment.enabled = False
    c.data.num_points = 64
    c.optim.schedule = "constant"
    return c


@pytest.fixture(scope="module")
def batch(config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return make_batch(config, rng)


def make_batch(config: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = state.batch_shapes(config)
    rows = {
        k: rng.normal(size=v.shape).astype(np.float16) for k, v in shapes.items() if v.dtype == np.float16
    }
    rows |= {k: np.ones(v.shape, bool) for k, v in shapes.items() if v.dtype == bool}
    ids = np.arange(B * config.data.texts, dtype=np.int32).reshape(B, -1)
    padded = np.pad(ids, [(0, 0), (0, shapes["text_ids"].shape[1] - ids.shape[1])], constant_values=-1)
    points = rng.integers(0, 65536, shapes["xyz"].shape)
    return {
        **rows, "text_id": ids, "text_ids": padded, "xyz": points.astype(np.uint16),
        "rgb": rng.integers(0, 256, shapes["rgb"].shape).astype(np.uint8),
    }  # fmt: skip


def changed(config: Config, **options) -> Config:
    """A copy with `group__field=value` set."""
    copy = dataclasses.replace(config)
    for name, value in options.items():
        group, field = name.split("__")
        setattr(copy, group, dataclasses.replace(getattr(copy, group), **{field: value}))
    return copy


def gradients(config: Config, batch, params=None):
    """(metrics, gradients) of the loss at the first parameters."""
    first = state.init(config)
    points = [jnp.asarray(batch[k], jnp.float32) for k in ("xyz", "rgb")]
    unit = points[0] / 32768 - 1, points[1] / 255

    def value(p):
        total, (_, metrics) = state.loss(config, p, first.stats, *unit, batch)
        return total, metrics

    return jax.jit(jax.grad(value, has_aux=True))(first.params if params is None else params)[::-1]


def one_step(config: Config, batch) -> state.TrainState:
    return jax.jit(state.make_train_step(config))(state.init(config), batch)[0]


@pytest.fixture(scope="module")
def stepped(config, batch) -> state.TrainState:
    """The state after a step of the recipe without options."""
    return one_step(config, batch)


@pytest.fixture(scope="module")
def plain(config, batch) -> tuple:
    """(metrics, gradients) of the recipe without options."""
    return gradients(config, batch)


def test_separate_scales_each_learn_from_their_own_targets(config, batch, plain):
    shared, grads = plain
    assert "image_logit_scale" not in grads
    both = changed(config, loss__separate_scales=True)
    metrics, apart = gradients(both, batch)
    assert metrics["text_logit_scale"] == metrics["image_logit_scale"] == shared["logit_scale"]
    np.testing.assert_allclose(
        apart["logit_scale"] + apart["image_logit_scale"], grads["logit_scale"], rtol=1e-5
    )
    _, alone = gradients(changed(both, loss__image_weight=0.0), batch)
    assert alone["image_logit_scale"] == 0
    np.testing.assert_allclose(alone["logit_scale"], apart["logit_scale"], rtol=1e-5)


def test_the_scale_is_clamped(config, batch, stepped):
    for both in (False, True):
        c = changed(config, loss__max_logit_scale=10.0, loss__separate_scales=both)
        held = one_step(c, batch)
        names = ["logit_scale", "image_logit_scale"] if both else ["logit_scale"]
        for name in names:
            np.testing.assert_allclose(np.exp(held.params[name]), 10, rtol=1e-6)
    assert np.exp(stepped.params["logit_scale"]) > 14


def test_projections_are_learnt_and_pass_the_class_vectors_too(config, batch, plain):
    c = changed(config, loss__projections=True)
    identity = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    params = {**state.init(c).params, "text_proj": identity, "image_proj": identity}
    as_before, expected = plain
    metrics, grads = gradients(c, batch, params)
    np.testing.assert_allclose(metrics["loss"], as_before["loss"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads["encoder"], expected["encoder"]
    )
    assert all(np.abs(grads[name]["kernel"]).max() > 1e-4 for name in ("text_proj", "image_proj"))
    weights = state.evaluated(one_step(changed(c, optim__ema=0.5), batch))
    projected = state.project(weights, "text", batch["text"])
    np.testing.assert_allclose(
        projected, batch["text"] @ weights["text_proj"]["kernel"] + weights["text_proj"]["bias"]
    )


def test_a_model_with_a_projection_classifies_through_it():
    words = vocabulary.load()
    d = words.features.shape[1]
    c = Config(
        model=ModelConfig(
            dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8, patches=4, nsample=4, radius=1.0, embed_dim=d
        )
    )
    weights = jax.tree.map(np.asarray, state.evaluated(state.init(c)))
    described = {
        "model": dataclasses.asdict(c.model), "num_points": 16, "views": 1, "up": "z", "logit_scale": 1.0,
        "text_space": vocabulary.TEXT_SPACE,
    }  # fmt: skip
    turn = np.roll(np.eye(d, dtype=np.float32), 1, axis=1)
    turned = {**weights, "text_proj": {"kernel": turn, "bias": np.zeros(d, np.float32)}}
    emb = words.encode(["chair"])
    plain, mapped = (api.Model(w, described, 0) for w in (weights, turned))
    np.testing.assert_allclose(mapped.scores(emb @ turn, ["chair"]), 1, atol=1e-5)
    assert mapped.scores(emb, ["chair"]) < 0.5 < plain.scores(emb, ["chair"])


def test_layer_decay_slows_lower_layers(config, batch, stepped):
    slow, fast = one_step(changed(config, optim__layer_decay=0.5), batch), stepped  # 1.0 is the default
    assert config.optim.layer_decay == 1.0
    first = state.init(config).params

    def moved(last: state.TrainState, *names: str) -> np.ndarray:
        a, b = last.params, first
        for name in names:
            a, b = a[name], b[name]
        return np.asarray(a - b)

    def ratio(*names: str) -> np.ndarray:
        return moved(slow, *names) / moved(fast, *names)

    np.testing.assert_allclose(ratio("encoder", "proj", "bias"), 1, rtol=1e-3)
    np.testing.assert_allclose(ratio("logit_scale"), 1, rtol=1e-3)
    for layer in range(3):
        np.testing.assert_allclose(
            ratio("encoder", "transformer", "down_bias")[layer], 0.5 ** (3 - layer), rtol=2e-3
        )
    np.testing.assert_allclose(ratio("encoder", "lift", "bias"), 0.5**4, rtol=2e-3)
    rates = optim.layer_rates(first, 0.5)
    assert jax.tree.structure(rates) == jax.tree.structure(first)


def test_stochastic_depth(config):
    model = dataclasses.replace(config.model, drop_path=0.4)
    assert state.draw_paths(jax.random.key(0), config.model, B) is None
    drawn = np.asarray(state.draw_paths(jax.random.key(0), model, 20_000))
    assert drawn.shape == (3, 2, 20_000)
    for layer, rate in enumerate((0, 0.2, 0.4)):
        np.testing.assert_allclose((drawn[layer] == 0).mean(1), rate, atol=0.02)
        np.testing.assert_allclose(drawn[layer].max(), 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(drawn.mean(), 1, atol=0.02)
    params, stats = models.split(models.build(model, models.nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(size=(2, 1, 64, 3)).astype(np.float32)
    out = models.apply(model, params, stats, xyz, rgb, train=True, paths=jnp.zeros((3, 2, 1)))[0]
    head = params["proj"]
    np.testing.assert_allclose(out[0], params["cls_token"] @ head["kernel"] + head["bias"], atol=1e-6)
    whole = models.apply(model, params, stats, xyz, rgb, train=True)[0]
    ones = models.apply(model, params, stats, xyz, rgb, train=True, paths=jnp.ones((3, 2, 1)))[0]
    np.testing.assert_allclose(ones, whole, atol=1e-6)


def test_a_step_drops_paths_only_in_training(config, batch, stepped):
    c = changed(config, model__drop_path=0.9)
    with_drop = one_step(c, batch)
    difference = with_drop.params["encoder"]["proj"]["kernel"] - stepped.params["encoder"]["proj"]["kernel"]
    assert np.abs(difference).max() > 1e-5
    assert jax.tree.structure(state.init(c)) == jax.tree.structure(state.init(config))


@pytest.mark.parametrize(
    "options",
    [
        {"model__microbatches": 2},
        {"model__microbatches": 4, "model__remat": True},
        {"model__remat": True},
        {"model__remat": True, "model__remat_policy": "dots"},
        {"model__microbatches": 2, "model__drop_path": 0.5},
    ],
)
def test_saving_memory_changes_no_gradient(config, batch, stepped, options):
    rate = options.get("model__drop_path", 0.0)
    expected = one_step(changed(config, model__drop_path=rate), batch) if rate else stepped
    found = one_step(changed(config, **options), batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        found.opt_state[0].mu,
        expected.opt_state[0].mu,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.stats, expected.stats)


def test_blocks_need_less_memory_in_microbatches(config):
    def temporary(depth: int, parts: int) -> int:
        c = changed(config, model__patches=48, model__depth=depth, model__microbatches=parts)
        shapes = jax.eval_shape(lambda: state.init(c))
        step = jax.jit(state.make_train_step(c), donate_argnums=0)
        return step.lower(shapes, state.batch_shapes(c)).compile().memory_analysis().temp_size_in_bytes

    # Of fewer blocks other memory is the most that is needed at once.
    whole, parts = (temporary(4, n) - temporary(3, n) for n in (1, 4))
    assert parts < 0.4 * whole  # a quarter, and the gradients of the parameters


def test_bfloat16_computes_and_float32_remembers(config, batch, plain):
    c = changed(config, model__dtype="bfloat16")
    last = one_step(c, batch)
    kinds = {x.dtype for x in jax.tree.leaves(last) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("float32")}
    metrics, grads = gradients(c, batch)
    expected, exact = plain
    assert metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=2e-2)
    a, b = (np.asarray(g["encoder"]["transformer"]["up_kernel"]).ravel() for g in (grads, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98
    first, xyz = state.init(c), jnp.zeros((1, 64, 3))
    text = jax.make_jaxpr(lambda x: models.apply(c.model, first.params["encoder"], first.stats, x, x)[0])(xyz)
    assert "bf16" in str(text)


def test_the_options_of_the_loss_reach_it(config, monkeypatch):
    """With an encoder that returns what it is given, the text loss is that of `losses.contrastive`."""
    c = changed(config, data__texts=2, data__images=1)
    rows = make_batch(c, np.random.default_rng(1))
    emb = np.random.default_rng(2).normal(size=(B, 16)).astype(np.float32)
    monkeypatch.setattr(state.models, "apply", lambda *_args, **_more: (jnp.asarray(emb), {}))
    params = {"encoder": {}, "logit_scale": jnp.log(5.0)}
    seen = set()
    for options in ({}, {"hardness": 0.5}, {"top_k": 3}, {"decoupled": True}):
        chosen = changed(c, **{f"loss__{k}": v for k, v in options.items()})
        metrics = state.loss(chosen, params, {}, rows["xyz"], rows["rgb"], rows)[1][1]
        expected = contrastive(emb, rows["text"], 5.0, rows["has_text"], **options)[0]
        np.testing.assert_allclose(metrics["text_loss"], expected, rtol=1e-5)
        seen.add(float(metrics["text_loss"]))
    assert len(seen) == 4


def test_class_aware_positives_are_found_among_all_texts_of_a_shape(config, monkeypatch):
    c = changed(config, loss__class_aware=True, data__texts=2)
    rows = make_batch(c, np.random.default_rng(1))
    rows["text_id"][3, 1] = rows["text_ids"][5, 1]  # the second text of shape 3 is one of shape 5's too
    emb = np.random.default_rng(2).normal(size=(B, 16)).astype(np.float32)
    monkeypatch.setattr(state.models, "apply", lambda *_args, **_more: (jnp.asarray(emb), {}))
    params = {"encoder": {}, "logit_scale": jnp.log(5.0)}
    metrics = state.loss(c, params, {}, rows["xyz"], rows["rgb"], rows)[1][1]

    def also(shapes: losses.Rows, targets: losses.Rows):
        return (shapes.owner[:, None] == 5) & (jnp.arange(len(targets.owner)) == 3 * 2 + 1)

    shapes = losses.shapes(jnp.asarray(emb))
    form = losses.Form(positives=also)
    task = losses.Task(rows["text"], rows["has_text"], jnp.float32(5.0), form)
    [(expected, _)] = losses.contrastive(shapes, [task])
    np.testing.assert_allclose(metrics["text_loss"], expected, rtol=1e-5)
