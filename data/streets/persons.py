"""The persons of Streets: walkers and riders, each with looks of their own, as models that step."""

from dataclasses import dataclass

import numpy as np

from data.streets.models import PERSON, RIDER, Builder, Color, Model

SKINS: tuple[Color, ...] = ((232, 190, 160), (210, 160, 125), (160, 110, 80), (110, 72, 50))
GAIT = 12  # models of one step cycle


@dataclass(frozen=True)
class Look:
    """What makes one person differ from another; sizes in metres."""

    height: float
    girth: float
    shirt: Color
    trousers: Color
    skin: Color
    hair: Color
    skirt: bool
    bag: bool
    umbrella: bool
    stride: float


def look(rng: np.random.Generator, rain: bool) -> Look:
    height = rng.uniform(1.58, 1.9) if rng.random() > 0.1 else rng.uniform(1.1, 1.35)
    vivid = rng.random() < 0.6
    shirt = rng.uniform(20, 240, 3) if vivid else np.full(3, rng.uniform(25, 225)) + rng.normal(0, 8, 3)
    return Look(
        height,
        rng.uniform(0.9, 1.25),
        tuple(np.clip(shirt, 5, 250)),
        tuple(np.clip(np.array([46, 50, 66]) * rng.uniform(0.5, 2.2) + rng.normal(0, 14, 3), 5, 230)),
        SKINS[rng.integers(len(SKINS))],
        ((30, 24, 20), (90, 60, 34), (190, 160, 96), (120, 116, 112))[rng.integers(4)],
        bool(rng.random() < 0.2),
        bool(rng.random() < 0.3),
        bool(rain and rng.random() < 0.35),
        rng.uniform(0.26, 0.36),
    )


def person(p: Look, light, direction: tuple[float, float], phase: float, moving: bool) -> Model:
    """A walker at `phase` (0..1) of the step cycle, heading along `direction` (x, z); faces look at the camera."""
    b, (dx, dz), h = Builder(light), direction, p.height
    thick = p.girth * h / 1.75
    swing = np.sin(2 * np.pi * phase) * p.stride * (h / 1.75) * moving
    side = 0.09 * thick
    across = (abs(dz), -dx * np.sign(dz or 1))  # the shoulders' axis
    hip, shoulder, wide = 0.5 * h, 0.82 * h, (0.13 + 0.1 * abs(dz)) * thick
    b.shadow((-0.3, 0.3), (-0.2, 0.2), 0.4)

    def limb(top, joint, end, width, color):
        rows = [np.array(q) for q in (top, joint, end)]
        left = [q - (width * k, 0, 0) for q, k in zip(rows, (1.15, 1.0, 0.75), strict=True)]
        right = [q - (-width * k, 0, 0) for q, k in zip(rows, (1.15, 1.0, 0.75), strict=True)]
        b.face([*left, *right[::-1]], color, PERSON, flat=True)

    def leg(sign):
        o = sign * swing
        x, z = across[0] * side * sign, across[1] * side * sign
        lift = max(0.0, -sign * np.cos(2 * np.pi * phase)) * 0.12 * moving
        knee = (x + dx * (o * 0.5 + lift * 0.7), hip * 0.52, z + dz * (o * 0.5 + lift * 0.7))
        foot = (x + dx * o, lift, z + dz * o)
        shade = 0.82 if sign < 0 else 1.0
        limb((x, hip * 1.04, z), knee, foot, 0.078 * thick, tuple(c * shade for c in p.trousers))
        toe = (foot[0] + dx * 0.12, foot[1], foot[2] + dz * 0.12)
        quad = [(foot[0] - 0.06, foot[1] + 0.09, foot[2]), (foot[0] + 0.06, foot[1] + 0.09, foot[2])]
        b.face([*quad, (toe[0] + 0.06, toe[1], toe[2]), (toe[0] - 0.06, toe[1], toe[2])], (30, 26, 24), PERSON, True)

    def arm(sign):
        o = -sign * swing * 0.8
        x, z = across[0] * (wide + 0.03) * sign, across[1] * (wide + 0.03) * sign
        elbow, hand = (x + dx * o * 0.45, 0.63 * h, z + dz * o * 0.45), (x + dx * o, 0.47 * h, z + dz * o)
        shade = 0.75 if sign < 0 else 0.9
        limb((x, shoulder - 0.01, z), elbow, hand, 0.05 * thick, tuple(c * shade for c in p.shirt))
        b.disc(hand, 0.05, p.skin, PERSON, n=6)

    leg(-1), arm(-1), leg(1)
    if p.bag:
        b.box((-dx * 0.21 - 0.13, -dx * 0.21 + 0.13), (0.56 * h, 0.8 * h), (0, 0), (60, 70, 60), PERSON, sides="b")
    if p.skirt:
        hem = [(wide * 1.35, 0.3 * h, 0), (-wide * 1.35, 0.3 * h, 0)]
        b.face([(-wide * 0.9, 0.6 * h, 0), (wide * 0.9, 0.6 * h, 0), *hem], p.trousers, PERSON, True)
    torso = [(-wide * 0.75, hip, 0), (wide * 0.75, hip, 0), (wide * 0.8, 0.66 * h, 0), (wide, shoulder - 0.03, 0)]
    torso += [(wide * 0.6, shoulder + 0.02, 0), (-wide * 0.6, shoulder + 0.02, 0), (-wide, shoulder - 0.03, 0)]
    b.face([*torso, (-wide * 0.8, 0.66 * h, 0)], p.shirt, PERSON, True)
    arm(1)
    head = 0.07 * h
    b.face([(-0.05, shoulder, 0), (0.05, shoulder, 0), (0.05, h - head, 0), (-0.05, h - head, 0)], p.skin, PERSON, True)
    b.disc((0, h - head, 0), head, p.hair, PERSON, n=10)
    if dz < 0.5:  # the face is seen unless the person walks away
        b.disc((dx * 0.35 * head, h - 1.25 * head, -0.01), head * 0.8, p.skin, PERSON, n=8)
    if p.umbrella:
        b.box((-0.02, 0.02), (0.7 * h, h + 0.25), (0, 0), (40, 40, 44), PERSON, sides="b")
        dome = [(np.cos(a) * 0.5, h + 0.12 + np.sin(a) * 0.3, 0) for a in np.linspace(0, np.pi, 8)]
        b.face(dome, p.shirt[::-1], PERSON, True)
    return b.build()


def rider(p: Look, light, yaw: float, phase: float, heavy: bool) -> Model:
    """A person on a bicycle or a motorcycle: seated, leaning on the handlebar; `phase` (0..1) turns the pedals."""
    b, w = Builder(light, yaw), 0.2 * p.girth
    away = abs(yaw) < 1
    turn = np.sin(2 * np.pi * phase) * 0.14 * (not heavy)
    for sign in (-1, 1):
        x, pedal = 0.13 * sign, 0.34 + sign * turn
        knee = ((x, 0.62 + sign * turn * 0.6, 0.25), (x, pedal, 0.05))
        for (ax, ay, az), (cx, cy, cz) in (((x, 0.92, -0.22), knee[0]), knee):
            for wx, wz in ((0.07, 0), (0, 0.08)):  # a cross of two planes: seen from behind and from the side
                quad = [(ax - wx, ay, az - wz), (ax + wx, ay, az + wz), (cx + wx, cy, cz + wz), (cx - wx, cy, cz - wz)]
                b.face(quad, p.trousers, RIDER, True)
    for sign in (-1, 1):
        x = sign * (w + 0.03)
        for wx, wz in ((0.05, 0), (0, 0.05)):
            quad = [
                (x - wx, 1.38, -wz),
                (x + wx, 1.38, wz),
                (sign * 0.26 + wx, 1.0, 0.42),
                (sign * 0.26 - wx, 1.0, 0.34),
            ]
            b.face(quad, p.shirt, RIDER, True)
    b.box(
        (-w * 0.85, w * 0.85), (0.86, 1.46), (-0.36, -0.1), p.shirt, RIDER, top=((-w, w), (-0.06, 0.16)), sides="lrfb"
    )
    b.inset((0.1, 0.9), (0.2, 0.8), tuple(c * (0.9 if away else 1) for c in p.shirt), RIDER)
    helmet = p.trousers[::-1] if heavy else (p.shirt[1], p.shirt[2], p.shirt[0])
    yaw_kept, b.yaw = b.yaw, 0.0
    c, s = np.cos(yaw_kept), np.sin(yaw_kept)
    b.disc((s * 0.12, 1.6, c * 0.12), 0.125, p.skin if not heavy else helmet, RIDER)
    b.disc((s * 0.12, 1.66, c * 0.12 - 0.01), 0.13, helmet, RIDER, n=8)
    return b.build()
