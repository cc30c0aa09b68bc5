"""Parametric things with a plug: each function adds the parts of one object and returns its details."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tfds_builders.primitives.furniture import plural
from tfds_builders.primitives.parts import Scene


def monitor(s: Scene, colour: str) -> str:
    """A flat screen on a stand, or an old tube."""
    colour = s.colour("black", "grey", "white", "beige")
    w = s.u(0.38, 0.75)
    h = w * s.u(0.55, 0.8)
    if s.chance(0.35):
        depth = w * s.u(0.7, 1.0)
        s.box((0, -depth / 2, 0.08 + h / 2), (w, 0.12, h), colour)
        s.box((0, -depth / 2 - 0.065, 0.08 + h / 2), (w * 0.85, 0.01, h * 0.8), "black")
        frames = [(w, h, -depth / 2 + 0.06), (w * 0.75, h * 0.75, 0), (w * 0.5, h * 0.5, depth / 2)]
        for (w1, h1, y1), (w2, h2, y2) in pairwise(frames):
            s.box((0, (y1 + y2) / 2, 0.08 + h / 2), ((w1 + w2) / 2, y2 - y1, (h1 + h2) / 2), colour)
        s.lathe([(0, 0), (w * 0.35, 0), (w * 0.3, 0.04), (0.06, 0.08)], (0, 0, 0), colour)
        return "a deep tube"
    up, thick = s.u(0.08, 0.2), s.u(0.015, 0.08)
    s.box((0, 0, up + h / 2), (w, thick, h), colour, lean=-s.u(0, 0.15))
    s.box((0, -thick / 2 - 0.003, up + h / 2), (w * 0.94, 0.004, h * 0.9), "black")
    s.box((0, thick / 2 + 0.02, up + h / 2), (w * 0.4, 0.05, h * 0.5), colour) if s.chance(0.4) else None
    s.rod((0, 0.03, 0.01), (0, 0.03, up + h * 0.3), s.u(0.015, 0.05), colour)
    if s.chance(0.5):
        s.lathe([(0, 0), (0.14, 0), (0.13, 0.015), (0, 0.02)], (0, 0.02, 0), colour, (1.2, 0.9))
    else:
        s.box((0, 0.02, 0.008), (w * s.u(0.4, 0.7), s.u(0.14, 0.24), 0.016), colour)
    return "a flat panel"


def television_set(s: Scene, colour: str) -> str:
    """A wide flat screen on two feet or a small base."""
    w = s.u(0.8, 1.5)
    h = w * 0.58
    s.box((0, 0, 0.08 + h / 2), (w, s.u(0.03, 0.08), h), "black")
    feet = s.pick(1, 2)
    for x in (0,) if feet == 1 else (-w * 0.35, w * 0.35):
        s.box((x, 0, 0.01), (w * 0.4 if feet == 1 else 0.04, 0.25, 0.02), "black")
        s.box((x, 0, 0.05), (0.05, 0.03, 0.1), "black")
    return "one base" if feet == 1 else "two feet"


def laptop(s: Scene, colour: str) -> str:
    """A hinged screen and keyboard."""
    w, d = s.u(0.28, 0.4), s.u(0.2, 0.27)
    s.box((0, 0, 0.01), (w, d, 0.02), colour)
    s.box((0, 0.02, 0.021), (w * 0.85, d * 0.5, 0.003), "black")
    lean = s.u(0.0, 0.5)
    s.box((0, d / 2 + np.sin(lean) * d / 2, np.cos(lean) * d / 2 + 0.01), (w, 0.01, d), colour, lean=-lean)
    return "an open screen"


def refrigerator(s: Scene, colour: str) -> str:
    """A tall case with one or two doors."""
    colour = s.colour("white", "steel", "grey", "black", "red")
    w, d, h, doors = s.u(0.55, 0.9), s.u(0.55, 0.75), s.u(1.3, 2.0), s.pick(1, 2)
    s.box((0, 0, h / 2), (w, d, h), colour)
    split = h * s.pick(0.35, 0.65)
    for low, high in ((0, split), (split, h)) if doors == 2 else ((0, h),):
        s.box((0, -d / 2 - 0.02, (low + high) / 2), (w * 0.98, 0.04, (high - low) * 0.97), colour)
        s.rod(
            (w * 0.4, -d / 2 - 0.07, low + 0.1),
            (w * 0.4, -d / 2 - 0.07, min(high, low + 0.6)),
            0.012,
            "steel",
        )
    return plural(doors, "door")


def stove(s: Scene, colour: str) -> str:
    """A cooker with an oven door and four plates."""
    colour = s.colour("white", "steel", "black")
    w, d, h = s.u(0.5, 0.9), s.u(0.55, 0.65), s.u(0.8, 0.92)
    s.box((0, 0, h / 2), (w, d, h), colour)
    s.box((0, -d / 2 - 0.01, h * 0.45), (w * 0.85, 0.02, h * 0.5), "black")
    s.rod((-w * 0.35, -d / 2 - 0.05, h * 0.73), (w * 0.35, -d / 2 - 0.05, h * 0.73), 0.012, "steel")
    for x in (-1, 1):
        for y in (-1, 1):
            s.lathe([(0, 0), (0.09, 0), (0.09, 0.015), (0, 0.015)], (x * w / 4, y * d / 4, h), "black")
    for i in range(5):
        s.ball(((i - 2) * w * 0.16, -d / 2 - 0.02, h * 0.88), 0.02, "black")
    return "four plates and an oven"


def automatic_washer(s: Scene, colour: str) -> str:
    """A front-loading washing machine."""
    s.box((0, 0, 0.43), (0.6, s.u(0.5, 0.62), 0.86), "white")
    s.rod((0, -0.29, 0.42), (0, -0.34, 0.42), s.u(0.15, 0.2), "grey")
    s.rod((0, -0.33, 0.42), (0, -0.35, 0.42), 0.13, "black")
    s.box((0, -0.3, 0.78), (0.56, 0.03, 0.1), "white")
    return "a round door"


def radiator(s: Scene, colour: str) -> str:
    """Ribs between two pipes, or a flat panel."""
    ribs, h = int(s.rng.integers(5, 20)), s.u(0.4, 1.4)
    gap = s.u(0.05, 0.09)
    for i in range(ribs):
        s.box((i * gap, 0, h / 2 + 0.05), (gap * s.u(0.5, 0.8), s.u(0.05, 0.12), h), "white")
    for z in (0.1, h):
        s.rod((0, 0, z), (ribs * gap, 0, z), 0.02, "white")
    return "a row of ribs"


def wall_socket(s: Scene, colour: str) -> str:
    """A flat plate with a round or rectangular outlet."""
    w = s.u(0.07, 0.09)
    s.box((0, 0, 0), (w, 0.01, w), "white")
    if s.chance(0.5):
        s.rod((0, -0.005, 0), (0, -0.015, 0), w * 0.35, "white")
    else:
        s.box((0, -0.01, 0), (w * 0.6, 0.01, w * 0.6), "white")
    for x in (-1, 1):
        s.rod((x * w * 0.12, -0.017, 0), (x * w * 0.12, -0.005, 0), 0.004, "black")
    return "two holes"


def light_switch(s: Scene, colour: str) -> str:
    """A flat plate with one or two rockers."""
    w, keys = s.u(0.07, 0.09), s.pick(1, 2)
    s.box((0, 0, 0), (w, 0.01, w), "white")
    for i in range(keys):
        x = (i - (keys - 1) / 2) * w * 0.4
        s.box((x, -0.01, 0), (w * 0.72 / keys, 0.012, w * 0.7), "white", lean=s.pick(-0.1, 0.1))
    return plural(keys, "key")


def clock(s: Scene, colour: str) -> str:
    """A wall clock with two hands."""
    r = s.u(0.1, 0.2)
    s.rod((0, 0, 0), (0, -0.03, 0), r, colour)
    s.rod((0, -0.03, 0), (0, -0.035, 0), r * 0.9, "white")
    for length in (0.5, 0.75):
        a = s.u(0, 6.28)
        s.rod((0, -0.04, 0), (r * length * np.sin(a), -0.04, r * length * np.cos(a)), 0.006, "black")
    return "two hands"


def speaker(s: Scene, colour: str) -> str:
    """A case with round cones in front."""
    w, h, cones = s.u(0.15, 0.35), s.u(0.3, 1.1), s.pick(2, 3)
    s.box((0, 0, h / 2), (w, w * 1.1, h), colour)
    for i in range(cones):
        s.rod((0, -w * 0.55, (i + 0.5) * h / cones), (0, -w * 0.58, (i + 0.5) * h / cones), w * 0.35, "black")
    return plural(cones, "cone")


def lamp(s: Scene, colour: str) -> str:
    """A floor, table, desk or hanging lamp."""
    kind = s.pick("floor", "table", "desk", "hanging")
    shades = 1
    r, tall = s.u(0.1, 0.25), s.u(0.12, 0.3)
    narrow = s.u(0.3, 1.0)
    shade = [(r, 0), (r * narrow, tall)]
    metal = s.colour()
    if kind == "hanging":
        shades = int(s.rng.integers(1, 4))
        for i in range(shades):
            x = (i - (shades - 1) / 2) * r * 2.5
            s.rod((x, 0, tall), (x, 0, tall + s.u(0.3, 0.9)), 0.008, metal)
            s.lathe([*shade, (0, tall)], (x, 0, 0), colour)
            s.ball((x, 0, 0.05), 0.04, "white")
    elif kind == "desk":
        s.lathe([(0, 0), (0.1, 0), (0.1, 0.03), (0, 0.03)], (0, 0, 0), metal)
        elbow, tip = (0, 0.15, 0.35), (0, -0.15, 0.5)
        s.rod((0, 0, 0.03), elbow, 0.01, metal)
        s.rod(elbow, tip, 0.01, metal)
        s.rod(tip, (0, -0.22, 0.4), 0.03, colour, top=0.08)
    else:
        h = s.u(1.1, 1.7) if kind == "floor" else s.u(0.2, 0.45)
        s.lathe([(0, 0), (r * 0.8, 0), (r * 0.7, 0.03), (0, 0.03)], (0, 0, 0), metal)
        if kind == "table" and s.chance(0.6):
            bulge = s.u(0.05, 0.13)
            s.lathe([(0.05, 0.02), (bulge, h * 0.4), (0.03, h * 0.8), (0.015, h)], (0, 0, 0), metal)
        else:
            s.rod((0, 0, 0.02), (0, 0, h), 0.015, metal)
        s.lathe(shade, (0, 0, h), colour)
        s.ball((0, 0, h + 0.05), 0.04, "white")
    return f"{plural(shades, 'shade')}, {kind}"
