"""Parametric furniture: each function adds the parts of one object and returns its details in words."""

from __future__ import annotations

import numpy as np

from tfds_builders.primitives.parts import Scene

COUNT = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
WOOD = ("wooden", "oak", "brown", "white", "black", "beige", "grey")
METAL = ("steel", "black", "grey", "white")


def plural(count: int, noun: str) -> str:
    """ "two drawers", "one drawer"."""
    return f"{COUNT[count]} {noun}{'s' if count > 1 else ''}"


def chair(s: Scene, colour: str, arms: float = 0.35, wide: bool = False) -> str:
    """A chair: legs, pedestal, sled or block; slatted, solid or curved back; with or without arms."""
    w, d = (s.u(0.55, 0.85), s.u(0.5, 0.8)) if wide else (s.u(0.36, 0.56), s.u(0.36, 0.55))
    seat, back, thick = s.u(0.38, 0.5), s.u(0.3, 0.75), s.u(0.02, 0.14 if not wide else 0.22)
    metal, lean = s.colour(*METAL, *WOOD), s.u(-0.05, 0.3)
    base = s.pick(
        "four legs",
        "four legs",
        "four legs",
        "a star base",
        "a sled base",
        "a solid base",
        "a cantilever frame",
    )
    if base == "four legs":
        s.legs(w, d, seat, s.u(0.02, 0.06), metal, s.pick(0.0, 0.0, s.u(0.05, 0.25)))
        if s.chance(0.3):
            s.box((0, 0, seat * 0.4), (w * 0.9, d * 0.9, 0.02), metal) if s.chance(0.2) else [
                s.rod((x, -d / 2.2, seat * 0.4), (x, d / 2.2, seat * 0.4), 0.01, metal)
                for x in (-w / 2.3, w / 2.3)
            ]
    elif base == "a star base":
        s.rod((0, 0, 0.08), (0, 0, seat), 0.03, metal)
        for a in np.linspace(0, 2 * np.pi, 6)[:5]:
            end = (w * 0.6 * np.cos(a), w * 0.6 * np.sin(a), 0.05)
            s.rod((0, 0, 0.1), end, 0.02, metal)
            s.ball(end, 0.035, "black")
    elif base == "a solid base":
        s.box((0, 0, seat / 2), (w * 0.95, d * 0.95, seat), colour)
    else:
        for x in (-w / 2, w / 2):
            s.rod((x, -d / 2, 0.015), (x, d / 2, 0.015), 0.015, metal)
            s.rod((x, -d / 2, 0.015), (x, -d / 2, seat), 0.015, metal)
            if base == "a sled base":
                s.rod((x, d / 2, 0.015), (x, d / 2, seat), 0.015, metal)
    if s.chance(0.2):
        s.lathe(
            [(0, -thick / 2), (w / 2, -thick / 2), (w / 2, thick / 2), (0, thick / 2)], (0, 0, seat), colour
        )
    else:
        s.box((0, 0, seat), (w, d, thick), colour)
    style = s.pick(
        "a solid back", "a solid back", "a slatted back", "a ladder back", "a curved back", "an open back"
    )
    rise = seat + back / 2 + thick / 2
    shift = d / 2 - 0.02 + np.sin(lean) * back / 2
    if style == "a solid back":
        s.box((0, shift, rise), (w, s.u(0.02, 0.12), back), colour, lean=-lean)
    elif style == "a curved back":
        for a in np.linspace(-0.9, 0.9, 7):
            s.box((w / 2 * np.sin(a), d / 2 * np.cos(a), rise), (w * 0.18, 0.03, back), colour, turn=-a)
    else:
        for x in (-w / 2 + 0.02, w / 2 - 0.02):
            s.rod((x, d / 2, seat), (x, d / 2 + np.sin(lean) * back, seat + back), 0.018, metal)
        bars = 2 if style == "an open back" else int(s.rng.integers(3, 7))
        for t in np.linspace(0.25, 1, bars):
            y, z = d / 2 + np.sin(lean) * back * t, seat + back * t
            if style == "a slatted back":
                x = (t - 0.625) * w
                s.box((x, shift, rise), (0.03, 0.02, back), metal, lean=-lean)
            else:
                s.box((0, y, z - 0.03), (w, 0.02, s.u(0.03, 0.08)), colour)
    with_arms = s.chance(arms)
    if with_arms:
        rest = seat + s.u(0.15, 0.28)
        for x in (-w / 2, w / 2):
            if wide or s.chance(0.3):
                s.box((x, 0, (seat + rest) / 2), (s.u(0.05, 0.2), d, rest - seat + thick), colour)
            else:
                s.box((x, 0, rest), (0.05, d * 0.9, 0.03), metal)
                s.rod((x, -d / 3, seat), (x, -d / 3, rest), 0.015, metal)
    return f"{style}, {base}" + (" and armrests" if with_arms else "")


def armchair(s: Scene, colour: str) -> str:
    """A wide upholstered chair with arms."""
    return chair(s, colour, 1.0, True) if s.chance(0.4) else _upholstered(s, colour, 1)


def sofa(s: Scene, colour: str) -> str:
    """A sofa of two to four seats, or L-shaped."""
    return _upholstered(s, colour, int(s.rng.integers(2, 5)))


def _upholstered(s: Scene, colour: str, seats: int) -> str:
    each, d, seat = s.u(0.5, 0.75), s.u(0.7, 1.0), s.u(0.32, 0.48)
    w, arm, back = seats * each, s.u(0.08, 0.28), s.u(0.3, 0.6)
    foot = s.u(0.0, 0.15)
    s.box((0, 0, (seat - 0.12 + foot) / 2), (w + 2 * arm, d, seat - 0.12 - foot), colour)
    if foot > 0.03:
        s.legs(w + 2 * arm - 0.1, d - 0.1, foot, 0.05, s.colour(*WOOD))
    lean = s.u(0, 0.25)
    thick = s.u(0.12, 0.25)
    s.box(
        (0, d / 2 - thick / 2, seat / 2 + back / 2),
        (w + 2 * arm, thick, seat + back),
        colour,
        lean=-lean * 0.3,
    )
    loose = s.chance(0.75)
    for i in range(seats):
        x = (i - (seats - 1) / 2) * each
        s.box((x, -thick / 2, seat - 0.04), (each * 0.97, d - thick, 0.16), colour)
        if loose:
            s.box(
                (x, d / 2 - thick - 0.06, seat + back * 0.45),
                (each * 0.93, 0.14, back * 0.8),
                colour,
                lean=-lean,
            )
    side = s.chance(0.9)
    if side:
        height = seat + s.u(0.1, 0.3)
        for x in (-w / 2 - arm / 2, w / 2 + arm / 2):
            s.box((x, 0, (height + foot) / 2), (arm, d, height - foot), colour)
            if s.chance(0.3):
                s.rod((x, -d / 2, height), (x, d / 2, height), arm * 0.6, colour)
    corner = seats > 2 and s.chance(0.35)
    if corner:
        side_x = s.pick(-1, 1) * (w / 2 - each / 2)
        s.box((side_x, -d / 2 - 0.4, seat / 2), (each, 0.8, seat), colour)
    for _ in range(int(s.rng.integers(0, 4))):
        s.box(
            (s.u(-w / 2.5, w / 2.5), 0.0, seat + 0.2),
            (0.4, 0.12, 0.36),
            s.colour(),
            turn=s.u(-0.4, 0.4),
            lean=-0.4,
        )
    shape = ", L-shaped" if corner else ""
    return f"{plural(seats, 'seat')}{shape}" + (" and thick arms" if side else "")


def table(s: Scene, colour: str, low: bool = False) -> str:
    """A table with a rectangular, round or oval top on legs, trestles, a pedestal or panels."""
    h = s.u(0.25, 0.5) if low else s.u(0.65, 0.9)
    w, d, thick = s.u(0.8, 2.2), s.u(0.6, 1.1), s.u(0.015, 0.08)
    if low:
        w = s.u(0.6, 1.3)
    top = s.pick("rectangular", "rectangular", "rectangular", "round", "oval")
    if top == "round":
        w = d
    leg = s.colour(*METAL, *WOOD)
    if top == "rectangular":
        s.box((0, 0, h), (w, d, thick), colour)
    else:
        s.lathe([(0, -thick), (0.5, -thick), (0.5, 0), (0, 0)], (0, 0, h), colour, (w, d), 28)
    inner = 0.68 if top != "rectangular" else s.u(0.8, 1.0)
    base = s.pick("four legs", "four legs", "four legs", "a pedestal", "trestles", "side panels")
    if base == "four legs":
        s.legs(w * inner, d * inner, h, s.u(0.03, 0.1), leg, s.pick(0.0, 0.0, s.u(0.05, 0.25)))
        if s.chance(0.4):
            for y in (-1, 1):
                s.box((0, y * d * inner / 2.2, h - 0.07), (w * inner * 0.9, 0.02, 0.08), leg)
        if s.chance(0.2):
            s.box((0, 0, h * 0.3), (w * inner * 0.9, d * inner * 0.9, 0.02), colour)
    elif base == "a pedestal":
        r = s.u(0.03, 0.12)
        s.lathe([(0, 0), (d * 0.35, 0), (d * 0.3, 0.04), (r, 0.1), (r, h)], (0, 0, 0), leg)
    elif base == "trestles":
        for x in (-w * 0.35, w * 0.35):
            for y in (-1, 1):
                s.rod((x, y * d * 0.35, 0), (x, -y * d * 0.25, h), 0.025, leg)
        s.rod((-w * 0.35, 0, h / 2), (w * 0.35, 0, h / 2), 0.02, leg)
    else:
        for x in (-1, 1):
            s.box((x * w * 0.42 * inner, 0, h / 2), (s.u(0.02, 0.08), d * 0.75 * inner, h), colour)
    return f"a {top} top on {base}"


def coffee_table(s: Scene, colour: str) -> str:
    """A low table."""
    return table(s, colour, low=True)


def desk(s: Scene, colour: str) -> str:
    """A desk with drawer pedestals, a modesty panel, a hutch or an L-shaped side."""
    w, d, h = s.u(1.0, 1.9), s.u(0.5, 0.9), s.u(0.68, 0.8)
    s.box((0, 0, h), (w, d, s.u(0.02, 0.06)), colour)
    sides = s.pick((1,), (-1,), (-1, 1), ())
    pedestal = s.u(0.3, 0.5)
    drawers = int(s.rng.integers(2, 5))
    for side in sides:
        x = side * (w / 2 - pedestal / 2)
        s.box((x, 0.02, h / 2), (pedestal, d * 0.92, h), colour)
        for j in range(drawers):
            z = (j + 0.5) * h / drawers
            s.box((x, -d * 0.46, z), (pedestal * 0.9, 0.03, h / drawers * 0.86), colour)
            s.box((x, -d * 0.49, z), (0.12, 0.02, 0.015), "steel")
    for side in {-1, 1} - set(sides):
        if s.chance(0.5):
            s.box((side * (w / 2 - 0.03), 0, h / 2), (0.04, d * 0.9, h), colour)
        else:
            for y in (-1, 1):
                s.box((side * (w / 2 - 0.04), y * d * 0.42, h / 2), (0.05, 0.05, h), colour)
    if s.chance(0.6):
        s.box((0, d * 0.4, h * 0.62), (w * 0.95, 0.02, h * s.u(0.4, 0.75)), colour)
    extra = ""
    if s.chance(0.25):
        up = s.u(0.3, 0.7)
        for x in (-w / 2 + 0.02, 0, w / 2 - 0.02):
            s.box((x, d * 0.32, h + up / 2), (0.03, d * 0.3, up), colour)
        s.box((0, d * 0.32, h + up), (w, d * 0.3, 0.03), colour)
        extra = " and a hutch"
    elif s.chance(0.2):
        s.box((s.pick(-1, 1) * (w / 2 - 0.25), -d / 2 - 0.4, h), (0.5, 0.9, 0.04), colour)
        extra = " and a side wing"
    return (
        f"{plural(drawers * len(sides), 'drawer')}" if sides and drawers * len(sides) < 10 else "a plain top"
    ) + extra


def _body(s: Scene, size, foot: float, colour: str) -> None:
    """A case standing on feet or a plinth."""
    w, d, h = size
    s.box((0, 0, foot + h / 2), (w, d, h), colour)
    if s.chance(0.5):
        s.box((0, 0, foot + h), (w * 1.05, d * 1.06, 0.03), colour)
    if foot > 0.02:
        s.legs(w * 0.95, d * 0.95, foot, s.u(0.03, 0.07), s.colour(*WOOD, *METAL))


def dresser(s: Scene, colour: str) -> str:
    """A chest of drawers, sometimes with a mirror."""
    w, d, h, foot = s.u(0.7, 1.7), s.u(0.38, 0.6), s.u(0.6, 1.3), s.u(0.0, 0.2)
    rows, columns = int(s.rng.integers(3, 7)), int(s.rng.integers(1, 4))
    if h < 0.75:
        rows = 3
    _body(s, (w, d, h), foot, colour)
    s.front_grid((w, d, h), foot, rows, columns, colour, s.pick("steel", "black", None), s.chance(0.4))
    mirror = s.chance(0.25)
    if mirror:
        up = s.u(0.5, 0.9)
        s.box((0, d / 2 - 0.03, foot + h + up / 2), (w * s.u(0.5, 0.9), 0.03, up), "steel")
    return f"{plural(rows, 'row')} of drawers" + (" and a mirror" if mirror else "")


def nightstand(s: Scene, colour: str) -> str:
    """A small bedside case with drawers or an open shelf."""
    w, d, h, foot = s.u(0.35, 0.6), s.u(0.33, 0.5), s.u(0.3, 0.6), s.u(0.0, 0.28)
    drawers = int(s.rng.integers(1, 4))
    if s.chance(0.45):
        for x in (-1, 1):
            s.box((x * w / 2, 0, foot + h / 2), (0.025, d, h), colour)
        s.box((0, d / 2, foot + h / 2), (w, 0.02, h), colour)
        for z in (0, h * 0.55, h):
            s.box((0, 0, foot + z), (w * 1.03, d, 0.025), colour)
        s.box((0, -d / 2, foot + h * 0.78), (w * 0.95, 0.02, h * 0.4), colour)
        s.ball((0, -d / 2 - 0.02, foot + h * 0.78), 0.015, "steel")
        s.legs(w, d, foot, 0.04, colour)
        return "one drawer and an open shelf"
    _body(s, (w, d, h), foot, colour)
    s.front_grid((w, d, h), foot, drawers, 1, colour, s.pick("steel", "black"), s.chance(0.5))
    return plural(drawers, "drawer")


def bed(s: Scene, colour: str, base: float = 0.0, mattress: bool = True) -> str:
    """A bed with headboard, footboard or posts, mattress and pillows."""
    w, length, h = s.u(0.85, 1.9), s.u(1.8, 2.2), s.u(0.18, 0.5)
    foot = s.u(0.0, h * 0.6)
    s.box((0, 0, base + (h + foot) / 2), (w, length, h - foot), colour)
    s.legs(w, length, base + foot, 0.07, colour) if base + foot > 0.04 else None
    if mattress:
        s.box(
            (0, 0, base + h + 0.08),
            (w * 0.95, length * 0.97, s.u(0.12, 0.28)),
            s.colour("white", "beige", "grey", "blue"),
        )
    if s.chance(0.6):
        s.box((0, -length * 0.12, base + h + 0.17), (w * 1.0, length * 0.72, 0.06), s.colour())
    head, style = (
        s.u(0.35, 0.9),
        s.pick("a solid headboard", "a barred headboard", "a solid headboard", "no headboard"),
    )
    y = length / 2
    if style == "a solid headboard":
        s.box((0, y, base + (h + head) / 2), (w * s.u(1, 1.15), s.u(0.03, 0.12), h + head), colour)
    elif style == "a barred headboard":
        bars = int(s.rng.integers(4, 10))
        for i in range(bars):
            s.rod(
                (-w / 2 + i * w / (bars - 1), y, base),
                (-w / 2 + i * w / (bars - 1), y, base + h + head),
                0.015,
                colour,
            )
        s.rod((-w / 2, y, base + h + head), (w / 2, y, base + h + head), 0.02, colour)
    if s.chance(0.4):
        s.box((0, -y, base + (h + head * 0.4) / 2), (w, 0.05, h + head * 0.4), colour)
    if s.chance(0.12) and base == 0:
        for x in (-1, 1):
            for side in (-1, 1):
                s.rod((x * w / 2, side * y, 0), (x * w / 2, side * y, 1.9), 0.04, colour)
    pillows = 2 if w > 1.3 else 1
    for i in range(pillows):
        x = 0 if pillows == 1 else (i - 0.5) * w * 0.48
        s.ball((x, y - 0.3, base + h + 0.24), (w / pillows * 0.4, 0.22, 0.09), "white")
    return f"{style} and {plural(pillows, 'pillow')}"


def bunk_bed(s: Scene, colour: str) -> str:
    """Two beds above each other with a ladder."""
    bed(s, colour)
    up, w = s.u(1.0, 1.4), 0.95
    bed(s, colour, up)
    for z in (0.3, 0.6, 0.9):
        s.rod((w / 2 - 0.15, -1.05, z), (w / 2 + 0.2, -1.05, z), 0.02, colour)
    return "two beds and a ladder"


def stool(s: Scene, colour: str) -> str:
    """A seat without a back, low or bar height."""
    h, r = s.u(0.35, 0.8), s.u(0.14, 0.22)
    leg = s.colour(*METAL, *WOOD)
    s.lathe([(0, -0.05), (r, -0.05), (r * 1.02, 0), (r, s.u(0.01, 0.06)), (0, 0.03)], (0, 0, h), colour)
    if s.chance(0.35):
        s.lathe([(0, 0), (r * 1.1, 0), (r, 0.03), (0.03, 0.05), (0.025, h)], (0, 0, 0), leg)
        return "a round seat on a pedestal"
    s.legs(r * 1.7, r * 1.7, h, 0.035, leg, s.u(0, 0.3))
    if s.chance(0.5):
        s.lathe([(r * 0.95, 0), (r, 0), (r, 0.02), (r * 0.95, 0.02)], (0, 0, h * 0.35), leg)
    return "a round seat on four legs"


def bench(s: Scene, colour: str) -> str:
    """A long seat, with or without a back."""
    w, d, h = s.u(1.0, 2.0), s.u(0.3, 0.5), s.u(0.38, 0.48)
    slats = int(s.rng.integers(1, 5))
    for i in range(slats):
        s.box((0, (i + 0.5) * d / slats - d / 2, h), (w, d / slats * 0.85, 0.04), colour)
    s.legs(w * s.u(0.75, 1), d, h, s.u(0.04, 0.1), s.colour(*METAL, *WOOD))
    back = s.chance(0.55)
    if back:
        for i in range(max(slats - 1, 1)):
            s.box((0, d / 2 + 0.03, h + 0.15 + i * 0.13), (w, 0.03, 0.1), colour, lean=-0.15)
        for x in (-w / 2.3, w / 2.3):
            s.rod((x, d / 2, h), (x, d / 2 + 0.06, h + 0.45), 0.02, colour)
    return "a back" if back else "no back"


def bookcase(s: Scene, colour: str) -> str:
    """Open shelves, empty or with books."""
    w, d, h, n = s.u(0.5, 1.6), s.u(0.22, 0.42), s.u(0.8, 2.3), int(s.rng.integers(3, 8))
    for x in (-w / 2, w / 2, *([0] if s.chance(0.25) else [])):
        s.box((x, 0, h / 2), (0.03, d, h), colour)
    for i in range(n + 1):
        s.box((0, 0, i * h / n + 0.01), (w, d, 0.025), colour)
    if s.chance(0.6):
        s.box((0, d / 2, h / 2), (w, 0.015, h), colour)
    if s.chance(0.5):
        for i in range(n):
            x = -w / 2 + 0.05
            while x < w / 2 - 0.1 and s.chance(0.9):
                t, tall = s.u(0.02, 0.06), h / n * s.u(0.5, 0.85)
                s.box((x + t / 2, 0, i * h / n + 0.02 + tall / 2), (t, d * 0.7, tall), s.colour())
                x += t
    return plural(n, "shelf").replace("shelfs", "shelves")


def wardrobe(s: Scene, colour: str) -> str:
    """A tall closet with doors."""
    w, d, h, doors = s.u(0.7, 2.2), s.u(0.5, 0.7), s.u(1.7, 2.4), int(s.rng.integers(2, 5))
    _body(s, (w, d, h), s.u(0, 0.12), colour)
    s.front_grid((w, d, h), 0.05, 1, doors, s.pick(colour, "white", "steel"), "steel")
    return plural(doors, "door")


def cabinet(s: Scene, colour: str) -> str:
    """A kitchen unit or sideboard with doors and drawers."""
    w, d, h, foot = s.u(0.4, 1.8), s.u(0.32, 0.62), s.u(0.4, 1.0), s.u(0, 0.15)
    doors = int(s.rng.integers(1, 4))
    _body(s, (w, d, h), foot, colour)
    if s.chance(0.4):
        s.front_grid((w, d, h * 0.28), foot + h * 0.72, 1, doors, colour, "steel")
        s.front_grid((w, d, h * 0.7), foot, 1, doors, colour, "steel")
    else:
        s.front_grid((w, d, h), foot, 1, doors, colour, "steel", s.chance(0.5))
    return plural(doors, "door")
