"""CLIP's towers against PyTorch: transformers and open_clip, block by block; widths, types, devices."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import openshape_jax
from openshape_jax import sharding
from openshape_jax.models import clip

FIXTURES = Path(__file__).parent / "fixtures"
TRANSFORMERS, OPEN_CLIP = FIXTURES / "clip_transformers", FIXTURES / "clip_open_clip"
TEXTS = json.loads((TRANSFORMERS / "texts.json").read_text())
# (folder, activation, prefix of the expected arrays)
MODELS = [
    (TRANSFORMERS, "quick_gelu", "quick_gelu_"),
    (TRANSFORMERS, "gelu", "gelu_"),
    (OPEN_CLIP, "gelu", ""),
]
EVERY = pytest.mark.parametrize("folder, activation, prefix", MODELS)


def load(folder, activation=None, **options):
    """The fixture's CLIP, with another activation than its config file says."""
    found = openshape_jax.load_clip(folder, **options)
    if activation in (None, found.config.activation):
        return found
    changed = dataclasses.replace(found.config, activation=activation)
    return openshape_jax.load_clip(folder, config=changed, **options)


def expected(folder, prefix=""):
    """The fixture's arrays: those that the prefix is in front of, and the inputs."""
    with np.load(folder / "expected.npz") as file:
        arrays = dict(file)
    arrays["pixels"] = arrays["pixels"].astype(np.float32)
    return {name.removeprefix(prefix): x for name, x in arrays.items()}


@functools.cache
def outputs(folder, activation, dtype="float32"):
    """(clip, what it makes of the fixture's inputs: of every block, and the unit vectors)."""
    golden, loaded = expected(folder), load(folder, activation, dtype=dtype)

    @jax.jit
    def run(params, ids, pixels):
        out = {}
        found = clip.module(loaded.config, params)
        for name, tower, x in (("text", found.text, ids), ("image", found.image, pixels)):
            out[f"{name}_layers"] = tower.blocks.scan(tower.embed(x), keep=True)[1]
            out[name] = clip.unit(tower(x))
        return out

    return loaded, jax.tree.map(np.asarray, run(loaded._params, golden["ids"], golden["pixels"]))


def module(loaded):
    return clip.module(loaded.config, loaded._params)


@EVERY
def test_text_blocks_and_tower_equal_torch(folder, activation, prefix):
    golden, (loaded, found) = expected(folder, prefix), outputs(folder, activation)
    rows = golden["text_layers"].shape[1]
    ends = [list(row).index(loaded.config.eos_id) + 1 for row in golden["ids"][:rows]]
    for layer, want in zip(found["text_layers"], golden["text_layers"], strict=True):
        for row, end in enumerate(ends):  # behind the end transformers masks what nothing reads
            np.testing.assert_allclose(layer[row, :end], want[row, :end], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(found["text"], golden["text"], atol=1e-5)


@EVERY
def test_image_blocks_and_tower_equal_torch(folder, activation, prefix):
    golden, (_, found) = expected(folder, prefix), outputs(folder, activation)
    np.testing.assert_allclose(found["image_layers"], golden["image_layers"], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(found["image"], golden["image"], atol=1e-5)


def test_the_two_gelus_differ_by_more_than_the_tolerance():
    golden = expected(TRANSFORMERS)
    for tower in ("text", "image"):
        assert np.abs(golden[f"quick_gelu_{tower}"] - golden[f"gelu_{tower}"]).max() > 1e-3


def test_logits_equal_torch():
    golden, (loaded, found) = expected(TRANSFORMERS, "quick_gelu_"), outputs(TRANSFORMERS, "quick_gelu")
    np.testing.assert_allclose(
        loaded.logit_scale * found["image"] @ found["text"].T, golden["logits"], atol=1e-4
    )


@pytest.mark.parametrize("pooling", clip.POOLINGS)
def test_neither_padding_nor_the_pooling_rule_changes_an_embedding(pooling):
    golden, (loaded, _) = expected(TRANSFORMERS, "quick_gelu_"), outputs(TRANSFORMERS, "quick_gelu")
    config = dataclasses.replace(loaded.config, pooling=pooling)
    encode = jax.jit(lambda ids: clip.encode_text(config, loaded._params, ids))
    for pad in (0, 5, config.eos_id):
        ids = golden["ids"].copy()
        for row in ids:
            row[list(row).index(config.eos_id) + 1 :] = pad
        np.testing.assert_allclose(encode(ids), golden["text"], atol=1e-5)


def test_a_text_attends_to_what_is_before_only():
    ids = jnp.asarray(expected(TRANSFORMERS)["ids"])[:2]
    tower = module(load(TRANSFORMERS)).text
    run = jax.jit(lambda ids: tower.blocks(tower.embed(ids)))
    before, after = run(ids), run(ids.at[:, 4].set(7))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before - after)[:, 4:].max(-1) > 1e-3).all()


@EVERY
def test_bfloat16_is_close(folder, activation, prefix):
    golden, (loaded, found) = expected(folder, prefix), outputs(folder, activation, "bfloat16")
    for tower in ("text", "image"):
        assert loaded._params[tower]["blocks"]["qkv"].dtype == jnp.bfloat16
        assert loaded._params[tower]["blocks"]["norm1_scale"].dtype == jnp.float32
        assert found[f"{tower}_layers"].dtype == jnp.bfloat16 and found[tower].dtype == np.float32
        assert (found[tower] * golden[tower]).sum(-1).min() > 0.999


@pytest.mark.parametrize("fsdp", [1, 2])
def test_eight_devices_give_what_one_gives(fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL_ARRAY", 1)  # so that the small parameters are split, too
    mesh = sharding.make_mesh(fsdp)
    assert mesh.size == 8
    one, eight = load(TRANSFORMERS), load(TRANSFORMERS, mesh=mesh)
    pictures = pictures_of_fixture()
    np.testing.assert_allclose(eight.encode_text(TEXTS), one.encode_text(TEXTS), atol=1e-6)
    np.testing.assert_allclose(eight.encode_images(pictures), one.encode_images(pictures), atol=1e-6)


def test_a_sharded_batch_gives_a_sharded_result():
    mesh = sharding.make_mesh()
    loaded = load(TRANSFORMERS)
    golden = expected(TRANSFORMERS, "quick_gelu_")
    ids = np.resize(golden["ids"], (16, golden["ids"].shape[1]))
    params = jax.device_put(loaded._params, sharding.replicated(mesh))
    encode = jax.jit(lambda params, ids: clip.encode_text(loaded.config, params, ids))
    out = encode(params, jax.device_put(ids, sharding.by_row(mesh)))
    assert len({s.device for s in out.addressable_shards}) == 8
    assert all(s.data.shape == (2, 24) for s in out.addressable_shards)
    np.testing.assert_allclose(out, np.resize(golden["text"], (16, 24)), atol=1e-5)


def pictures_of_fixture():
    with np.load(FIXTURES / "clip_images.npz") as file:
        return [file[f"image_{i}"] for i in range(5)]


# OpenCLIP's own classes, instantiated without storage, count the same (bigG: 1,844.91 M + 694.66 M in its
# docs/model_profile.csv).
PARAMETERS = {
    "openai-b32": 151_277_313,
    "openai-b16": 149_620_737,
    "openai-l14": 427_616_513,
    "openclip-l14": 427_616_513,
    "openclip-h14": 986_109_441,
    "openclip-bigg14": 2_539_567_105,
}


@pytest.mark.parametrize("name", clip.CLIPS)
def test_parameter_counts_are_the_published_ones(name):
    shapes = clip.shapes(clip.CLIPS[name])
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_gradients_are_finite_and_reach_every_parameter():
    golden, loaded = expected(OPEN_CLIP), load(OPEN_CLIP)
    ids, pixels = jnp.asarray(golden["ids"][:3]), jnp.asarray(golden["pixels"])

    def loss(params):
        text = clip.encode_text(loaded.config, params, ids)
        found = clip.module(loaded.config, params)
        return (jnp.exp(params["logit_scale"]) * text @ clip.unit(found.image(pixels)).T).std()

    gradients = jax.jit(jax.grad(loss))(loaded._params)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    assert np.isfinite(jax.grad(lambda x: clip.unit(x).sum())(jnp.zeros(4))).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(vision=clip.TowerConfig(50, 2, 4, 80)), "vision tower has width 50, depth 2, heads 4, mlp 80"),
        (dict(text=clip.TowerConfig(32, 0, 2, 96)), "text tower has width 32, depth 0"),
        (dict(patch_size=7), r"image_size is 32; it must be a multiple of patch_size \(7\)"),
        (dict(activation="relu"), "activation is 'relu'; it must be one of gelu, quick_gelu"),
        (dict(pooling="last"), "pooling is 'last'; it must be one of argmax, eos"),
        (dict(dtype="int8"), "dtype is 'int8'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(load(TRANSFORMERS).config, **change)


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros((2, 17), np.int32),
        np.zeros(5, np.int32),
        np.zeros((2, 0), np.int32),
        np.zeros((2, 4), np.float32),
    ],
)
def test_ids_of_a_wrong_shape_or_type_are_refused(ids):
    with pytest.raises(ValueError, match=r"expected integers \(B, T\) with T <= 16"):
        module(load(TRANSFORMERS)).text(jnp.asarray(ids))


def test_pixels_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"pixels is \(1, 3, 32, 32\); expected \(B, 32, 32, 3\)"):
        module(load(TRANSFORMERS)).image(jnp.zeros((1, 3, 32, 32)))
