"""Building blocks of parametric objects: coloured triangles, sampled by area.

Coordinates are z-up with the front towards -y, in metres; every part is a surface without inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

COLOURS = {
    "white": (0.93, 0.93, 0.91), "black": (0.08, 0.08, 0.09), "grey": (0.5, 0.5, 0.52),
    "red": (0.75, 0.12, 0.1), "blue": (0.14, 0.27, 0.65), "green": (0.16, 0.5, 0.22),
    "yellow": (0.92, 0.78, 0.16), "orange": (0.9, 0.45, 0.1), "brown": (0.4, 0.25, 0.13),
    "beige": (0.83, 0.75, 0.6), "pink": (0.9, 0.55, 0.65), "purple": (0.42, 0.2, 0.5),
    "wooden": (0.6, 0.4, 0.22), "oak": (0.72, 0.55, 0.34), "steel": (0.7, 0.72, 0.74),
    "turquoise": (0.2, 0.65, 0.65),
}  # fmt: skip
SECTIONS = 20  # of a full turn

Vec = Sequence[float]


class Scene:
    """Collects parts and samples points from them. `rng` is the only source of chance."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self._triangles: list[np.ndarray] = []  # (n, 3, 3) each
        self._colours: list[np.ndarray] = []  # (3,) each

    def u(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def pick(self, *options):
        """One of the options."""
        return options[self.rng.integers(len(options))]

    def colour(self, *names: str) -> str:
        """The name of a colour, one of `names` if given."""
        return str(self.rng.choice(names or list(COLOURS)))

    def add(self, triangles: np.ndarray, colour: str | Vec) -> None:
        """Adds (n, 3, 3) triangles; a named colour is varied a little."""
        rgb = (
            np.array(COLOURS[colour]) + self.rng.normal(0, 0.03, 3)
            if isinstance(colour, str)
            else np.array(colour)
        )
        self._triangles.append(np.asarray(triangles, np.float64))
        self._colours.append(np.clip(rgb, 0, 1))

    def box(self, centre: Vec, size: Vec, colour: str, turn: float = 0.0, lean: float = 0.0) -> None:
        """A box; `turn` about z and before it `lean` about x, in radians."""
        corners = (
            np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * np.array(size) / 2
        )
        quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
        c, s = np.cos(lean), np.sin(lean)
        corners = corners @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
        c, s = np.cos(turn), np.sin(turn)
        corners = corners @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.array(centre)
        self.add(np.array([corners[list(t)] for q in quads for t in (q[:3], (q[0], q[2], q[3]))]), colour)

    def rod(self, start: Vec, end: Vec, radius: float, colour: str, top: float | None = None) -> None:
        """A closed cylinder, or a cone frustum with radius `top` at its end."""
        a, b = np.array(start, float), np.array(end, float)
        axis = b - a
        length = np.linalg.norm(axis)
        if length < 1e-9:
            return
        z = axis / length
        x = np.cross(z, [0, 0, 1] if abs(z[2]) < 0.9 else [1, 0, 0])
        x /= np.linalg.norm(x)
        frame = np.stack([x, np.cross(z, x), z])
        tip = radius if top is None else top
        local = revolve([(0, 0), (radius, 0), (tip, length), (0, length)], 12)
        self.add(local @ frame + a, colour)

    def tube(self, points: Sequence[Vec], radius: float, colour: str) -> None:
        """Rods from point to point."""
        for a, b in pairwise(points):
            self.rod(a, b, radius, colour)

    def lathe(
        self, profile: Sequence[Vec], at: Vec, colour: str, squash: Vec = (1, 1), sections: int = SECTIONS
    ) -> None:
        """A surface of revolution of (radius, height) pairs about a vertical axis through `at`."""
        self.add(revolve(profile, sections) * np.array([*squash, 1]) + np.array(at), colour)

    def ball(self, centre: Vec, radii: Vec | float, colour: str) -> None:
        """An ellipsoid."""
        r = np.broadcast_to(np.asarray(radii, float), 3)
        angles = np.linspace(-np.pi / 2, np.pi / 2, 11)
        profile = np.stack([np.cos(angles), np.sin(angles)], 1)
        self.add(revolve(profile, 16) * r + np.array(centre), colour)

    def legs(
        self, width: float, depth: float, height: float, thick: float, colour: str, splay: float = 0.0
    ) -> None:
        """Four legs at the corners of a width x depth rectangle, from the floor up to `height`."""
        round_ = self.chance(0.5)
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * (width / 2 - thick), sy * (depth / 2 - thick)
                if round_ or splay:
                    self.rod((x * (1 + splay), y * (1 + splay), 0), (x, y, height), thick / 2, colour)
                else:
                    self.box((x, y, height / 2), (thick, thick, height), colour)

    def front_grid(
        self,
        size: Vec,
        bottom: float,
        rows: int,
        columns: int,
        colour: str,
        handle: str | None,
        knob: bool = False,
    ) -> None:
        """Drawer or door fronts on the face y = -size[1] / 2 of a body of `size`, with handles."""
        width, depth, height = size
        w, h = width / columns, height / rows
        for i in range(columns):
            for j in range(rows):
                x, z = -width / 2 + (i + 0.5) * w, bottom + (j + 0.5) * h
                self.box((x, -depth / 2 - 0.01, z), (w * 0.94, 0.02, h * 0.92), colour)
                if handle is None:
                    continue
                if knob:
                    self.ball((x, -depth / 2 - 0.035, z), 0.015, handle)
                else:
                    self.box((x, -depth / 2 - 0.035, z + h * 0.1), (min(0.14, w * 0.4), 0.02, 0.015), handle)

    def sample(self, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """(xyz (N, 3), rgb (N, 3)): points uniform by area in random order."""
        triangles = np.concatenate(self._triangles)
        colours = np.repeat(np.array(self._colours), [len(t) for t in self._triangles], axis=0)
        edges = triangles[:, 1:] - triangles[:, :1]
        area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
        chosen = self.rng.choice(len(area), num_points, p=area / area.sum())
        a, b = self.rng.random((2, num_points, 1))
        flip = a + b > 1
        a, b = np.where(flip, 1 - a, a), np.where(flip, 1 - b, b)
        points = triangles[chosen, 0] + a * edges[chosen, 0] + b * edges[chosen, 1]
        return points, colours[chosen]


def revolve(profile: Sequence[Vec] | np.ndarray, sections: int) -> np.ndarray:
    """(n, 3, 3) triangles of (radius, height) pairs turned about the z axis."""
    p = np.asarray(profile, float)
    angle = np.linspace(0, 2 * np.pi, sections + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    grid = np.concatenate(
        [p[:, None, :1] * ring, np.broadcast_to(p[:, None, 1:], (len(p), sections + 1, 1))], -1
    )
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    return np.concatenate([np.stack([a, b, c], 2), np.stack([a, c, d], 2)]).reshape(-1, 3, 3)
