"""Foreign checkpoints read into our model: files, layouts, sizes, axes, folders and repositories."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

import openshape_jax
from openshape_jax import models
from openshape_jax.api import Model
from openshape_jax.convert import load, names, recognise
from openshape_jax.convert.error import ConversionError, Undecided
from openshape_jax.models import pointbert
from tests import torch_files, torch_names
from tests.torch_files import FIXTURE, GIVEN


def outputs(model: Model, golden) -> np.ndarray:
    """Embeddings of the fixture's clouds as they are, not normalised."""
    weights = model._weights
    return models.apply(model.config, weights["encoder"], weights["stats"], golden["xyz"], golden["rgb"])[0]


def test_the_original_s_file_gives_its_outputs(golden, golden_model, capsys):
    model = openshape_jax.load(FIXTURE, **GIVEN)
    assert model.config == golden_model
    np.testing.assert_allclose(outputs(model, golden), golden["out_eval"], atol=1e-4)
    assert model.metadata["logit_scale"] == pytest.approx(14.28)
    assert model.step == 1234
    out = capsys.readouterr().out
    assert "left out: best_lvis_acc, epoch, optimizer, scheduler, step" in out


def test_every_tensor_lands_where_the_names_say(golden):
    weights, _, _ = load.read(FIXTURE, **GIVEN)
    w = torch_names.group(golden, "weights/")
    expected = {"encoder": torch_names.encoder(w), "stats": torch_names.stats(w)}

    def compare(a, b):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], dict):
                compare(a[key], b[key])
            else:
                np.testing.assert_array_equal(a[key], b[key], strict=True)

    compare(weights, expected)


@pytest.mark.parametrize("prefix", ["", "module.", "pc_encoder."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bare_state_dicts(tmp_path, golden, prefix, suffix, capsys):
    tensors = {prefix + k: v for k, v in torch_files.plain().items()}
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch_files.write(path, tensors)
    else:
        save_file(tensors, path)
    model = openshape_jax.load(path, **GIVEN)
    np.testing.assert_allclose(outputs(model, golden), golden["out_eval"], atol=1e-4)
    assert model.metadata["logit_scale"] == pytest.approx(1 / 0.07)
    assert "has no logit scale; 14.29 (1 / 0.07) is used" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["logit_scale", "module.logit_scale"])
def test_a_logit_scale_among_the_tensors(tmp_path, name):
    path = torch_files.write(tmp_path / "m.pt", {**torch_files.plain(), name: np.float32([3.0])})
    assert load.read(path, **GIVEN)[1]["logit_scale"] == pytest.approx(np.exp(3))


def test_an_encoder_without_projection(tmp_path, golden, golden_model):
    path = torch_files.write(tmp_path / "demo.pt", torch_files.unprojected())
    model = openshape_jax.load(path, **GIVEN)
    assert model.config == dataclasses.replace(golden_model, project=False, embed_dim=32)
    plain = torch_files.plain()
    projected = np.asarray(outputs(model, golden)) @ plain["proj.weight"].T + plain["proj.bias"]
    np.testing.assert_allclose(projected, golden["out_eval"], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_number_formats_become_float32(tmp_path, dtype, suffix):
    tensors = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in torch_files.plain().items()}
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch_files.write(path, tensors)
    else:
        save_file(tensors, path)
    lift = load.read(path, **GIVEN)[0]["encoder"]["lift"]["kernel"]
    expected = tensors["ppat.lift.0.weight"][..., 0].T.astype(np.float32)
    np.testing.assert_array_equal(lift, expected, strict=True)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_hugging_face_folders(tmp_path, golden, kind):
    tensors = torch_files.plain()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    shards = {}
    for part in range(2):
        name = f"{stem}-0000{part + 1}-of-00002.{kind}"
        some = {k: v for i, (k, v) in enumerate(tensors.items()) if i % 2 == part}
        shards.update(dict.fromkeys(some, name))
        if kind == "safetensors":
            save_file(some, tmp_path / name)
        else:
            torch_files.write(tmp_path / name, some)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    model = openshape_jax.load(tmp_path, **GIVEN)
    np.testing.assert_allclose(outputs(model, golden), golden["out_eval"], atol=1e-4)
    (tmp_path / name).unlink()
    with pytest.raises(ConversionError, match=f"names {name}, which is not beside it"):
        load.read(tmp_path, **GIVEN)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    with pytest.raises(ConversionError, match=r"of its own folder, not \['../secret.bin'\]"):
        load.read(tmp_path, **GIVEN)


def of_size(scaling, embed_dim=1280):
    """(config, layout, shapes) of a published size."""
    config = pointbert.size(scaling, embed_dim)
    prefix = "pc_encoder." if isinstance(scaling, str) else "module."
    return config, names.Layout(prefix, config.project), names.expected(config)


@pytest.mark.parametrize("scaling", recognise.SIZES)
def test_every_published_size_is_recognised(scaling):
    config, layout, shapes = of_size(scaling)
    found = recognise.architecture(shapes, "m.pt")
    release = recognise.find_release(found, layout, "/models/model.pt")
    assert recognise.sampling(found, release, {}, "m.pt") == config
    assert recognise.up_axis(found, release, None, "m.pt") == ("y" if isinstance(scaling, str) else "z")


@pytest.mark.parametrize(
    ("origin", "scaling", "data"),
    [
        ("OpenShape/openshape-pointbert-vitg14-rgb", 4, "Objaverse"),
        (
            "/hub/models--OpenShape--openshape-pointbert-no-lvis/snapshots/0a/model.pt",
            4,
            "without Objaverse-LVIS",
        ),
        ("/a/openshape-pointbert-shapenet/model.pt", 4, "ShapeNetCore"),
        ("/a/pointbert-vitb32-rgb.pt", "demo_b32", "unknown"),
    ],
)
def test_releases_are_known_by_name(origin, scaling, data):
    config, layout, _ = of_size(scaling)
    release = recognise.find_release(config, layout, origin)
    assert release is not None
    assert data in release.trained_on
    narrow = dataclasses.replace(config, embed_dim=7)
    assert recognise.find_release(narrow, layout, origin) is None


def test_what_tensors_do_not_tell_is_asked_for():
    config, _, _ = of_size("demo_l14")
    layout = names.Layout("module.")
    assert recognise.find_release(config, layout, "/models/model.pt") is None
    with pytest.raises(Undecided, match=r"size 3 \(patches 128.* and size demo_l14 \(patches 64"):
        recognise.sampling(config, None, {}, "model.pt")
    assert recognise.sampling(config, None, {"patches": 128}, "model.pt").radius == 0.35
    assert recognise.find_release(config, layout, "/m/openshape-pointbert-vitl14-rgb/model.pt") is not None
    with pytest.raises(Undecided, match=r"D = 768.*up='z' or up='y'"):
        recognise.up_axis(config, None, None, "model.pt")
    with pytest.raises(Undecided, match=r"dim 32, .* are of no published size.*--patches --radius --nsample"):
        load.read(FIXTURE, up="z")
    with pytest.raises(Undecided, match="no published size"):
        load.read(FIXTURE, up="z", patches=24, radius=0.35)
    with pytest.raises(Undecided, match=r"this \(D = 40\) is no known release"):
        load.read(FIXTURE, **torch_files.SAMPLING)
    with pytest.raises(ConversionError, match="nsample is 0; it must be positive"):
        load.read(FIXTURE, **{**GIVEN, "nsample": 0})
    with pytest.raises(ConversionError, match="up is 'x'"):
        load.read(FIXTURE, **{**GIVEN, "up": "x"})


def test_wrong_width_asked_for():
    with pytest.raises(ConversionError, match="embeds to D = 40, but embed_dim 768 was asked for"):
        load.read(FIXTURE, embed_dim=768)
    assert load.read(FIXTURE, **GIVEN, embed_dim=40)[1]["embed_dim"] == 40


def test_a_y_up_model_gets_y_up_clouds(golden):
    weights, metadata, step = load.read(FIXTURE, **GIVEN)
    metadata |= {"num_points": 600, "mirrored": False}
    z_model, y_model = Model(weights, metadata, step), Model(weights, {**metadata, "up": "y"}, step)
    cloud = golden["xyz"][0]
    turned = cloud[:, [0, 2, 1]] * np.float32([1, 1, -1])  # the same cloud, y up
    as_is = z_model.embed(cloud)
    np.testing.assert_array_equal(y_model.embed(cloud, up="y"), as_is)
    np.testing.assert_allclose(y_model.embed(cloud), z_model.embed(turned), atol=1e-6)
    np.testing.assert_allclose(y_model.embed(turned, up="y"), y_model.embed(cloud), atol=1e-6)
    np.testing.assert_allclose(z_model.embed(turned, up="y"), as_is, atol=1e-6)
    assert np.abs(y_model.embed(cloud) - as_is).max() > 1e-3


def test_a_z_up_model_of_openshape_gets_its_swapped_axes(golden):
    weights, metadata, step = load.read(FIXTURE, **GIVEN)
    metadata["num_points"] = 600
    y_up = golden["xyz"][0][:600]
    plain = Model(weights, {**metadata, "mirrored": False}, step)
    as_in_training = plain.embed(y_up[:, [0, 2, 1]])  # what OpenShape's loader does to y-up data
    np.testing.assert_allclose(Model(weights, metadata, step).embed(y_up, up="y"), as_in_training, atol=1e-6)
    assert np.abs(plain.embed(y_up, up="y") - as_in_training).max() > 1e-3
    assert load.read(FIXTURE, **{**GIVEN, "up": "y"})[1]["mirrored"] is False


def test_labels_need_the_model_s_own_text_space(golden):
    model = openshape_jax.load(FIXTURE, **GIVEN)
    with pytest.raises(ValueError, match=r"embeds into unknown \(D = 40\): take cosines"):
        model.classify(golden["xyz"][0], ["chair"])
    model.metadata["text_space"] = recognise.CLIP_VITB32
    scores = model.scores(np.eye(512, dtype=np.float32)[:2], ["chair", "table"])
    assert scores.shape == (2, 2)
    model.metadata["text_space"] = "clip_vitb32_names_centred"
    assert not np.allclose(scores, model.scores(np.eye(512, dtype=np.float32)[:2], ["chair", "table"]))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_repository_without_network_is_one_clear_error(no_network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError) as error:
        openshape_jax.load("OpenShape/openshape-pointbert-vitg14-rgb")
    text = str(error.value)
    assert text.startswith("OpenShape/openshape-pointbert-vitg14-rgb is no file or folder here and could not")
    assert str(no_network) in text
    assert (
        "hf download OpenShape/openshape-pointbert-vitg14-rgb --local-dir openshape-pointbert-vitg14" in text
    )


def test_a_repository_in_the_cache_needs_no_network(no_network, monkeypatch, tmp_path, golden):
    monkeypatch.chdir(tmp_path)
    repo = no_network / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0a1b")
    (repo / "snapshots" / "0a1b").mkdir(parents=True)
    (repo / "snapshots" / "0a1b" / "model.pt").write_bytes(FIXTURE.read_bytes())
    model = openshape_jax.load("someone/tiny", **GIVEN)
    np.testing.assert_allclose(outputs(model, golden), golden["out_eval"], atol=1e-4)
    assert model.metadata["converted_from"] == "someone/tiny"
