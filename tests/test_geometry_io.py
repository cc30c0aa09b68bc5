"""From files to coloured points: brute-force oracles and properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from openshape_jax import mesh_sampling
from openshape_jax.geometry_io import load_points
from openshape_jax.mesh_sampling import Part, sample
from tests.mesh_examples import cube, png, quadrants, write_square

# ---------------------------------------------------------------- sampling


def test_points_are_uniform_in_area_and_lie_on_their_triangles() -> None:
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(12, 3)) * [1, 5, 0.2]
    faces = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 9, 10], [9, 10, 11]])  # one without area
    parts = [Part(vertices, faces[:2]), Part(vertices, faces[2:])]
    colors = np.eye(5)[:, :3]
    parts = [p._replace(face_rgb=c) for p, c in zip(parts, (colors[:2], colors[2:]), strict=True)]
    n = 200_000
    xyz, rgb, has_color = sample(parts, n, np.random.default_rng(1))
    assert has_color
    areas = []
    for face, color in zip(faces[:3], colors[:3], strict=True):
        a, b, c = vertices[face]
        areas.append(np.linalg.norm(np.cross(b - a, c - a)) / 2)
        mine = xyz[(rgb == color).all(1)]
        w = np.linalg.lstsq(np.stack([b - a, c - a], 1), (mine - a).T, rcond=None)[0]
        np.testing.assert_allclose(a + (np.stack([b - a, c - a], 1) @ w).T, mine, atol=1e-9)
        assert w.min() > -1e-9 and w.sum(0).max() < 1 + 1e-9
        # uniform: both barycentric coordinates average a third
        np.testing.assert_allclose(w.mean(1), [1 / 3, 1 / 3], atol=5 / np.sqrt(12 * len(mine)))
    a, b, c = vertices[faces[4]]
    share = np.array([*areas, np.linalg.norm(np.cross(b - a, c - a)) / 2])
    share /= share.sum()
    counts = [*((rgb == color).all(1).sum() for color in colors[:3])]
    counts.append(n - sum(counts))
    np.testing.assert_allclose(np.array(counts) / n, share, atol=5 * np.sqrt(0.25 / n))
    between = xyz[(rgb == 0).all(1)]  # faces 3 and 4 share a colour: none may lie on the line of face 3
    away = np.linalg.norm(np.cross(between - vertices[9], vertices[10] - vertices[9]), axis=1)
    assert (away > 1e-9).mean() > 0.999


def test_sampling_commutes_with_moving_the_mesh() -> None:
    rng = np.random.default_rng(3)
    vertices, faces = rng.normal(size=(30, 3)), rng.integers(0, 30, (40, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    one, *_ = sample([Part(vertices, faces)], 500, np.random.default_rng(5))
    two, *_ = sample([Part(vertices @ turn.T * 2 + 7, faces)], 500, np.random.default_rng(5))
    np.testing.assert_allclose(one @ turn.T * 2 + 7, two, atol=1e-6)


def test_texture_lookup_is_the_texel_below_the_point() -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    uv = np.concatenate([rng.random((200, 2)) * 6 - 3, [[0, 0], [1, 1], [np.nan, 0.5]]])
    got = mesh_sampling.look_up(texture, uv)
    for (u, v), color in zip(np.where(np.isfinite(uv), uv, 0), got, strict=True):
        u, v = u - np.floor(u), v - np.floor(v)
        row = min(int((1 - v) * 5), 4)
        np.testing.assert_allclose(color, texture[row, int(u * 7)] / 255, atol=1e-6)


def test_no_points_on_holes_of_a_texture() -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, 4:, 3] = 0
    uv, faces = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]), np.array([[0, 1, 2], [0, 2, 3]])
    part = Part(np.c_[uv, np.zeros(4)], faces, uv=uv, uv_faces=faces, texture=pixels)
    xyz, _, _ = sample([part], 2000, np.random.default_rng(0))
    assert xyz[:, 0].max() <= 0.5 and xyz[:, 0].min() < 0.01
    pixels[..., 3] = 0  # nothing is visible: the surface is better than nothing
    xyz, _, _ = sample([part], 2000, np.random.default_rng(0))
    assert len(xyz) == 2000 and xyz[:, 0].max() > 0.9


# ---------------------------------------------------------------- colours by file kind


def quadrant_color(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    top, right = y > 0.5, x > 0.5
    return np.select(
        [(top & ~right)[:, None], (top & right)[:, None], (~top & ~right)[:, None]],
        [np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])],
        np.ones(3),
    )


def test_obj_texture_colours_and_y_up(tmp_path: Path) -> None:
    file = write_square(tmp_path, "newmtl m\nKd 1 1 0\nmap_Kd t.png\n")
    (tmp_path / "t.png").write_bytes(png(quadrants()))
    points = load_points(file, 500)
    assert points.up == "y" and points.has_color and points.xyz.dtype == points.rgb.dtype == np.float32
    # file (x, y, 0) -> (x, 0, y)
    np.testing.assert_allclose(points.xyz[:, 1], 0, atol=1e-7)
    np.testing.assert_array_equal(points.rgb, quadrant_color(points.xyz[:, 0], points.xyz[:, 2]))
    same = load_points(file, 500, up="z")
    np.testing.assert_array_equal(same.xyz[:, 1], points.xyz[:, 2])


@pytest.mark.parametrize("texture", [None, b"not a picture", b""])
def test_missing_or_damaged_texture_gives_the_material_colour(tmp_path: Path, texture: bytes | None) -> None:
    file = write_square(tmp_path, "newmtl m\nKd 1 1 0.5\nmap_Kd t.png\n")
    if texture is not None:
        (tmp_path / "t.png").write_bytes(texture)
    points = load_points(file, 50)
    assert points.has_color
    np.testing.assert_array_equal(points.rgb, np.tile(np.float32([1, 1, 0.5]), (50, 1)))


def test_obj_vertex_colours_are_interpolated(tmp_path: Path) -> None:
    points = load_points(write_square(tmp_path, vertex_colors=True), 300)
    x, y = points.xyz[:, 0], points.xyz[:, 2]
    low = x >= y  # the fan's first triangle: red, green, blue corners
    np.testing.assert_allclose(points.rgb[low], np.stack([1 - x, x - y, y], 1)[low], atol=1e-6)


def test_no_colour_is_grey(tmp_path: Path) -> None:
    for file in (write_square(tmp_path / "a"), write_square(tmp_path / "b", "newmtl unused\nKd 1 0 0\n")):
        points = load_points(file, 20)
        assert not points.has_color
        np.testing.assert_array_equal(points.rgb, np.float32(0.4))


def test_mtl_named_wrongly_falls_back_to_the_files_own_name(tmp_path: Path) -> None:
    file = write_square(tmp_path, "newmtl m\nKd 0 1 0\n")
    file.write_text(file.read_text().replace("mtllib s.mtl", "mtllib C:\\other\\old_name.mtl"))
    np.testing.assert_array_equal(load_points(file, 5).rgb, np.tile(np.float32([0, 1, 0]), (5, 1)))


def test_glb_applies_node_matrices_colours_and_y_up(tmp_path: Path) -> None:
    red, blue = cube(extents=(1, 1, 1)), cube(extents=(2, 2, 2))
    red.visual.vertex_colors = np.tile(np.uint8([255, 0, 0, 255]), (8, 1))
    blue.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[0, 0, 255, 255])
    )
    scene = trimesh.Scene()
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.add_geometry(blue, transform=trimesh.transformations.translation_matrix([0, 20, 0]))
    for suffix in (".glb", ".gltf"):
        file = tmp_path / f"two{suffix}"
        scene.export(file)
        points = load_points(file, 4000)
        assert points.up == "y" and points.has_color
        is_red = points.rgb[:, 0] == 1
        np.testing.assert_array_equal(
            points.rgb[~is_red], np.tile(np.float32([0, 0, 1]), ((~is_red).sum(), 1))
        )
        assert abs(is_red.mean() - 6 / 30) < 0.03
        np.testing.assert_allclose(points.xyz[is_red].mean(0), [10, 0, 0], atol=0.1)
        np.testing.assert_allclose(points.xyz[~is_red].mean(0), [0, 0, 20], atol=0.1)  # y became z


def test_glb_texture_times_factor(tmp_path: Path) -> None:
    mesh = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(quadrants()), baseColorFactor=[255, 255, 0, 255]
    )
    mesh.visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material)
    mesh.export(tmp_path / "t.glb")
    points = load_points(tmp_path / "t.glb", 300)
    expected = quadrant_color(points.xyz[:, 0], points.xyz[:, 2]) * [1, 1, 0]
    np.testing.assert_array_equal(points.rgb, expected.astype(np.float32))


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".off", ".obj", ".glb"])
def test_a_cube_is_a_cube_in_every_format(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"Cube{suffix.upper()}"
    data = cube(extents=(1, 2, 3)).export(file_type=suffix[1:])
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    points = load_points(file, 5000, seed=4, up="z")
    np.testing.assert_allclose(np.abs(points.xyz).max(0), [0.5, 1, 1.5], atol=1e-3)
    on_face = np.isclose(np.abs(points.xyz), [0.5, 1, 1.5], atol=1e-5)
    assert on_face.any(1).all()
    np.testing.assert_allclose(on_face.mean(0), np.array([6, 3, 2]) / 11, atol=0.03)
    default = load_points(file, 10, seed=4).up
    assert default == ("y" if suffix in (".obj", ".glb") else "z")


def test_ply_colours_of_vertices_faces_and_points(tmp_path: Path) -> None:
    mesh = cube()
    mesh.visual.vertex_colors = np.tile(np.uint8([255, 128, 0, 255]), (8, 1))
    mesh.export(tmp_path / "v.ply")
    mesh = cube()
    mesh.visual.face_colors = np.tile(np.uint8([0, 128, 255, 255]), (12, 1))
    mesh.export(tmp_path / "f.ply")
    np.testing.assert_allclose(
        load_points(tmp_path / "v.ply", 9).rgb, np.tile([1, 128 / 255, 0], (9, 1)), atol=1e-6
    )
    np.testing.assert_allclose(
        load_points(tmp_path / "f.ply", 9).rgb, np.tile([0, 128 / 255, 1], (9, 1)), atol=1e-6
    )
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(size=(40, 3)), rng.integers(0, 256, (40, 3), dtype=np.uint8)
    trimesh.PointCloud(xyz, rgb).export(tmp_path / "p.ply")
    trimesh.PointCloud(xyz).export(tmp_path / "n.ply")
    points = load_points(tmp_path / "p.ply")
    assert points.has_color and points.up == "z"
    np.testing.assert_allclose(points.xyz, xyz, atol=1e-6)
    np.testing.assert_allclose(points.rgb, rgb / 255, atol=1e-6)
    bare = load_points(tmp_path / "n.ply")
    np.testing.assert_allclose(bare.xyz, xyz, atol=1e-6)


def test_ascii_ply_of_points(tmp_path: Path) -> None:
    header = "ply\nformat ascii 1.0\nelement vertex 3\n" + "".join(f"property float {a}\n" for a in "xyz")
    header += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue")) + "end_header\n"
    (tmp_path / "a.ply").write_text(header + "0 0 0 255 0 0\n1 0 0 0 255 0\n0 2 0 0 0 51\n")
    points = load_points(tmp_path / "a.ply", up="y")
    np.testing.assert_allclose(points.xyz, [[0, 0, 0], [1, 0, 0], [0, 0, 2]])
    np.testing.assert_allclose(points.rgb, [[1, 0, 0], [0, 1, 0], [0, 0, 0.2]], atol=1e-6)


# ---------------------------------------------------------------- point arrays


def test_point_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(size=(50, 3)).astype(np.float32), rng.random((50, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", xyz)
    np.save(tmp_path / "c.npy", np.concatenate([xyz, rgb], 1))
    np.save(tmp_path / "b.npy", np.concatenate([xyz, np.rint(rgb * 255)], 1))
    np.savez(tmp_path / "u.npz", xyz=xyz, rgb=np.rint(rgb * 255).astype(np.uint8))
    np.savez(tmp_path / "dark.npz", xyz=xyz, rgb=np.ones((50, 3), np.uint8))
    np.savez(tmp_path / "p.npz", xyz=xyz)
    np.savez(tmp_path / "one.npz", np.concatenate([xyz, rgb], 1))
    grey = load_points(tmp_path / "x.npy")
    assert not grey.has_color and grey.up == "z" and (grey.rgb == np.float32(0.4)).all()
    np.testing.assert_array_equal(grey.xyz, xyz)
    assert not load_points(tmp_path / "p.npz").has_color
    for name in ("c.npy", "b.npy", "u.npz", "one.npz"):
        points = load_points(tmp_path / name)
        assert points.has_color
        np.testing.assert_array_equal(points.xyz, xyz)
        np.testing.assert_allclose(points.rgb, rgb, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(load_points(tmp_path / "dark.npz").rgb, 1 / 255)
    turned = load_points(tmp_path / "x.npy", up="y")
    np.testing.assert_array_equal(turned.xyz, np.stack([xyz[:, 0], -xyz[:, 2], xyz[:, 1]], 1))


def test_subsampling_is_without_replacement_and_seeded(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([xyz, xyz.clip(0, 1)], 1))
    points = load_points(tmp_path / "x.npy", 400, seed=1)
    rows = {tuple(p) for p in points.xyz}
    assert len(rows) == 400 and rows <= {tuple(p) for p in xyz}
    np.testing.assert_array_equal(points.rgb, points.xyz.clip(0, 1))
    np.testing.assert_array_equal(load_points(tmp_path / "x.npy", 400, seed=1).xyz, points.xyz)
    assert {tuple(p) for p in load_points(tmp_path / "x.npy", 400, seed=2).xyz} != rows
    assert len(load_points(tmp_path / "x.npy", 5000).xyz) == 1000


def test_same_seed_same_points(tmp_path: Path) -> None:
    file = write_square(tmp_path)
    a, b, c = (load_points(file, 100, seed=s).xyz for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
