"""The Python interface and the `openshape` command on a trained run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh

import openshape_jax
from openshape_jax import checkpoint
from openshape_jax.cli import main as cli
from openshape_jax.cli.eval import read_npz

ROOT = Path(__file__).parent.parent
LABELS = ["chair", "table", "lamp"]


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained


@pytest.fixture(scope="module")
def model(run):
    return openshape_jax.load(run)


def cloud(n=600, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n, 3)) * [1, 2, 3], rng.random((n, 3))], 1)[:, :channels]


def test_embed_gives_unit_vectors_for_every_accepted_form(model):
    single = model.embed(cloud())
    assert single.shape == (1, 512)
    assert single.dtype == np.float32
    batch = model.embed(np.stack([cloud(), cloud(seed=1)]))
    np.testing.assert_allclose(batch[0], single[0], atol=1e-5)
    mixed = model.embed([cloud(), cloud(50, channels=6), cloud(5000)])
    np.testing.assert_allclose(mixed[0], single[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-5)
    many = model.embed([cloud(seed=i) for i in range(35)])  # more than one batch
    np.testing.assert_allclose(many[[0, 1]], batch, atol=1e-5)


def test_any_scale_place_and_type(model):
    base = model.embed(cloud())
    for other in (
        cloud() * 1000 + 5e4,
        cloud().astype(np.float32),
        cloud().astype(np.float16).astype(np.float64),
    ):
        assert float((model.embed(other) @ base.T)[0, 0]) > 0.999


def test_y_up_is_turned_and_grey_and_bytes_are_colours(model):
    z_up = cloud(channels=6)
    y_up = z_up.copy()
    y_up[:, :3] = np.stack([z_up[:, 0], z_up[:, 2], -z_up[:, 1]], 1)
    np.testing.assert_allclose(model.embed(y_up, up="y"), model.embed(z_up), atol=1e-5)
    gray = np.concatenate([cloud(), np.full((600, 3), 0.4)], 1)
    np.testing.assert_allclose(model.embed(gray), model.embed(cloud()), atol=1e-5)
    as_bytes = z_up.copy()
    as_bytes[:, 3:] = np.rint(z_up[:, 3:] * 255)
    np.testing.assert_allclose(model.embed(as_bytes), model.embed(z_up), atol=5e-3)


def test_classify_gives_probabilities(model):
    one = model.classify(cloud(), LABELS)
    assert one.shape == (3,)
    assert one.sum() == pytest.approx(1, abs=1e-5)
    two = model.classify(np.stack([cloud(), cloud(seed=1)]), LABELS)
    np.testing.assert_allclose(two[0], one, atol=1e-4)
    np.testing.assert_allclose(model.classify([cloud()], LABELS)[0], one, atol=1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((10, 4)), r"shape \(10, 4\)"),
        (np.zeros((3,)), r"shape \(3,\)"),
        (np.ones((10, 3)), "all 10 points are equal"),
        (np.full((10, 3), np.nan), "NaN"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        ([], "points is empty"),
        (np.full((4, 3), "a"), "expected real numbers"),
        (np.concatenate([cloud(), np.full((600, 3), -1.0)], 1), "colours from -1.0"),
    ],
)
def test_bad_points_are_named(model, points, message):
    with pytest.raises(ValueError, match=message):
        model.embed(points)


def test_bad_arguments_are_named(model):
    with pytest.raises(ValueError, match="up is 'x'"):
        model.embed(cloud(), up="x")
    with pytest.raises(ValueError, match="chiar"):
        model.classify(cloud(), ["chiar"])
    with pytest.raises(ValueError, match="give a list"):
        model.classify(cloud(), "chair")
    with pytest.raises(ValueError, match="'chair' and 'chairs' are one name, 'chair'"):
        model.classify(cloud(), ["chair", "table", "chairs"])


def test_metadata_travels(model):
    assert model.metadata["trained_on"] == ["primitives/tiny"]
    assert model.metadata["up"] == "z"
    assert model.step == 8


def test_load_refuses_an_empty_folder(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint"):
        openshape_jax.load(tmp_path)


def command(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        cli.main(list(arguments))
    return done.value.code


def test_classify_command(run, tmp_path, capsys):
    box, points = tmp_path / "box.obj", tmp_path / "points.npy"
    trimesh.creation.box((1, 2, 3)).export(box)
    np.save(points, cloud())
    assert not command("classify", str(box), str(points), "--labels", "chair,table", "--checkpoint", str(run))
    out = capsys.readouterr().out
    assert out.count("chair") == 2
    assert "no colour; grey 0.4 is used" in out


def test_classify_command_errors(run, tmp_path):
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"nonsense")
    ok = tmp_path / "ok.npy"
    np.save(ok, cloud())
    assert "broken.glb" in str(
        command("classify", str(broken), "--labels", "chair", "--checkpoint", str(run))
    )
    assert "chiar" in str(command("classify", str(ok), "--labels", "chiar", "--checkpoint", str(run)))
    gone = str(command("classify", "gone.glb", "--labels", "chair", "--checkpoint", str(run)))
    assert gone == "error: gone.glb: No such file or directory."
    assert "holds no checkpoint" in str(
        command("classify", str(ok), "--labels", "chair", "--checkpoint", str(tmp_path))
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": np.array([0.5, 1, 2])}, "type float64; give a whole number for each cloud"),
        ({"label": np.array(["chair"] * 3)}, "type <U5; give a whole number"),
        ({"xyz": np.zeros((3, 3))}, r"xyz has shape (3, 3); both must be (clouds, points, 3)"),
        ({"rgb": np.zeros((3, 4, 3))}, r"xyz has shape (3, 5, 3) and rgb (3, 4, 3)"),
        ({"rgb": np.zeros((3, 5))}, r"rgb (3, 5)"),
        ({"classes": np.array([{}, {}, {}], object)}, "save plain arrays, no objects"),
    ],
)
def test_labelled_files_whose_arrays_do_not_fit(tmp_path, changed, message):
    arrays = {"xyz": np.zeros((3, 5, 3)), "label": np.arange(3), "classes": np.array(LABELS), **changed}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_npz(str(tmp_path / "set.npz"))


def test_a_labelled_file_says_all_arrays_that_it_lacks(tmp_path):
    np.savez(tmp_path / "set.npz", xyz=np.zeros((3, 5, 3)), labels=np.arange(3))
    with pytest.raises(ValueError, match="has no array label, classes; it has xyz, labels. xyz, label and"):
        read_npz(str(tmp_path / "set.npz"))


def test_evaluate_command(run, tmp_path, capsys):
    file, result = tmp_path / "set.npz", tmp_path / "result.json"
    xyz = np.stack([cloud(seed=i) for i in range(4)])
    np.savez(file, xyz=xyz, label=np.array([0, 1, 2, 0]), classes=np.array(LABELS))
    assert not command("eval", "--checkpoint", str(run), "--npz", str(file), "--output", str(result))
    values = json.loads(result.read_text())
    assert values["num_shapes"] == 4
    assert values["num_classes"] == 3
    assert "top1" in capsys.readouterr().out
    np.savez(file, xyz=xyz, label=np.array([0, 1, 2, 9]), classes=np.array(LABELS))
    message = str(command("eval", "--checkpoint", str(run), "--npz", str(file)))
    assert "the label 9 of cloud 3 is outside the list of 3 classes; labels count from 0 to 2" in message
    np.savez(file, xyz=xyz[:0], label=np.array([], int), classes=np.array(LABELS))
    message = str(command("eval", "--checkpoint", str(run), "--npz", str(file)))
    assert "has 0 clouds and 0 labels" in message
