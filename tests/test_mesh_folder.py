"""A person's own folder of meshes: every format, captions and their errors, rejects, names of sets."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from openshape_jax.config import DataConfig
from openshape_jax.data import schema, sources, targets, vocabulary
from openshape_jax.data.build import Options, build
from tests.mesh_examples import cube
from tests.test_sharded import digests
from tfds_builders import SourceNotFound
from tfds_builders.mesh_folder import builder, captions
from tfds_builders.mesh_folder.captions import Words
from tfds_builders.sharded import TooManyRejects

EXTENTS = (1.0, 2.0, 4.0)  # of the box, in the file's axes


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    monkeypatch.setattr(builder, "NUM_POINTS", 300)


@pytest.fixture
def folder(tmp_path) -> Path:
    """One shape of every format, other files beside them, hidden ones and a link."""
    root = tmp_path / "meshes"
    for sub in ("chair", "deep/er", ".git"):
        (root / sub).mkdir(parents=True)
    box = cube(extents=EXTENTS)
    for name in ("chair/one.glb", "chair/two.OBJ", "three.ply", "deep/four.stl", "deep/er/five.off"):
        box.export(root / name, file_type=name[-3:].lower())
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box)).items():
        (root / "deep" / name.replace("model", "six")).write_bytes(data)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (400, 3)) * EXTENTS
    np.save(root / "seven.npy", points)
    np.savez(root / "eight é.npz", xyz=points, rgb=np.tile(np.array([255, 0, 51], np.uint8), (400, 1)))
    for name in ("notes.txt", ".hidden.obj", ".git/x.obj", "chair/two.mtl"):
        (root / name).write_text("v 0 0 0\n")
    os.symlink(root / "chair", root / "link")
    return root


def make(root: Path, data_dir: Path, name: str = "mesh_folder", **options) -> Path:
    return build(name, data_dir, Options(source=str(root), jobs=1, **options))


def records(name: str, data_dir: Path, split: str = "train") -> dict[str, dict]:
    found, _ = sources.open_split(name, split, data_dir)
    return {found[i]["uid"]: found[i] for i in range(len(found))}


def points(root: Path, **files: int) -> Path:
    """A folder of .npy clouds with so many points."""
    root.mkdir(exist_ok=True)
    for name, count in files.items():
        np.save(root / f"{name}.npy", np.random.default_rng(count).normal(size=(count, 3)))
    return root


# ---------------------------------------------------------------- shapes


def test_every_format_becomes_a_z_up_record(folder, tmp_path, capsys):
    made = make(folder, tmp_path / "data")
    found = records("mesh_folder", tmp_path / "data")
    y_up = {"chair/one.glb", "chair/two.OBJ", "deep/six.gltf"}
    assert set(found) == y_up | {
        "three.ply", "deep/four.stl", "deep/er/five.off", "seven.npy", "eight é.npz",
    }  # fmt: skip
    for uid, record in found.items():
        schema.check(record)
        xyz = schema.dequantize_xyz(record["xyz"]) * record["scale"]
        want = (1, 4, 2) if uid in y_up else EXTENTS
        np.testing.assert_allclose(np.ptp(xyz, axis=0), want, rtol=0.05)
        assert (record["name"], record["texts"], record["label"]) == (Path(uid).stem, [], "")
        assert len(xyz) == 300
    assert (found["eight é.npz"]["rgb"] == [255, 0, 51]).all()
    assert made == tmp_path / "data" / "mesh_folder" / "default" / "1.0.0"
    said = capsys.readouterr().out
    assert "8 shapes in" in said
    assert ".txt 1" in said
    assert "0 of 8 shapes have a training target" in said


def test_records_depend_on_uids_only_and_up_can_be_said(folder, tmp_path):
    first = digests(make(folder, tmp_path / "a"))
    (folder / "more.npy").write_bytes((folder / "seven.npy").read_bytes())
    assert digests(make(folder, tmp_path / "b")) != first
    (folder / "more.npy").unlink()
    assert digests(make(folder, tmp_path / "c")) == first
    make(folder, tmp_path / "d", up="z")
    a, d = records("mesh_folder", tmp_path / "a"), records("mesh_folder", tmp_path / "d")
    for uid, record in d.items():
        before, now = (schema.dequantize_xyz(r["xyz"]) for r in (a[uid], record))
        turned = schema.to_z_up(now) if uid.endswith(("glb", "gltf", "OBJ")) else now
        np.testing.assert_allclose(turned, before, atol=2e-4)


def test_two_sets_side_by_side(tmp_path, capsys):
    data = tmp_path / "data"
    make(points(tmp_path / "x", a=30), data, "mesh_folder/x")
    make(points(tmp_path / "y", b=40), data, "mesh_folder/y-2")
    assert set(records("mesh_folder/x", data)) == {"a.npy"}
    assert set(records("mesh_folder/y-2", data)) == {"b.npy"}
    capsys.readouterr()
    make(points(tmp_path / "x", c=9), data, "mesh_folder/x")
    said = capsys.readouterr()
    assert "already built" in said.out
    assert f"--source was not read again: delete {data / 'mesh_folder' / 'x' / '1.0.0'}" in said.out
    assert "custom data configuration" not in said.err
    for name in ("a.b", "a b", "a/b", ".."):
        with pytest.raises(ValueError, match="cannot be a name; use letters"):
            make(tmp_path / "x", data, f"mesh_folder/{name}")


def test_unusable_files_are_rejects(tmp_path):
    root = points(tmp_path / "m", good=50)
    (root / "empty.obj").write_text("")
    (root / "garbage.glb").write_bytes(b"glTF no more")
    np.save(root / "nan.npy", np.array([[0, 0, np.nan], [1, 1, 1]]))
    np.save(root / "same.npy", np.ones((5, 3)))
    with pytest.raises(
        TooManyRejects, match=r"(?s)4 of 5 .* more than the allowed 1.0%.*--max-reject-fraction"
    ):
        make(root, tmp_path / "data")
    made = make(root, tmp_path / "data", max_reject_fraction=0.8)
    rejects = [json.loads(line) for line in (made / "rejects.jsonl").read_text().splitlines()]
    assert {r["uid"] for r in rejects} == {"empty.obj", "garbage.glb", "nan.npy", "same.npy"}
    assert set(records("mesh_folder", tmp_path / "data")) == {"good.npy"}


@pytest.mark.parametrize(
    ("make_source", "message"),
    [
        (lambda tmp: "", "needs --source DIR"),
        (lambda tmp: str(tmp / "none"), "--source .*none does not exist"),
        (lambda tmp: __file__, "is no folder"),
        (lambda tmp: str(tmp / "m"), r"holds no shape \(it has .txt 1\): .glb .gltf .obj"),
    ],
)
def test_a_source_without_shapes(tmp_path, make_source, message):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.txt").write_text("")
    with pytest.raises(SourceNotFound, match=message):
        build("mesh_folder", tmp_path / "data", Options(source=make_source(tmp_path)))


def test_a_file_name_that_no_list_can_hold(tmp_path):
    points(tmp_path / "m", a=9)
    (tmp_path / "m" / "b\nc.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'b\\nc.npy' has a line break"):
        make(tmp_path / "m", tmp_path / "data")


def test_an_interrupted_build_of_other_files_or_words_is_not_gone_on_with(tmp_path):
    root, file = points(tmp_path / "m", a=9, b=9), tmp_path / "c.csv"

    def loader(text: str) -> str:
        file.write_text(text)
        made = builder.MeshFolder(data_dir=str(tmp_path / "data"))
        made.source, made.captions = str(root), str(file)
        made._items(None)
        return repr(made._loader())

    first = loader("file,class\na,mug\n")
    assert loader("file,class\na,mug\n") == first
    assert loader("file,class\na,cup\n") != first
    np.save(root / "b.npy", np.zeros((7, 3)))
    assert loader("file,class\na,mug\n") != first


# ---------------------------------------------------------------- words


def test_words_become_texts_labels_and_splits(tmp_path, capsys):
    root = points(tmp_path / "m", a=30, b=31, c=32, d=33)
    file = tmp_path / "c.csv"
    file.write_text(
        "File,name,class,caption,caption2,synonyms,tags,split,creator,license\n"
        'a.npy,Billy,Fridge,"a cold, white box",it hums,icebox thing; refrigerator ,kitchen;white,'
        "test,Ann,CC0\n"
        "b,chair,gizmo_thing,,,,,,,\n"
        "\n"
        "./c.npy\n"
    )
    make(root, tmp_path / "data", captions=str(file))
    words = vocabulary.load()
    (a,) = records("mesh_folder", tmp_path / "data", "test").values()
    rest = records("mesh_folder", tmp_path / "data")
    said = {(t.source, t.text): t.feature for t in a["texts"]}
    assert list(said) == [
        ("class", "refrigerator"), ("synonym", "icebox thing"), ("synonym", "refrigerator"),
        ("name", "Billy"), ("caption", "a cold, white box"), ("caption", "it hums"),
    ]  # fmt: skip
    want = words.features[words.find("refrigerator")]
    for key, feature in said.items():
        assert (feature is not None) == (key[1] == "refrigerator")
    np.testing.assert_allclose(said["class", "refrigerator"], want, atol=1e-3)
    meta = {k: a[k] for k in ("uid", "name", "label", "category", "tags", "creator", "license")}
    assert list(meta.values()) == ["a.npy", "Billy", "refrigerator", "Fridge", "kitchen, white", "Ann", "CC0"]
    assert set(rest) == {"b.npy", "c.npy", "d.npy"}
    b = rest["b.npy"]
    assert (b["label"], b["category"]) == ("", "gizmo_thing")
    assert [(t.text, t.source, t.feature is None) for t in b["texts"]] == [
        ("gizmo thing", "class", True),
        ("chair", "name", False),
    ]
    out = capsys.readouterr().out
    assert "1 of them are not in" in out
    assert "does not know, so without a text feature: gizmo_thing 1" in out
    assert "2 of 4 shapes have a training target" in out
    every = [*rest.values(), a]
    assert sum(targets.has_target(record, DataConfig()) for record in every) == 2
    _, info = sources.open_split("mesh_folder", "train", tmp_path / "data")
    assert (info.metadata["classes"], info.metadata["with_target"]) == (["refrigerator"], 2)
    assert {(e["creator"], e["count"]) for e in info.metadata["attribution"]} == {
        ("Ann", 1),
        ("not stated", 3),
    }


def test_classes_from_folders(tmp_path):
    root = tmp_path / "m"
    for kind in ("Office_Chairs", "blobs"):
        points(root, top=20) and points(root / kind, a=30, b=31)
    file = tmp_path / "c.json"
    file.write_text('[{"file": "blobs/b.npy", "class": "mug"}]')
    make(root, tmp_path / "data", captions=str(file), class_from="folder")
    found = records("mesh_folder", tmp_path / "data")
    labels = {uid: (record["label"], record["category"]) for uid, record in found.items()}
    words = vocabulary.load()
    index = words.find("Office_Chairs")
    assert labels == {
        "top.npy": ("", ""),
        "Office_Chairs/a.npy": ("" if index is None else words.names[index], "Office_Chairs"),
        "Office_Chairs/b.npy": ("" if index is None else words.names[index], "Office_Chairs"),
        "blobs/a.npy": ("", "blobs"),
        "blobs/b.npy": ("mug", "mug"),
    }
    points(root / "Train", c=9)
    with pytest.raises(ValueError, match="is 'Train' of 'Train/c.npy' a class or a split"):
        make(root, tmp_path / "other", class_from="folder")


FILES = ["a.obj", "sub/b.glb", "sub/b.obj", "sub/é.ply", "two words.npy"]


def read(tmp_path: Path, content: str | bytes, suffix: str = ".csv") -> dict[str, Words]:
    path = tmp_path / f"words{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return captions.read(path, FILES, Path("DIR"))


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("a.obj", "a.obj"),
        ("a", "a.obj"),
        ("./sub\\b.glb", "sub/b.glb"),
        ("b.glb", "sub/b.glb"),
        ("sub/e\u0301.ply", "sub/é.ply"),  # macOS's form of the accent
        ("é", "sub/é.ply"),
        (" two words ", "two words.npy"),
    ],
)
def test_ways_to_name_a_file(tmp_path, named, file):
    assert set(read(tmp_path, f"file,name\n{named},x\n")) == {file}


@pytest.mark.parametrize("form", ["utf-8-sig", ";", "\t", "\r\n"])
def test_spellings_of_a_csv(tmp_path, form):
    text = 'file,name,caption\na,"one\nthing",b\n'
    if form == "utf-8-sig":
        assert read(tmp_path, text.encode(form))["a.obj"].name == "one thing"
    else:
        old = "\n" if form == "\r\n" else ","
        assert read(tmp_path, text.replace(old, form)) == {"a.obj": Words("one thing", captions=("b",))}


def test_json_says_the_same_as_csv(tmp_path):
    table = read(
        tmp_path,
        "file,class,caption,caption_2,synonyms,split\na,mug,red,old,cup;beaker,TEST\nsub/b.glb,,x,,,\n",
    )
    first = {"class": "mug", "captions": ["red", "old"], "synonyms": ["cup", "beaker"], "split": "test"}
    second = {"caption": "x", "tags": None}
    listed = [{"file": "a", **first}, {"file": "sub/b.glb", **second}]
    assert read(tmp_path, json.dumps(listed), ".json") == table
    assert read(tmp_path, json.dumps({"a": first, "sub/b.glb": second}), ".json") == table
    assert table["a.obj"] == Words("", "mug", ("red", "old"), ("cup", "beaker"), (), "test")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip),
        max_size=4,
    )
)
def test_any_captions_come_back(tmp_path_factory, said):
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "words.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", *("caption" for _ in said)], ["a.obj", *said]])
    found = captions.read(folder / "words.csv", FILES, folder)["a.obj"]
    assert found.captions == tuple(dict.fromkeys(" ".join(text.split()) for text in said))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; its first line names the columns"),
        ("name,class\nx,y\n", r"no column 'file' \(it has name, class\)"),
        ("file,clas\n", r"unknown column 'clas' \(did you mean 'class'\?\); known are file, name"),
        ("file,name,name\n", "column 'name' stands there twice"),
        ("file\nto word\n", r"1 wrong entry:\n  line 2: 'to word' is no shape in DIR \(near: 'two words'\)"),
        ("file\nb\n", r"line 2: 'b' may be sub/b.glb or sub/b.obj; give the path"),
        ("file,name\na,x\na.obj,y\n", "line 3: 'a.obj' stands in line 2 already"),
        ("file,split\na,valid\n", "line 2: the split is 'valid'; it must be train or test"),
        ("file,name\n,x\n", "line 2: the column 'file' is empty"),
        ("file,caption\na,x, y\n", "line 2: 3 values for 2 columns; put a text that has the separator ','"),
        ('file,caption\na,"x\n', "look for a stray double quote"),
        ("file,name\na,caf\u00e9\n".encode("latin-1"), r"not UTF-8 \(byte 0xe9 in line 2\); save it"),
        ("file,name\na,x\n".encode("utf-16"), "not UTF-8 .* in line 1"),
        ("file\n" + "x\n" * 8, r"(?s)has 8 wrong entries:.*line 6: .*and 3 more"),
    ],
)  # fmt: skip
def test_errors_of_a_csv(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert "words.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is no JSON"),
        ('"x"', "expected a list of objects"),
        ("[1]", "expected a list of objects"),
        ('{"a": "x"}', "expected a list of objects"),
        ('{"a": {}, "a": {}}', "the key 'a' stands there twice"),
        ('[{"file": "a", "name": 7}]', "entry 1: 'name' is 7; it must be a string"),
        ('[{"file": "a", "name": ["x", "y"]}]', "entry 1: 'name' has 2 values; it takes one"),
        ('[{"file": "a"}, {"file": "a.obj"}]', "entry 2: 'a.obj' stands in entry 1 already"),
        ('[{"file": "a", "labels": []}]', "unknown column 'labels'"),
        ('[{"name": "a"}]', "entry 1: the column 'file' is empty"),
    ],
)
def test_errors_of_a_json(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, ".json")


def test_captions_of_another_form(tmp_path):
    with pytest.raises(ValueError, match=r"suffix '.xlsx' is not known; captions are a .csv or .json"):
        read(tmp_path, b"", ".xlsx")
