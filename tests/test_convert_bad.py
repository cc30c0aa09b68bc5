"""Foreign checkpoints that are damaged, dangerous or something else: each a clear error."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import openshape_jax
from openshape_jax import checkpoint
from openshape_jax.convert import files, load, torch_read
from openshape_jax.convert.error import ConversionError
from tests import torch_files
from tests.torch_files import FIXTURE, GIVEN


def refusal(path, **options) -> str:
    with pytest.raises(ConversionError) as error:
        load.read(path, **{**GIVEN, **options})
    return str(error.value)


def calling(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument)."""
    text = argument.encode()
    return (
        f"\x80\x02c{module}\n{name}\n".encode("latin1")
        + b"X"
        + struct.pack("<I", len(text))
        + text
        + b"\x85R."
    )


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("posix", "system", "touch {}"),
        ("builtins", "eval", "open('{}', 'w')"),
        ("subprocess", "getoutput", "touch {}"),
        ("pathlib", "Path.touch", "{}"),
        ("numpy", "load", "{}"),
        ("torch.storage", "_load_from_bytes", "{}"),
        ("torch", "load", "{}"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_named(tmp_path, module, name, argument):
    marker = tmp_path / "ran"
    data = calling(module, name, argument.format(marker))
    text = refusal(torch_files.write_pickle(tmp_path / "evil.pt", data))
    assert f"evil.pt: its pickle asks for {module}.{name}, which" in text
    assert "refused, nothing of it was run" in text
    assert not marker.exists()


def test_the_refused_pickles_would_have_run(tmp_path):
    marker = tmp_path / "ran"
    text = refusal(
        torch_files.write_pickle(
            tmp_path / "evil.pt", pickle.dumps(torch_files.Calls(os.system, f"touch {marker}"), protocol=4)
        )
    )
    assert "asks for posix.system" in text
    assert not marker.exists()
    pickle.loads(calling("posix", "system", f"touch {marker}"))
    assert marker.exists()


def test_numpy_scalars_are_read_and_their_abuse_is_not(tmp_path):
    values = {"best": np.float64(0.468), "n": np.int32(-7), "flag": np.bool_(True)}
    path = torch_files.write_pickle(tmp_path / "m.pt", pickle.dumps(values, protocol=2))
    assert torch_read.load(path) == {"best": 0.468, "n": -7, "flag": True}
    for bad in (np.array([1.0]), np.dtype("O"), np.dtype([("a", "f4")]), np.str_("a")):
        path = torch_files.write_pickle(tmp_path / "m.pt", pickle.dumps({"x": bad}, protocol=2))
        assert "m.pt" in refusal(path)


def test_a_cut_off_file_says_so(tmp_path):
    data = FIXTURE.read_bytes()
    for size in (len(data) // 2, len(data) - 10, 100):
        (tmp_path / "m.pt").write_bytes(data[:size])
        assert f"m.pt is cut off: {size} bytes" in refusal(tmp_path / "m.pt")
    save_file(torch_files.plain(), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[: len(data) // 2])
    assert "cannot be read as safetensors" in refusal(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert "of 0 bytes cannot be read" in refusal(tmp_path / "m.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 5729), value=st.integers(0, 255))
def test_a_changed_pickle_is_either_harmless_or_a_conversion_error(tmp_path, at, value):
    with zipfile.ZipFile(FIXTURE) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = bytearray(entries["openshape_pointbert_tiny/data.pkl"])
    pickled[at] = value
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name, data in {**entries, "openshape_pointbert_tiny/data.pkl": bytes(pickled)}.items():
            archive.writestr(name, data)
    try:
        load.read(tmp_path / "m.pt", **GIVEN, note=lambda _text: None)
    except ConversionError as error:
        assert "m.pt" in str(error)


@pytest.mark.parametrize("at", range(0, 200_000, 9_973))
def test_a_changed_byte_of_the_file_is_found(tmp_path, at):
    data = bytearray(FIXTURE.read_bytes())
    data[at] ^= 255
    (tmp_path / "m.pt").write_bytes(data)
    try:
        weights, _, _ = load.read(tmp_path / "m.pt", **GIVEN)
    except ConversionError as error:
        assert "m.pt" in str(error)
    else:  # padding between the entries
        np.testing.assert_array_equal(weights["encoder"]["cls_token"], torch_files.plain()["ppat.cls_token"])


def test_files_of_another_kind_are_named(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(torch_read.LEGACY + b"rest")
    assert "PyTorch's old format (before 1.6)" in refusal(path)
    assert "torch.save(torch.load(" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "Git LFS pointer" in refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"<html>")
    assert "no PyTorch checkpoint: it does not begin as a zip file but with b'<html>'" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    assert "a zip file but no PyTorch checkpoint" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        archive.writestr("m/constants.pkl", pickle.dumps((), 2))
    assert "TorchScript" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        archive.writestr("m/byteorder", "big")
    assert "big-endian" in refusal(path)
    torch_files.write_pickle(path, pickle.dumps([1, 2], 2))
    assert "holds a list, not a dict of tensors" in refusal(path)
    assert "no such file" in refusal(tmp_path / "absent.pt")


def test_bombs_are_not_unpacked(tmp_path):
    path = torch_files.write_pickle(tmp_path / "bomb.pt", bytes(50_000_000), compress=True)
    assert path.stat().st_size < 100_000
    assert "unpack to 50000002 bytes from a file of" in refusal(path)
    memo = b"\x80\x02}" + b"r" + struct.pack("<I", 1 << 31) + b"."
    assert "memo 2147483648" in refusal(torch_files.write_pickle(path, memo))
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert "damaged" in refusal(torch_files.write_pickle(path, deep))


def test_a_tensor_that_repeats_few_numbers_is_refused(tmp_path):
    tensors = torch_files.plain()
    path = torch_files.write(tmp_path / "m.pt", {"ppat.cls_token": tensors["ppat.cls_token"]})
    with zipfile.ZipFile(path) as archive:
        body, numbers = archive.read("archive/data.pkl"), archive.read("archive/data/0")
    shape, strides = b"(\x8a\x01\x20t(\x8a\x01\x01t", b"(\x8a\x05\x00\x00\x00\x00\x10t(\x8a\x01\x00t"
    assert shape in body
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body.replace(shape, strides))
        archive.writestr("archive/data/0", numbers)
    assert "its tensors claim 274877906944 bytes from a file of" in refusal(path)


def test_every_tensor_that_does_not_fit_is_listed_together(tmp_path):
    tensors = torch_files.plain()
    del tensors["ppat.lift.0.bias"], tensors["ppat.transformer.layers.1.0.norm.weight"]
    tensors["ppat.cls_token"] = np.zeros(31, np.float32)
    tensors["ppat.pos_embed"] = np.zeros((4, 4), np.float32)
    tensors["proj.bias"] = np.full(40, np.nan, np.float32)
    tensors["ppat.lift.2.bias"] = np.zeros(32, np.int32)
    path = torch_files.write(tmp_path / "m.pt", tensors)
    text = refusal(path)
    for line in (
        "6 do not fit",
        "missing: ppat.lift.0.bias (32,)",
        "missing: ppat.transformer.layers.1.0.norm.weight (32,)",
        "misshapen: ppat.cls_token is (31,), expected (32,)",
        "unexpected: ppat.pos_embed (4, 4)",
        "not finite: proj.bias",
        "not floating point: ppat.lift.2.bias is int32",
    ):
        assert line in text
    text = refusal(path, ignore=("ppat.pos_embed",))
    assert "5 do not fit" in text
    assert "unexpected" not in text
    assert "has no tensor 'ppat.absent' to leave out" in refusal(path, ignore=("ppat.absent",))


def test_tensors_beside_the_state_dict_are_not_overlooked(tmp_path):
    whole = {**torch_files.fixture(), "ema": {"shadow": np.zeros(3, np.float32)}, "note": "hello"}
    path = torch_files.write(tmp_path / "m.pt", whole)
    assert "holds 'ema', no tensors of the encoder" in refusal(path)
    said = []
    load.read(path, **GIVEN, ignore=("ema",), note=said.append)
    assert any("ema" in line and "note" in line for line in said)


def test_models_with_projected_targets_are_refused(tmp_path):
    whole = {**torch_files.fixture(), "text_proj": {"module.weight": np.zeros((40, 40), np.float32)}}
    text = refusal(torch_files.write(tmp_path / "m.pt", whole))
    assert "a projection of the CLIP vectors (text_proj)" in text


def test_sparse_convolution_and_foreign_models_are_told_apart(tmp_path):
    sparse = {
        "module.conv0p1s1.kernel": np.zeros((125, 6, 32), np.float32),
        "module.bn0.bn.weight": np.zeros(32, np.float32),
    }
    path = torch_files.write(tmp_path / "m.pt", {"state_dict": sparse})
    text = refusal(path)
    assert "sparse convolution encoder (MinkowskiEngine: it has module.conv0p1s1.kernel)" in text
    assert "Only PointBERT can be converted" in text
    torch_files.write(path, {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "fc.bias": np.zeros(9)})
    assert "is no OpenShape PointBERT: none of its 2 entries" in refusal(path)
    assert "conv1.weight, fc.bias" in refusal(path)
    torch_files.write(path, {"ppat.cls_token": np.zeros(8, np.float32)})
    assert "has no transformer block" in refusal(path)
    some = {k: v for k, v in torch_files.plain().items() if "fn.to_" not in k}
    assert "heads cannot be read" in refusal(torch_files.write(path, some))


def test_a_bad_logit_scale_is_named(tmp_path):
    whole = {**torch_files.fixture(), "logit_scale": {"module.logit_scale": np.float32([1, 2])}}
    assert "logit_scale is array" in refusal(torch_files.write(tmp_path / "m.pt", whole))


def test_folders(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint"):
        openshape_jax.load(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(FIXTURE.read_bytes())
    assert r"several checkpoints (a.pt, b.pt): name one of them" in refusal(tmp_path)
    (tmp_path / "b.pt").unlink()
    assert load.read(tmp_path, **GIVEN)[2] == 1234
    (tmp_path / "a.pt").rename(tmp_path / "model.safetensors.index.json")
    assert "is no index of a sharded checkpoint" in refusal(tmp_path)
    index = {"weight_map": {"a": "s.safetensors", "ppat.cls_token": "s.safetensors"}}
    save_file({"ppat.cls_token": np.zeros(8, np.float32)}, tmp_path / "s.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lists tensors that its files do not hold: a" in refusal(tmp_path)


def test_what_counts_as_foreign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.is_foreign("OpenShape/openshape-pointbert-vitg14-rgb")
    assert files.is_foreign("runs/model.pt")
    assert not files.is_foreign("quickstart")
    (tmp_path / "runs").mkdir()
    assert not files.is_foreign("runs/quickstart")  # a misspelt run is no repository
