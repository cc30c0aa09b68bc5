"""What goes into a CLIP: token ids, square pictures, batches, averages over prompts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import openshape_jax
from openshape_jax.clip_inputs import Tokenizer, square
from openshape_jax.convert.error import ConversionError
from openshape_jax.evals import prompts
from tests.test_clip import FIXTURES, OPEN_CLIP, TEXTS, TRANSFORMERS, expected, pictures_of_fixture


@pytest.fixture(scope="module")
def tiny():
    return openshape_jax.load_clip(TRANSFORMERS, batch_size=4)


def test_ids_are_those_of_open_clip():
    config = openshape_jax.load_clip(OPEN_CLIP).config
    ids = Tokenizer(TRANSFORMERS, config)(TEXTS)
    np.testing.assert_array_equal(ids, expected(OPEN_CLIP)["ids"])


def test_ids_are_those_of_transformers_but_for_entities_and_curly_quotes(tiny):
    cleaned = [i for i, text in enumerate(TEXTS) if "&" in text or "\u2019" in text]
    assert len(cleaned) == 2
    same = [i for i in range(len(TEXTS)) if i not in cleaned]
    ids, want = tiny.tokenize(TEXTS), expected(TRANSFORMERS)["ids"]
    np.testing.assert_array_equal(ids[same], want[same])
    assert ids.dtype == np.int32
    once, twice, plain = tiny.tokenize(["salt &amp; pepper", "salt &amp;amp; pepper", "salt & pepper"])
    np.testing.assert_array_equal([once, twice], [plain, plain])


def test_a_tokenizer_json_does_as_well_as_vocabulary_and_merges(tmp_path, tiny):
    from openshape_jax.convert.clip_files import transformers_library

    folder = shutil.copytree(TRANSFORMERS, tmp_path / "copy")
    bpe = transformers_library().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    bpe.backend_tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    np.testing.assert_array_equal(openshape_jax.load_clip(folder).tokenize(TEXTS), tiny.tokenize(TEXTS))


def test_a_tokenizer_of_another_model_or_none_is_one_clear_error(tmp_path):
    folder = shutil.copytree(TRANSFORMERS, tmp_path / "copy")
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({k: v for k, v in vocab.items() if k != "!"}))
    loaded = openshape_jax.load_clip(folder)
    with pytest.raises(ConversionError, match=r"has 639 tokens and ends texts with 639, .* has 640 and 639"):
        loaded.tokenize(["chair"])
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(ConversionError, match="the tokenizer in .* cannot be read"):
        loaded.tokenize(["chair"])
    (folder / "merges.txt").unlink()
    with pytest.raises(
        ConversionError, match="holds no tokenizer, neither tokenizer.json nor vocab.json with merges"
    ):
        loaded.tokenize(["chair"])


@pytest.mark.parametrize("texts", ["chair", [1, 2], [b"chair"]])
def test_what_is_no_list_of_strings_is_refused(tiny, texts):
    with pytest.raises(ValueError, match="give a list of strings"):
        tiny.encode_text(texts)


def test_pictures_are_those_of_open_clip():
    for index, picture in enumerate(pictures_of_fixture()):
        with np.load(FIXTURES / "clip_images.npz") as file:
            want, other = file[f"open_clip_{index}"], file[f"transformers_{index}"]
        np.testing.assert_array_equal(square(picture, 32), want)
        cut = max(picture.shape[:2]) * 32 // min(picture.shape[:2]) - 32
        if cut % 2 == 0 or round(cut / 2) == cut // 2:  # else transformers cuts one pixel beside it
            np.testing.assert_array_equal(square(picture, 32), other)


def test_pictures_of_every_kind_are_the_same_picture():
    array = pictures_of_fixture()[1]
    want = square(array, 32)
    picture = Image.fromarray(array)
    np.testing.assert_array_equal(square(picture, 32), want)
    np.testing.assert_array_equal(square(array / np.float32(255), 32), want)
    clear = picture.convert("RGBA")
    np.testing.assert_array_equal(square(clear, 32), want)
    assert square(picture.convert("L"), 32).shape == (32, 32, 3)
    assert np.abs(square(array, 32, "bilinear").astype(int) - want).max() > 5


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\); expected \(H, W, 3\)"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "type int64; expected uint8, or float"),
        (np.full((8, 8, 3), 255.0), r"values from 255 to 255; expected float in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), "values from nan to nan"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(tiny, image, message):
    with pytest.raises(ValueError, match=message):
        tiny.encode_images([image])


def test_pixels_are_normalised_by_mean_and_deviation(tiny):
    import jax.numpy as jnp

    from openshape_jax.models import clip

    config, params = tiny.config, tiny._params
    picture = square(pictures_of_fixture()[0], 32)
    pixels = (picture / 255.0 - np.array(config.mean)) / np.array(config.std)
    want = clip.unit(clip.module(config, params).image(jnp.asarray(pixels[None], jnp.float32)))
    np.testing.assert_allclose(tiny.encode_images([picture]), want, atol=1e-6)
    as_float = clip.encode_image(config, params, jnp.asarray(picture[None] / np.float32(255)))
    np.testing.assert_allclose(as_float, want, atol=1e-6)


def test_batches_are_filled_up_and_one_program_serves_all(tiny):
    whole = tiny.encode_text(TEXTS)
    assert whole.shape == (10, 24) and whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for count in (1, 4, 5):
        np.testing.assert_allclose(tiny.encode_text(TEXTS[:count]), whole[:count], atol=1e-6)
    pictures = pictures_of_fixture()
    both = tiny.encode_images(iter(pictures))
    np.testing.assert_allclose(tiny.encode_images(pictures[3:4]), both[3:4], atol=1e-6)
    assert tiny._text._cache_size() == 1 and tiny._image._cache_size() == 1
    assert tiny.encode_text([]).shape == tiny.encode_images([]).shape == (0, 24)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        openshape_jax.load_clip(TRANSFORMERS, batch_size=0)


def test_texts_are_cut_behind_the_longest_and_stay_the_same(monkeypatch):
    from openshape_jax import clip

    whole = openshape_jax.load_clip(TRANSFORMERS).encode_text(TEXTS)
    monkeypatch.setattr(clip, "LENGTHS", (4, 8))
    cut = openshape_jax.load_clip(TRANSFORMERS, batch_size=1)
    np.testing.assert_allclose(cut.encode_text(TEXTS), whole, atol=1e-6)
    assert cut._text._cache_size() == 3
    ids = cut.tokenize(["chair", ""])
    assert [cut._trimmed(x).shape for x in (ids, ids[:1], ids[1:])] == [(2, 8), (1, 8), (1, 4)]


def test_a_batch_is_a_multiple_of_the_devices():
    import jax

    from openshape_jax import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:3])
    assert openshape_jax.load_clip(TRANSFORMERS).batch_size == 8
    assert openshape_jax.load_clip(TRANSFORMERS, mesh=mesh).batch_size == 9
    with pytest.raises(ValueError, match="batch_size is 4 but there are 3 devices"):
        openshape_jax.load_clip(TRANSFORMERS, mesh=mesh, batch_size=4)


def test_prompt_average_is_the_normalised_mean_of_unit_vectors(tiny):
    templates = ("a {}.", "one {} in {}")
    found = tiny.prompt_average(["chair", "red lamp"], templates)
    for row, name in zip(found, ("chair", "red lamp"), strict=True):
        mean = tiny.encode_text([f"a {name}.", f"one {name} in {name}"]).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(
        tiny.prompt_average(["chair"], prompts.NAME_ONLY), tiny.encode_text(["chair"]), atol=1e-6
    )
    assert tiny.prompt_average([], templates).shape == (0, 24)
    for bad, message in ((["a chair"], "templates is"), ([], "templates is"), ("{}", "templates is")):
        with pytest.raises(ValueError, match=message):
            tiny.prompt_average(["chair"], bad)
    with pytest.raises(ValueError, match="names is 'chair'; give a list"):
        tiny.prompt_average("chair", templates)


def test_the_templates_of_ulip():
    assert len(prompts.ULIP) == len(set(prompts.ULIP)) == 64
    assert all(t.count("{}") == 1 for t in prompts.ULIP)
    assert prompts.ULIP[0] == "a point cloud model of {}."
    assert prompts.ULIP[27:29] == ("a photo of the large {}.", "a photo of a clean {}.")
    assert prompts.ULIP[-2:] == ("a painting of the {}.", "a painting of a {}.")
