"""Parametric things of kitchens and bathrooms: each function adds one object and returns its details."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tfds_builders.primitives.furniture import METAL, WOOD, plural
from tfds_builders.primitives.household import hollow
from tfds_builders.primitives.parts import Scene


def oven(s: Scene, colour: str) -> str:
    """A built-in oven or a toaster oven."""
    colour = s.colour("steel", "white", "black", "grey", "red")
    small = s.chance(0.4)
    w, d, h = (
        (s.u(0.38, 0.52), s.u(0.28, 0.4), s.u(0.22, 0.3))
        if small
        else (s.u(0.55, 0.75), s.u(0.5, 0.6), s.u(0.5, 0.75))
    )
    knobs, front, metal = int(s.rng.integers(2, 6)), -d / 2, s.colour("steel", "black", "grey")
    s.box((0, 0, h / 2), (w, d, h), colour)
    aside = small and s.chance(0.7)
    dw, dh = (w * 0.72, h * 0.85) if aside else (w * 0.94, h * s.u(0.68, 0.78))
    dx, dz = (-w * 0.12, h / 2) if aside else (0, dh / 2 + h * 0.03)
    s.box((dx, front - 0.012, dz), (dw, 0.025, dh), s.pick(colour, "black"))
    s.box((dx, front - 0.027, dz - dh * 0.05), (dw * s.u(0.7, 0.85), 0.006, dh * s.u(0.5, 0.7)), "black")
    z = dz + dh * 0.41
    s.rod((dx - dw * 0.4, front - 0.06, z), (dx + dw * 0.4, front - 0.06, z), 0.01, metal)
    for x in (-0.36, 0.36):
        s.rod((dx + x * dw, front, z), (dx + x * dw, front - 0.06, z), 0.007, metal)
    for i in range(knobs):
        t = (i + 0.5) / knobs - 0.5
        at = np.array(
            [w * 0.37, front, h * (0.5 + t * 0.8)] if aside else [t * w * 0.85, front, (h + dz + dh / 2) / 2]
        )
        s.rod(at, at - [0, 0.03, 0], h * 0.045, metal)
    if not aside and s.chance(0.5):
        s.box((0, front - 0.004, (h + dz + dh / 2) / 2), (w * 0.2, 0.006, h * 0.08), "black")
    if small:
        s.legs(w, d, -0.025, 0.03, "black")
    return f"a glazed door, a handle and {plural(knobs, 'knob')}"


def knife(s: Scene, colour: str) -> str:
    """A flat blade, one edge straight, and a handle; lying flat."""
    length, wide, tip = s.u(0.08, 0.24), s.u(0.018, 0.05), s.pick("pointed", "rounded", "square")
    handle, thick, grip = s.u(0.08, 0.13), s.u(0.0015, 0.003), s.pick("black", "wooden", "steel", colour)
    t = np.linspace(0, 1, 12)
    power = {"pointed": s.u(1.5, 5), "rounded": 9.0, "square": 60.0}[tip]
    edge = np.stack([t * length, -wide * (1 - t**power)], 1)
    spine = np.stack([t * length, -wide * 0.3 * t**6 * (tip == "pointed")], 1)
    outline = np.maximum(edge[:, 1], -wide), np.minimum(spine[:, 1], 0)
    lo, hi = (np.stack([t * length, y], 1) for y in (np.minimum(*outline), np.maximum(*outline)))
    for z in (-thick, thick):
        a, b, c, d = (np.insert(p, 2, z, 1) for p in (lo[:-1], lo[1:], hi[1:], hi[:-1]))
        s.add(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]), "steel")
    deep = min(wide, s.u(0.018, 0.026))
    if s.chance(0.5):
        s.box((-handle / 2, -deep / 2, 0), (handle, deep, thick * 4 + 0.008), grip)
        for i in range(3):
            x = -handle * (0.2 + 0.3 * i)
            s.rod((x, -deep / 2, -0.009), (x, -deep / 2, 0.009), 0.003, "steel")
    else:
        s.ball((-handle / 2, -deep / 2, 0), (handle / 2 + 0.01, deep * 0.6, 0.01), grip)
    if s.chance(0.3):
        s.box((0, -deep / 2, 0), (0.008, deep * 1.4, 0.02), "steel")
    return f"a {tip} blade and a {grip} handle"


def _drape(s: Scene, w: float, long: float, at, colour, stripe) -> None:
    """A towel over a bar along x at `at`: a front and a shorter back, gently waved."""
    x, y, z = at
    t, n, waves = s.u(0.006, 0.018), 10, s.u(2, 6)
    for side, reach in ((-1, long), (1, long * s.u(0.6, 1))):
        for i in range(n):
            dy = side * (0.018 + t) + 0.006 * np.sin(waves * i / n * 6)
            s.box((x + (i + 0.5 - n / 2) * w / n, y + dy, z - reach / 2), (w / n, t, reach), colour)
    s.rod((x - w / 2, y, z), (x + w / 2, y, z), 0.02 + t, colour)
    if stripe:
        s.box((x, y - 0.03 - t, z - long * 0.85), (w, 0.012, long * 0.07), stripe)


def towel(s: Scene, colour: str) -> str:
    """A folded stack, a hanging cloth, or rolls."""
    kind, w = s.pick("folded", "hanging", "rolled"), s.u(0.25, 0.45)
    stripe = s.colour() if s.chance(0.5) else None
    if kind == "folded":
        n, d, z = int(s.rng.integers(1, 6)), w * s.u(0.6, 1.0), 0.0
        for _ in range(n):
            hue, layers, t = s.pick(colour, s.colour()), s.pick(1, 2, 2), s.u(0.015, 0.03)
            shift = s.u(-0.015, 0.015)
            for _ in range(layers):
                s.box((shift, 0, z + t / 2), (w, d, t * 0.96), hue)
                s.rod((shift - w / 2, -d / 2, z + t / 2), (shift + w / 2, -d / 2, z + t / 2), t * 0.48, hue)
                z += t
        if stripe:
            s.box((0, 0, z), (w * 0.12, d, 0.006), stripe)
        return "one folded cloth" if n == 1 else f"a stack of {plural(n, 'folded cloth')}"
    if kind == "hanging":
        _drape(s, w, w * s.u(1.0, 2.0), (0, 0, 0), colour, stripe)
        return "a hanging drape" + (" and a stripe" if stripe else "")
    n, r = s.pick(1, 2, 3, 3, 6), s.u(0.04, 0.07)
    rows = {1: [1], 2: [2], 3: s.pick([3], [2, 1]), 6: [3, 2, 1]}[n]
    for j, count in enumerate(rows):
        for i in range(count):
            x, z, hue = (i + 0.5 - count / 2) * r * 2, r * (1 + 1.73 * j), s.pick(colour, colour, s.colour())
            s.rod((x, -w / 2, z), (x, w / 2, z), r, hue)
            spiral = np.linspace(0, 4 * np.pi, 20)
            points = [(x + r * a / 14 * np.cos(a), -w / 2, z + r * a / 14 * np.sin(a)) for a in spiral]
            s.tube(points, r * 0.05, "white" if hue != "white" else "grey")
    return plural(n, "roll")


def towel_rack(s: Scene, colour: str) -> str:
    """Bars on a wall, a ring, a ladder or a standing frame; with or without a towel."""
    colour, cloth = s.colour("steel", "black", "white", "oak", "brown"), s.colour()
    kind, w, r = s.pick("bars", "ring", "ladder", "stand"), s.u(0.4, 0.7), s.u(0.006, 0.014)
    draped, stripe = s.chance(0.5), s.pick(None, "white")
    if kind == "ring":
        size, t = s.u(0.07, 0.11), np.linspace(0, 2 * np.pi, 17)
        s.rod((0, 0.05, size), (0, 0.065, size), 0.03, colour)
        s.rod((0, 0, size), (0, 0.06, size), 0.012, colour)
        square = s.chance(0.3)
        ring = [(size * np.sin(a), 0, size * np.cos(a)) for a in t]
        corners = [(-size, 0, size), (size, 0, size), (size, 0, -size), (-size, 0, -size), (-size, 0, size)]
        s.tube(corners if square else ring, r * 0.8, colour)
        if draped:
            _drape(s, size * 1.3, s.u(0.25, 0.5), (0, 0, -size), cloth, stripe)
        details = "a square ring" if square else "a ring"
    elif kind == "bars":
        n, high = s.pick(1, 1, 2, 3), s.pick(0.0, 0.12)
        for i in range(n):
            y, z = 0.06 - 0.08 * (i + 1), -i * high
            s.rod((-w / 2, y, z), (w / 2, y, z), r, colour)
            for x in (-w / 2, w / 2):
                s.rod((x, y, z), (x, 0.06, z), r * 1.2, colour)
        for x in (-w / 2, w / 2):
            s.box((x, 0.065, -(n - 1) * high / 2), (0.05, 0.012, 0.05 + (n - 1) * high), colour)
        shelf = s.chance(0.3)
        for i in range(6) if shelf else ():
            s.rod((-w / 2, 0.06 - i * 0.045, 0.12), (w / 2, 0.06 - i * 0.045, 0.12), r * 0.8, colour)
        for x in (-w / 2, w / 2) if shelf else ():
            s.box((x, -0.05, 0.12), (0.015, 0.24, 0.03), colour)
            s.box((x, 0.06, 0.06), (0.015, 0.015, 0.14), colour)
        if draped:
            _drape(s, w * s.u(0.4, 0.8), s.u(0.3, 0.6), (0, 0.06 - 0.08 * n, -(n - 1) * high), cloth, stripe)
        details = f"{plural(n, 'bar')}{' and a shelf' if shelf else ''}"
    else:
        h, n = s.u(0.8, 1.8), int(s.rng.integers(3, 9))
        lean = h * s.u(0.0, 0.3) if kind == "ladder" else 0.0
        n = n if kind == "ladder" else min(n, 4)
        for x in (-w / 2, w / 2):
            s.rod((x, -lean, 0), (x, 0, h), r * 1.4, colour)
            if kind == "stand":
                s.box((x, 0, 0.02), (0.04, s.u(0.25, 0.4), 0.04), colour)
        levels = [((i + 1) / (n + 0.4 if kind == "ladder" else n)) * h for i in range(n)]
        for z in levels:
            s.rod((-w / 2, -lean * (1 - z / h), z), (w / 2, -lean * (1 - z / h), z), r, colour)
        if draped:
            z = s.pick(*levels[n // 2 :])
            _drape(s, w * 0.75, z * s.u(0.4, 0.8), (0, -lean * (1 - z / h), z), cloth, stripe)
        details = f"{'an upright frame' if kind == 'stand' else 'two rails'} and {plural(n, 'bar')}"
    return f"{details}, with a draped {cloth} towel" if draped else details


def coffee_maker(s: Scene, colour: str) -> str:
    """A filter machine with a jug, an espresso machine or a pod machine."""
    colour, kind = s.pick(colour, "black", "steel", "red", "white"), s.pick("filter", "espresso", "pod")
    w, d, h = s.u(0.16, 0.24), s.u(0.2, 0.28), s.u(0.28, 0.4)
    if kind == "filter":
        s.box((0, 0, 0.02), (w, d, 0.04), colour)
        s.box((0, d * 0.33, h / 2), (w, d * 0.34, h), colour)
        s.box((0, 0, h * 0.86), (w, d, h * 0.28), s.pick(colour, "black"))
        r, jug, y = w * s.u(0.36, 0.44), h * 0.45, -d * 0.16
        glass = s.pick("brown", "black", "steel", (0.75, 0.86, 0.92))
        hollow(s, [(0, 0), (r * 0.9, 0), (r, jug * 0.4), (r * 0.7, jug)], (0, y, 0.045), glass)
        s.lathe([(r * 0.72, jug), (r * 0.6, jug * 1.08), (0, jug * 1.1)], (0, y, 0.045), "black")
        a = np.linspace(-1.3, 1.3, 7)
        loop = [(0, y - r * 0.9 - 0.05 * np.cos(t), 0.05 + jug * (0.55 + 0.35 * np.sin(t))) for t in a]
        s.tube(loop, 0.009, "black")
        s.rod((w * 0.3, -d / 2, 0.02), (w * 0.3, -d / 2 - 0.01, 0.02), 0.01, "red")
        return "a glass jug under a filter"
    if kind == "espresso":
        w, groups = w * 1.4, 1 if s.chance(0.6) else 2
        s.box((0, d * 0.2, h / 2), (w, d * 0.6, h), colour)
        s.box((0, 0, h * 0.85), (w, d, h * 0.3), colour)
        s.box((0, -d * 0.05, 0.03), (w, d, 0.06), s.pick(colour, "black"))
        s.box((0, -d * 0.3, 0.062), (w * 0.85, d * 0.4, 0.008), "grey")
        for i in range(groups):
            x = (i - (groups - 1) / 2) * w * 0.45
            s.rod((x, -d * 0.25, h * 0.7), (x, -d * 0.25, h * 0.56), 0.035, "steel")
            s.rod(
                (x, -d * 0.28, h * 0.58), (x + s.u(-0.03, 0.03), -d * 0.28 - 0.15, h * 0.55), 0.012, "black"
            )
            s.rod((x, -d * 0.25, h * 0.56), (x, -d * 0.25, h * 0.5), 0.01, "steel")
        s.tube([(w * 0.42, -d * 0.4, h * 0.7), (w * 0.45, -d * 0.55, h * 0.25)], 0.006, "steel")
        for i in range(3):
            s.rod(
                ((i - 1) * w * 0.2, -d / 2, h * 0.88),
                ((i - 1) * w * 0.2, -d / 2 - 0.02, h * 0.88),
                0.015,
                "grey",
            )
        if s.chance(0.5):
            for x in (-w * 0.25, 0, w * 0.25):
                hollow(s, [(0, 0), (0.025, 0), (0.035, 0.05)], (x, d * 0.15, h), "white")
        return f"{plural(groups, 'portafilter')} and a drip tray"
    w *= 0.75
    s.lathe([(0, 0), (w / 2, 0), (w / 2, 0.03), (0, 0.03)], (0, -d * 0.25, 0), "black")
    s.box((0, d * 0.2, h * 0.4), (w * 0.7, d * 0.5, h * 0.8), colour)
    s.rod((0, d * 0.4, h * 0.8), (0, -d * 0.45, h * 0.72), w * 0.45, colour, top=w * 0.35)
    s.rod((0, -d * 0.3, h * 0.65), (0, -d * 0.3, h * 0.5), 0.02, "steel")
    s.box((0, -d * 0.1, h * 0.95), (w * 0.5, d * 0.6, 0.02), "steel", lean=-s.u(0, 0.4))
    s.rod((0, d * 0.5, 0.02), (0, d * 0.5, h * 0.85), w * 0.4, (0.75, 0.86, 0.92))
    if s.chance(0.6):
        hollow(s, [(0, 0), (0.025, 0), (0.033, 0.06)], (0, -d * 0.25, 0.035), "white")
    return "a lever, a spout and a water tank"


def fume_hood(s: Scene, colour: str) -> str:
    """A kitchen hood: a pyramid with a chimney, a T-shape, or a flat box under a cabinet."""
    colour, kind = (
        s.colour("steel", "steel", "white", "black", "grey"),
        s.pick("pyramid", "T", "flat", "round"),
    )
    w, d, buttons = s.u(0.55, 1.0), s.u(0.45, 0.55), int(s.rng.integers(3, 6))
    lip, tall, cw, cd = s.u(0.03, 0.09), s.u(0.3, 0.8), s.u(0.2, 0.32), s.u(0.18, 0.3)
    z = lip
    if kind == "flat":
        lip = s.u(0.1, 0.2)
        s.box((0, 0, lip / 2), (w, d, lip), colour)
        s.box((0, -d / 2 - 0.03, lip * 0.25), (w, 0.06, lip * 0.5), colour)
        for i in range(6):
            s.box(((i - 2.5) * w * 0.1, -d / 2 - 0.002, lip * 0.75), (w * 0.08, 0.006, lip * 0.12), "black")
    elif kind == "round":
        s.lathe(
            [(w * 0.48, 0), (w / 2, 0), (w * 0.45, lip * 2), (cw / 2, lip * 4)], (0, 0, 0), colour, (1, d / w)
        )
        z = lip * 4
    else:
        s.box((0, 0, lip / 2), (w, d, lip), colour)
        z = lip + (s.u(0.12, 0.35) if kind == "pyramid" else 0)
        y, frames = d / 2 - cd / 2, []
        for a, b, y0, z0 in ((w, d, 0, lip), (cw, cd, y, z)):
            frames.append(
                np.array([(i * a / 2, y0 + j * b / 2, z0) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
            )
        low, high = frames
        for i in range(4) if kind == "pyramid" else ():
            j = (i + 1) % 4
            s.add(np.array([[low[i], low[j], high[j]], [low[i], high[j], high[i]]]), colour)
    if kind != "flat":
        y = 0 if kind == "round" else d / 2 - cd / 2
        if s.chance(0.25):
            s.rod((0, y, z), (0, y, z + tall), min(cw, cd) / 2, colour)
        else:
            s.box((0, y, z + tall / 2), (cw, cd, tall), colour)
            s.box((0, y, z + tall * 0.75), (cw * 0.96, cd * 0.96, tall * 0.6), colour)
    for x in (-w / 4, w / 4):
        s.box((x, 0, -0.002), (w * 0.4, d * 0.7, 0.006), "grey")
    at = -d / 2 - (0.062 if kind == "flat" else 0.003)
    for i in range(buttons):
        s.box(
            ((i - buttons / 2) * 0.04, at, lip * (0.25 if kind == "flat" else 0.5)),
            (0.02, 0.012, 0.015),
            "black",
        )
    shape = {"pyramid": "a sloping hood", "T": "a flat hood", "round": "a round hood", "flat": "slots"}[kind]
    return f"{shape}{' and ' if kind == 'flat' else ', a chimney and '}{plural(buttons, 'button')}"


def tray(s: Scene, colour: str) -> str:
    """A flat board with a raised rim: rectangular, oval or curved; with or without handles."""
    colour = s.pick(colour, s.colour(*WOOD), s.colour(*METAL))
    w, d, h = s.u(0.3, 0.55), s.u(0.2, 0.38), s.u(0.015, 0.06)
    kind, handles = s.pick("rectangular", "oval", "curved"), s.pick("two handles", "no handles")
    if kind == "oval":
        flare = s.u(0.85, 0.98)
        d = s.pick(d, w)
        outline = [
            (0, 0),
            (flare, 0),
            (1, h),
            (1.05, h + 0.003),
            (0.97, h),
            (flare * 0.97, 0.006),
            (0, 0.006),
        ]
        s.lathe(outline, (0, 0, 0), colour, (w / 2, d / 2), 28)
    elif kind == "rectangular":
        out = s.u(0, 0.6)
        s.box((0, 0, 0.003), (w, d, 0.006), s.pick(colour, s.colour()))
        for k in (-1, 1):
            s.box((0, k * (d / 2 + h / 2 * np.sin(out)), h / 2), (w, 0.008, h), colour, lean=-k * out)
            s.box((k * w / 2, 0, h / 2), (0.008, d + h * np.sin(out), h), colour)
    else:
        n, bend = 12, s.u(0.02, 0.06)
        xs = np.linspace(-1, 1, n + 1)
        for x1, x2 in pairwise(xs):
            z1, z2 = bend * abs(x1) ** 3, bend * abs(x2) ** 3
            a, b = (
                np.array([[x * w / 2, -d / 2, q], [x * w / 2, d / 2, q]]) for x, q in ((x1, z1), (x2, z2))
            )
            s.add(np.array([[a[0], b[0], b[1]], [a[0], b[1], a[1]]]), colour)
            for y in (-d / 2, d / 2):
                s.rod((x1 * w / 2, y, z1), (x2 * w / 2, y, z2), 0.006, colour)
        h = bend
    x = w / 2
    for k in (-1, 1) if handles == "two handles" else ():
        grip, out, up = min(0.06, d * 0.3), s.pick(0.0, 0.03), s.u(0.015, 0.04)
        points = [(-grip, 0, 0), (-grip, out, up), (grip, out, up), (grip, 0, 0)]
        s.tube([(k * (x + o), y, h + q) for y, o, q in points], 0.006, s.pick(colour, "steel"))
    details = {"rectangular": "four raised sides", "oval": "a round rim", "curved": "a curved board"}[kind]
    return f"{details} and {handles}"


def water_heater(s: Scene, colour: str) -> str:
    """An upright or lying cylinder with pipes and a dial, or a boxy gas heater."""
    colour, copper = (
        s.colour("white", "white", "beige", "grey", "steel"),
        s.colour("orange", "steel", "brown"),
    )
    kind, pipes = s.pick("tank", "tank", "wall", "box"), int(s.rng.integers(2, 5))
    if kind == "box":
        w, d, h = s.u(0.3, 0.5), s.u(0.18, 0.4), s.u(0.55, 0.9)
        s.box((0, 0, h / 2), (w, d, h), colour)
        s.box((0, -d / 2 - 0.01, h * 0.55), (w * 0.94, 0.02, h * 0.8), colour)
        s.box((0, -d / 2 - 0.012, h * 0.08), (w * 0.6, 0.02, h * 0.08), "black")
        if s.chance(0.7):
            s.rod((0, d * 0.1, h), (0, d * 0.1, h + s.u(0.1, 0.4)), s.u(0.05, 0.07), "steel")
        y, top, front = 0.0, 0.0, -d / 2
    else:
        w, h = s.u(0.36, 0.6), s.u(0.7, 1.6) if kind == "tank" else s.u(0.6, 1.0)
        r, dome = w / 2, s.u(0.02, 0.12)
        low = 0.08 if kind == "tank" and s.chance(0.5) else 0.0
        outline = [
            (0, low),
            (r * 0.9, low),
            (r, low + 0.04),
            (r, h),
            (r * 0.7, h + dome * 0.7),
            (0, h + dome),
        ]
        s.lathe(outline, (0, 0, 0), colour)
        for z in (0.33, 0.66) if s.chance(0.4) else ():
            s.lathe([(r * 1.01, z * h), (r * 1.01, z * h + 0.02)], (0, 0, 0), "grey")
        s.legs(w * 0.65, w * 0.65, low, 0.04, "black") if low else None
        if kind == "wall":
            s.box((0, r, h * 0.5), (w * 0.6, 0.05, h * 0.6), "grey")
        s.box((0, -r, h * 0.18), (0.14, 0.05, s.u(0.12, 0.22)), s.pick("black", "grey", colour))
        y, top, front = 0.0, h + dome * 0.5 if kind == "tank" else 0.0, -r - 0.02
    reach = s.u(0.1, 0.35) * (1 if top else -1)
    for i in range(pipes):
        x = (i + 0.5 - pipes / 2) * w * 0.7 / pipes
        s.rod((x, y, top), (x, y, top + reach), 0.014, copper)
        s.ball((x, y, top + reach * 0.5), 0.02, s.pick("red", "blue", "grey"))
    s.rod(
        (0, front, h * 0.18), (0, front - 0.03, h * 0.18), s.u(0.03, 0.045), s.colour("black", "red", "grey")
    )
    body = {"tank": "an upright tank", "wall": "a wall-hung tank", "box": "a boxy case"}[kind]
    return f"{body}, a dial and {plural(pipes, 'pipe')}"
