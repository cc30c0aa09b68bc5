"""The OBJ reader against a slow one, bad files, and files from strangers."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh

from openshape_jax import geometry_io, mesh_files, mesh_sampling, obj_reader
from openshape_jax.geometry_io import load_points
from tests.mesh_examples import SQUARE, cube, no_files, png, quadrants, random_obj, write_square

# ---------------------------------------------------------------- OBJ


def slow_obj(text: str) -> dict[str, list[np.ndarray]]:
    """Triangles (3, 3) by material, line by line."""
    v: list[list[float]] = []
    found: dict[str, list[np.ndarray]] = {}
    material = ""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            v.append([float(w) for w in words[1:4]])
        elif words[:1] == ["usemtl"]:
            material = " ".join(words[1:])
        elif words[:1] == ["f"]:
            index = [int(w.split("/")[0]) for w in words[1:]]
            corners = [v[i - 1] if i > 0 else v[i] for i in index]
            for k in range(1, len(corners) - 1):
                found.setdefault(material, []).append(np.array([corners[0], corners[k], corners[k + 1]]))
    return found


@pytest.mark.parametrize("fmt", ["v", "v/t", "v//n", "v/t/n", "mixed"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_obj_reader_equals_a_line_by_line_reader(fmt: str, newline: str) -> None:
    for seed in range(20):
        text = random_obj(np.random.default_rng(seed), fmt)
        parts = obj_reader.read_obj(text.replace("\n", newline).encode(), no_files)
        got = np.concatenate([p.vertices[p.faces] for p in parts])
        expected = np.concatenate([np.stack(t) for t in slow_obj(text).values()])
        assert got.shape == expected.shape
        key = lambda t: t[np.lexsort(t.reshape(len(t), -1).T)]  # noqa: E731
        np.testing.assert_allclose(key(got), key(expected), rtol=1e-12)


def test_obj_texture_coordinates_follow_their_corner() -> None:
    mtl = b"newmtl a\nKd 0.1 0.2 0.3\nmap_Kd t.png\n"
    files = {"x.mtl": mtl, "t.png": png(quadrants())}
    text = (
        SQUARE
        + "vt 0.1 0.2\nvt 0.3 0.4\nvt 0.5 0.6\nmtllib x.mtl\nusemtl a\n"
        + "f 1/1 2/2 3/3\nf 1/-1 3/-2 4/-3\nf 1 2 4\n"
    )
    textured, plain = obj_reader.read_obj(text.encode(), lambda n: files[n])
    assert textured.uv is not None and textured.uv_faces is not None
    expected = [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.5, 0.6], [0.3, 0.4], [0.1, 0.2]]]
    np.testing.assert_allclose(textured.uv[textured.uv_faces], expected)
    np.testing.assert_array_equal(plain.faces, [[0, 1, 3]])
    assert plain.texture is None and plain.color is not None
    np.testing.assert_allclose(plain.color, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no vertices"),
        ("v 0 0 0\n", "no faces"),
        (SQUARE + "f 1 2\n", "three corners"),
        (SQUARE + "f 1 2 5\n", "does not exist"),
        (SQUARE + "f 1 2 -5\n", "does not exist"),
        (SQUARE + "f 1 2 0\n", "does not exist"),
        (SQUARE + "f 1 two 3\n", "not a number"),
        (SQUARE + "f 1 2.5 3\n", "not a number|hold"),
        ("v 0 0\nv 1 1 1\nf 1 2 1\n", "at least 3"),
        ("v 0 0 zero\nf 1 1 1\n", "not a number"),
    ],
)
def test_obj_errors(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.obj"
    file.write_text("# x\n" + text)
    with pytest.raises(ValueError, match=words) as error:
        load_points(file)
    assert str(file) in str(error.value)


def test_mtl_options_names_with_spaces_and_unreadable_colours() -> None:
    mtl = b"""newmtl my wood
Kd 0.5 0.25 2
map_Kd -s 1 1 1 -bm 0.5 -clamp on my wood.png
newmtl other
Kd spectral x.rfl
map_Kd nowhere.png
"""
    found = obj_reader.read_mtl(mtl, {"my wood.png": png(quadrants())}.__getitem__)
    assert found["my wood"].texture is not None and found["my wood"].texture.shape == (64, 64, 4)
    np.testing.assert_allclose(found["my wood"].color, [0.5, 0.25, 1])
    assert found["other"] == (None, None)


# ---------------------------------------------------------------- bad input


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def array(name: str, value: np.ndarray, **kwargs: object) -> Path:
        np.save(folder / name, value, **kwargs)
        return folder / name

    def raw(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    nan = np.zeros((5, 3))
    nan[2, 1] = np.nan
    np.savez(folder / "keys.npz", points=np.zeros((3, 3)), other=np.zeros(3))
    glb = cube().export(file_type="glb")
    no_faces = b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
    no_faces += b"property float z\nend_header\n"
    line = "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"
    return {
        "suffix": (raw("a.fbx", b"x"), r"\.glb .*\.npy"),
        "no suffix": (raw("a", b"x"), "is not known"),
        "nan": (array("nan.npy", nan), "1 of 5 points have a NaN"),
        "inf": (array("inf.npy", np.array([[np.inf, 0, 0], [0, 0, 0]])), "infinite"),
        "huge": (array("huge.npy", np.array([[1e300, 0, 0], [0, 0, 0]])), "float32"),
        "equal": (array("eq.npy", np.ones((5, 3))), "all 5 points are equal"),
        "no points": (array("none.npy", np.zeros((0, 3))), "no points"),
        "columns": (array("cols.npy", np.zeros((5, 4))), r"shape \(5, 4\)"),
        "flat": (array("flat.npy", np.zeros(5)), r"shape \(5,\)"),
        "objects": (array("pickle.npy", np.array([{}, 1], object), allow_pickle=True), "cannot be read"),
        "strings": (array("str.npy", np.full((4, 3), "a")), "type"),
        "keys": (folder / "keys.npz", "other, points"),
        "not numpy": (raw("t.npy", b"hello"), "cannot be read"),
        "not a zip": (raw("t.npz", b"hello"), "cannot be read"),
        "nan colour": (array("nc.npy", np.c_[np.eye(4, 5), np.full(4, np.nan)]), "NaN or infinite colour"),
        "empty": (raw("e.obj", b""), "empty"),
        "empty glb": (raw("e.glb", b""), "empty"),
        "cut glb": (raw("cut.glb", glb[: len(glb) // 2]), "Export it again"),
        "text as glb": (raw("t.glb", b"not a model at all, really"), "cannot be read as .glb"),
        "text as gltf": (raw("t.gltf", b"{"), "cannot be read as .gltf"),
        "text as ply": (raw("t.ply", b"hello there"), "cannot be read as .ply"),
        "text as stl": (raw("t.stl", b"hello there"), "."),
        "text as off": (raw("t.off", b"hello there"), "cannot be read as .off"),
        "empty ply": (raw("n.ply", no_faces), "neither faces nor points|cannot be read"),
        "no area": (raw("line.obj", line.encode()), "no area"),
        "nan mesh": (raw("nan.obj", line.replace("1 0 0", "nan 0 0").encode()), "NaN"),
        "inf mesh": (raw("inf.obj", line.replace("1 0 0", "inf 1 0").encode()), "NaN or infinite"),
        "huge mesh": (raw("h.obj", line.replace("1 0 0", "1e200 1e200 0").encode()), "large"),
    }


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    for what, (file, words) in _bad_files(tmp_path).items():
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=words) as error:
            load_points(file, 100)
        assert str(file) in str(error.value), what
        assert "\n" not in str(error.value), what


def test_bad_arguments_and_missing_file(tmp_path: Path) -> None:
    file = write_square(tmp_path)
    with pytest.raises(ValueError, match="up is 'x'"):
        load_points(file, up="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_points is 0"):
        load_points(file, 0)
    for name in ("nothing.obj", "nothing.glb", "nothing.npy"):
        with pytest.raises(FileNotFoundError):
            load_points(tmp_path / name)


# ---------------------------------------------------------------- files from strangers


@pytest.mark.parametrize(
    "reference", ["../secret.png", "{root}/secret.png", "a/../../secret.png", "link.png"]
)
def test_textures_outside_the_folder_are_not_read(tmp_path: Path, reference: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(np.full((4, 4, 3), 7, np.uint8)))
    folder = tmp_path / "model"
    file = write_square(folder, f"newmtl m\nKd 0 1 0\nmap_Kd {reference.format(root=tmp_path)}\n")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    np.testing.assert_array_equal(load_points(file, 5).rgb, np.tile(np.float32([0, 1, 0]), (5, 1)))
    if reference != "link.png":  # its last part beside the mesh is fine: exported paths are often absolute
        (folder / "secret.png").write_bytes(png(np.full((4, 4, 3), 51, np.uint8)))
        np.testing.assert_allclose(load_points(file, 5).rgb, 0.2)


def test_gltf_buffers_outside_the_folder_or_on_the_network_are_not_read(tmp_path: Path) -> None:
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(cube()))
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    name = next(n for n in files if n.endswith(".bin"))
    assert len(load_points(folder / "model.gltf", 10).xyz) == 10
    (folder / name).rename(tmp_path / name)
    text = (folder / "model.gltf").read_text()
    for uri in (
        f"../{name}",
        str(tmp_path / name),
        f"https://example.invalid/{name}",
        f"file://{tmp_path}/{name}",
    ):
        (folder / "model.gltf").write_text(text.replace(name, uri))
        with pytest.raises(ValueError, match=r"model\.gltf"):
            load_points(folder / "model.gltf", 10)


def huge_png() -> bytes:
    """A small PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"picture|pixels"):
        mesh_sampling.decode_image(huge_png())
    file = write_square(tmp_path, "newmtl m\nKd 0 1 0\nmap_Kd t.png\n")
    (tmp_path / "t.png").write_bytes(huge_png())
    np.testing.assert_array_equal(load_points(file, 5).rgb, np.tile(np.float32([0, 1, 0]), (5, 1)))
    # the same limits for archives and files, made small here
    np.savez_compressed(tmp_path / "z.npz", xyz=np.zeros((100_000, 3)))
    monkeypatch.setattr(geometry_io, "MAX_FILE_BYTES", 100_000)
    with pytest.raises(ValueError, match="unpacks to"):
        load_points(tmp_path / "z.npz")
    monkeypatch.setattr(geometry_io, "MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match="at most"):
        load_points(file)


def test_large_textures_are_reduced() -> None:
    pixels = np.repeat(np.repeat(quadrants(), 40, 0), 40, 1)
    texture = mesh_sampling.decode_image(png(pixels))
    assert texture.shape == (1024, 1024, 4)
    np.testing.assert_array_equal(
        texture[[100, 100, 900, 900], [100, 900, 100, 900], :3], quadrants()[[0, 0, 63, 63], [0, 63, 0, 63]]
    )


def test_obj_in_an_archive(tmp_path: Path) -> None:
    file = write_square(tmp_path / "m", "newmtl m\nKd 0 1 0\nmap_Kd ../TEX\\Wood.PNG\n")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "lib/chair/Chair.obj")
        archive.write(tmp_path / "m" / "s.mtl", "lib/chair/S.MTL")
        archive.writestr("lib/tex/wood.png", png(np.full((4, 4, 3), 51, np.uint8)))
        archive.writestr("lib/empty.obj", "")
    files = mesh_files.ZipFiles(zipfile.ZipFile(tmp_path / "a.zip"))
    for name in ("lib/chair/Chair.obj", "/LIB/chair/chair.OBJ", "lib/x/../chair/Chair.obj"):
        (part,) = mesh_files.read_obj_in_zip(files, name)
        assert part.texture is not None
        np.testing.assert_array_equal(part.texture[0, 0], [51, 51, 51, 255])
    with pytest.raises(KeyError):
        files.read("../../etc/passwd")
    with pytest.raises(KeyError):
        mesh_files.read_obj_in_zip(files, "lib/none.obj")
    with pytest.raises(ValueError, match=r"lib/empty\.obj"):
        mesh_files.read_obj_in_zip(files, "lib/empty.obj")


def test_a_damaged_archive_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.obj", random_obj(np.random.default_rng(0), "v"))
    data = bytearray(path.read_bytes())
    data[60:70] = b"\xff" * 10
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a\.obj in the archive is damaged"):
        mesh_files.read_obj_in_zip(mesh_files.ZipFiles(zipfile.ZipFile(path)), "a.obj")
