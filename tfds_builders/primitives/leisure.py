"""Parametric things for play, garden and ornament: each function adds one object, returns its details."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tfds_builders.primitives.furniture import plural
from tfds_builders.primitives.household import hollow
from tfds_builders.primitives.parts import Scene, revolve

BRIGHT = ("red", "blue", "green", "yellow", "orange", "pink", "purple", "turquoise", "white")


def _ring(s: Scene, at, radius: float, thick: float, colour, squash=(1, 1), flat: float = 1.0) -> None:
    """A torus lying flat."""
    a = np.linspace(0, 2 * np.pi, 9)
    s.lathe(np.stack([radius + thick * np.cos(a), thick * flat * np.sin(a)], 1), at, colour, squash)


def _wheel(s: Scene, at, radius: float, wide: float, colour) -> None:
    x, y, z = at
    s.rod((x - wide / 2, y, z), (x + wide / 2, y, z), radius, colour)
    s.rod((x - wide * 0.6, y, z), (x + wide * 0.6, y, z), radius * 0.4, s.colour("white", "yellow", "grey"))


def _frame(s: Scene, w: float, d: float, low: float, high: float, thick: float, colour) -> None:
    """Four posts and eight beams on the edges of a w x d block."""
    for i in (-1, 1):
        for j in (-1, 1):
            s.box((i * w / 2, j * d / 2, (low + high) / 2), (thick, thick, high - low), colour)
        for z in (low, high):
            s.box((i * w / 2, 0, z), (thick, d, thick), colour)
            s.box((0, i * d / 2, z), (w, thick, thick), colour)


def toy(s: Scene, colour: str) -> str:
    """A train, a tower of blocks or rings, a ride-on, a car or a spinning top."""
    kind = s.pick("train", "blocks", "rings", "horse", "bike", "car", "top")
    a, b, c = colour, s.colour(*BRIGHT), s.colour(*BRIGHT, "oak")
    if kind == "train":
        n, w, length, r = int(s.rng.integers(1, 4)), s.u(0.06, 0.09), s.u(0.11, 0.17), s.u(0.018, 0.028)
        for i in range(n + 1):
            y, body = i * length * 1.2, a if i == 0 else s.colour(*BRIGHT, "wooden")
            s.box((0, y, r * 1.6), (w, length, r), c)
            for x in (-w / 2, w / 2):
                for dy in (-0.3, 0.3):
                    _wheel(s, (x, y + dy * length, r), r, 0.012, b)
            if i == 0:
                s.rod((0, -length / 2, r * 2 + w * 0.38), (0, length * 0.2, r * 2 + w * 0.38), w * 0.38, body)
                s.box((0, length * 0.3, r * 2 + w * 0.6), (w, length * 0.35, w * 1.2), body)
                s.box((0, length * 0.3, r * 2 + w * 1.25), (w * 1.2, length * 0.45, w * 0.12), b)
                chimney = (0, -length * 0.3, r * 2 + w * 1.3)
                s.rod((0, -length * 0.3, r * 2 + w * 0.6), chimney, w * 0.12, b, top=w * 0.2)
                continue
            s.rod((0, y - length * 0.75, r * 1.6), (0, y - length * 0.4, r * 1.6), 0.006, "grey")
            load = s.pick("box", "logs", "cubes")
            if load == "box":
                s.box((0, y, r * 2 + w * 0.35), (w, length * 0.95, w * 0.7), body)
            for j in (-1, 0, 1) if load != "box" else ():
                if load == "logs":
                    x, z = j * w * 0.3, r * 2 + w * 0.16
                    s.rod((x, y - length * 0.4, z), (x, y + length * 0.4, z), w * 0.16, body)
                else:
                    s.box((0, y + j * length * 0.3, r * 2 + w * 0.3), [w * 0.6] * 3, s.colour(*BRIGHT))
        return f"an engine and {plural(n, 'wagon')}"
    if kind == "blocks":
        n, w, z = int(s.rng.integers(3, 9)), s.u(0.04, 0.07), 0.0
        for i in range(n):
            h, at = w * s.u(0.5, 1.2), (s.u(-0.15, 0.15) * w, s.u(-0.15, 0.15) * w)
            hue, last = s.colour(*BRIGHT, "oak"), i == n - 1
            if last:
                s.rod((*at, z), (*at, z + h * 1.3), w * 0.6, hue, top=0.0)
            elif s.chance(0.6):
                s.box((*at, z + h / 2), (w * s.pick(1, 1, 2), w, h), hue, turn=s.u(-0.4, 0.4))
            else:
                s.rod((*at, z), (*at, z + h), w * 0.5, hue)
            z += h
        for _ in range(int(s.rng.integers(0, 3))):
            s.box(
                (s.u(0.1, 0.2) * s.pick(-1, 1), s.u(-0.1, 0.1), w / 2),
                (w, w, w),
                s.colour(*BRIGHT),
                s.u(0, 1),
            )
        return f"a tower of {plural(n, 'block')}"
    if kind == "rings":
        n, r, t = int(s.rng.integers(4, 9)), s.u(0.06, 0.1), s.u(0.012, 0.02)
        s.lathe([(0, 0), (r * 1.1, 0), (r * 1.1, 0.02), (0, 0.02)], (0, 0, 0), c)
        s.rod((0, 0, 0), (0, 0, 0.03 + n * t * 2), t, c)
        for i in range(n):
            _ring(s, (0, 0, 0.02 + t * (2 * i + 1)), r * (1 - 0.6 * i / n) - t, t, s.colour(*BRIGHT))
        s.ball((0, 0, 0.03 + n * t * 2 + t), t * 1.6, a)
        return f"{plural(n, 'ring')} on a pole"
    if kind == "horse":
        h, length = s.u(0.35, 0.5), s.u(0.4, 0.55)
        s.ball((0, 0, h), (0.11, length / 2, s.u(0.1, 0.13)), a)
        s.rod((0, -length * 0.3, h), (0, -length * 0.6, h + 0.32), 0.085, a, top=0.055)
        s.rod((0, -length * 0.55, h + 0.34), (0, -length * 0.95, h + 0.22), 0.065, a, top=0.04)
        s.box((0, -length * 0.42, h + 0.24), (0.02, 0.1, 0.3), b, lean=0.5)
        s.rod((-0.14, -length * 0.6, h + 0.18), (0.14, -length * 0.6, h + 0.18), 0.013, c)
        s.rod((0, length * 0.45, h), (0, length * 0.65, h - 0.2), 0.025, b, top=0.05)
        s.box((0, 0, h + 0.11), (0.17, 0.2, 0.03), b)
        angles = np.linspace(-0.6, 0.6, 9)
        for x in (-0.13, 0.13):
            arc = [(x, length * 1.2 * np.sin(t), length * 1.2 * (1 - np.cos(t)) + 0.02) for t in angles]
            s.tube(arc, 0.022, c)
            for y in (-0.35, 0.35):
                s.rod((x * 0.5, y * length * 0.8, h), (x, y * length * 1.2, 0.06), 0.035, a, top=0.025)
        for y in (-0.4, 0.4):
            s.box((0, y * length, 0.1), (0.26, 0.05, 0.02), c)
        return "a horse's head and two rockers"
    if kind == "bike":
        r, length, wheels = s.u(0.09, 0.15), s.u(0.35, 0.5), s.pick(2, 3, 4)
        for y in (-1, 1):
            pair = wheels == 4 or (wheels == 3 and y == 1)
            for x in (-0.12, 0.12) if pair else (0,):
                _wheel(s, (x, y * length / 2, r), r, 0.05, "black")
            if pair:
                s.rod((-0.12, y * length / 2, r), (0.12, y * length / 2, r), 0.012, "grey")
        s.box((0, 0.02, r * 1.5), (0.1, length * 0.9, r * 0.7), a)
        s.ball((0, -length * 0.12, r * 2.1), (0.08, length * 0.22, r * 0.5), a)
        s.ball((0, length * 0.3, r * 2.1), (0.09, length * 0.25, 0.03), b)
        s.rod((0, -length / 2, r), (0, -length * 0.35, r * 3.1), 0.025, "grey")
        s.rod((-0.18, -length * 0.33, r * 3.1), (0.18, -length * 0.33, r * 3.1), 0.015, "black")
        s.ball((0, -length * 0.47, r * 2.6), 0.045, "yellow")
        return f"{plural(wheels, 'wheel')} and a handlebar"
    if kind == "car":
        w, length, r = s.u(0.07, 0.12), s.u(0.16, 0.26), s.u(0.02, 0.035)
        s.box((0, 0, r * 1.8), (w, length, r * 1.6), a)
        back = length * s.u(0.0, 0.15)
        s.box((0, back, r * 2.6 + w * 0.22), (w * 0.85, length * s.u(0.35, 0.55), w * 0.45), s.pick(a, b))
        s.box((0, back, r * 2.6 + w * 0.22), (w * 0.87, length * 0.25, w * 0.28), "black")
        for x in (-w / 2, w / 2):
            for y in (-0.3, 0.3):
                _wheel(s, (x, y * length, r), r, 0.02, s.pick("black", c))
            s.ball((x * 0.7, -length / 2, r * 2), r * 0.35, "yellow")
        return "a cabin and four wheels"
    r, h = s.u(0.03, 0.09), s.u(0.6, 1.3)
    mid = s.u(0.35, 0.65)
    outline = [(0, 0), (0.15, 0.05), (0.75, mid * 0.7), (1, mid), (0.8, mid * 1.2), (0.2, mid * 1.45)]
    for (r1, z1), (r2, z2) in pairwise([(p * r, z * h * r * 2) for p, z in outline]):
        s.lathe([(r1, z1), (r2, z2)], (0, 0, 0), s.pick(a, b, c))
    top = mid * 1.4 * h * r * 2
    s.rod((0, 0, top), (0, 0, top + r * s.u(0.6, 1.2)), r * 0.1, c)
    s.ball((0, 0, top + r), r * 0.2, b)
    return "a spinning body on a tip"


def lantern(s: Scene, colour: str) -> str:
    """A camping, wall or hanging lantern: glass between a base and a roof."""
    colour = s.pick(colour, "black", "brown", "steel")
    kind = s.pick("camping", "wall", "hanging", "standing")
    w, h, light = s.u(0.12, 0.24), s.u(0.2, 0.42), s.colour("yellow", "white", "beige")
    square = kind != "camping" and s.chance(0.7)
    sides = 4 if square else s.pick(6, 12, 20)
    if square:
        _frame(s, w, w, 0, h, w * 0.08, colour)
        s.box((0, 0, 0), (w, w, 0.015), colour)
        s.rod((0, 0, 0), (0, 0, h * s.u(0.3, 0.6)), w * 0.17, light)
        if s.chance(0.5):
            for x in (-1, 1):
                s.box((x * w / 2, 0, h / 2), (0.003, w, h), "white")
                s.box((0, x * w / 2, h / 2), (w, 0.003, h), "white")
    else:
        bulge = s.u(0.75, 1.15)
        s.lathe([(0, -h * 0.2), (w / 2, -h * 0.2), (w * 0.45, 0), (0, 0)], (0, 0, 0), colour, (1, 1), sides)
        s.lathe([(w * 0.4, 0), (w * 0.45 * bulge, h / 2), (w * 0.4, h)], (0, 0, 0), light, (1, 1), sides)
        for t in np.linspace(0, 2 * np.pi, s.pick(3, 4, 6), endpoint=False):
            x, y = w * 0.52 * np.cos(t), w * 0.52 * np.sin(t)
            s.rod((x, y, -h * 0.1), (x, y, h), 0.006, colour)
    roof, peak = s.u(0.55, 0.75) * (1.3 if square else 1), h * s.u(0.15, 0.45)
    outline = [(0, h), (w * roof, h), (w * 0.15, h + peak), (w * 0.12, h + peak * 1.2), (0, h + peak * 1.2)]
    c = np.sqrt(0.5)
    s.add(revolve(outline, sides) @ np.array([[c, c, 0], [-c, c, 0], [0, 0, 1]]), colour)
    top = h + peak * 1.2
    if kind in ("camping", "standing"):
        r = w * s.u(0.3, 0.5)
        angles = np.linspace(0, np.pi, 9)
        s.tube([(r * np.cos(t), 0, top + r * 1.2 * np.sin(t)) for t in angles], 0.005, colour)
        return ("a square glass cage" if square else "a round glass") + ", a roof and a carrying handle"
    if kind == "hanging":
        links = int(s.rng.integers(4, 10))
        for i in range(links):
            across = (0.014, 0.004) if i % 2 else (0.004, 0.014)
            s.box((0, 0, top + 0.015 + i * 0.03), (*across, 0.036), colour)
        s.lathe([(0, 0), (0.05, 0), (0.05, 0.015), (0, 0.03)], (0, 0, top + links * 0.03), colour)
        return "a glass cage, a roof and a chain"
    y = w * s.u(0.8, 1.1)
    low, high = s.u(0, 0.4) * h, top + s.u(0.04, 0.12)
    s.box((0, y, (low + high) / 2), (w * 0.5, 0.02, high - low + 0.08), colour)
    s.tube([(0, y, high), (0, y * 0.5, high + 0.05), (0, 0, high), (0, 0, top)], 0.009, colour)
    return "a glass cage, a roof and an arm on a wall plate"


def deck_chair(s: Scene, colour: str) -> str:
    """A folding frame with a striped sling, or a slatted lounger."""
    w, wood = s.u(0.5, 0.7), s.colour("wooden", "oak", "brown", "white")
    stripe = s.colour("white", colour)
    if s.chance(0.45):
        h, d = s.u(0.8, 1.05), s.u(0.45, 0.6)
        for x in (-w / 2, w / 2):
            s.box((x, 0.0, h / 2), (0.035, 0.035, np.hypot(h, d * 2)), wood, lean=-np.arctan2(d * 2, h))
            s.rod((x * 0.9, d * 0.95, 0), (x * 0.9, -d * 0.85, h * 0.42), 0.018, wood)
            s.rod((x * 0.95, d * 0.95, 0.03), (x * 0.95, d * 0.5, h * 0.72), 0.016, wood)
        for y, z in ((-d, 0.04), (d, h), (d * 0.95, 0.03), (-d * 0.85, h * 0.42)):
            s.rod((-w / 2, y, z), (w / 2, y, z), 0.018, wood)
        sag, n = s.u(0.1, 0.22), 5
        t = np.linspace(0, 1, 9)
        ys = d + (-d * 1.85) * t
        zs = h + (h * 0.42 - h) * t - sag * 4 * t * (1 - t)
        for i in range(n):
            x = (i + 0.5 - n / 2) * w * 0.85 / n
            for (y1, z1), (y2, z2) in pairwise(zip(ys, zs, strict=True)):
                size = (w * 0.85 / n, np.hypot(y2 - y1, z2 - z1), 0.006)
                lean = np.arctan2(z1 - z2, y1 - y2)
                s.box((x, (y1 + y2) / 2, (z1 + z2) / 2), size, stripe if i % 2 else colour, lean=lean)
        return "a folding frame and a fabric sling"
    length, h, a = s.u(1.1, 1.5), s.u(0.25, 0.4), s.u(0.3, 1.1)
    back, slats = s.u(0.6, 0.8), int(s.rng.integers(5, 10))
    s.legs(w, length, h, 0.05, wood)
    c, sn, y0 = np.cos(a), np.sin(a), length / 2
    for x in (-w / 2, w / 2):
        s.box((x, 0, h), (0.04, length, 0.05), wood)
        s.box((x, y0 + c * back / 2, h + sn * back / 2), (0.04, back, 0.04), wood, lean=a)
        if s.chance(0.8):
            s.rod((x, y0 + c * back * 0.6, h + sn * back * 0.6), (x, y0 + c * back * 0.6, 0), 0.015, wood)
    for i in range(2 * slats):
        y = (i + 0.5) * length / slats / 2
        s.box((0, -length / 2 + y, h + 0.02), (w, length / slats * 0.35, 0.015), wood)
    for i in range(slats):
        t = (i + 0.5) / slats * back
        s.box((0, y0 + c * t, h + sn * t + 0.02), (w, back / slats * 0.7, 0.015), wood, lean=a)
    if s.chance(0.4):
        for x in (-w / 2, w / 2):
            s.box((x, length * 0.3, h + 0.2), (0.06, length * 0.4, 0.025), wood)
            s.box((x, length * 0.15, h + 0.1), (0.04, 0.04, 0.2), wood)
    cushion = s.chance(0.4)
    if cushion:
        s.box((0, 0, h + 0.06), (w * 0.92, length, 0.06), colour)
        s.box(
            (0, y0 + c * back / 2 - sn * 0.04, h + sn * back / 2 + 0.06),
            (w * 0.92, back, 0.06),
            colour,
            lean=a,
        )
    return "a reclined back of slats" + (" and a cushion" if cushion else "")


def flower_arrangement(s: Scene, colour: str) -> str:
    """A vase or basket with stems, leaves and blossoms."""
    r, h, n = s.u(0.05, 0.1), s.u(0.1, 0.28), int(s.rng.integers(4, 18))
    neck = s.u(0.5, 1.1)
    hollow(s, [(0, 0), (r * s.u(0.5, 0.9), 0), (r, h * s.u(0.3, 0.6)), (r * neck, h)], (0, 0, 0), colour)
    tall, spread = s.u(0.1, 0.4), s.u(0.1, 0.25)
    hues, shape = (
        [s.colour(*BRIGHT) for _ in range(s.pick(1, 2, 3))],
        s.pick("round", "daisy", "tulip", "mixed"),
    )
    size = s.u(0.022, 0.045)
    for i in range(n):
        a, t = i * 2.4, np.sqrt((i + 0.5) / n)
        tip = np.array(
            [spread * t * np.cos(a), spread * t * np.sin(a), h + tall * (1.2 - t * t * s.u(0.4, 0.8))]
        )
        s.rod((0, 0, h * 0.7), tip, 0.004, "green")
        hue, kind = s.pick(*hues), s.pick("round", "daisy", "tulip") if shape == "mixed" else shape
        if kind == "round":
            s.ball(tip, (size, size, size * 0.8), hue)
        elif kind == "tulip":
            cup = [(0, -1), (0.6, -0.8), (0.8, 0), (0.6, 1), (0.45, 0.9), (0, -0.6)]
            s.lathe([(p * size, q * size) for p, q in cup], tip, hue, sections=8)
        else:
            s.ball(tip, size * 0.35, "yellow")
            for b in np.linspace(0, 2 * np.pi, 6, endpoint=False):
                at = tip + size * 0.8 * np.array([np.cos(b), np.sin(b), 0.1])
                s.ball(at, (size * 0.5, size * 0.5, size * 0.15), hue)
    for i in range(int(s.rng.integers(3, 14))):
        a, t = i * 1.9, s.u(0.5, 1.1)
        at = (spread * t * np.cos(a), spread * t * np.sin(a), h + tall * s.u(0.1, 0.6))
        s.rod((0, 0, h * 0.8), at, 0.003, "green")
        s.ball(at, (s.u(0.015, 0.05), s.u(0.015, 0.04), 0.008), "green")
    return f"a {colour} vase and {hues[0]} blossoms" if len(hues) == 1 else "a vase and mixed blossoms"


def swimming_pool(s: Scene, colour: str) -> str:
    """A round or framed pool above ground, an inflatable one, or a basin with a paved rim."""
    kind = s.pick("round", "frame", "inflatable", "basin", "basin")
    water = np.array([s.u(0.1, 0.45), s.u(0.55, 0.8), s.u(0.75, 0.9)])
    w, d, h = s.u(2.5, 6), s.u(1.8, 3.5), s.u(0.7, 1.3)
    wall, ladder = (
        s.pick("blue", "white", "grey", "turquoise", colour),
        kind != "inflatable" and s.chance(0.7),
    )
    level, rim = h * s.u(0.75, 0.95), -d / 2
    if kind in ("round", "inflatable"):
        d = w * s.pick(1, 1, s.u(0.55, 0.9))
        squash, rim = (w / 2, d / 2), -d / 2
    if kind == "round":
        s.lathe(
            [(1, 0), (1, h), (1.03, h), (1.03, h + 0.04), (0.97, h + 0.04), (0.98, 0)],
            (0, 0, 0),
            wall,
            squash,
        )
        for t in np.linspace(0, 2 * np.pi, s.pick(8, 12), endpoint=False):
            at = (1.02 * w / 2 * np.cos(t), 1.02 * d / 2 * np.sin(t))
            s.rod((*at, 0), (*at, h), 0.05, s.pick("white", "grey"))
    elif kind == "inflatable":
        rings = int(s.rng.integers(2, 5))
        t = s.u(0.05, 0.09)
        for i in range(rings):
            _ring(
                s, (0, 0, t * w / 2 * (2 * i + 1)), 1 - t, t, s.pick(wall, s.colour(*BRIGHT)), squash, w / 2
            )
        level = t * w / 2 * 2 * (rings - 0.6)
    else:
        thick = 0.06 if kind == "frame" else 0.1
        h = h if kind == "frame" else s.u(0.1, 0.5)
        level = h * 0.8
        for k in (-1, 1):
            s.box((k * w / 2, 0, h / 2), (thick, d, h), wall)
            s.box((0, k * d / 2, h / 2), (w, thick, h), wall)
        if kind == "frame":
            _frame(s, w + 0.1, d + 0.1, 0.04, h, 0.08, s.colour("white", "grey", "wooden"))
            for x in np.linspace(-0.5, 0.5, s.pick(4, 6)):
                for k in (-1, 1):
                    s.rod((x * w, k * (d / 2 + 0.3), 0), (x * w, k * (d / 2 + 0.05), h * 0.9), 0.04, "grey")
        else:
            edge, stone = s.u(0.25, 0.8), s.colour("beige", "grey", "white", "wooden", "orange")
            for k in (-1, 1):
                s.box((k * (w + edge) / 2, 0, h), (edge, d + 2 * edge, 0.06), stone)
                s.box((0, k * (d + edge) / 2, h), (w, edge, 0.06), stone)
    if kind in ("round", "inflatable"):
        s.lathe([(0, level), (0.96, level)], (0, 0, 0), water, squash)
    else:
        s.box((0, 0, level), (w, d, 0.01), water)
    if ladder:
        for x in (-0.25, 0.25):
            arc = [
                (x, rim - 0.35, 0 if kind != "basin" else h),
                (x, rim - 0.12, h + 0.5),
                (x, rim + 0.15, h + 0.5),
            ]
            s.tube([*arc, (x, rim + 0.25, level - 0.1)], 0.03, "steel")
        for t in (0.25, 0.5, 0.75) if kind != "basin" else ():
            s.box((0, rim - 0.35 + 0.23 * t, (h + 0.5) * t), (0.5, 0.09, 0.03), "white")
    name = {"round": "a round wall", "frame": "a rectangular frame", "basin": "a paved rim"}
    details = name[kind] if kind in name else plural(rings, "inflated ring")
    return f"{details}, blue water and a ladder" if ladder else f"{details} and blue water"
