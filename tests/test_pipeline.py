"""The stream of batches, target choice, sources and the record schema."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from openshape_jax import config as config_lib
from openshape_jax.data import pipeline, schema, sources, targets

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(data_dir):
    return config_lib.load(
        str(ROOT / "configs/quickstart.py:smoke"), [f"data.data_dir={data_dir}", "batch_size=8"]
    )


def equal(a, b):
    assert a.keys() == b.keys()
    for k in a:
        np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def test_batches_are_a_function_of_seed_and_step(config):
    stream = pipeline.dataset(config)
    late = pipeline.batches(config, 5)
    equal(next(late), stream[5])
    equal(next(late), stream[6])
    late.close()
    other = pipeline.dataset(dataclasses.replace(config, seed=1))[5]
    assert not np.array_equal(other["xyz"], stream[5]["xyz"])


def test_hosts_read_their_rows_of_the_global_batch(config):
    whole = pipeline.dataset(config)[3]
    parts = [pipeline.dataset(config, host, 2)[3] for host in range(2)]
    for key, value in whole.items():  # in the order in which the devices hold them
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value, err_msg=key)


def test_worker_processes_make_the_same_batches(config):
    from contextlib import closing

    config.data.workers = 2
    with closing(pipeline.batches(config, 3)) as stream:
        for step in range(3, 8):
            expected = pipeline.dataset(config)[step]
            for key, value in next(stream).items():
                np.testing.assert_array_equal(value, expected[key], err_msg=f"{step} {key}")


def test_device_shuffle_passes_whole_records_on_and_draws_the_same_points():
    points = np.arange(300, dtype=np.uint16).reshape(100, 3)
    record = {"xyz": points, "rgb": (points % 200).astype(np.uint8)}
    whole = pipeline.draw_points(record, 100, np.random.default_rng(0), shuffle=False)
    np.testing.assert_array_equal(whole["xyz"], points)
    some = pipeline.draw_points(record, 40, np.random.default_rng(0), shuffle=False)["xyz"][:, 0] // 3
    assert len(set(some)) == 40


def test_an_epoch_sees_every_shape_once(config):
    records, _ = sources.open_split("primitives/tiny", "train", config.data.data_dir)
    stream = pipeline.dataset(config)
    steps = len(records) // config.batch_size
    firsts = {tuple(np.sort(row[:, 0])[:20]) for s in range(steps) for row in stream[s]["xyz"]}
    assert len(firsts) == steps * config.batch_size


def test_mixture_follows_the_weights(config, monkeypatch):
    def opened(name, split, _):
        assert split == "train"
        points = np.full((512, 3), name == "second", np.uint16)
        feature = np.ones(config.model.embed_dim, np.float32)
        texts = [schema.Text(name, "class", feature)]
        return [
            {
                "uid": name,
                "xyz": points,
                "rgb": points.astype(np.uint8),
                "texts": texts,
                "image_features": [],
                "image_sources": [],
            }
        ] * 30

    monkeypatch.setattr(pipeline, "_open", opened)
    config.data.datasets, config.data.weights = ("first", "second"), (3.0, 1.0)
    stream = pipeline.dataset(config)
    drawn = np.concatenate([stream[step]["xyz"][:, 0, 0] for step in range(50)])
    assert np.bincount(drawn).tolist() == [300, 100]


def test_each_data_set_of_a_mixture_can_have_its_own_split(config):
    config.data.datasets, config.data.weights = ("primitives/tiny", "primitives/tiny"), (1.0, 1.0)
    config.data.splits = ("train", "test")
    points = {}
    for split in config.data.splits:
        records, _ = sources.open_split("primitives/tiny", split, config.data.data_dir)
        points[split] = {tuple(row) for i in range(len(records)) for row in records[i]["xyz"].tolist()}
    rows = pipeline.dataset(config)[0]["xyz"]
    assert sum({tuple(p) for p in row.tolist()} <= points["train"] for row in rows) == 4
    assert sum({tuple(p) for p in row.tolist()} <= points["test"] for row in rows) == 4
    with pytest.raises(config_lib.ConfigError, match=r"data.splits \('train',\) must be one split for each"):
        config_lib.validate(
            dataclasses.replace(config, data=dataclasses.replace(config.data, splits=("train",)))
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_sources": ("name",)}, r"no text of data.text_sources \('name',\); theirs are of class"),
        ({"feature": 9}, "has text features of width 9 but model.embed_dim is 512"),
        ({"image": 8}, "has image features of width 8 but model.embed_dim is 512"),
    ],
)
def test_targets_that_do_not_fit_stop_at_the_start(config, monkeypatch, changes, message):
    words = schema.Text("a", "class", None, np.ones(changes.get("feature", 512)))
    shape = {
        "xyz": np.zeros((9, 3), np.uint16), "rgb": np.zeros((9, 3), np.uint8), "texts": [words],
        "image_features": np.ones((1, changes.get("image", 512))), "image_sources": ["render"],
    }  # fmt: skip
    monkeypatch.setattr(pipeline, "_open", lambda *_: [shape] * 20)
    config.data.text_sources = changes.get("text_sources", ("class",))
    with pytest.raises(ValueError, match=message):
        pipeline.dataset(config)


def test_drawn_points_are_stored_points_without_repetition():
    rng = np.random.default_rng(0)
    record = {"xyz": np.arange(300, dtype=np.uint16).reshape(100, 3), "rgb": np.zeros((100, 3), np.uint8)}
    drawn = pipeline.draw_points(record, 40, rng)["xyz"][:, 0] // 3
    assert len(set(drawn)) == 40
    assert list(drawn) != sorted(drawn)
    more = pipeline.draw_points(record, 250, rng)["xyz"][:, 0] // 3
    assert np.bincount(more).tolist() == [3] * 50 + [2] * 50 or set(np.bincount(more)) == {2, 3}


def text(name, source, value=1.0):
    return schema.Text(name, source, None if value is None else np.full(4, value, np.float32))


def record(*texts, images=0):
    features = np.ones((images, 6), np.float16)
    return {"texts": list(texts), "image_features": features, "image_sources": ["render"] * images}


def test_text_choice_is_uniform_over_allowed_sources():
    shape = record(
        text("armchair", "class"), text("chair", "synonym"), text("a red chair", "caption", None), images=2
    )
    config = config_lib.DataConfig()
    rng = np.random.default_rng(0)
    ids = [int(targets.choose(shape, config, 4, 6, rng)["text_id"][0]) for _ in range(2000)]
    names = {targets.text_hash("armchair"), targets.text_hash("chair")}
    assert set(ids) == names
    assert abs(np.mean([i == targets.text_hash("chair") for i in ids]) - 0.5) < 0.05
    config.class_text_share = 0.5
    ids = [int(targets.choose(shape, config, 4, 6, rng)["text_id"][0]) for _ in range(2000)]
    assert abs(np.mean([i == targets.text_hash("chair") for i in ids]) - 0.25) < 0.05
    config.text_sources = ("class",)
    chosen = targets.choose(shape, config, 4, 6, rng)
    assert chosen["text_ids"].tolist() == [targets.text_hash("armchair")] + [-1] * 7
    assert chosen["has_image"].all()


def test_missing_targets_are_masked():
    chosen = targets.choose(
        record(text("x", "caption", None)), config_lib.DataConfig(), 4, 6, np.random.default_rng(0)
    )
    assert not chosen["has_text"].any()
    assert not chosen["has_image"].any()
    assert chosen["text_id"] == -1
    assert chosen["text"].shape == (1, 4)
    assert chosen["image"].shape == (1, 6)


def test_several_targets_of_a_shape_are_different_ones():
    shape = record(text("armchair", "class"), text("chair", "synonym"), images=3)
    shape["image_features"] = np.eye(3, 6, dtype=np.float16)
    config = config_lib.DataConfig(texts=3, images=2)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        chosen = targets.choose(shape, config, 4, 6, rng)
        assert chosen["has_text"].tolist() == [True, True, False]
        assert set(chosen["text_id"][:2]) == {targets.text_hash("armchair"), targets.text_hash("chair")}
        assert not chosen["text"][2].any()
        assert chosen["has_image"].all()
        assert not np.array_equal(*chosen["image"])
        seen.add(chosen["text_id"][0])
    assert len(seen) == 2


def test_a_shape_without_texts_has_no_target():
    assert not targets.has_target(record(text("x", "caption", None)), config_lib.DataConfig())


def test_missing_data_set_says_where_and_how(tmp_path):
    with pytest.raises(sources.DatasetMissing) as error:
        sources.find("openshape_ensemble", tmp_path)
    for part in (
        str(tmp_path / "openshape_ensemble"),
        "openshape data build openshape_ensemble",
        ":smoke",
        "TFDS_DATA_DIR",
    ):
        assert part in str(error.value)


def test_half_built_sets_and_urls_are_no_data_sets(tmp_path):
    left = tmp_path / "d" / "incomplete.AB12_1.0.0"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text("{}")
    with pytest.raises(sources.DatasetMissing):
        sources.find("d", tmp_path)
    left.rename(tmp_path / "d" / "1.0.0")
    assert sources.find("d", tmp_path).name == "1.0.0"
    with pytest.raises(ValueError, match=r"the URL 'gs://b/x'; .*mount the bucket \(gcsfuse\)"):
        sources.find("d", "gs://b/x")


def test_unknown_split_and_wrong_width(config):
    with pytest.raises(ValueError, match="no split 'valid'; it has"):
        sources.open_split("primitives/tiny", "valid", config.data.data_dir)
    config.model.embed_dim = 1280
    with pytest.raises(
        ValueError, match=r"width 512 but model.embed_dim is 1280; set --config.model.embed_dim=512"
    ):
        pipeline.dataset(config)


def encoded(n=50, **changes):
    rng = np.random.default_rng(0)
    values = {
        "xyz": rng.normal(size=(n, 3)) * 9 + 5,
        "rgb": rng.random((n, 3)),
        "texts": [text("chair", "class", 0.5), text("c", "caption", None)],
    }
    return values, schema.encode(uid="u", dataset="d", text_dim=4, **{**values, **changes})


def test_record_round_trip_and_checksum():
    values, stored = encoded()
    data = schema.features(text_dim=4).serialize_example(stored)
    back = schema.decode(data, 4, 512)
    schema.check(back)
    xyz = schema.dequantize_xyz(back["xyz"]) * back["scale"] + back["center"]
    np.testing.assert_allclose(xyz, values["xyz"], atol=1e-4 * float(back["scale"]))
    assert [(t.text, t.source) for t in back["texts"]] == [("chair", "class"), ("c", "caption")]
    np.testing.assert_array_equal(back["texts"][0].feature, np.full(4, 0.5))
    assert back["texts"][1].feature is None
    with pytest.raises(ValueError, match="record 'u' is damaged"):
        schema.check({**back, "xyz": back["xyz"] ^ np.uint16(1)})
    for broken in (b"", b"no protobuf", data[:300]):
        with pytest.raises(ValueError, match="no record of this version's form"):
            schema.decode(broken, 4, 512)


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        (np.ones((5, 3)), "all 5 points are equal"),
        (np.full((5, 3), np.nan), "5 of 5 points have a NaN"),
        (np.r_[np.zeros((4, 3)), [[np.inf, 0, 0]]], "1 of 5 points have a NaN or infinite"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((5, 2)), r"shape \(5, 2\)"),
    ],
)
def test_unusable_points_are_refused(xyz, message):
    with pytest.raises(ValueError, match=message):
        schema.to_unit_sphere(xyz)


def test_a_bucket_that_is_away_for_a_while_is_asked_again(data_dir, monkeypatch):
    records, _ = sources.open_split("primitives/tiny", "train", data_dir)
    expected, asked = records[5]["uid"], []

    class Away:
        def __getitem__(self, index: int) -> bytes:
            asked.append(index)
            if len(asked) < 3:
                raise RuntimeError("Transport endpoint is not connected")
            return source[index]

    source = records._source
    monkeypatch.setattr(records, "_source", Away())
    assert records[5]["uid"] == expected
    assert asked == [5, 5, 5]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_names_the_folder_and_the_fix(data_dir, tmp_path, damage):
    shutil.copytree(data_dir, tmp_path / "data")
    folder = sources.find("primitives/tiny", tmp_path / "data")
    (file,) = folder.glob("*train*")
    if damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read .*delete that folder") as error:
        records, _ = sources.open_split("primitives/tiny", "train", tmp_path / "data")
        for index in range(len(records)):
            records[index]
    assert str(folder) in str(error.value)
