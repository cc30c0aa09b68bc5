"""Pictures of shapes: the cameras' definition, colours on the right sides, holes, clouds, bad meshes."""

import json
import os

import numpy as np
import pytest
import trimesh
from PIL import Image

from openshape_jax.data import files
from openshape_jax.geometry_io import RawPoints
from openshape_jax.making import cameras, clouds, pictures, shapes, tracing, work
from openshape_jax.making.cameras import CAMERAS, Camera
from openshape_jax.mesh_sampling import Part
from tests.mesh_examples import quadrants, write_square

FACES = {  # outward normal -> colour
    (1, 0, 0): (255, 0, 0), (-1, 0, 0): (0, 255, 0), (0, 1, 0): (0, 0, 255),
    (0, -1, 0): (255, 255, 0), (0, 0, 1): (255, 0, 255), (0, 0, -1): (0, 255, 255),
}  # fmt: skip


def cube(up="z"):
    """A cube whose six sides have the colours of FACES (z-up), as a file that has `up` has it."""
    box = trimesh.creation.box(extents=(2, 2, 2))
    normals = np.rint(box.face_normals).astype(int)
    rgb = np.array([FACES[tuple(n)] for n in normals]) / 255
    vertices = box.vertices
    if up == "y":
        vertices = np.stack([vertices[:, 0], vertices[:, 2], -vertices[:, 1]], 1)
    return Part(np.asarray(vertices), np.asarray(box.faces), face_rgb=rgb)


def hue(pixel):
    """A colour without its brightness, as 0 or 255 a channel."""
    return tuple(255 * (np.asarray(pixel[:3], float) > 0.5 * max(pixel[:3])).astype(int))


def at(picture, camera, point, size):
    column, row, _ = cameras.project(camera, np.array([point], float), size)[0]
    return picture[int(row), int(column)]


def test_the_cameras_are_the_twelve_of_the_definition():
    assert len(CAMERAS) == 12
    assert [c.polar for c in CAMERAS] == [60] * 4 + [90] * 4 + [120] * 4
    for first in (0, 4, 8):
        azimuths = [c.azimuth for c in CAMERAS[first : first + 4]]
        assert np.allclose(np.diff(azimuths) % 360, 90)
    assert len({c.azimuth for c in CAMERAS}) == 12
    for camera in CAMERAS:
        # from the up axis
        assert np.isclose(np.degrees(np.arccos(camera.towards[2])), camera.polar)
        # z shows upwards, and right, up, towards are a right-handed frame
        assert camera.axes[1] @ [0, 0, 1] > 0
        np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
        assert np.isclose(np.linalg.det(camera.axes), 1)
    front, right = Camera(90, 0), Camera(90, 90)
    np.testing.assert_allclose(front.towards, [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(front.axes[0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(right.towards, [1, 0, 0], atol=1e-12)


def test_projection_and_rays_are_inverse():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    points /= 1.1 * np.linalg.norm(points, axis=1, keepdims=True)
    for camera in CAMERAS[::5]:
        spots = cameras.project(camera, points, 512)
        assert (spots[:, :2] > 0).all() and (spots[:, :2] < 512).all()
        eye = cameras.DISTANCE * camera.towards
        np.testing.assert_allclose(spots[:, 2], (eye - points) @ camera.towards, rtol=1e-9)
        for point, (column, row, _) in zip(points, spots, strict=True):
            ray = cameras.rays(camera, np.array([column]), np.array([row]), 512)[0, 0].astype(np.float64)
            way = point - eye
            cosine = ray @ way / np.linalg.norm(ray) / np.linalg.norm(way)
            assert cosine > 1 - 1e-12


def test_the_unit_sphere_just_fits():
    ball = trimesh.creation.icosphere(subdivisions=3)
    (picture,) = tracing.pictures([Part(ball.vertices, ball.faces)], [Camera(60, 30)], 128)
    covered = np.flatnonzero((picture[..., 3] > 127).any(0))
    assert 3 <= covered[0] <= 10
    assert abs(covered[0] + covered[-1] - 127) <= 1


@pytest.mark.parametrize("make", ["mesh", "cloud"])
def test_a_cube_shows_each_colour_on_its_side(make):
    size = 96
    part = cube()
    if make == "mesh":
        drawn = tracing.pictures([part], size=size)
    else:
        grid = np.stack(np.meshgrid(*[np.linspace(-0.97, 0.97, 24)] * 2), -1).reshape(-1, 2)
        xyz = [np.insert(grid, axis, side, 1) for axis in range(3) for side in (1, -1)]
        rgb = np.repeat(np.array(list(FACES.values())), len(grid), 0) / 255
        drawn = clouds.pictures(RawPoints(np.concatenate(xyz), rgb.astype(np.float32)), CAMERAS[::3], size)
    seen = set()
    for camera, picture in zip(CAMERAS if make == "mesh" else CAMERAS[::3], drawn, strict=True):
        assert picture.shape == (size, size, 4) and picture.dtype == np.uint8
        assert (picture[0] == 0).all() and (picture[:, 0] == 0).all()  # transparent background
        half = 1 / np.sqrt(3)  # of the cube's side, in the unit sphere
        eye = cameras.DISTANCE * camera.towards
        for normal, colour in FACES.items():
            middle = np.array(normal) * half
            if (eye - middle) @ np.array(normal) > 0.5:  # this side is seen, not at a glancing angle
                pixel = at(picture, camera, middle, size)
                assert pixel[3] == 255
                assert hue(pixel) == colour, (camera, normal)
                seen.add(normal)
    assert seen == set(FACES) if make == "mesh" else len(seen) > 3


def test_what_is_nearer_hides_what_is_behind():
    corners = np.array([[-1, -1, -1], [1, -1, -1], [0, -1, 1.0]])
    near = Part(corners, np.array([[0, 1, 2]]), color=np.array([1, 0, 0]))
    far = near._replace(vertices=near.vertices * [1, -1, 1], color=np.array([0, 0, 1]))
    front, back = tracing.pictures([far, near], [Camera(90, 0), Camera(90, 180)], 64)
    assert hue(front[32, 32]) == (255, 0, 0)
    assert hue(back[32, 32]) == (0, 0, 255)


def test_textures_stand_upright_and_their_holes_are_seen_through():
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1.0]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    texture = np.concatenate([quadrants(), np.full((64, 64, 1), 255, np.uint8)], 2)
    texture[:32, :32, 3] = 0  # a hole at the upper left, where it is red
    square = Part(corners, faces, uv, faces, texture)
    wall = Part(corners + [0, 0.5, 0], faces, color=np.array([1.0, 0, 1]))
    (alone,) = tracing.pictures([square], [Camera(90, 0)], 64)
    (both,) = tracing.pictures([square, wall], [Camera(90, 0)], 64)
    assert alone[24, 24, 3] == 0
    assert hue(both[24, 24]) == (255, 0, 255)
    for picture in (alone, both):
        assert hue(picture[24, 40]) == (0, 255, 0)
        assert hue(picture[40, 24]) == (0, 0, 255)
        assert hue(picture[40, 40]) == (255, 255, 255)
    (back,) = tracing.pictures([square], [Camera(90, 180)], 64)  # from behind, left and right change places
    assert hue(back[40, 40]) == (0, 0, 255)
    assert hue(back[24, 24]) == (0, 255, 0)


def test_vertex_colours_blend_and_edges_are_smooth():
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1.0]])
    part = Part(triangle, np.array([[0, 1, 2]]), vertex_rgb=np.eye(3))
    (picture,) = tracing.pictures([part], [Camera(90, 0)], 128)
    shown = picture[..., :3][picture[..., 3] == 255] / 255.0
    np.testing.assert_allclose(shown.sum(1), shown.sum(1).mean(), atol=0.02)  # the weights add up to one
    assert shown.max(0).min() > 0.8 * shown.max()
    assert 0 < ((picture[..., 3] > 0) & (picture[..., 3] < 255)).sum() < 400


def test_the_same_picture_every_time_and_at_any_scale_and_place():
    part = cube()
    first = tracing.pictures([part], CAMERAS[:2], 64)
    again = tracing.pictures([part], CAMERAS[:2], 64)
    moved = tracing.pictures([part._replace(vertices=part.vertices * 1e4 + 3e5)], CAMERAS[:2], 64)
    for a, b, c in zip(first, again, moved, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.abs(a.astype(int) - c) > 8).mean() < 0.01


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(np.full((3, 3), np.nan), np.array([[0, 1, 2]])), "NaN or infinite"),
        (Part(np.ones((3, 3)), np.array([[0, 1, 2]])), "points are equal"),
        (Part(np.eye(3) * 1e200, np.array([[0, 1, 2]])), "too large"),
        (Part(np.eye(3), np.zeros((0, 3), int)), "no faces"),
    ],
)
def test_a_mesh_that_cannot_be_drawn_says_why(part, message):
    with pytest.raises(ValueError, match=message):
        tracing.pictures([part])


# ---------------------------------------------------------------- the stage


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "meshes"
    root.mkdir()
    write_square(root / "sub", "newmtl m\nKd 1 0 0\n")
    trimesh.creation.box().export(root / "box.stl")
    np.save(root / "cloud.npy", np.random.default_rng(0).normal(size=(60, 3)))
    (root / "broken.glb").write_bytes(b"glTF no more")
    np.save(root / "nan.npy", np.array([[0, 0, np.nan], [1, 1, 1]]))
    return root


def render(root, where, size=24, jobs=1):
    source = shapes.open_source(where, shapes.Source(folder=str(root)))
    every = shapes.read(source)
    shapes.note_source(where, source)
    pictures.render(where, source, every, size, jobs)
    return every


def content(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_bad_meshes_are_listed_and_the_others_drawn(folder, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    every = render(folder, tmp_path / "w")
    out = tmp_path / "w" / "render"
    rejects = work.read_lines(out / "rejects.jsonl")
    assert [r["uid"] for r in rejects] == ["broken.glb", "nan.npy"]
    assert "cannot be read as .glb" in rejects[0]["error"]
    drawn = pictures.drawn(tmp_path / "w", every)
    assert [d.shape.uid for d in drawn] == ["box.stl", "cloud.npy", "sub/s.obj"]
    assert all(len(d.images()) == 12 for d in drawn)
    with Image.open(out / "sheet-000.png") as sheet:
        assert sheet.width > 1000
    record = json.loads((tmp_path / "w" / "render.json").read_text())
    assert record["complete"] and record["counts"] == {"shapes": 3, "rejected": 2}
    assert record["settings"]["views"][0] == [60, 30]
    assert "2 left out" in capsys.readouterr().out


def test_a_killed_stage_goes_on_and_ends_alike(folder, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    render(folder, tmp_path / "a")
    calls = []
    draw = pictures.draw

    def dies(job):
        calls.append(job.shape.uid)
        if len(calls) == 4:
            unfinished = job.folder.with_name(job.folder.name + files.TEMPORARY)
            unfinished.mkdir()
            (unfinished / "00.png").write_bytes(b"half")
            raise KeyboardInterrupt
        return draw(job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pictures, "draw", dies)
        render(folder, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="render was interrupted"):
        pictures.drawn(tmp_path / "b", [])
    capsys.readouterr()
    render(folder, tmp_path / "b", jobs=2)
    assert "(2 were there)" in capsys.readouterr().out
    assert content(tmp_path / "a" / "render") == content(tmp_path / "b" / "render")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "render").glob("*/*.png")}
    render(folder, tmp_path / "b")
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_changed_files_and_settings_are_drawn_again(folder, tmp_path, capsys):
    where = tmp_path / "w"
    where.mkdir()
    render(folder, where)
    (folder / "box.stl").write_bytes((folder / "box.stl").read_bytes() + b" ")
    (folder / "cloud.npy").unlink()
    capsys.readouterr()
    every = render(folder, where)
    assert "(1 were there)" in capsys.readouterr().out
    assert not (where / "render" / "cloud.npy").exists()
    every = render(folder, where, size=32)
    said = capsys.readouterr().out
    assert "render: size changed since" in said and "(0 were there)" in said
    assert pictures.drawn(where, every)[0].images()[0].size == (32, 32)
    np.save(folder / "new.npy", np.eye(3))
    with pytest.raises(ValueError, match="1 shapes are new or changed since render ran, first 'new.npy'"):
        pictures.drawn(where, shapes.read(shapes.open_source(where, None)))


def dies(job):
    """As `pictures.draw`, but one shape takes its process with it."""
    if job.shape.uid == "bad":
        os._exit(9)
    return ""


def test_a_shape_that_kills_its_process_is_a_reject_like_others(tmp_path):
    source = shapes.Source(folder=str(tmp_path))
    every = [shapes.Shape(uid, "train", [], (), "", {}) for uid in ("good", "bad", "fine")]
    todo = [pictures.Job(source, shape, tmp_path / shape.uid, "", 8) for shape in every]
    found = {job.shape.uid: error for job, error in pictures.in_processes(todo, 2, dies)}
    assert found["good"] == found["fine"] == ""
    assert "the process that drew it died" in found["bad"]


def test_names_of_folders():
    assert pictures.folder_name("a/b c.obj") == "a%2Fb c.obj"
    assert pictures.folder_name("..") != ".."
    long = pictures.folder_name("x" * 300)
    assert len(long) <= pictures.LONGEST_NAME and long != pictures.folder_name("x" * 301)


def test_a_work_folder_belongs_to_its_shapes(folder, tmp_path):
    with pytest.raises(ValueError, match="is new: say with --source DIR or --data NAME"):
        shapes.open_source(tmp_path, None)
    source = shapes.open_source(tmp_path, shapes.Source(folder=str(folder), up="y"))
    shapes.note_source(tmp_path, source)
    assert shapes.open_source(tmp_path, None) == source
    with pytest.raises(ValueError, match="belongs to other shapes .*up 'y'"):
        shapes.open_source(tmp_path, shapes.Source(folder=str(folder)))
    with pytest.raises(ValueError, match="either --source DIR"):
        shapes.Source()
    with pytest.raises(ValueError, match="--up: these are for --source"):
        shapes.Source(data="primitives/tiny", up="z")


def test_up_axes(folder):
    source = shapes.Source(folder=str(folder))
    square = next(s for s in shapes.read(source) if s.uid == "sub/s.obj")
    (part,) = shapes.load(source, square)
    assert np.ptp(part.vertices, axis=0).tolist() == [1, 0, 1]  # y of the file is up
    (part,) = shapes.load(shapes.Source(folder=str(folder), up="z"), square)
    assert np.ptp(part.vertices, axis=0).tolist() == [1, 1, 0]


def test_without_embree_one_error_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "embreex.mesh_construction", None)
    with pytest.raises(ValueError, match=r"pip install 'openshape_jax\[render\]'"):
        tracing.available()
