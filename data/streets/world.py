"""The street of Streets: its lanes, houses, trees and signs, its weather, and the camera's path. No pixels here.

Coordinates are metres: x to the right of the ego lane's middle, s along the street, y up.
"""

from dataclasses import dataclass, field

import numpy as np

from data.streets import scenery
from data.streets.models import FENCE, VEGETATION, WALL, Model

VIEW = 115.0  # m of street that stand ahead of the camera
FURNITURE_VIEW = 75.0  # m; posts and trees that are farther are not drawn


@dataclass(frozen=True)
class Weather:
    """Light and air of one video. Colours are RGB 0..255, `fog` is the share of light lost per metre."""

    name: str
    light: tuple[np.ndarray, float, float]  # direction to the sun, ambient share, sun share
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    fog: float
    tint: np.ndarray
    noise: float  # standard deviation of the sensor's noise, 0..255
    wet: bool
    night: bool


def draw_weather(rng: np.random.Generator) -> Weather:
    name = str(rng.choice(["clear", "cloudy", "overcast", "fog", "rain", "dusk", "night"],
                          p=[0.28, 0.2, 0.16, 0.08, 0.12, 0.1, 0.06]))  # fmt: skip
    zenith, horizon, ambient, sun, clouds, fog = {
        "clear": ((84, 134, 206), (198, 216, 234), 0.62, 0.6, 0.25, 0.0012),
        "cloudy": ((110, 150, 204), (206, 214, 224), 0.66, 0.42, 0.8, 0.002),
        "overcast": ((176, 182, 190), (206, 208, 210), 0.78, 0.12, 0.35, 0.003),
        "fog": ((190, 194, 198), (202, 204, 206), 0.78, 0.06, 0.1, 0.013),
        "rain": ((120, 126, 136), (162, 168, 176), 0.62, 0.08, 0.5, 0.006),
        "dusk": ((78, 84, 130), (240, 176, 120), 0.46, 0.34, 0.6, 0.003),
        "night": ((14, 18, 34), (44, 46, 62), 0.27, 0.05, 0.2, 0.003),
    }[name]
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.25, 1.1) if name != "dusk" else 0.2
    direction = np.array([np.cos(height) * np.sin(azimuth), np.sin(height), np.cos(height) * np.cos(azimuth)])
    tint = np.array([1.08, 0.97, 0.88]) if name == "dusk" else np.ones(3)
    return Weather(
        name,
        (direction, ambient * rng.uniform(0.9, 1.1), sun * rng.uniform(0.8, 1.2)),
        np.array(zenith) * rng.uniform(0.9, 1.1),
        np.array(horizon) * rng.uniform(0.94, 1.05),
        clouds,
        fog * rng.uniform(0.7, 1.3),
        tint * rng.uniform(0.9, 1.08) * (1 + rng.normal(0, 0.03, 3)),
        rng.uniform(1.5, 5.0) * (1.8 if name in ("night", "dusk") else 1.0),
        name == "rain",
        name == "night",
    )


@dataclass
class Thing:
    """What the renderer draws: a model at (x, s), its extent, and its track (0 for stuff)."""

    model: Model
    x: float
    s: float
    box: tuple[float, float, float, float]  # x0, x1, s0, s1: what it stands on, by which things are ordered
    track: int = 0
    reach: float = 0.0  # m that it extends beyond its box, overhead


@dataclass
class Junction:
    s: float
    half: float  # m, half the width of the street that crosses
    offset: float  # s, phase of its light
    signals: list = field(default_factory=list)  # (x, side, overhead)

    def red(self, time: float) -> bool:
        return (time + self.offset) % 13.0 < 5.0


class Street:
    """The street of one video, without its traffic: it is built ahead of the camera and forgotten behind it."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.weather = draw_weather(rng)
        self.time, self.s, self.speed = 0.0, 0.0, rng.uniform(4.0, 8.5)  # s, m, m/s
        self.junctions: list[Junction] = []
        self.static: list[Thing] = []
        self._draw_layout()

    def _draw_layout(self) -> None:
        rng = self.rng
        lane = self.lane = rng.uniform(3.0, 3.5)
        right, left = int(rng.random() < 0.3), int(rng.random() < 0.3)
        oncoming = int(rng.choice([0, 1, 2], p=[0.15, 0.7, 0.15]))
        self.same_lanes = [lane * i for i in range(-left, right + 1) if i]
        self.oncoming_lanes = [-lane * (left + 1 + i) for i in range(oncoming)]
        self.strip = {side: 2.2 * (rng.random() < 0.7) for side in (-1, 1)}
        self.density = {side: rng.uniform(0.35, 0.95) for side in (-1, 1)}
        self.edge = {1: lane * (right + 0.5), -1: -lane * (left + oncoming + 0.5)}
        self.kerb = {side: self.edge[side] + side * self.strip[side] for side in (-1, 1)}
        self.walk = {side: self.kerb[side] + side * rng.uniform(1.8, 3.6) for side in (-1, 1)}
        self.green = {side: bool(rng.random() < 0.5) for side in (-1, 1)}  # terrain beyond the pavement, else stone
        self.divider = -lane * (left + 0.5) if oncoming else None
        self.marks = [(lane * (i + 0.5), "dash") for i in range(-left, right)]
        self.marks += [(-lane * (left + 1.5), "dash")] * (oncoming == 2)
        if oncoming:
            self.marks.append((self.divider, str(rng.choice(["dash", "solid"]))))
        self.marks += [(self.edge[side], "solid") for side in (-1, 1) if rng.random() < 0.6]
        self.dash = rng.uniform(6.0, 10.0)
        weights = {
            "city": [0.72, 0.1, 0.06, 0.06, 0.06],
            "suburb": [0.34, 0.28, 0.12, 0.12, 0.14],
            "park": [0.1, 0.4, 0.18, 0.12, 0.2],
        }[str(rng.choice(["city", "suburb", "park"], p=[0.45, 0.4, 0.15]))]
        self.block_weights = weights
        self.storeys = rng.uniform(1.5, 4.5)
        self.trees = rng.uniform(0.1, 0.7)
        self.crowd = rng.uniform(0.5, 1.6)  # groups of walkers per 10 m of street
        self.bend = rng.uniform(-1, 1) / 260.0 * (rng.random() < 0.6)  # 1/m
        self.bend_period, self.bend_phase = rng.uniform(120, 260), rng.uniform(0, 2 * np.pi)
        self.sway, self.bob = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.4)
        self.camera_height = rng.uniform(1.45, 1.95)
        self.block_end, self.post_end = {-1: -6.0, 1: -6.0}, {-1: -4.0, 1: -4.0}
        self.junction_end = rng.uniform(10.0, 90.0)

    @property
    def curvature(self) -> float:
        return self.bend * np.sin(2 * np.pi * self.s / self.bend_period + self.bend_phase)

    def camera(self) -> tuple[float, float, float, float]:
        """x (m), height (m), yaw (rad) and pitch (rad) of the camera: driving is not a rail."""
        t, (a, b, c) = self.time, self.sway
        moving = min(1.0, self.speed / 4.0)
        x = 0.25 * np.sin(0.5 * t + a)
        yaw = 0.016 * np.sin(0.7 * t + b) + 0.3 * self.curvature
        pitch = self.bob * moving * (0.0022 * np.sin(7.1 * t + c) + 0.0016 * np.sin(12.7 * t + a)) + 0.004 * np.sin(
            t + b
        )
        return x, self.camera_height + 0.015 * moving * np.sin(9.0 * t + b), yaw, pitch

    def _put(self, model: Model, x: float, s: float, length: float = 0.0) -> None:
        if length:
            low, high = float(model.points[:, 0].min()), float(model.points[:, 0].max())
            self.static.append(Thing(model, x, s, (x + low, x + high, s, s + length)))
        else:  # a trunk or a post: a crown or an arm above does not count
            self.static.append(Thing(model, x, s, (x - 0.15, x + 0.15, s, s), reach=float(np.abs(model.points).max())))

    def _free(self, s: float, margin: float) -> bool:
        return all(abs(s - j.s) > j.half + margin for j in self.junctions)

    def _extend(self) -> None:
        """Build what comes into view, and forget what lies behind."""
        rng = self.rng
        while self.junction_end < self.s + VIEW + 60:
            j = Junction(self.junction_end, rng.uniform(3.6, 6.0), rng.uniform(0, 13.0))
            for side in (-1, 1):
                if rng.random() < 0.75:
                    j.signals.append((self.kerb[side] + side * 0.5, side, bool(rng.random() < 0.35)))
            self.junctions.append(j)
            self.junction_end += rng.uniform(60, 150)
        for side in (-1, 1):
            while self.block_end[side] < self.s + VIEW:
                self._block(side)
            while self.post_end[side] < self.s + FURNITURE_VIEW + 5:
                s = self.post_end[side]
                if self._free(s, 1.5):
                    self._post(side, s)
                self.post_end[side] += rng.uniform(6, 17)
        self.static = [t for t in self.static if t.box[3] > self.s - 1]
        self.junctions = [j for j in self.junctions if j.s > self.s - 20]

    def _block(self, side: int) -> None:
        rng, light = self.rng, self.weather.light
        start, length = self.block_end[side], rng.uniform(8, 18)
        for j in self.junctions:
            near, far = j.s - j.half - 2.2, j.s + j.half + 2.2
            if start + length > near and start < far:
                length = near - start
                if length < 3:
                    self.block_end[side] = far
                    return
        self.block_end[side] = start + length
        x = self.walk[side] - side * 0.05
        kind = rng.choice(5, p=self.block_weights)
        back = x + side * (rng.uniform(4, 9) if self.green[side] else rng.uniform(1, 4))
        if kind == 0:  # a house at the pavement
            height = max(3.2, 3.1 * round(rng.normal(self.storeys, 1.0)))
            near = x + side * rng.choice([0.0, 0.0, 1.5])
            self._put(scenery.building(rng, light, side, length, height, 11), near, start, length)
        elif kind == 1:  # a house behind a garden, with a hedge, a fence or a wall at the pavement
            gap = rng.uniform(0.3, 2.0)
            self._put(
                scenery.building(rng, light, side, length - gap, rng.uniform(3.4, 7), 10), back, start, length - gap
            )
            self._line(side, x, start, length, int(rng.choice([VEGETATION, FENCE, WALL])))
            if rng.random() < 0.6:
                self._put(scenery.tree(rng, light, 0.8), x + side * 2, start + rng.uniform(1, length))
        elif kind == 2:
            self._line(side, x, start, length, WALL)
            self._grove(side, x + side * 2.5, start, length)
        elif kind == 3:
            self._line(side, x, start, length, FENCE)
            self._grove(side, x + side * 2.5, start, length)
        else:
            self._grove(side, x + side * 1.5, start, length)

    def _line(self, side: int, x: float, start: float, length: float, cls: int) -> None:
        self._put(scenery.barrier(self.rng, self.weather.light, side, length - 0.2, cls), x, start, length - 0.2)

    def _grove(self, side: int, x: float, start: float, length: float) -> None:
        s = start + 1.0
        while s < start + length:
            self._put(scenery.tree(self.rng, self.weather.light, self.rng.uniform(0.8, 1.4)),
                      x + side * self.rng.uniform(0.5, 6), s)  # fmt: skip
            s += self.rng.uniform(2.5, 6)

    def _post(self, side: int, s: float) -> None:
        rng, light, x = self.rng, self.weather.light, self.kerb[side] + side * 0.45
        draw = rng.random()
        if draw < self.trees:
            self._put(scenery.tree(rng, light, rng.uniform(0.55, 0.9)), x + side * 0.2, s)
        elif draw < self.trees + 0.25:
            self._put(scenery.lamp(rng, light, side), x, s)
        elif draw < self.trees + 0.5:
            self._put(scenery.sign(rng, light), x, s)
