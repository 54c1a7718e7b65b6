"""The shapes of Streets and its vehicles: lists of flat, coloured, labelled faces.

A model's own frame is x right, y up, z forward in metres, with its origin on the ground. Faces are drawn in the order
in which they are listed, so every model lists what is behind first; faces with a normal are drawn only when they look
at the camera.
"""

from dataclasses import dataclass, field

import numpy as np

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = range(11)
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(11, 19)
SHADOW = 254  # a face that darkens the ground and keeps its label; never leaves the renderer
PLAIN, ALONG, ACROSS = 0, 1, 2  # a face's pattern: none, on a plane along the street, on a plane across it

Color = tuple[float, float, float]
GLASS: Color = (38, 46, 56)
TYRE: Color = (24, 24, 26)


@dataclass
class Model:
    """F flat faces. `points` float32 (P, 3) holds the corners face after face; face i owns starts[i]:starts[i + 1].

    `normals` float32 (F, 3), zero where both sides are seen; `colors` float32 (F, 3), 0..255; `classes` uint8 (F,);
    `texture` float32 (F,), the strength of the surface noise; `pattern` float32 (F, 8): kind, period along (m), period
    up (m), share of each that is opening, height of the lowest row (m), then the opening's grey and blue offset.
    """

    points: np.ndarray
    starts: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    classes: np.ndarray
    texture: np.ndarray
    pattern: np.ndarray


@dataclass
class Builder:
    """Collects faces. `light` is (direction to the sun (3,), ambient share, sun share)."""

    light: tuple[np.ndarray, float, float]
    yaw: float = 0.0  # rad about y; 0 looks away from the camera, pi towards it
    corners: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    base: np.ndarray | None = None  # the corners of the last side of a box, already turned by yaw

    def face(self, points, color: Color, cls: int, flat=False, texture=0.06, pattern=(0,) * 8, lit=True) -> None:
        """Add a polygon, (n, 3) corners clockwise as seen from outside; `flat` is seen from both sides."""
        points = np.asarray(points, np.float32)
        if self.yaw:
            c, s = np.cos(self.yaw), np.sin(self.yaw)
            x, y, z = points.T
            points = np.stack([c * x + s * z, y, c * z - s * x], 1).astype(np.float32)
        direction, ambient, sun = self.light
        normal, shade = (0.0, 0.0, 0.0), ambient + 0.55 * sun
        if not flat:  # by hand: np.cross takes 20 times as long for one pair
            (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[:3].tolist()
            ax, ay, az, bx, by, bz = bx - ax, by - ay, bz - az, cx - bx, cy - by, cz - bz
            nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            size = (nx * nx + ny * ny + nz * nz) ** 0.5 + 1e-9
            normal = (nx / size, ny / size, nz / size)
            facing = normal[0] * direction[0] + normal[1] * direction[1] + normal[2] * direction[2]
            shade = ambient + sun * (max(0.0, facing) + 0.12 * normal[1])
        if lit:
            color = [c * shade for c in color]
        self.corners.append(points)
        self.rows.append((normal, color, cls, texture, pattern))

    def box(self, x, y, z, color: Color, cls: int, top=None, sides="lrfbt", **options) -> None:
        """A box over the ranges x, y, z; `top` = (x range, z range) of its upper face; `sides` as they are drawn: left,
        right, front, back, top."""
        (tx0, tx1), (tz0, tz1) = top or (x, z)
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        a, b, c, d = (x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)
        e, f, g, h = (tx0, y1, tz0), (tx1, y1, tz0), (tx1, y1, tz1), (tx0, y1, tz1)
        quads = {"f": (c, d, h, g), "l": (d, a, e, h), "r": (b, c, g, f), "b": (a, b, f, e), "t": (e, f, g, h)}
        for side in sides:
            # Listed counter-clockwise as seen from outside; in this left-handed frame the normal needs the reverse.
            self.face(quads[side][::-1], color, cls, **options)
            self.base = self.corners[-1]

    def inset(self, u, v, color: Color, cls: int, **options) -> None:
        """A quad on the last side of the last box: u and v are ranges in 0..1 from its lower left corner."""
        d, c, b, a = self.base
        yaw, self.yaw = self.yaw, 0.0

        def at(s, t):
            return (a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t

        quad = [at(u[0], v[0]), at(u[1], v[0]), at(u[1], v[1]), at(u[0], v[1])]
        self.face(np.array(quad)[::-1], color, cls, **options)
        self.yaw = yaw

    def disc(self, centre, radius: float, color: Color, cls: int, side: float = 0.0, n: int = 10, **options) -> None:
        """A disc in the plane of y and z (a wheel seen from `side` = -1 or +1) or, with side 0, facing the camera."""
        angle = np.arange(n) * (2 * np.pi / n)
        ring = np.zeros((n, 3), np.float32)
        ring[:, 1] = np.sin(angle) * radius
        ring[:, 0 if side == 0 else 2] = np.cos(angle) * radius * (1 if side <= 0 else -1)
        self.face(ring + np.asarray(centre, np.float32), color, cls, flat=side == 0, **options)

    def shadow(self, x, z, strength: float) -> None:
        (x0, x1), (z0, z1) = x, z
        quad = [(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)]
        self.face(quad, (strength,) * 3, SHADOW, flat=True, lit=False)

    def build(self) -> Model:
        normals, colors, classes, texture, pattern = zip(*self.rows, strict=True)
        starts = np.concatenate([[0], np.cumsum([len(c) for c in self.corners])])
        return Model(
            points=np.concatenate(self.corners).astype(np.float32),
            starts=starts.astype(np.int64),
            normals=np.array(normals, np.float32),
            colors=np.clip(np.array(colors, np.float32), 0, 255),
            classes=np.array(classes, np.uint8),
            texture=np.array(texture, np.float32),
            pattern=np.array(pattern, np.float32),
        )


# ---------------------------------------------------------------------------------------------------------------------
# Vehicles
# ---------------------------------------------------------------------------------------------------------------------

PAINTS: tuple[Color, ...] = (
    (188, 192, 196), (232, 232, 230), (40, 42, 46), (110, 114, 120), (150, 26, 30), (28, 60, 130), (16, 92, 84),
    (206, 160, 40), (92, 60, 40), (70, 120, 170), (196, 84, 30), (60, 100, 50), (120, 40, 90), (222, 210, 170),
)  # fmt: skip


def _wheels(b: Builder, cls: int, width: float, length: float, radius: float, at=(-0.31, 0.31)) -> None:
    for side in (-1, 1):
        for z in at:
            x = side * (width / 2 + 0.01)
            b.disc((x, radius, z * length), radius, TYRE, cls, side=side)
            b.disc((x + side * 0.01, radius, z * length), radius * 0.55, (130, 132, 136), cls, side=side, n=8)


def _under(b: Builder, cls: int, width: float, length: float, height: float) -> None:
    """Tyres as seen from behind and in front, and the dark of the underbody between them."""
    for z, order in ((-length * 0.31 - 0.28, 1), (length * 0.31 + 0.28, -1)):
        axle = [
            (-width / 2, height * 0.5, z),
            (width / 2, height * 0.5, z),
            (width / 2, height, z),
            (-width / 2, height, z),
        ]
        b.face(axle[::-order], TYRE, cls)
        for x in (-width / 2 + 0.16, width / 2 - 0.16):
            quad = [(x - 0.13, 0, z), (x + 0.13, 0, z), (x + 0.13, height, z), (x - 0.13, height, z)]
            b.face(quad[::-order], TYRE, cls)


def car(rng: np.random.Generator, light, yaw: float) -> tuple[Model, float, float]:
    """A car with a shape and paint of its own. Returns (model, length, width) in metres."""
    shape = rng.choice(["sedan", "hatch", "suv", "van"], p=[0.35, 0.3, 0.22, 0.13])
    length = {"sedan": 4.5, "hatch": 3.9, "suv": 4.5, "van": 4.9}[shape] * rng.uniform(0.95, 1.06)
    width = rng.uniform(1.7, 1.85) + 0.08 * (shape in ("suv", "van"))
    height = {"sedan": 1.44, "hatch": 1.48, "suv": 1.7, "van": 1.95}[shape] * rng.uniform(0.97, 1.04)
    belt = height * {"sedan": 0.62, "hatch": 0.6, "suv": 0.6, "van": 0.54}[shape]
    back, front = {"sedan": (-0.36, 0.2), "hatch": (-0.49, 0.2), "suv": (-0.49, 0.2), "van": (-0.495, 0.36)}[shape]
    roof_back, roof_front = back + (0.14 if shape == "sedan" else 0.05), front - (0.13 if shape != "van" else 0.09)
    paint = np.clip(np.array(PAINTS[rng.integers(len(PAINTS))]) + rng.normal(0, 9, 3), 8, 245)
    w, low = width / 2, 0.27
    b = Builder(light, yaw)
    b.shadow((-w - 0.15, w + 0.15), (-length / 2 - 0.15, length / 2 + 0.15), 0.55)
    _under(b, CAR, width, length, low + 0.05)
    body = ((-w, w), (low, belt), (-length / 2, length / 2))
    top = ((-w * 0.95, w * 0.95), (-length * 0.485, length * 0.47))
    b.box(*body, paint, CAR, top=top, sides="t")
    for side in "lr":
        b.box(*body, paint, CAR, top=top, sides=side)
        b.inset((0, 1), (0, 0.14), paint * 0.45, CAR, lit=False)
    b.box(*body, paint, CAR, top=top, sides="b")
    b.inset((0.0, 1.0), (0.0, 0.26), paint * 0.35, CAR, lit=False)
    b.inset((0.38, 0.62), (0.38, 0.56), (215, 215, 205), CAR)
    for u in ((0.02, 0.2), (0.8, 0.98)):
        b.inset(u, (0.52, 0.86), (196, 22, 26), CAR, lit=False)
    b.box(*body, paint, CAR, top=top, sides="f")
    b.inset((0.0, 1.0), (0.0, 0.2), paint * 0.35, CAR, lit=False)
    b.inset((0.25, 0.75), (0.28, 0.62), (30, 30, 34), CAR)
    for u in ((0.02, 0.22), (0.78, 0.98)):
        b.inset(u, (0.5, 0.82), (250, 246, 225), CAR, lit=False)
    _wheels(b, CAR, width, length, 0.32)
    cabin = ((-w * 0.94, w * 0.94), (belt, height), (back * length, front * length))
    roof = ((-w * 0.76, w * 0.76), (roof_back * length, roof_front * length))
    b.box(*cabin, paint * 0.92, CAR, top=roof, sides="t")
    glass = np.array(GLASS) + rng.uniform(-8, 26)
    for side in "fblr":
        b.box(*cabin, paint * 0.95, CAR, top=roof, sides=side)
        if side in "fb":
            b.inset((0.07, 0.93), (0.08, 0.86), glass, CAR)
        else:
            b.inset((0.08, 0.5), (0.08, 0.84), glass, CAR)
            b.inset((0.54, 0.92), (0.08, 0.84), glass, CAR)
    return b.build(), length, width


def bus(rng: np.random.Generator, light, yaw: float) -> tuple[Model, float, float]:
    length, width, height = rng.uniform(9.5, 11.5), 2.5, rng.uniform(2.9, 3.2)
    paint = np.array(((200, 40, 36), (230, 190, 40), (60, 110, 170), (235, 235, 230), (50, 130, 90))[rng.integers(5)])
    b, w = Builder(light, yaw), width / 2
    b.shadow((-w - 0.2, w + 0.2), (-length / 2 - 0.2, length / 2 + 0.2), 0.55)
    _under(b, BUS, width, length, 0.5)
    body = ((-w, w), (0.38, height), (-length / 2, length / 2))
    for side in "lrbf":
        b.box(*body, paint, BUS, sides=side)
        b.inset((0, 1), (0, 0.1), paint * 0.4, BUS, lit=False)
        if side in "lr":
            for i in range(6):
                b.inset((0.03 + i * 0.16, 0.03 + i * 0.16 + 0.14), (0.45, 0.82), GLASS, BUS)
        else:
            b.inset((0.06, 0.94), (0.34 if side == "f" else 0.5, 0.8), GLASS, BUS)
            b.inset((0.2, 0.8), (0.86, 0.95), (30, 26, 10), BUS)
            b.inset((0.3, 0.6), (0.88, 0.93), (250, 190, 60), BUS, lit=False)
            lamp = (250, 246, 225) if side == "f" else (190, 24, 24)
            for u in ((0.04, 0.16), (0.84, 0.96)):
                b.inset(u, (0.14, 0.22), lamp, BUS, lit=False)
    _wheels(b, BUS, width, length, 0.48, at=(-0.28, 0.3))
    return b.build(), length, width


def truck(rng: np.random.Generator, light, yaw: float) -> tuple[Model, float, float]:
    length, width, height = rng.uniform(6.5, 8.5), 2.35, rng.uniform(2.7, 3.3)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))], float)
    box = np.array(((225, 225, 220), (190, 196, 200), (70, 100, 150), (190, 120, 50), (110, 130, 90))[rng.integers(5)])
    b, w, cab = Builder(light, yaw), width / 2, length * 0.24
    b.shadow((-w - 0.2, w + 0.2), (-length / 2 - 0.2, length / 2 + 0.2), 0.55)
    _under(b, TRUCK, width, length, 0.75)
    parts = [
        (((-w * 0.94, w * 0.94), (0.45, height * 0.82), (length / 2 - cab, length / 2)), paint, "lrtf"),
        (((-w, w), (0.75, height), (-length / 2, length / 2 - cab - 0.1)), box, "tlrfb"),
    ]
    # Seen from the front the cab hides the box, seen from behind the box hides the cab.
    for extent, color, sides in parts if abs(yaw) < 1 else parts[::-1]:
        for side in sides:
            b.box(*extent, color, TRUCK, sides=side)
            if color is paint and side == "f":
                b.inset((0.07, 0.93), (0.5, 0.88), GLASS, TRUCK)
                b.inset((0.2, 0.8), (0.16, 0.36), (40, 40, 44), TRUCK)
                for u in ((0.03, 0.17), (0.83, 0.97)):
                    b.inset(u, (0.1, 0.24), (250, 246, 225), TRUCK, lit=False)
            elif color is paint and side in "lr":
                b.inset((0.2, 0.8), (0.52, 0.86), GLASS, TRUCK)
            elif side == "b":
                b.inset((0.49, 0.51), (0.04, 0.96), box * 0.5, TRUCK)
                for u in ((0.01, 0.12), (0.88, 0.99)):
                    b.inset(u, (0.0, 0.07), (200, 24, 24), TRUCK, lit=False)
            elif side in "lr":
                b.inset((0.1, 0.9), (0.35, 0.6), paint * 0.9, TRUCK)
    _wheels(b, TRUCK, width, length, 0.45, at=(-0.34, -0.2, 0.38))
    return b.build(), length, width


def bicycle(rng: np.random.Generator, light, yaw: float) -> tuple[Model, float, float]:
    return _two_wheeler(rng, light, yaw, BICYCLE, 1.75, 0.34, 0.07)


def motorcycle(rng: np.random.Generator, light, yaw: float) -> tuple[Model, float, float]:
    return _two_wheeler(rng, light, yaw, MOTORCYCLE, 2.1, 0.33, 0.17)


def _two_wheeler(rng, light, yaw, cls, length, radius, tyre) -> tuple[Model, float, float]:
    b = Builder(light, yaw)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))], float)
    heavy = cls == MOTORCYCLE
    b.shadow((-0.3, 0.3), (-length / 2, length / 2), 0.35)
    for z in (length / 2 - radius, radius - length / 2):
        for side in (-1, 1):
            b.disc((side * tyre / 2, radius, z), radius, TYRE, cls, side=side)
            b.disc((side * (tyre / 2 + 0.01), radius, z), radius * 0.72, (112, 112, 116), cls, side=side)
        b.box((-tyre / 2, tyre / 2), (0, 2 * radius), (z - radius, z + radius), TYRE, cls, sides="fb")
    thick = 0.2 if heavy else 0.05
    b.box((-thick, thick), (0.4, 0.85 if heavy else 0.62), (-0.5, 0.45), paint, cls, sides="lrfb")
    b.box((-0.3, 0.3), (0.95, 1.02), (0.42, 0.5), (40, 40, 44), cls, sides="fb")
    if heavy:
        b.box((-0.16, 0.16), (0.6, 0.95), (0.4, 0.62), paint, cls, sides="lrf")
        b.inset((0.2, 0.8), (0.3, 0.8), (250, 246, 225), cls, lit=False)
        b.box((-0.1, 0.1), (0.6, 0.72), (-0.85, -0.5), (200, 24, 24), cls, sides="b", lit=False)
    else:
        b.box((-0.08, 0.08), (0.88, 0.95), (-0.4, -0.15), (40, 34, 30), cls, sides="lrfb")
        b.box((-0.04, 0.04), (0.6, 0.9), (-0.3, -0.25), paint, cls, sides="lrfb")
    return b.build(), length, 0.6
