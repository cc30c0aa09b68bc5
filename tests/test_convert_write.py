"""Our models written as PyTorch and safetensors files and as our own checkpoints, and back."""

import errno
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import openshape_jax
from openshape_jax import checkpoint, models, state, train
from openshape_jax.cli import main as cli
from openshape_jax.config import Config, ModelConfig
from openshape_jax.convert import files, load, save, torch_read
from openshape_jax.convert.error import ConversionError
from tests import torch_files
from tests.torch_files import FIXTURE, FLAGS, GIVEN


def command(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        cli.main([str(a) for a in arguments])
    return done.value.code


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The fixture as a checkpoint of ours, made by the command."""
    folder = tmp_path_factory.mktemp("convert") / "model"
    assert command("convert", FIXTURE, folder, *FLAGS) == 0
    return folder


def assert_identical(found, expected):
    assert list(found) == list(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_there_and_back_is_bit_identical(ours, tmp_path, golden):
    model = openshape_jax.load(ours)
    weights = model._weights
    out, _ = models.apply(model.config, weights["encoder"], weights["stats"], golden["xyz"], golden["rgb"])
    np.testing.assert_allclose(out, golden["out_eval"], atol=1e-4)
    assert command("convert", ours, tmp_path / "back.pt") == 0
    back, original = torch_read.load(tmp_path / "back.pt"), torch_files.fixture()
    assert_identical(back["state_dict"], original["state_dict"])
    assert_identical(back["logit_scale"], original["logit_scale"])
    assert back["text_proj"] is None
    assert back["step"] == 1234
    again = openshape_jax.load(tmp_path / "back.pt")  # nothing has to be given: the file says it
    assert again.metadata == {**model.metadata, "torch_layout": again.metadata["torch_layout"]}


def test_safetensors_hold_the_state_dict_alone(ours, tmp_path):
    for flags, prefix in ((), ""), (("--module-prefix",), "module."):
        path = tmp_path / f"{prefix or 'bare.'}safetensors"
        assert command("convert", ours, path, *flags) == 0
        expected = {prefix + k: v for k, v in torch_files.plain().items()}
        found = load_file(path)
        assert_identical({k: found[k] for k in expected}, expected)
        assert found.keys() == expected.keys()
        with safe_open(path, framework="np") as file:
            metadata = json.loads(file.metadata()["openshape_jax"])
        assert metadata["model"]["patches"] == 24
        model = openshape_jax.load(path)
        assert model.metadata["logit_scale"] == pytest.approx(14.28)


def test_a_run_without_prefix(ours, tmp_path):
    assert command("convert", ours, tmp_path / "b.pt", "--no-module-prefix") == 0
    back = torch_read.load(tmp_path / "b.pt")
    assert_identical(back["state_dict"], torch_files.plain())
    assert list(back["logit_scale"]) == ["logit_scale"]


def test_a_demo_file_keeps_its_names(tmp_path):
    source = torch_files.write(tmp_path / "demo.pt", torch_files.unprojected())
    assert command("convert", source, tmp_path / "ours", *FLAGS) == 0
    assert command("convert", tmp_path / "ours", tmp_path / "back.pt") == 0
    back = torch_read.load(tmp_path / "back.pt")
    back.pop("openshape_jax")
    assert_identical(back, torch_files.unprojected())


def test_the_zip_file_is_of_pytorch_s_form(ours, tmp_path):
    assert command("convert", ours, tmp_path / "name.pt") == 0
    raw = (tmp_path / "name.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "name.pt") as archive:
        assert archive.testzip() is None
        assert archive.read("name/version") == b"3\n"
        assert archive.read("name/byteorder") == b"little"
        entries = archive.infolist()
    assert entries[0].filename == "name/data.pkl"
    for entry in entries:
        assert entry.compress_type == zipfile.ZIP_STORED
        lengths = struct.unpack_from("<HH", raw, entry.header_offset + 26)
        begin = entry.header_offset + 30 + sum(lengths)
        assert begin % 64 == 0
        assert raw[begin : begin + entry.file_size] == zipfile.ZipFile(tmp_path / "name.pt").read(entry)


def test_a_training_run_of_ours(tmp_path, capsys):
    small = ModelConfig(dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8, patches=4, nsample=4, embed_dim=8)
    config = Config(model=small)
    saves = checkpoint.Checkpoints(tmp_path / "run")
    saves.save(state.init(config), train.describe(config), wait=True)
    saves.close()
    assert command("convert", tmp_path / "run", tmp_path / "run.pt") == 0
    back = torch_read.load(tmp_path / "run.pt")
    assert back["logit_scale"]["module.logit_scale"] == pytest.approx(np.log(14.28))
    assert back["state_dict"]["module.ppat.sa.mlp_bns.0.num_batches_tracked"].dtype == np.int64
    first, _, _ = checkpoint.load_weights(tmp_path / "run")
    second, metadata, _ = load.read(tmp_path / "run.pt")
    np.testing.assert_array_equal(first["encoder"]["lift"]["kernel"], second["encoder"]["lift"]["kernel"])
    for key in ("model", "text_space", "up", "colour", "trained_on", "version"):
        assert metadata[key] == train.describe(config)[key]
    assert command("convert", tmp_path / "run.pt", tmp_path / "back") == 0
    assert "left out" not in capsys.readouterr().out
    kinds = {"run": "training run", "run.pt": "PyTorch, written by openshape_jax", "back": "converted model"}
    for path, kind in kinds.items():
        assert command("info", tmp_path / path) == 0
        out = capsys.readouterr().out
        assert f"kind:           {kind}" in out
        assert "clip_vitb32_names_centred" in out
        assert "trained on:     openshape_ensemble" in out


def test_info_says_what_is_known(ours, tmp_path, capsys):
    assert command("convert", ours, tmp_path / "m.safetensors") == 0
    capsys.readouterr()
    for path in (ours, tmp_path / "m.safetensors"):
        assert command("info", path, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["architecture"] == "pointbert, dim 32, depth 2, heads 2, mlp 48, sa_dim 16"
        assert (facts["parameters"], facts["D"], facts["up"]) == (47_576, 40, "z")
        assert facts["version"] == openshape_jax.__version__
        assert facts["converted from"] == str(FIXTURE)
    assert command("info", FIXTURE) == 0
    out = capsys.readouterr().out
    assert "parameters:     47,576" in out
    assert "not in the file (published sizes that fit: none); give --patches --radius --nsample" in out
    assert "not in the file; give --up" in out


def test_nothing_is_overwritten_unasked(ours, tmp_path):
    (tmp_path / "m.pt").write_text("mine")
    assert "m.pt exists: give another name, or --overwrite" in str(
        command("convert", ours, tmp_path / "m.pt")
    )
    assert (tmp_path / "m.pt").read_text() == "mine"
    assert command("convert", ours, tmp_path / "m.pt", "--overwrite") == 0
    assert files.is_foreign(tmp_path / "m.pt")

    assert command("convert", ours, tmp_path / "model") == 0
    assert "model exists" in str(command("convert", FIXTURE, tmp_path / "model", *FLAGS))
    assert command("convert", FIXTURE, tmp_path / "model", *FLAGS, "--overwrite") == 0
    (tmp_path / "model" / "config.json").write_text("{}")
    again = command("convert", FIXTURE, tmp_path / "model", *FLAGS, "--overwrite")
    assert "holds more than a converted model (checkpoints, config.json)" in str(again)
    assert openshape_jax.load(tmp_path / "model").step == 1234
    assert "is a file" in str(command("convert", ours, FIXTURE.with_name("README.md")))
    assert "NAME.pt, NAME.safetensors, or a folder" in str(command("convert", ours, tmp_path / "m.onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "model"]


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_full_disk_leaves_nothing_half_written(ours, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("before")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / name))

    monkeypatch.setattr(os, "fsync", full)
    message = str(command("convert", ours, tmp_path / name, "--overwrite"))
    assert "the disk is full" in message
    assert name in message
    assert (tmp_path / name).read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_no_half_folder(ours, tmp_path, monkeypatch):
    assert command("convert", ours, tmp_path / "model") == 0

    def full(*_arguments, **_options):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    message = str(command("convert", ours, tmp_path / "model", "--overwrite"))
    assert "the disk is full. Nothing was kept of it" in message
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert openshape_jax.load(tmp_path / "model").step == 1234


def test_training_does_not_start_on_a_converted_model(ours):
    saves = checkpoint.Checkpoints(ours)
    with pytest.raises(checkpoint.CheckpointError, match="holds a converted model, without the state"):
        saves.restore(state.init(Config(model=ModelConfig(dim=8, depth=1, heads=1, mlp_dim=8, sa_dim=8))))
    saves.close()
    assert openshape_jax.load(ours).step == 1234


def test_what_a_run_knows_itself_cannot_be_given(ours):
    with pytest.raises(ValueError, match="is a run of ours, which knows its own up, radius"):
        openshape_jax.load(ours, up="y", radius=0.3)
    with pytest.raises(ValueError, match="embeds to D = 40, but embed_dim 8 was asked for"):
        openshape_jax.load(ours, embed_dim=8)


def test_values_that_pytorch_files_cannot_hold():
    with pytest.raises(TypeError, match="object cannot be written"):
        torch_files.write(files.Path(os.devnull), {"a": object()})
    with pytest.raises(TypeError, match="complex64"):
        torch_files.write(files.Path(os.devnull), {"a": np.zeros(2, np.complex64)})


def test_a_damaged_metadata_entry_is_named(tmp_path):
    path = torch_files.write(tmp_path / "m.pt", {**torch_files.plain(), "openshape_jax": "{"})
    with pytest.raises(ConversionError, match="openshape_jax metadata is damaged"):
        load.read(path, **GIVEN)
    path = torch_files.write(tmp_path / "m.pt", {**torch_files.plain(), "openshape_jax": '{"model": {}}'})
    with pytest.raises(ConversionError, match="metadata lacks colour, embed_dim"):
        load.read(path, **GIVEN)


def test_writing_needs_no_folder_beforehand(ours, tmp_path):
    weights, metadata, step = checkpoint.load_weights(ours)
    path = save.write(weights, metadata, step, tmp_path / "a" / "b" / "m.pt")
    assert path.is_file()
