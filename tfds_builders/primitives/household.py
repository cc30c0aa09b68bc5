"""Parametric household things: each function adds the parts of one object and returns its details."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tfds_builders.primitives.furniture import METAL, WOOD, plural
from tfds_builders.primitives.parts import COLOURS, Scene

CLEAR = ((0.9, 0.92, 0.93), (0.75, 0.86, 0.92), (0.78, 0.9, 0.82))  # white, light blue, light green


def hollow(s: Scene, profile, at, colour: str, squash=(1, 1), wall: float = 0.9) -> None:
    """A vessel: the outer profile and, a little inside, its inner wall."""
    inner = [(r * wall, z * 0.97 + 0.03 * profile[-1][1]) for r, z in reversed(profile[1:])]
    s.lathe([*profile, *inner, (0, profile[0][1] + 0.03 * profile[-1][1])], at, colour, squash)


def toilet(s: Scene, colour: str) -> str:
    """A bowl with seat, lid and tank, on a foot or hung on the wall."""
    colour = s.colour("white", "white", "white", "beige", "grey")
    w, length, h = s.u(0.34, 0.42), s.u(0.45, 0.56), s.u(0.36, 0.44)
    foot = s.u(0.45, 0.8)
    squash, at = (w / 2, length / 2), (0, -0.08, 0)
    hung = s.chance(0.15)
    low = 0.16 if hung else 0.0
    outline = [(0, low), (foot, low), (foot * 0.85, low + h * 0.3), (0.95, h * 0.85), (1, h)]
    s.lathe([*outline, (0.75, h), (0.6, h * 0.7), (0, h * 0.5)], at, colour, squash)
    s.lathe([(0.68, h), (1.05, h), (1.05, h + 0.025), (0.68, h + 0.025)], at, colour, squash)
    lid = s.pick("closed lid", "raised lid", "raised lid")
    if lid == "closed lid":
        s.lathe([(0, h + 0.03), (1.05, h + 0.03), (1.05, h + 0.05), (0, h + 0.06)], at, colour, squash)
    else:
        s.box((0, length / 2 - 0.1, h + length * 0.42), (w * 0.95, 0.025, length * 0.85), colour, lean=-0.15)
    tank = not hung and s.chance(0.85)
    if tank:
        tall, depth = s.u(0.28, 0.42), s.u(0.15, 0.22)
        s.box((0, length / 2 + depth / 2 - 0.08, h + tall / 2), (s.u(0.36, 0.5), depth, tall), colour)
        s.box((0, length / 2 - 0.05, h * 0.75), (w * 0.6, 0.2, h * 0.5), colour)
        s.box((0, length / 2 + depth / 2 - 0.08, h + tall + 0.015), (0.47, depth * 1.1, 0.03), colour)
    return f"a {lid}" + (" and a tank" if tank else "")


def bathtub(s: Scene, colour: str) -> str:
    """A hollow tub, rectangular or oval, on feet, a panel or the floor."""
    colour = s.colour("white", "white", "white", "beige", "grey", "blue")
    w, length, h = s.u(0.65, 0.95), s.u(1.35, 1.9), s.u(0.4, 0.65)
    oval = s.chance(0.5)
    if oval:
        flare = s.u(0.6, 0.92)
        profile = [(0, 0.04), (flare, 0.05), (0.9, h * 0.6), (1, h), (1.06, h + 0.02), (0.95, h + 0.02)]
        inner = [(0.85, h * 0.6), (flare * 0.85, 0.12), (0, 0.1)]
        s.lathe([*profile, *inner], (0, 0, 0), colour, (w / 2, length / 2), 28)
    else:
        rim = s.u(0.04, 0.1)
        s.box((0, 0, 0.08), (w, length, 0.05), colour)
        for x in (-1, 1):
            s.box((x * w / 2, 0, h / 2), (0.03, length, h), colour)
            s.box((x * (w / 2 - rim), 0, h / 2), (0.02, length - 2 * rim, h - 0.1), colour, lean=0)
            s.box((x * (w / 2 - rim / 2), 0, h), (rim, length, 0.02), colour)
            s.box((0, x * length / 2, h / 2), (w, 0.03, h), colour)
            s.box(
                (0, x * (length / 2 - rim), h / 2 + 0.03),
                (w - 2 * rim, 0.02, h - 0.1),
                colour,
                lean=-x * s.u(0, 0.35),
            )
            s.box((0, x * (length / 2 - rim / 2), h), (w, rim, 0.02), colour)
    feet = oval and s.chance(0.5)
    if feet:
        s.legs(w * 0.8, length * 0.7, 0.1, 0.06, "steel")
    if s.chance(0.5):
        s.rod((0, length / 2, h), (0, length / 2, h + 0.15), 0.02, "steel")
        s.rod((0, length / 2, h + 0.15), (0, length / 2 - 0.14, h + 0.13), 0.015, "steel")
    return f"{'an oval' if oval else 'a rectangular'} rim" + (" and four feet" if feet else "")


def sink(s: Scene, colour: str) -> str:
    """A basin with a tap, on a pedestal or a board."""
    colour = s.colour("white", "white", "steel", "beige")
    w, d, h = s.u(0.4, 0.7), s.u(0.35, 0.5), s.u(0.12, 0.2)
    base = s.pick("a pedestal", "a board", "nothing")
    z = 0.7 if base == "a pedestal" else 0.1
    if s.chance(0.5):
        hollow(s, [(0, 0), (0.6, 0), (0.95, h * 0.7), (1, h)], (0, 0, z), colour, (w / 2, d / 2))
    else:
        for x in (-1, 1):
            s.box((x * w / 2, 0, z + h / 2), (0.05, d, h), colour)
            s.box((0, x * d / 2, z + h / 2), (w, 0.05, h), colour)
        s.box((0, 0, z + 0.02), (w, d, 0.03), colour)
    if base == "a pedestal":
        s.lathe([(0, 0), (0.15, 0), (0.09, 0.15), (0.09, z)], (0, 0.05, 0), colour)
    elif base == "a board":
        s.box((0, 0, z - 0.02), (w * 1.5, d * 1.2, 0.04), s.colour(*WOOD))
    faucet(s, "steel", (0, d / 2 - 0.02, z + h))
    return f"a tap on {base}" if base != "nothing" else "a tap"


def faucet(s: Scene, colour: str, at=(0, 0, 0)) -> str:
    """A tap with a bent spout."""
    x, y, z = at
    tall, reach = s.u(0.08, 0.3), s.u(0.1, 0.2)
    s.rod((x, y, z), (x, y, z + tall), 0.02, colour)
    s.rod((x, y, z + tall), (x, y - reach, z + tall + s.u(-0.02, 0.06)), 0.015, colour)
    s.rod((x, y - reach, z + tall + 0.02), (x, y - reach, z + tall - 0.04), 0.014, colour)
    handles = s.pick(1, 2)
    for i in range(handles):
        side = (i - (handles - 1) / 2) * 0.16
        s.rod((x + side, y, z), (x + side, y, z + 0.05), 0.018, colour)
        s.rod((x + side - 0.03, y, z + 0.06), (x + side + 0.03, y, z + 0.06), 0.01, colour)
    return plural(handles, "handle")


def bottle(s: Scene, colour: str) -> str:
    """A bottle with a neck and a cap."""
    r, h, neck = s.u(0.03, 0.05), s.u(0.15, 0.32), s.u(0.3, 0.45)
    s.lathe(
        [(0, 0), (r, 0), (r, h * (1 - neck)), (r * neck, h * 0.85), (r * neck * 0.9, h)], (0, 0, 0), colour
    )
    s.lathe([(0, h), (r * 0.4, h), (r * 0.4, h * 1.06), (0, h * 1.06)], (0, 0, 0), s.colour())
    return "a cap"


def cup(s: Scene, colour: str) -> str:
    """A cup with one handle."""
    r, h = s.u(0.03, 0.05), s.u(0.05, 0.08)
    hollow(s, [(0, 0), (r * s.u(0.5, 0.8), 0), (r, h * 0.6), (r * s.u(1, 1.2), h)], (0, 0, 0), colour)
    _handle(s, r, h, colour)
    if s.chance(0.4):
        s.lathe([(0, -0.01), (r * 1.8, 0), (r * 1.9, 0.008), (0, 0)], (0, 0, 0), colour)
        return "a handle and a saucer"
    return "a handle"


def mug(s: Scene, colour: str) -> str:
    """A straight mug with one handle."""
    r, h = s.u(0.036, 0.05), s.u(0.085, 0.12)
    hollow(s, [(0, 0), (r, 0), (r, h)], (0, 0, 0), colour)
    _handle(s, r, h, colour)
    return "a handle"


def _handle(s: Scene, r: float, h: float, colour: str) -> None:
    angles = np.linspace(-1.4, 1.4, 7)
    points = [(r + 0.35 * h * np.cos(a) - 0.05 * h, 0, h / 2 + 0.35 * h * np.sin(a)) for a in angles]
    for a, b in pairwise(points):
        s.rod(a, b, 0.07 * h, colour)


def glass(s: Scene, colour: str) -> str:
    """A tumbler, a wine glass, a cocktail glass, a flute or a beer glass; perhaps filled."""
    rgb = np.array(COLOURS[colour]) * 0.4 + 0.55 if s.chance(0.15) else s.pick(*CLEAR)
    kind, r = s.pick("tumbler", "wine", "cocktail", "flute", "beer"), s.u(0.03, 0.045)
    stem, h, ball = s.u(0.06, 0.1), s.u(0.08, 0.12), s.u(0.75, 1.0)
    bowl = {
        "tumbler": [(0, 0), (r * s.u(0.7, 1), 0), (r, h)],
        "wine": [(0, 0), (r * 0.6, h * 0.12), (r, h * 0.45), (r * ball, h)],
        "cocktail": [(0, 0), (r * 0.1, 0.002), (r * 1.5, h * 0.6)],
        "flute": [(0, 0), (r * 0.45, h * 0.2), (r * 0.65, h * 0.8), (r * 0.6, h * 1.4)],
        "beer": [(0, 0), (r * 0.8, 0), (r * 0.75, h * 0.2), (r * 1.1, h * s.u(1.0, 1.4)), (r, h * 1.7)],
    }[kind]
    stemmed = kind in ("wine", "cocktail", "flute")
    z = stem if stemmed else 0.0
    hollow(s, bowl, (0, 0, z), rgb, wall=0.93)
    if stemmed:
        foot = r * s.u(0.8, 1.1)
        outline = [
            (0, 0),
            (foot, 0),
            (foot, 0.002),
            (0.006, 0.01),
            (0.004, stem * 0.5),
            (0.006, stem),
            (0, stem),
        ]
        s.lathe(outline, (0, 0, 0), rgb)
    filled, drink = s.chance(0.3), s.colour("red", "yellow", "orange", "brown")
    if filled:
        level = s.u(0.4, 0.8)
        radii, heights = np.array(bowl).T
        top = heights[-1] * level
        steps = np.linspace(0.1, 1, 5) * top
        inside = [(np.interp(q, heights, radii) * 0.94, q) for q in steps]
        s.lathe([(0, steps[0]), *inside, (0, top)], (0, 0, z), drink)
    handle = kind == "beer" and s.chance(0.5)
    if handle:
        a, h = np.linspace(-1.5, 1.5, 7), bowl[-1][1]
        s.tube([(r * 0.85 + 0.03 * np.cos(t), 0, h * (0.5 + 0.3 * np.sin(t))) for t in a], 0.006, rgb)
    noun = {"tumbler": "straight sides", "wine": "a round bowl on a stem", "cocktail": "a cone on a stem"}
    noun |= {"flute": "a narrow bowl on a stem", "beer": "a handle" if handle else "a tall waist"}
    return noun[kind] + (f" and a {drink} drink" if filled else "")


def vase(s: Scene, colour: str) -> str:
    """A turned vase with a bulge."""
    h, r = s.u(0.2, 0.5), s.u(0.06, 0.14)
    belly, neck = s.u(0.3, 0.65), s.u(0.3, 0.8)
    hollow(
        s,
        [(0, 0), (r * 0.6, 0), (r, h * belly), (r * neck * 0.8, h * 0.85), (r * neck, h)],
        (0, 0, 0),
        colour,
    )
    return "a wide belly" if neck < 0.6 else "a wide mouth"


def bowl(s: Scene, colour: str) -> str:
    """A hollow bowl."""
    r, h = s.u(0.07, 0.15), s.u(0.04, 0.09)
    hollow(s, [(0, 0), (r * 0.45, 0), (r * 0.85, h * 0.5), (r, h)], (0, 0, 0), colour)
    return "a round rim"


def plate(s: Scene, colour: str) -> str:
    """A flat plate."""
    r = s.u(0.1, 0.16)
    hollow(s, [(0, 0), (r * 0.6, 0), (r, 0.02)], (0, 0, 0), colour)
    return "a flat rim"


def pot(s: Scene, colour: str) -> str:
    """A cooking pot with two handles."""
    r, h = s.u(0.1, 0.16), s.u(0.08, 0.2)
    hollow(s, [(0, 0), (r, 0), (r, h)], (0, 0, 0), colour, wall=0.95)
    for x in (-1, 1):
        s.box((x * (r + 0.02), 0, h * 0.8), (0.05, 0.08, 0.015), "black")
    lid = s.chance(0.5)
    if lid:
        s.lathe([(r, h), (r * 0.6, h + 0.03), (0, h + 0.04)], (0, 0, 0), colour)
        s.ball((0, 0, h + 0.06), 0.02, "black")
    return "two handles" + (" and a lid" if lid else "")


def door(s: Scene, colour: str) -> str:
    """A leaf in a frame with panels and a handle."""
    w, h, n = s.u(0.75, 1.1), s.u(1.95, 2.2), int(s.rng.integers(1, 4))
    s.box((0, 0, h / 2), (w, 0.04, h), colour)
    for x in (-w / 2 - 0.04, w / 2 + 0.04):
        s.box((x, 0, h / 2), (0.08, 0.12, h), colour)
    s.box((0, 0, h + 0.04), (w + 0.16, 0.12, 0.08), colour)
    for i in range(n):
        s.box((0, -0.025, (i + 0.5) * h / n), (w * 0.7, 0.02, h / n * 0.7), s.pick(colour, "white", "steel"))
    s.rod((w * 0.4, -0.06, 1.0), (w * 0.28, -0.06, 1.0), 0.012, "steel")
    return f"{plural(n, 'panel')} and a handle"


def window(s: Scene, colour: str) -> str:
    """A frame with panes."""
    w, h, columns, rows = s.u(0.6, 1.8), s.u(0.8, 2.0), int(s.rng.integers(1, 4)), int(s.rng.integers(1, 4))
    colour = s.colour("white", "white", "brown", "grey")
    for i in range(columns + 1):
        s.box(((i / columns - 0.5) * w, 0, h / 2), (0.06, 0.08, h), colour)
    for j in range(rows + 1):
        s.box((0, 0, j / rows * h), (w, 0.08, 0.06), colour)
    s.box((0, 0, h / 2), (w, 0.01, h), "turquoise")
    return plural(columns * rows, "pane")


def box(s: Scene, colour: str) -> str:
    """A box, closed or open."""
    w, d, h = s.u(0.2, 0.6), s.u(0.2, 0.5), s.u(0.12, 0.5)
    is_open = s.chance(0.5)
    s.box((0, 0, 0), (w, d, 0.01), colour)
    for x in (-1, 1):
        s.box((x * w / 2, 0, h / 2), (0.01, d, h), colour)
        s.box((0, x * d / 2, h / 2), (w, 0.01, h), colour)
        if is_open and s.chance(0.6):
            s.box((x * (w / 2 + 0.07), 0, h + 0.04), (0.16, d, 0.006), colour)
    if not is_open:
        s.box((0, 0, h), (w * 1.02, d * 1.02, 0.01), colour)
    return "an open top" if is_open else "a closed lid"


def trash_can(s: Scene, colour: str) -> str:
    """A round bin, sometimes with a lid."""
    r, h = s.u(0.12, 0.25), s.u(0.3, 0.8)
    hollow(s, [(0, 0), (r * s.u(0.7, 1), 0), (r, h)], (0, 0, 0), colour, wall=0.96)
    lid = s.chance(0.5)
    if lid:
        s.lathe([(r * 1.03, h), (r * 0.9, h * 1.1), (0, h * 1.18)], (0, 0, 0), s.colour())
    return "a lid" if lid else "no lid"


def ladder(s: Scene, colour: str) -> str:
    """Two rails with rungs, or a stepladder."""
    h, rungs, lean = s.u(1.0, 2.5), int(s.rng.integers(4, 10)), s.u(0.15, 0.35)
    sides = s.pick(1, 2)
    for side in range(sides):
        y = h * lean * (1 if side == 0 else -1)
        for x in (-0.2, 0.2):
            s.rod((x, -y, 0), (x, 0, h), 0.02, colour)
        for i in range(1, rungs) if side == 0 else ():
            s.box((0, -y * (1 - i / rungs), h * i / rungs), (0.4, 0.05, 0.025), colour)
    return plural(rungs - 1, "rung")


def stairs(s: Scene, colour: str) -> str:
    """A straight flight of steps."""
    steps, rise, run, w = int(s.rng.integers(4, 10)), s.u(0.15, 0.2), s.u(0.22, 0.3), s.u(0.7, 1.2)
    solid = s.chance(0.5)
    for i in range(steps):
        top = (i + 1) * rise
        s.box((0, i * run, top / 2 if solid else top), (w, run, top if solid else 0.04), colour)
    if not solid:
        for x in (-w / 2, w / 2):
            s.rod((x, 0, 0), (x, steps * run, steps * rise), 0.04, colour)
    return plural(steps, "step")


def houseplant(s: Scene, colour: str) -> str:
    """Leaves in a pot."""
    r, h, leaves = s.u(0.08, 0.2), s.u(0.12, 0.3), int(s.rng.integers(8, 40))
    hollow(s, [(0, 0), (r * 0.7, 0), (r, h)], (0, 0, 0), colour)
    tall, spread = s.u(0.2, 1.0), s.u(0.1, 0.4)
    for _ in range(leaves):
        a, t = s.u(0, 6.28), s.u(0.2, 1)
        tip = (spread * t * np.cos(a), spread * t * np.sin(a), h + tall * t * s.u(0.5, 1))
        s.rod((0, 0, h * 0.8), tip, 0.004, "green")
        s.ball(tip, (s.u(0.02, 0.09), s.u(0.02, 0.09), 0.02), "green")
    return "a pot and green leaves"


def fireplace(s: Scene, colour: str) -> str:
    """A surround with a mantel and a dark opening."""
    w, h, d = s.u(1.0, 1.6), s.u(0.9, 1.2), s.u(0.25, 0.45)
    for x in (-1, 1):
        s.box((x * w * 0.38, 0, h / 2), (w * 0.24, d, h), colour)
    s.box((0, 0, h * 0.85), (w, d, h * 0.3), colour)
    s.box((0, 0, h + 0.03), (w * 1.15, d * 1.2, 0.06), colour)
    s.box((0, d / 2, h / 2), (w * 0.6, 0.02, h), "black")
    return "a mantel"


def umbrella(s: Scene, colour: str) -> str:
    """An open canopy on a pole."""
    r, h = s.u(0.45, 1.5), s.u(0.8, 2.4)
    s.lathe([(r, h * 0.8), (r * 0.55, h * 0.95), (0, h)], (0, 0, 0), colour, sections=8)
    s.rod((0, 0, 0), (0, 0, h), 0.02, s.colour(*METAL, *WOOD))
    return "an open canopy"
