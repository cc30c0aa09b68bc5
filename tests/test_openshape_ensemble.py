"""The builder of OpenShape's released files: what it keeps, in which splits, and what it rejects."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfds_builders
from openshape_jax.data import build, schema, sources, verify, vocabulary
from tests import openshape_files as release
from tfds_builders.openshape_ensemble import layout, records
from tfds_builders.sharded import TooManyRejects

ROOT = Path(__file__).parent.parent
NAMES = {"objaverse": "Objaverse", "shapenet": "ShapeNet", "abo": "ABO", "future3d": "3D-FUTURE"}


def made(
    source: Path, data_dir: Path, config: str = "all", allowed: float = 0.0
) -> Callable[[str], dict[str, dict[str, Any]]]:
    """Builds; gives split -> {uid: record}."""
    name = f"openshape_ensemble/{config}"
    options = build.Options(source=str(source), jobs=1, max_reject_fraction=allowed)
    build.build(name, data_dir, options)

    def read(split: str) -> dict[str, dict[str, Any]]:
        found, _ = sources.open_split(name, split, data_dir)
        return {r["uid"]: r for r in (found[i] for i in range(len(found)))}

    read.data_dir = data_dir
    return read


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.write(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    return made(source, tmp_path_factory.mktemp("data"))


def test_the_splits_are_those_of_the_release(whole):
    assert sorted(whole("train")) == sorted(release.UIDS)
    objaverse = [u for u in release.UIDS if u.startswith("Objaverse")]
    assert sorted(whole("train_no_lvis")) == sorted(set(release.UIDS) - set(objaverse[:2]))
    assert sorted(whole("train_shapenet_only")) == [u for u in release.UIDS if u.startswith("ShapeNet")]


def test_records_keep_points_texts_and_images(whole):
    for shape in release.SHAPES:
        record, file = whole("train")[release.uid(shape)], release.content(shape)
        xyz = schema.dequantize_xyz(record["xyz"]) * record["scale"] + record["center"]
        np.testing.assert_allclose(xyz, file["xyz"][:, [0, 2, 1]] * [1, -1, 1], atol=1e-4)
        np.testing.assert_array_equal(record["rgb"], schema.quantize_rgb(file["rgb"]))
        of_objaverse = shape[0] == "Objaverse"
        images = [*file["image_feat"], *(file["thumbnail_feat"] if of_objaverse else ())]
        assert record["image_sources"] == ["render"] * 12 + ["thumbnail"] * of_objaverse
        np.testing.assert_array_equal(record["image_features"], np.asarray(images, np.float16))
        expected = [
            (file["text"][0], "metadata", file["text_feat"][0]),
            (file["text"][1], "metadata_other" if of_objaverse else "metadata", file["text_feat"][1]),
            (file["blip_caption"], "blip", file["blip_caption_feat"]),
            (file["msft_caption"], "msft", file["msft_caption_feat"]),
            (file["retrieval_text"][0], "retrieval", file["retrieval_text_feat"][0]),
        ]
        assert [(t.text, t.source) for t in record["texts"]] == [(text, kind) for text, kind, _ in expected]
        for text, (_, _, features) in zip(record["texts"], expected, strict=True):
            np.testing.assert_array_equal(text.feature, np.float16(features["original"]).reshape(-1))
            if text.source == "retrieval":
                assert text.prompt_feature is None
            else:
                np.testing.assert_array_equal(
                    text.prompt_feature, np.float16(features["prompt_avg"]).reshape(-1)
                )
        assert (record["dataset"], record["group"]) == shape[:2]
        assert record["name"] == file["text"][0]


def test_flags_and_categories(whole):
    found = whole("train")
    of_objaverse = [found[u] for u in release.UIDS[:6]]
    assert [r["text_flag"] for r in of_objaverse] == ["Y", "N", "Y", "N", "Y", ""]
    assert [r["category"] for r in of_objaverse[:2]] == list(release.LVIS.values())
    assert [r["label"] for r in of_objaverse[:2]] == ["armchair", "monitor (computer equipment)"]
    rest = [found[u] for u in release.UIDS[2:]]
    assert {(r["category"], r["label"]) for r in rest} == {("", "")}
    assert {found[u]["text_flag"] for u in release.UIDS[6:]} == {""}


def test_categories_where_lvis_json_names_shapes_by_uid_alone(tmp_path, capsys):
    source = release.write(tmp_path, ("Objaverse",))
    path = source / "meta_data" / "split" / "lvis.json"
    entries = json.loads(path.read_text())
    path.write_text(
        json.dumps([{"uid": e["id"], "group": e["group"], "category": e["category"]} for e in entries])
    )
    train = layout.read(str(source), ()).stored["train"]
    assert [train[u].category for u in release.UIDS[:3]] == [*release.LVIS.values(), ""]
    assert "no usable lvis.json" not in capsys.readouterr().out


@pytest.mark.parametrize("config", NAMES)
def test_each_data_set_alone(config, source, tmp_path):
    read = made(source, tmp_path, config)
    expected = [u for u in release.UIDS if u.startswith(NAMES[config] + "/")]
    assert sorted(read("train")) == sorted(expected)
    if config == "shapenet":
        assert read("train_shapenet_only").keys() == read("train").keys()
    else:
        with pytest.raises(ValueError, match="no split 'train_shapenet_only'"):
            read("train_shapenet_only")


def test_without_a_config_it_is_all():
    builder = tfds_builders.builder_class("openshape_ensemble")
    assert list(builder.builder_configs) == ["all", "objaverse", "shapenet", "abo", "future3d"]
    assert builder(data_dir="/tmp/none").builder_config.name == "all"


def test_what_an_interrupted_build_left_is_found_under_the_config_that_has_no_name(tmp_path):
    for folder in ("openshape_ensemble/all", "openshape_ensemble/abo", "modelnet40"):
        (tmp_path / folder / "partial.1.0.0").mkdir(parents=True)
        (tmp_path / folder / "partial.1.0.0" / "train-00000.json").write_text("{}")
    for name, folder in (
        ("openshape_ensemble", "openshape_ensemble/all"),
        ("openshape_ensemble/abo", "openshape_ensemble/abo"),
        ("modelnet40", "modelnet40"),
    ):
        found = build.finished_shards(name, tmp_path)
        assert found == [tmp_path / folder / "partial.1.0.0" / "train-00000.json"]


def test_the_small_data_sets_alone_are_complete_and_said_to_lack_objaverse(tmp_path, capsys):
    source = release.write(tmp_path / "source", ("ShapeNet", "ABO", "3D-FUTURE"))
    read = made(source, tmp_path / "data")
    out = capsys.readouterr().out
    assert "NOT in this build" in out and "Objaverse: 6 shapes" in out
    assert "8 training shapes: ShapeNet 3, ABO 2, 3D-FUTURE 3" in out
    assert sorted(read("train")) == sorted(release.UIDS[6:]) == sorted(read("train_no_lvis"))
    _, info = sources.open_split("openshape_ensemble/all", "train", tmp_path / "data")
    assert info.metadata["absent"] == {"Objaverse": 6} and info.metadata["up"] == "z"
    with pytest.raises(
        tfds_builders.SourceNotFound, match=r"no folder of Objaverse in .*merged_for_training"
    ):
        made(source, tmp_path / "data", "objaverse")


@pytest.mark.parametrize("below", ["", f"mnt/data/{release.FINAL}", "merged_for_training_final"])
def test_files_are_found_by_the_last_parts_of_their_paths(below, tmp_path):
    release.write(tmp_path, ("ABO", "3D-FUTURE"))
    for name in ("ABO", "3D-FUTURE"):
        target = tmp_path / "elsewhere" / below / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(tmp_path / release.FINAL / name, target)
    os.rename(tmp_path / "meta_data" / "split", tmp_path / "elsewhere" / "split")  # beside them, not below
    found = layout.read(str(tmp_path / "elsewhere"), ())
    assert found.counts == {"ABO": 2, "3D-FUTURE": 3}
    load = records.Load(release.WIDTH, "")
    for uid, one in found.stored["train"].items():
        assert load(one)["uid"] == uid


def test_files_without_folders_of_groups_or_paths(tmp_path):
    release.write(tmp_path, ("ABO",))
    folder = tmp_path / "ABO"
    folder.mkdir()
    for path in (tmp_path / release.FINAL / "ABO").glob("*/*.npy"):
        os.rename(path, folder / path.name)
    for path in (tmp_path / "meta_data" / "split").glob("*.json"):
        entries = json.loads(path.read_text())
        path.write_text(json.dumps([{k: v for k, v in e.items() if k != "data_path"} for e in entries]))
    found = layout.read(str(tmp_path), ("ABO",))
    load = records.Load(release.WIDTH, found.fingerprint)
    assert [load(i)["uid"] for i in found.stored["train"].values()] == ["ABO/0/B07", "ABO/1/B08"]


def test_no_path_leaves_the_source(tmp_path):
    release.write(tmp_path / "source", ("ABO",))
    (tmp_path / "x").mkdir()
    path = tmp_path / "source" / "meta_data" / "split" / "train_all.json"
    first, second = (release.entry(s) for s in release.SHAPES if s[0] == "ABO")
    first |= {"data_path": "/mnt/data/ABO/../../../etc/passwd"}
    second |= {"group": "..", "id": "../x", "data_path": ""}
    path.write_text(json.dumps([first, second, first | {"dataset": "../x"}, first | {"dataset": "/etc"}]))
    found = layout.read(str(tmp_path / "source"), ())
    assert found.absent == {"../x": 1, "/etc": 1}
    folder = f"{tmp_path}/source/{release.FINAL}/ABO"
    assert [i.paths for i in found.stored["train"].values()] == [
        (f"{folder}/0/B07.npy", f"{folder}/B07.npy"),
        (),
    ]
    with pytest.raises(FileNotFoundError, match=r"no file of ABO/../../x"):
        records.Load(release.WIDTH, "")(found.stored["train"]["ABO/../../x"])


def test_missing_files_are_rejects_with_a_reason(tmp_path):
    source = release.write(tmp_path / "source", ("ABO", "ShapeNet", "3D-FUTURE"))
    release.path_of(source, ("ShapeNet", "02801938", "a2")).unlink()
    with pytest.raises(
        TooManyRejects, match=r"1 of 8 .*ShapeNet/02801938/a2: there is no file of ShapeNet/02"
    ):
        made(source, tmp_path / "data")
    read = made(source, tmp_path / "data", allowed=0.2)
    assert len(read("train")) == 7
    assert sorted(read("train_shapenet_only")) == ["ShapeNet/02801938/a1", "ShapeNet/03001627/a1"]
    folder = sources.find("openshape_ensemble/all", tmp_path / "data")
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [r["uid"] for r in rejects] == ["ShapeNet/02801938/a2"]
    assert "Fetch it, or take the shape out of the split files" in rejects[0]["error"]


def test_features_of_any_length_pass_verify_with_a_note(tmp_path):
    def longer(_: str, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"image_feat": data["image_feat"] * 30}

    made(release.write(tmp_path / "source", ("ABO",), longer), tmp_path / "data")
    found = verify.verify(sources.find("openshape_ensemble/all", tmp_path / "data"))
    assert found.problems == []
    assert any("image feature of a length outside" in note and "has 30" in note for note in found.notes)


def test_a_malicious_or_cut_file_is_a_reject(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    bad = {"3D-FUTURE/9439-0": Evil(), "ABO/0/B07": np.arange(3)}
    source = release.write(tmp_path / "source", ("ABO", "3D-FUTURE"), lambda uid, data: bad.get(uid, data))
    cut = release.path_of(source, ("ABO", "1", "B08"))
    cut.write_bytes(cut.read_bytes()[:5000])
    made(source, tmp_path / "data", allowed=0.6)
    lines = (
        (sources.find("openshape_ensemble/all", tmp_path / "data") / "rejects.jsonl").read_text().splitlines()
    )
    errors = {r["uid"]: r["error"] for r in map(json.loads, lines)}
    assert "refused: the file asks for posix.system" in errors["3D-FUTURE/9439-0"]
    assert "holds a ndarray; a released shape is a dict" in errors["ABO/0/B07"]
    assert "B08.npy is no usable .npy file" in errors["ABO/1/B08"]
    assert not (tmp_path / "ran").exists()


def test_other_split_files(tmp_path, capsys):
    source = release.write(tmp_path / "source", ("ABO", "3D-FUTURE"))
    of_abo, others = release.SHAPES[9:11], release.SHAPES[11:]
    release.write_splits(
        source, {"train_all": [*of_abo, others[0]], "val-1": others[1:], "mixed": others, "half": of_abo[:1]}
    )
    (source / "meta_data" / "split" / "notes.json").write_text('{"by": "me"}')
    read = made(source, tmp_path / "data")
    out = capsys.readouterr().out
    assert "left out" in out and "notes.json is no list" in out
    assert "2 of 3 shapes of mixed.json are not in train_all.json" in out
    uids = [release.uid(s) for s in others]
    assert {split: sorted(read(split)) for split in ("half", "mixed", "mixed_rest", "val_1")} == {
        "half": [release.uid(of_abo[0])],
        "mixed": uids[:1],
        "mixed_rest": uids[1:],
        "val_1": uids[1:],
    }
    assert len(read("train")) == 3
    release.write_splits(source, {"ablation/half": of_abo})
    with pytest.raises(ValueError, match=r"half\.json would be the split 'half'.*rename it"):
        layout.read(str(source), ())


def test_without_meta_data_it_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(tfds_builders.SourceNotFound, match=r"--source FOLDER.*README\.md"):
        layout.read("", ())
    with pytest.raises(
        tfds_builders.SourceNotFound, match=r"no train_all\.json: looked for .*meta_data\.zip"
    ):
        layout.read(str(tmp_path), ())
    source = release.write(tmp_path, ("ABO",))
    (source / "meta_data" / "gpt4_filtering.json").unlink()
    (source / "meta_data" / "split" / "lvis.json").unlink()
    assert list(layout.read(str(source), ()).stored["train"]) == ["ABO/0/B07", "ABO/1/B08"]
    out = capsys.readouterr().out
    assert "no usable lvis.json" in out and "gpt4_filtering.json: training cannot" in out
    split = source / "meta_data" / "split" / "train_all.json"
    split.write_text(split.read_text()[:-100])
    with pytest.raises(ValueError, match=r"train_all\.json is cut off or no JSON"):
        layout.read(str(source), ())
    split.write_text("{}")
    with pytest.raises(ValueError, match=r"train_all\.json is no list of \{dataset, group, id, data_path\}"):
        layout.read(str(source), ())


def test_a_training_with_the_released_neighbours_says_which_clip_it_aims_at(whole, tmp_path):
    from openshape_jax import checkpoint, train
    from openshape_jax import config as config_lib

    data_dir = whole.data_dir
    ids = [shape[2] for shape in release.SHAPES]
    near = {name: [i, *(j for j in range(len(ids)) if j != i)] for i, name in enumerate(ids)}
    np.save(tmp_path / "point_feat_knn.npy", {"name": ids, "index": near}, allow_pickle=True)
    settings = (
        f"data.data_dir={data_dir}", "data.datasets=openshape_ensemble", "data.text_sources=", "steps=2",
        "data.class_text_share=0", "data.num_points=48", "batch_size=8", "model.depth=1", "log_every=1",
        "model.embed_dim=1280", "eval.datasets=", f"data.hard_negatives={tmp_path}/point_feat_knn.npy",
        "data.group_size=4", "loss.class_aware=false", "augment.enabled=false", "optim.name=adamw",
    )  # fmt: skip
    config = config_lib.load(str(ROOT / "configs/quickstart.py:smoke"), settings)
    workdir = train.run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["train/text_loss"]) and line["train/image_loss"] > 0 for line in lines)
    assert all(0 <= line["train/input_wait"] <= 1 for line in lines)
    _, metadata, step = checkpoint.load_weights(workdir)
    assert (step, metadata["embed_dim"]) == (2, 1280)
    assert metadata["text_space"].startswith("OpenCLIP ViT-bigG-14")


def test_features_of_different_clips_are_not_mixed(whole, data_dir, tmp_path):
    for folder in (whole.data_dir / "openshape_ensemble", Path(data_dir) / "primitives"):
        (tmp_path / folder.name).symlink_to(folder)
    names = ("openshape_ensemble", "primitives/tiny")
    assert sources.text_space(names[1:], tmp_path) == vocabulary.TEXT_SPACE
    with pytest.raises(
        ValueError, match=r"lie in different spaces \(openshape_ensemble: OpenCLIP.*primitives"
    ):
        sources.text_space(names, tmp_path)


def test_other_meta_data_start_an_interrupted_build_again(source, tmp_path):
    one = layout.read(str(source), ()).fingerprint
    assert one == layout.read(str(source), ()).fingerprint
    other = release.write(tmp_path)
    (other / "meta_data" / "gpt4_filtering.json").write_text("{}")
    assert layout.read(str(other), ()).fingerprint != one
