"""What stands beside the roads of Streets: houses, walls, fences, trees, lamps, signs and signals."""

import numpy as np

from data.streets.models import (
    ACROSS,
    ALONG,
    BUILDING,
    FENCE,
    LIGHT,
    POLE,
    SIGN,
    VEGETATION,
    WALL,
    Builder,
    Color,
    Model,
)


def building(rng: np.random.Generator, light, side: int, length: float, height: float, depth: float) -> Model:
    """A house front `length` along the street, its wall at x = 0 and its body on `side` (-1 left, +1 right)."""
    tone = rng.choice(
        [[172, 150, 128], [150, 86, 70], [196, 190, 178], [126, 128, 134], [204, 178, 130], [140, 150, 160]]
    )
    tone = np.clip(tone * rng.uniform(0.7, 1.1) + rng.normal(0, 8, 3), 20, 240)
    storey = rng.uniform(2.7, 3.6)
    opening = rng.uniform(0.35, 0.68)
    dark, blue = (rng.uniform(30, 80), rng.uniform(0, 30)) if rng.random() < 0.8 else (rng.uniform(150, 210), 5)
    period = length / max(1, round(length / rng.uniform(1.8, 3.6)))
    b = Builder(light)
    x = (0, side * depth) if side > 0 else (-depth, 0)
    for face, kind in (("b", ACROSS), ("l" if side > 0 else "r", ALONG)):
        pattern = (kind, period, storey, opening, rng.uniform(0.6, 1.2), dark, blue, 0)
        b.box(x, (0, height), (0, length), tone, BUILDING, sides=face, texture=0.12, pattern=pattern)
    if height < 9 and rng.random() < 0.6:  # a roof that leans back from the street
        rise, back, roof = rng.uniform(1.5, 3.0), side * depth * 0.5, tone[::-1] * 0.35 + rng.uniform(20, 60)
        quad = [(-side * 0.3, height - 0.1, -0.3), (-side * 0.3, height - 0.1, length + 0.3)]
        quad += [(back, height + rise, length + 0.3), (back, height + rise, -0.3)]
        b.face(quad, roof, BUILDING, flat=True, texture=0.15)
        b.face([(0, height, 0), (side * depth, height, 0), (back, height + rise, 0)], tone, BUILDING, flat=True)
    else:
        b.box((min(x[0], -0.2), max(x[1], 0.2)), (height - 0.35, height), (-0.1, length), tone * 0.75, BUILDING,
              sides="b" + ("l" if side > 0 else "r"))  # fmt: skip
    return b.build()


def barrier(rng: np.random.Generator, light, side: int, length: float, cls: int) -> Model:
    """A wall, a fence or a hedge `length` along the street."""
    b = Builder(light)
    thick = side * 0.25
    x = (min(0, thick), max(0, thick))
    if cls == FENCE:
        height, color = (
            rng.uniform(1.0, 1.7),
            rng.choice([[120, 120, 124], [140, 104, 70], [60, 80, 66], [214, 212, 204]]),
        )
        pattern = (ALONG, rng.uniform(0.3, 0.8), 9.0, 0.55, -3.0, rng.uniform(60, 110), -10, 0)
        texture = 0.06
    elif cls == WALL:
        height, color = (
            rng.uniform(1.2, 2.6),
            rng.choice([[150, 142, 130], [150, 92, 74], [112, 112, 112], [190, 184, 172]]),
        )
        pattern = (ALONG, 1.2, 0.5, 0.9, 0.0, float(np.mean(color)) * 0.9, 0, 0)
        texture = 0.18
    else:
        height, color, pattern, texture = rng.uniform(0.9, 2.0), leaf(rng), (0,) * 8, 0.5
    sides = "b" + ("l" if side > 0 else "r")
    for face in sides:
        b.box(
            x,
            (0, height),
            (0, length),
            color,
            cls,
            sides=face,
            texture=texture,
            pattern=pattern if face != "b" else (0,) * 8,
        )
    return b.build()


def leaf(rng: np.random.Generator) -> Color:
    return tuple(np.array([64, 96, 44]) * rng.uniform(0.6, 1.25) + rng.normal(0, 8, 3) + [rng.uniform(0, 34), 0, 0])


def tree(rng: np.random.Generator, light, scale: float = 1.0) -> Model:
    b, trunk, color = Builder(light), rng.uniform(1.8, 3.0) * scale, leaf(rng)
    r = rng.uniform(1.4, 2.6) * scale
    b.shadow((-r * 0.7, r * 0.7), (-r * 0.5, r * 0.5), 0.35)
    b.box((-0.14, 0.14), (0, trunk + r * 0.6), (0, 0), (84, 66, 52), VEGETATION, sides="b", texture=0.3)
    shape = rng.choice([0.9, 1.0, 1.7])
    for i, shade in enumerate((0.72, 0.9, 1.08)):
        n, c = 13, rng.uniform(-0.3, 0.3, 2) * r + [0, i * 0.22 * r]
        angle = np.arange(n) * 2 * np.pi / n
        radius = r * (0.98 - 0.2 * i) * rng.uniform(0.78, 1.1, n)
        ring = np.stack([np.cos(angle) * radius + c[0], trunk + r * shape + np.sin(angle) * radius * shape + c[1]], 1)
        b.face(np.column_stack([ring, np.full(n, -0.02 * i)]), tuple(np.array(color) * shade), VEGETATION, True, 0.55)
    return b.build()


def lamp(rng: np.random.Generator, light, side: int) -> Model:
    b, h = Builder(light), rng.uniform(5.0, 7.5)
    color = (96, 98, 102) if rng.random() < 0.6 else (52, 58, 54)
    b.box((-0.09, 0.09), (0, h), (0, 0), color, POLE, sides="b")
    b.box((min(0, -side * 1.6), max(0, -side * 1.6)), (h - 0.12, h + 0.06), (0, 0), color, POLE, sides="b")
    b.box(
        (-side * 1.6 - 0.3, -side * 1.6 + 0.3),
        (h - 0.18, h + 0.02),
        (0, 0),
        (220, 216, 196),
        POLE,
        sides="b",
        lit=False,
    )
    return b.build()


def sign(rng: np.random.Generator, light) -> Model:
    b, h, r = Builder(light), rng.uniform(2.2, 3.0), rng.uniform(0.36, 0.5)
    b.box((-0.05, 0.05), (0, h), (0, 0), (130, 132, 134), POLE, sides="b")
    kind = rng.integers(5)
    if kind == 0:
        b.disc((0, h, -0.01), r, (200, 24, 28), SIGN, n=12)
        b.disc((0, h, -0.02), r * 0.68, (240, 240, 236), SIGN, n=12)
    elif kind == 1:
        b.face([(-r, h - r * 0.7, 0), (r, h - r * 0.7, 0), (0, h + r, 0)], (206, 30, 30), SIGN, True)
        b.face(
            [(-r * 0.55, h - r * 0.42, 0), (r * 0.55, h - r * 0.42, 0), (0, h + r * 0.5, 0)],
            (240, 236, 220),
            SIGN,
            True,
        )
    elif kind == 2:
        b.disc((0, h, -0.01), r, (30, 76, 170), SIGN, n=12)
        b.box((-r * 0.5, r * 0.5), (h - r * 0.18, h + r * 0.18), (0, 0), (240, 240, 240), SIGN, sides="b")
    elif kind == 3:
        b.face([(-r, h, 0), (0, h - r, 0), (r, h, 0), (0, h + r, 0)], (236, 190, 40), SIGN, True)
    else:
        w = r * rng.uniform(1.4, 2.4)
        color = ((30, 90, 160), (24, 120, 70), (236, 200, 60))[rng.integers(3)]
        b.box((-w, w), (h - r * 0.6, h + r * 0.8), (0, 0), color, SIGN, sides="b")
        b.inset((0.12, 0.88), (0.35, 0.6), (240, 240, 240), SIGN)
    return b.build()


def traffic_light(light, side: int, state: str, overhead: bool) -> Model:
    """A signal that shows "red" or "green" on a pole, or hung over the road on an arm."""
    b, h = Builder(light), 5.6 if overhead else 3.3
    x = -side * 3.2 if overhead else 0.0
    b.box((-0.09, 0.09), (0, h), (0, 0), (70, 72, 74), POLE, sides="b")
    if overhead:
        b.box((min(0, x), max(0, x)), (h - 0.1, h + 0.06), (0, 0), (70, 72, 74), POLE, sides="b")
    b.box((x - 0.24, x + 0.24), (h - 0.95, h + 0.3), (0, 0), (26, 28, 26), LIGHT, sides="b")
    for i, (name, on) in enumerate((("green", (40, 240, 130)), ("amber", (250, 190, 40)), ("red", (255, 46, 36)))):
        color = on if name == state else tuple(c * 0.22 for c in on)
        b.disc((x, h - 0.72 + i * 0.4, -0.02), 0.16, color, LIGHT, n=8, lit=name != state)
    return b.build()
