"""Parametric vehicles, people and things of the street and the garden."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tfds_builders.primitives.furniture import plural
from tfds_builders.primitives.parts import Scene


def _wheel(s: Scene, x: float, y: float, r: float, width: float) -> None:
    s.rod((x - width / 2, y, r), (x + width / 2, y, r), r, "black")
    s.rod((x - width / 2 - 0.005, y, r), (x + width / 2 + 0.005, y, r), r * 0.55, "steel")


def car(s: Scene, colour: str) -> str:
    """A body with a cabin and four wheels; the front is towards -y."""
    w, length, h, r = s.u(1.5, 1.9), s.u(3.4, 4.8), s.u(0.5, 0.75), s.u(0.28, 0.38)
    s.box((0, 0, r + h / 2), (w, length, h), colour)
    cabin, start = s.u(0.45, 0.7) * length, s.u(-0.05, 0.12) * length
    tall = s.u(0.4, 0.65)
    s.box((0, start, r + h + tall / 2), (w * 0.85, cabin * 0.75, tall), colour)
    for side, reach in ((-1, cabin * 0.5), (1, cabin * 0.45)):
        s.box(
            (0, start + side * reach * 0.8, r + h + tall * 0.42),
            (w * 0.83, 0.05, tall * 1.15),
            "black",
            lean=side * 0.6,
        )
    for x in (-1, 1):
        s.box((x * w * 0.43, start, r + h + tall / 2), (0.02, cabin * 0.65, tall * 0.6), "black")
        for y in (-0.32, 0.32):
            _wheel(s, x * w / 2, y * length, r, 0.22)
        s.ball((x * w * 0.36, -length / 2, r + h * 0.65), (0.14, 0.05, 0.09), "white")
    return "four wheels"


def truck(s: Scene, colour: str) -> str:
    """A cab and a load bed or box."""
    w, load, r = s.u(1.9, 2.5), s.u(2.5, 5.0), s.u(0.4, 0.55)
    s.box((0, -load / 2 - 0.9, r + 1.0), (w, 1.6, 2.0), colour)
    s.box((0, -load / 2 - 1.71, r + 1.4), (w * 0.9, 0.02, 0.8), "black")
    s.box((0, 0, r + 0.1), (w, load, 0.2), "grey")
    closed = s.chance(0.6)
    if closed:
        s.box((0, 0, r + 1.3), (w, load, 2.2), s.colour())
    else:
        for x in (-1, 1):
            s.box((x * w / 2, 0, r + 0.5), (0.05, load, 0.6), colour)
    wheels = s.pick(4, 6)
    for y in (-load / 2 - 0.9, load * 0.3) if wheels == 4 else (-load / 2 - 0.9, load * 0.1, load * 0.35):
        for x in (-1, 1):
            _wheel(s, x * w / 2, y, r, 0.3)
    return f"{plural(wheels, 'wheel')} and {'a closed box' if closed else 'an open bed'}"


def bus(s: Scene, colour: str) -> str:
    """A long box with a row of windows."""
    w, length, h, r = s.u(2.2, 2.6), s.u(7, 12), s.u(2.3, 2.9), 0.5
    n = int(s.rng.integers(5, 9))
    s.box((0, 0, r + h / 2), (w, length, h), colour)
    for x in (-1, 1):
        for i in range(n):
            s.box(
                (x * w / 2, (i - (n - 1) / 2) * length / n, r + h * 0.65),
                (0.04, length / n * 0.8, h * 0.35),
                "black",
            )
        for y in (-0.33, 0.3):
            _wheel(s, x * w / 2, y * length, r, 0.3)
    s.box((0, -length / 2, r + h * 0.6), (w * 0.9, 0.04, h * 0.5), "black")
    return f"{plural(n, 'window')} on each side"


def bicycle(s: Scene, colour: str) -> str:
    """Two thin wheels, a frame, a saddle and a handlebar."""
    r, base = s.u(0.28, 0.36), s.u(0.95, 1.1)
    for y in (-base / 2, base / 2):
        ring = [(r * np.cos(a), r * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 17)]
        for a, b in pairwise(ring):
            s.rod((0, y + a[0], r + a[1]), (0, y + b[0], r + b[1]), 0.02, "black")
        for a in np.linspace(0, np.pi, 5)[:4]:
            d = (r * np.cos(a), r * np.sin(a))
            s.rod((0, y - d[0], r - d[1]), (0, y + d[0], r + d[1]), 0.003, "steel")
    saddle, head, crank = (0, base * 0.2, r + 0.5), (0, -base * 0.35, r + 0.5), (0, base * 0.05, r)
    rear, front = (0, base / 2, r), (0, -base / 2, r)
    for a, b in (
        (saddle, crank),
        (saddle, head),
        (head, crank),
        (saddle, rear),
        (crank, rear),
        (head, front),
    ):
        s.rod(a, b, 0.018, colour)
    s.ball((0, base * 0.22, r + 0.55), (0.08, 0.13, 0.04), "black")
    s.rod((-0.28, -base * 0.36, r + 0.62), (0.28, -base * 0.36, r + 0.62), 0.012, "black")
    s.rod(head, (0, -base * 0.36, r + 0.62), 0.012, "black")
    return "two wheels"


def airplane(s: Scene, colour: str) -> str:
    """A fuselage with wings, a tail and engines."""
    length, span, r = s.u(6, 14), s.u(6, 14), s.u(0.4, 0.9)
    s.rod((0, -length * 0.4, 0), (0, length * 0.3, 0), r, colour)
    s.ball((0, -length * 0.4, 0), (r, r * 2, r), colour)
    s.rod((0, length * 0.3, 0), (0, length * 0.5, r * 0.5), r, colour, top=r * 0.2)
    sweep = s.u(0, 0.4)
    for x in (-1, 1):
        s.box((x * span / 4, sweep * span / 8, 0), (span / 2, length * 0.15, 0.12), colour, turn=x * sweep)
        s.box(
            (x * span / 9, length * 0.46, r * 0.5), (span / 4.5, length * 0.08, 0.08), colour, turn=x * sweep
        )
    s.box((0, length * 0.45, r * 0.5 + length * 0.08), (0.08, length * 0.12, length * 0.16), s.colour())
    engines = s.pick(1, 2, 4)
    if engines == 1:
        s.box((0, -length * 0.4 - 2 * r, 0), (0.15, 0.05, r * 3), "black")
    else:
        for i in range(engines // 2):
            for x in (-1, 1):
                at = x * span * (0.16 + 0.14 * i)
                s.rod((at, -length * 0.08, -0.4), (at, length * 0.06, -0.4), 0.28, "grey")
    return plural(engines, "engine")


def person(s: Scene, colour: str) -> str:
    """A standing or sitting figure."""
    skin, trousers = s.pick((0.85, 0.65, 0.5), (0.45, 0.3, 0.2), (0.95, 0.8, 0.7)), s.colour()
    sitting = s.chance(0.35)
    hip = 0.5 if sitting else s.u(0.8, 0.95)
    for x in (-0.1, 0.1):
        if sitting:
            s.rod((x, 0, hip), (x, -0.45, hip), 0.08, trousers)
            s.rod((x, -0.45, hip), (x, -0.45, 0.05), 0.06, trousers)
        else:
            step = s.u(-0.15, 0.15)
            s.rod((x, 0, hip), (x, step, 0.05), 0.085, trousers, top=0.05)
        s.box((x, -0.5 if sitting else -0.04, 0.03), (0.09, 0.25, 0.06), "black")
    s.ball((0, 0, hip + 0.3), (s.u(0.17, 0.23), s.u(0.1, 0.15), 0.36), colour)
    for x in (-1, 1):
        hand = (x * s.u(0.2, 0.4), s.u(-0.35, 0.1), hip + s.u(-0.15, 0.4))
        s.rod((x * 0.2, 0, hip + 0.5), hand, 0.045, colour)
        s.ball(hand, 0.05, "beige")
    s.add(_ball((0, 0, hip + 0.78), (0.09, 0.11, 0.13)), skin)
    s.ball((0, 0.03, hip + 0.83), (0.1, 0.11, 0.11), s.colour("black", "brown", "yellow", "grey"))
    return "seated" if sitting else "standing"


def _ball(centre, radii) -> np.ndarray:
    from tfds_builders.primitives.parts import revolve

    angles = np.linspace(-np.pi / 2, np.pi / 2, 11)
    return revolve(np.stack([np.cos(angles), np.sin(angles)], 1), 16) * np.array(radii) + np.array(centre)


def tree(s: Scene, colour: str) -> str:
    """A trunk with a crown of balls or a cone."""
    h, r = s.u(1.5, 4), s.u(0.05, 0.2)
    s.rod((0, 0, 0), (0, 0, h), r, "brown", top=r * 0.5)
    if s.chance(0.4):
        tiers = int(s.rng.integers(2, 5))
        for i in range(tiers):
            z = h * (0.3 + 0.6 * i / tiers)
            wide = (1 - i / tiers) * h * 0.35
            s.lathe([(wide, z), (0, z + h * 0.5)], (0, 0, 0), "green")
        return f"{plural(tiers, 'tier')} of needles"
    for _ in range(int(s.rng.integers(5, 25))):
        centre = (s.rng.normal(0, 0.28, 3) * h * 0.6 + [0, 0, h]).tolist()
        s.ball(centre, (h * s.u(0.1, 0.3), h * s.u(0.1, 0.3), h * s.u(0.08, 0.25)), "green")
    return "a round crown"


def tent(s: Scene, colour: str) -> str:
    """A ridge tent."""
    w, length, h = s.u(1.2, 2.2), s.u(1.8, 2.8), s.u(1.0, 1.6)
    slope = float(np.arctan2(w / 2, h))
    side = float(np.hypot(w / 2, h))
    for x in (-1, 1):
        top, low = np.array([0, 0, h]), np.array([x * w / 2, 0, 0])
        y = np.array([0, length / 2, 0])
        s.add(np.array([[top - y, low - y, low + y], [top - y, low + y, top + y]]), colour)
        s.add(np.array([[top + x * y, [w / 2, x * length / 2, 0], [-w / 2, x * length / 2, 0]]]), colour)
    return "a steep roof" if slope < 0.65 or side > 1.6 else "a low roof"


def cone(s: Scene, colour: str) -> str:
    """A traffic cone."""
    h = s.u(0.3, 0.8)
    s.box((0, 0, 0.015), (h * 0.6, h * 0.6, 0.03), "orange")
    s.lathe([(h * 0.22, 0.03), (h * 0.12, h * 0.5)], (0, 0, 0), "orange")
    s.lathe([(h * 0.12, h * 0.5), (h * 0.08, h * 0.7)], (0, 0, 0), "white")
    s.lathe([(h * 0.08, h * 0.7), (h * 0.02, h)], (0, 0, 0), "orange")
    return "a white band"


def streetlight(s: Scene, colour: str) -> str:
    """A pole with one or two heads."""
    h, heads = s.u(2.5, 6), s.pick(1, 2)
    s.rod((0, 0, 0), (0, 0, h), 0.07, colour, top=0.04)
    for x in (1,) if heads == 1 else (-1, 1):
        s.rod((0, 0, h), (x * 0.8, 0, h + 0.2), 0.03, colour)
        s.ball((x * 0.9, 0, h + 0.2), (0.3, 0.12, 0.08), "white")
    return plural(heads, "head")


def guitar(s: Scene, colour: str) -> str:
    """A body with a waist and a long neck."""
    for z, r in ((0.2, 0.2), (0.48, 0.15)):
        s.rod((0, -0.05, z), (0, 0.05, z), r, colour)
    s.box((0, 0, 0.34), (0.22, 0.1, 0.2), colour)
    s.box((0, -0.05, 0.85), (0.05, 0.025, 0.6), "brown")
    s.box((0, -0.05, 1.2), (0.08, 0.02, 0.14), "black")
    s.rod((0, -0.051, 0.42), (0, -0.056, 0.42), 0.05, "black")
    return "a long neck"


def hat(s: Scene, colour: str) -> str:
    """A crown and a brim."""
    r, h = s.u(0.08, 0.1), s.u(0.08, 0.16)
    s.lathe([(r * s.u(1.3, 2.0), 0), (r, 0.01), (r * s.u(0.7, 1), h), (0, h * 1.1)], (0, 0, 0), colour)
    s.lathe([(r * 1.02, 0.012), (r * 1.02, 0.04)], (0, 0, 0), s.colour())
    return "a ribbon"
