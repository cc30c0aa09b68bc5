"""The evaluation sets built from tiny versions of their released files; bad and missing files."""

import json
from pathlib import Path

import numpy as np
import pytest

from openshape_jax.data import build, class_features, sources
from tests import eval_files
from tests.eval_files import built, points_of, records_of
from tfds_builders import SourceNotFound, modelnet40, scanobjectnn, sharded

MODELNET, SCAN = eval_files.MODELNET, eval_files.SCANOBJECTNN


def turned(y_up: np.ndarray) -> np.ndarray:
    return np.stack([y_up[:, 0], -y_up[:, 2], y_up[:, 1]], 1)


def unit(table: dict) -> np.ndarray:
    rows = np.concatenate([entry["open_clip_text_feat"] for entry in table.values()])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ------------------------------------------------------------ ModelNet40


def test_modelnet_released(tmp_path):
    eval_files.modelnet_released(tmp_path / "raw")
    folder = built("modelnet40", tmp_path / "raw", tmp_path)
    shapes, info = records_of("modelnet40", "test", tmp_path)
    names = [f"{c}_{i:04d}" for c in ("airplane", "night_stand", "xbox") for i in range(2)]
    assert sorted(shapes) == names
    assert [shapes[n]["label"] for n in names] == [c for c in eval_files.MODELS for _ in range(2)]
    np.testing.assert_allclose(points_of(shapes[names[3]]), turned(eval_files.cloud(3)), atol=1e-4)
    assert (shapes[names[3]]["rgb"] == 100).all()
    assert [(t.text, t.source, t.feature) for t in shapes[names[2]]["texts"]] == [
        ("night stand", "class", None)
    ]
    assert info.metadata["classes"] == list(MODELNET)
    assert (info.metadata["layout"], info.metadata["class_feature_width"]) == ("released", 1280)
    stored = class_features.load(folder)
    assert stored.names == list(MODELNET)
    np.testing.assert_allclose(stored.features, unit(eval_files.features(MODELNET, 1280)), atol=1e-6)


def test_modelnet_princeton(tmp_path):
    eval_files.modelnet_princeton(tmp_path / "raw")
    folder = built("modelnet40", tmp_path / "raw", tmp_path)
    test, info = records_of("modelnet40", "test", tmp_path)
    train, _ = records_of("modelnet40", "train", tmp_path)
    assert sorted(train) == ["airplane_0001", "night_stand_0001"]
    assert {uid: r["label"] for uid, r in test.items()} == {
        "airplane_0002": "airplane",
        "night_stand_0002": "night stand",
    }
    xyz = points_of(test["airplane_0002"])
    assert xyz.shape == (10_000, 3)
    np.testing.assert_allclose(xyz.max(0), [1, 2, 5], atol=0.3)  # as the file has it: z is up
    assert abs(xyz.min()) < 1e-3
    np.testing.assert_array_less(xyz @ [1, 1 / 2, 1 / 5], 1 + 1e-3)  # on or below the slanted side
    assert (test["airplane_0002"]["rgb"] == 100).all()
    assert not np.array_equal(test["airplane_0002"]["xyz"], test["night_stand_0002"]["xyz"])
    loaded = modelnet40.builder.LoadMesh("")(
        modelnet40.builder.Mesh(
            "airplane_0002", "airplane", f"{tmp_path}/raw/ModelNet40/airplane/test/airplane_0002.off"
        )
    )
    np.testing.assert_array_equal(loaded["xyz"], test["airplane_0002"]["xyz"])  # the name is the seed
    assert info.metadata["layout"] == "princeton"
    assert class_features.load(folder) is None


def test_princetons_meshes_take_released_features_that_lie_beside_them(tmp_path):
    root = eval_files.modelnet_princeton(tmp_path / "raw")
    eval_files.save(tmp_path / "raw" / "cat_name_pt_feat.npy", eval_files.features(MODELNET, 6))
    assert class_features.load(built("modelnet40", tmp_path / "raw", tmp_path / "a")).width == 6
    assert class_features.load(built("modelnet40", root, tmp_path / "b")) is None  # the folder itself serves


def test_modelnet_without_its_files_says_what_is_looked_for(tmp_path):
    with pytest.raises(SourceNotFound, match=r"(?s)no folder was given.*test_pc.npy.*ModelNet40.*--source"):
        build.build("modelnet40", tmp_path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(SourceNotFound, match=f"(?s){tmp_path}/raw.*test_pc.npy and test_split.json"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    (eval_files.modelnet_released(tmp_path / "raw") / "test_split.json").unlink()
    with pytest.raises(SourceNotFound, match=r"modelnet40/test_split.json \(it is missing beside"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    with pytest.raises(sources.DatasetMissing):
        sources.find("modelnet40", tmp_path)


def renamed(folder: Path, name: str) -> None:
    """Gives the third shape another category."""
    path = folder / "test_split.json"
    entries = json.loads(path.read_text())
    entries[2]["category"] = name
    path.write_text(json.dumps(entries))


def test_modelnet_bad_files(tmp_path):
    folder = eval_files.modelnet_released(tmp_path / "raw")
    renamed(folder, "spoon")
    with pytest.raises(ValueError, match="test_split.json: the class 'spoon' is none of the 40: airplane"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    (folder / "test_split.json").write_text("[]")
    with pytest.raises(ValueError, match=r"lists 0 shapes, .*test_pc.npy holds 6"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    (folder / "test_split.json").write_text("[{")
    with pytest.raises(ValueError, match=r"test_split.json is cut off or no JSON"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    eval_files.modelnet_released(tmp_path / "raw")
    table = eval_files.features(MODELNET, 8)
    del table["xbox"]
    eval_files.save(folder / "cat_name_pt_feat.npy", table)
    with pytest.raises(ValueError, match=r"no feature for 1 of 40 classes \(xbox\)"):
        built("modelnet40", tmp_path / "raw", tmp_path)
    eval_files.save(folder / "cat_name_pt_feat.npy", {**table, **eval_files.features(["xbox"], 9)})
    with pytest.raises(ValueError, match="the feature of 'xbox' has width 9, that of 'airplane' has 8"):
        built("modelnet40", tmp_path / "raw", tmp_path)


# ------------------------------------------------------------ Objaverse-LVIS


def test_objaverse_lvis(tmp_path):
    eval_files.lvis(tmp_path / "raw")
    folder = built("objaverse_lvis", tmp_path / "raw", tmp_path)
    shapes, info = records_of("objaverse_lvis", "test", tmp_path)
    assert sorted(shapes) == [f"{i:032x}" for i in range(8)]
    for i in range(8):
        record = shapes[f"{i:032x}"]
        assert record["label"] == eval_files.LVIS[i % 4]
        assert record["group"] == f"000-{i % 2:03d}"
        np.testing.assert_allclose(points_of(record), turned(eval_files.cloud(i)), atol=1e-4)
        rgb = np.random.default_rng(i).random((eval_files.POINTS, 3)).astype(np.float32)
        np.testing.assert_allclose(record["rgb"] / 255, rgb, atol=0.5 / 255 + 1e-6)
    assert [t.text for t in shapes[f"{3:032x}"]["texts"]] == ["bat (animal)"]
    classes = ["Band_Aid", "bat_(animal)", "sofa", "teapot"]
    assert info.metadata["classes"] == class_features.load(folder).names == classes
    expected = unit(eval_files.features(classes, 1280))
    np.testing.assert_allclose(class_features.load(folder).features, expected, atol=1e-6)


@pytest.mark.parametrize("prefix", ["Objaverse", "/disk/x/Objaverse", "elsewhere/objaverse-processed", ""])
def test_lvis_finds_its_files_wherever_the_authors_had_them(tmp_path, prefix):
    eval_files.lvis(tmp_path / "raw", prefix=prefix)
    source = tmp_path / "raw"
    if not prefix.endswith("Objaverse"):  # then the folder of the groups is the source
        (source / "meta_data").rename(source / "Objaverse" / "meta_data")
        source = source / "Objaverse"
    built("objaverse_lvis", source, tmp_path)
    assert len(records_of("objaverse_lvis", "test", tmp_path)[0]) == 8


def test_lvis_reads_no_file_outside_its_source(tmp_path):
    split = eval_files.lvis(tmp_path / "raw")
    outside = eval_files.save(tmp_path / "x.npy", {"xyz": eval_files.cloud(0), "rgb": eval_files.cloud(0)})
    entries = json.loads(split.read_text())
    entries[3]["data_path"] = str(outside)  # its parts are fewer than those of the others
    long = "/a/b/c/d/e/f/g/h/i/j/k/l"
    for entry in entries[:3] + entries[4:]:
        entry["data_path"] = long + entry["data_path"]
        path = tmp_path / "raw" / entry["data_path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / "Objaverse" / entry["group"] / path.name).rename(path)
    split.write_text(json.dumps(entries))
    with pytest.raises(sharded.TooManyRejects, match=f"1 of 8 shapes.*{tmp_path}/raw{outside}"):
        built("objaverse_lvis", tmp_path / "raw", tmp_path)


def test_lvis_missing_and_bad_files(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(SourceNotFound, match=f"(?s){raw}.*meta_data/split/lvis.json.*--source"):
        built("objaverse_lvis", raw, tmp_path)
    split = eval_files.lvis(raw)
    (raw / "Objaverse").rename(raw / "away")
    with pytest.raises(SourceNotFound, match="Objaverse/000-000/0+.npy or the end of it"):
        built("objaverse_lvis", raw, tmp_path)
    (raw / "away").rename(raw / "Objaverse")
    eval_files.save(raw / "meta_data" / "lvis_cat_name_pt_feat.npy", np.ones((3, 8)))
    with pytest.raises(ValueError, match="has 3 class features, but there are 4 classes"):
        built("objaverse_lvis", raw, tmp_path)
    eval_files.lvis(raw)
    (raw / "Objaverse" / "000-000" / f"{0:032x}.npy").unlink()
    with pytest.raises(sharded.TooManyRejects, match="1 of 8 shapes"):
        built("objaverse_lvis", raw, tmp_path)
    entries = json.loads(split.read_text())
    for change, message in (
        ({"category": ""}, "entry 0 has no uid .or id., group or category"),
        ({"data_path": "../../secret.npy"}, "which leaves its folder"),
        ({"uid": entries[1]["uid"]}, "names the shape '0+1' twice"),
    ):
        split.write_text(json.dumps([{**entries[0], **change}, *entries[1:]]))
        with pytest.raises(ValueError, match=message):
            built("objaverse_lvis", raw, tmp_path)


# ------------------------------------------------------------ ScanObjectNN


@pytest.mark.parametrize("variant", eval_files.H5_FILES)
@pytest.mark.parametrize("inside", ["", "h5_files", "ScanObjectNN/h5_files"])
def test_scanobjectnn_h5(tmp_path, variant, inside):
    eval_files.scan_h5(tmp_path / "raw" / inside, variant)
    built(f"scanobjectnn/{variant}", tmp_path / "raw", tmp_path)
    test, info = records_of(f"scanobjectnn/{variant}", "test", tmp_path)
    train, _ = records_of(f"scanobjectnn/{variant}", "train", tmp_path)
    assert sorted(train) == ["train-00000", "train-00001", "train-00002"]
    assert {uid: r["label"] for uid, r in test.items()} == {"test-00000": "toilet", "test-00001": "sofa"}
    xyz = points_of(test["test-00001"])
    np.testing.assert_allclose(xyz, turned(eval_files.cloud(101)), atol=1e-4)
    assert np.ptp(xyz, axis=0).argmax() == 2  # tall along z
    np.testing.assert_allclose(test["test-00001"]["rgb"] / 255, 0.4)
    assert info.metadata["classes"] == list(SCAN)


def test_scanobjectnn_alone_is_obj_only(tmp_path):
    eval_files.scan_h5(tmp_path / "raw", "obj_only", test=4)
    eval_files.scan_h5(tmp_path / "raw", "pb_t50_rs", test=3)
    built("scanobjectnn", tmp_path / "raw", tmp_path)
    built("scanobjectnn/pb_t50_rs", tmp_path / "raw", tmp_path)
    assert sources.find("scanobjectnn", tmp_path) == sources.find("scanobjectnn/obj_only", tmp_path)
    assert len(records_of("scanobjectnn", "test", tmp_path)[0]) == 4


@pytest.mark.parametrize("rgb", [False, True])
def test_scanobjectnn_released(tmp_path, rgb):
    eval_files.scan_released(tmp_path / "raw", rgb=rgb)
    folder = built("scanobjectnn/released", tmp_path / "raw", tmp_path)
    shapes, _ = records_of("scanobjectnn/released", "train_test", tmp_path)
    assert {u: r["label"] for u, r in shapes.items()} == {
        "train_test-00000": "bag", "train_test-00001": "chair", "train_test-00002": "toilet",
    }  # fmt: skip
    np.testing.assert_allclose(points_of(shapes["train_test-00002"]), turned(eval_files.cloud(2)), atol=1e-4)
    np.testing.assert_allclose(shapes["train_test-00000"]["rgb"] / 255, 0.8 if rgb else 0.4)
    assert class_features.load(folder).names == list(SCAN)
    with pytest.raises(ValueError, match="has no split 'test'; it has train_test"):
        sources.open_split("scanobjectnn/released", "test", tmp_path)


def test_scanobjectnn_missing_and_bad_files(tmp_path):
    raw = tmp_path / "raw"
    with pytest.raises(ValueError, match="no config 'hardest'; it has obj_only, obj_bg, pb_t50_rs, released"):
        built("scanobjectnn/hardest", raw, tmp_path)
    eval_files.scan_h5(raw, "obj_bg")
    with pytest.raises(SourceNotFound, match=r"(?s)obj_only.*main_split_nobg/training_objectdataset.h5"):
        built("scanobjectnn/obj_only", raw, tmp_path)
    test_file = raw / "main_split" / "test_objectdataset.h5"
    test_file.write_bytes(test_file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"test_objectdataset.h5 cannot be read .*fetch it again"):
        built("scanobjectnn/obj_bg", raw, tmp_path)
    with pytest.raises(SourceNotFound, match=r"(?s)meta_data/scanobjectnn/xyz_label.npy.*meta_data.zip"):
        built("scanobjectnn/released", raw, tmp_path)
    for wrong in (15, -1):
        eval_files.scan_released(raw, labels=(0, wrong))
        with pytest.raises(ValueError, match=f"shape 1: the label {wrong} is out of range; .* 15 classes"):
            built("scanobjectnn/released", raw, tmp_path)
    path = eval_files.scan_released(raw) / "xyz_label.npy"
    eval_files.save(path, {"xyz": np.zeros((3, 8, 3)), "label": np.zeros(2)})
    with pytest.raises(ValueError, match="holds 3 shapes but 2 labels"):
        built("scanobjectnn/released", raw, tmp_path)
    eval_files.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="no dict with xyz and label"):
        built("scanobjectnn/released", raw, tmp_path)


def test_the_files_of_scanobjectnn_are_read_by_its_label_numbers():
    named = {0: "bag", 1: "bin", 6: "display", 9: "table", 10: "bed", 14: "toilet"}
    assert {i: scanobjectnn.builder.CLASSES[i] for i in named} == named
