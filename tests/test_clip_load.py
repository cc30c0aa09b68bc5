"""Loading a CLIP: layouts, parts, config files, the hub's cache, and every way in which it can fail."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

import openshape_jax
from openshape_jax.convert import clip as names
from openshape_jax.convert import torch_write
from openshape_jax.convert.error import ConversionError
from openshape_jax.models import clip
from tests.test_clip import OPEN_CLIP, TEXTS, TRANSFORMERS, expected

WEIGHTS = {TRANSFORMERS: "model.safetensors", OPEN_CLIP: "open_clip_model.safetensors"}


@pytest.fixture
def copy(tmp_path):
    """A copy of the CLIP of transformers, whose files a test changes."""
    return shutil.copytree(TRANSFORMERS, tmp_path / "copy")


@pytest.fixture
def open_clip(tmp_path):
    """A copy of OpenCLIP's, with the tokenizer that such a repository has, too."""
    folder = shutil.copytree(OPEN_CLIP, tmp_path / "open_clip")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TRANSFORMERS / name, folder)
    return folder


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def change(folder, edit, name="config.json"):
    path = folder / name
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def refused(path, **options):
    with pytest.raises(ConversionError) as error:
        openshape_jax.load_clip(path, **options)
    return str(error.value)


def check(loaded):
    np.testing.assert_allclose(
        loaded.encode_text(TEXTS[:6]), expected(TRANSFORMERS)["quick_gelu_text"][:6], atol=1e-5
    )


def test_parts_with_an_index_are_one_model(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    keys, weight_map = sorted(tensors), {}
    for part in range(3):
        file = f"model-0000{part + 1}-of-00003.safetensors"
        save_file({k: tensors[k] for k in keys[part::3]}, copy / file)
        weight_map |= dict.fromkeys(keys[part::3], file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(openshape_jax.load_clip(copy))
    (copy / "model-00002-of-00003.safetensors").unlink()
    assert "names model-00002-of-00003.safetensors, which is not beside it" in refused(copy)


def test_pytorch_files_are_read_too(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(16)[None]  # of transformers before 4.31
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    torch_write.save(tensors, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    check(openshape_jax.load_clip(copy))


def test_a_file_takes_the_config_beside_it_or_the_one_given(copy, tmp_path):
    loaded = openshape_jax.load_clip(copy / "model.safetensors")
    check(loaded)
    alone = tmp_path / "alone.safetensors"
    shutil.copy(copy / "model.safetensors", alone)
    text = refused(alone)
    assert "has no config.json beside it" in text and "config= one of openai-b32, " in text
    assert openshape_jax.load_clip(alone, config=loaded.config).config == loaded.config
    assert "config is 'b32'; known: openai-b32" in refused(alone, config="b32")


def test_what_the_config_files_say(open_clip):
    ours, theirs = (openshape_jax.load_clip(p).config for p in (TRANSFORMERS, open_clip))
    assert ours.vision == clip.TowerConfig(width=48, depth=2, heads=4, mlp=80)
    assert (ours.activation, ours.pooling, ours.eos_id, ours.pad_id) == ("quick_gelu", "eos", 639, 639)
    assert theirs.vision == clip.TowerConfig(width=52, depth=2, heads=2, mlp=255 + 1)
    assert (theirs.activation, theirs.pooling, theirs.eos_id, theirs.pad_id) == ("gelu", "argmax", 639, 0)
    assert theirs.mean == theirs.std == (0.5, 0.5, 0.5)
    change(open_clip, lambda c: c["model_cfg"].update(quick_gelu=True), "open_clip_config.json")
    assert openshape_jax.load_clip(open_clip).config.activation == "quick_gelu"


def test_a_config_of_before_2023_means_the_largest_id(copy):
    def old(config):
        text = config["text_config"]
        del text["hidden_act"], config["vision_config"]["hidden_act"]  # the default, then as now
        text["eos_token_id"] = 2
        config["text_config_dict"], config["vision_config_dict"] = text, config["vision_config"]

    change(copy, old)
    change(copy, lambda c: c.update(size=32, crop_size=32), "preprocessor_config.json")
    loaded = openshape_jax.load_clip(copy)
    assert (loaded.config.pooling, loaded.config.eos_id) == ("argmax", 639)
    check(loaded)


def test_a_folder_of_a_known_name_is_that_clip(tmp_path, monkeypatch):
    entry = openshape_jax.load_clip(TRANSFORMERS).config
    known = clip.ClipConfig(**{**vars(entry), "name": "CLIP tiny", "repo": "someone/clip-tiny"})
    monkeypatch.setitem(clip.CLIPS, "tiny", known)
    folder = shutil.copytree(TRANSFORMERS, tmp_path / "clip-tiny")
    assert openshape_jax.load_clip(folder).config.name == "CLIP tiny"
    change(folder, lambda c: [c[f"{t}_config"].update(hidden_act="gelu") for t in ("text", "vision")])
    assert openshape_jax.load_clip(folder).config.name == str(folder)  # of other weights
    for name in ("tiny", "CLIP tiny", "someone/clip-tiny", "SOMEONE/clip-tiny"):
        assert clip.find(name) is known


@pytest.mark.parametrize("folder", WEIGHTS)
def test_every_tensor_is_accounted_for(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    path = copied / WEIGHTS[folder]
    tensors = load_file(path)
    loaded = openshape_jax.load_clip(folder)
    layout = names.find_layout(tensors, "here")
    assert {k: x.shape for k, x in tensors.items()} == names.expected(loaded.config, layout)
    block = sorted(n for n in tensors if ".1." in n)
    missing, misshapen, integer = block[:3]
    del tensors[missing]
    tensors[misshapen] = np.zeros((3, 5), np.float32)
    tensors[integer] = tensors[integer].astype(np.int32)
    tensors["visual.extra" if folder == OPEN_CLIP else "text_model.extra"] = np.zeros(2, np.float32)
    save_file(tensors, path)
    text = refused(copied)
    assert "4 do not fit" in text and str(path) in text
    assert f"\n  missing: {missing} (" in text
    assert f"\n  misshapen: {misshapen} is (3, 5), expected (" in text
    assert f"\n  not floating point: {integer} is int32" in text
    assert ".extra (2,)" in text and "\n  unexpected: " in text


def test_what_is_not_finite_is_named(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    tensors[name][3, 4] = np.inf
    save_file(tensors, copy / "model.safetensors")
    assert "k_proj.weight" in refused(copy) and "holds NaN or infinite values" in refused(copy)


def test_another_block_than_the_config_says_is_listed(copy):
    change(copy, lambda c: c["text_config"].update(num_hidden_layers=2))
    assert "\n  unexpected: text_model.encoder.layers.2.layer_norm1.bias (32,)" in refused(copy)


def test_tensors_of_something_else_are_refused(copy):
    save_file({"ppat.cls_token": np.zeros(3, np.float32)}, copy / "model.safetensors")
    text = refused(copy)
    assert "is no CLIP of transformers" in text and "it has ppat.cls_token" in text
    (copy / "model.safetensors").write_bytes(b"cut off")
    assert "cannot be read as safetensors" in refused(copy)


def test_configs_of_something_else_are_refused(copy, open_clip):
    change(open_clip, lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="x", qk_norm=True),
           "open_clip_config.json")  # fmt: skip
    change(open_clip, lambda c: c["preprocess_cfg"].update(resize_mode="squash"), "open_clip_config.json")
    text = refused(open_clip)
    for part in ("vision_cfg.timm_model_name = 'x'", "vision_cfg.qk_norm = True", "resize_mode = 'squash'"):
        assert part in text
    change(copy, lambda c: c.update(size={"shortest_edge": 40}), "preprocessor_config.json")
    assert "size and crop_size [32, 40] with resample 3 are not known" in refused(copy)
    change(copy, lambda c: c["text_config"].update(hidden_act="gelu"))
    assert "hidden_act is gelu for text, quick_gelu for images" in refused(copy)
    change(copy, lambda c: c.update(model_type="siglip"))
    assert "describes a 'siglip', not a 'clip'" in refused(copy)
    (copy / "config.json").write_text("{")
    assert "config.json is no JSON" in refused(copy)


def test_an_unknown_name_lists_the_known(no_network):
    text = refused("openai-b33")
    assert text.startswith(
        "'openai-b33' is neither a file nor a folder here nor a known CLIP; known: openai-b32"
    )
    (no_network.parent / "empty").mkdir()
    assert "empty holds no CLIP checkpoint: none of model.safetensors.index.json" in refused("empty")


@pytest.mark.parametrize("name", ["openai-l14", "CLIP ViT-L/14", "openai/clip-vit-large-patch14"])
def test_without_network_one_error_says_what_to_do(name, no_network):
    text = refused(name)
    assert text.startswith("openai/clip-vit-large-patch14 is no file or folder here and could not be had")
    assert str(no_network) in text and "open_clip_model.safetensors" in text
    run = "run 'hf download openai/clip-vit-large-patch14 --local-dir clip-vit-large-patch14'"
    assert f"{run}, copy that folder here and give its path" in text


def test_the_hubs_cache_needs_no_network(no_network, monkeypatch):
    snapshot = no_network / "models--someone--tiny" / "snapshots" / "0a1b"
    shutil.copytree(TRANSFORMERS, snapshot)
    (no_network / "models--someone--tiny" / "refs").mkdir()
    (no_network / "models--someone--tiny" / "refs" / "main").write_text("0a1b")
    loaded = openshape_jax.load_clip("someone/tiny")
    check(loaded)
    assert loaded.config.name == "someone/tiny"
    known = clip.ClipConfig(**{**vars(loaded.config), "name": "CLIP tiny", "repo": "someone/tiny"})
    monkeypatch.setitem(clip.CLIPS, "tiny", known)
    (snapshot / "config.json").rename(snapshot / "kept.json")
    check(openshape_jax.load_clip("tiny"))  # the table knows what the file says
    monkeypatch.delitem(clip.CLIPS, "tiny")
    (snapshot / "kept.json").rename(snapshot / "config.json")
    (snapshot / "vocab.json").unlink()  # known to be missing only when a text is to be encoded
    loaded = openshape_jax.load_clip("someone/tiny")
    assert loaded.encode_images([np.zeros((40, 32, 3), np.uint8)]).shape == (1, 24)
    with pytest.raises(ConversionError, match="someone/tiny is no file or folder here.*tokenizer.json"):
        loaded.encode_text(["chair"])


def test_importing_the_package_imports_no_transformers():
    code = "import openshape_jax.clip, sys; print([m for m in ('transformers', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
