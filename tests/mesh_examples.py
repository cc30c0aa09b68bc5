"""Files that the tests of the mesh readers share."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from tfds_builders.sweethome3d import catalogue

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def no_files(name: str) -> bytes:
    raise KeyError(name)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def quadrants() -> np.ndarray:
    """(64, 64, 3) red, green / blue, white picture."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32], pixels[:32, 32:] = (255, 0, 0), (0, 255, 0)
    pixels[32:, :32], pixels[32:, 32:] = (0, 0, 255), (255, 255, 255)
    return pixels


def write_square(folder: Path, mtl: str | None = None, vertex_colors: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    colors = ["1 0 0", "0 1 0", "0 0 1", "1 1 1"] if vertex_colors else [""] * 4
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    lines = [f"v {x} {y} 0 {c}" for (x, y), c in zip(corners, colors, strict=True)]
    lines += [f"vt {x} {y}" for x, y in corners]
    if mtl is not None:
        (folder / "s.mtl").write_text(mtl)
        lines += ["mtllib s.mtl", "usemtl m"]
    (folder / "s.obj").write_text("\n".join([*lines, "f 1/1 2/2 3/3 4/4"]))
    return folder / "s.obj"


def cube(**kwargs: object) -> trimesh.Trimesh:
    return trimesh.creation.box(**kwargs)


def random_obj(rng: np.random.Generator, fmt: str) -> str:
    """Vertices and polygons in alternation, negative and positive indices, comments, continued lines."""
    lines, num_v, num_vt, num_vn = ["# made by a test", "o thing"], 0, 0, 0
    for _ in range(int(rng.integers(1, 5))):
        for _ in range(int(rng.integers(6, 12))):
            lines.append(
                "v  " + " ".join(f"{x:.6g}" for x in rng.normal(size=3) * 10.0 ** rng.integers(-3, 3))
            )
            lines.append("\tvt " + " ".join(f"{x:.4f}" for x in rng.random(2)))
            lines.append("vn 0 0 1")
            num_v, num_vt, num_vn = num_v + 1, num_vt + 1, num_vn + 1
        lines.append(f"usemtl m {rng.integers(3)}")
        for _ in range(int(rng.integers(1, 9))):
            corners = []
            for _ in range(int(rng.integers(3, 8))):
                v, vt = int(rng.integers(1, num_v + 1)), int(rng.integers(1, num_vt + 1))
                if rng.random() < 0.3:
                    v, vt = v - num_v - 1, vt - num_vt - 1
                kind = fmt if fmt != "mixed" else str(rng.choice(["v", "v/t", "v//n", "v/t/n"]))
                corners.append(
                    {"v": f"{v}", "v/t": f"{v}/{vt}", "v//n": f"{v}//1", "v/t/n": f"{v}/{vt}/1"}[kind]
                )
            split = int(rng.integers(1, len(corners)))
            joint = " \\\n " if rng.random() < 0.2 else " "
            lines.append("f " + " ".join(corners[:split]) + joint + " ".join(corners[split:]))
    return "\n".join(lines) + "\n"


BOX = "\n".join(
    [f"v {x} {y} {z}" for x in (0, 1) for y in (0, 2) for z in (0, 4)]
    + ["mtllib box.mtl", "usemtl front", "f 2 6 8 4", "usemtl rest"]  # the front is at z = 4
    + ["f 1 2 4 3", "f 5 7 8 6", "f 1 5 6 2", "f 3 4 8 7", "f 1 3 7 5"]
)
MTL = "newmtl front\nKd 1 0 0\nnewmtl rest\nKd 0 0 1\n"
MODELS = {  # id -> properties beside the usual ones
    "Lib#chair": {"name": "Chair", "width": "10", "height": "20", "depth": "40"},
    "Lib#stretched": {"name": "Ch\\u00e2teau\\: big", "width": "40", "height": "20", "depth": "40"},
    "Lib#turned": {
        "name": "Turned",
        "width": "1",
        "height": "4",
        "depth": "2",
        "modelRotation": "1 0 0 0 0 1 0 -1 0",
    },
    "Lib#twice": {"name": "One"},
    "Lib#broken": {"name": "Broken", "model": "/lib/broken.obj"},
    "Lib#missing": {"name": "Missing", "model": "/lib/none.obj"},
}


def make_library(
    path: Path, models: dict[str, dict[str, str]], license_: str, properties: str = catalogue.PROPERTIES
) -> Path:
    lines = ["# a comment", f"license={license_}", "provider=tests"]
    for i, (uid, given) in enumerate(models.items(), 1):
        values = {"id": uid, "category": "Office", "tags": "Seat,  Test", "icon": "/lib/icon.png"}
        values |= {"model": "/lib/box.obj", "creator": "Ann" if i % 2 else "Bob", **given}
        lines += [f"{key}#{i}={value}" for key, value in values.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(properties, "\r\n".join(lines).encode("latin-1"))
        archive.writestr("lib/box.obj", BOX)
        archive.writestr("lib/box.mtl", MTL)
        archive.writestr("lib/broken.obj", "v 0 0 0\nf 1 1 2\n")
        archive.writestr("lib/icon.png", png(quadrants()))
    return path
