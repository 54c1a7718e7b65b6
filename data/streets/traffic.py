"""The traffic of Streets: who drives, rides and walks along a street, and how all of it moves. No pixels here.

One step is one frame. Vehicles keep their distance, stop at red lights and for whoever crosses; walkers cross when
nobody is about to pass.
"""

from dataclasses import dataclass, field

import numpy as np

from data.streets import models, persons, scenery
from data.streets.models import BICYCLE, BUS, CAR, MOTORCYCLE, PERSON, RIDER, TRUCK, Model
from data.streets.world import FURNITURE_VIEW, VIEW, Street, Thing

PERSON_VIEW, VEHICLE_VIEW = 26.0, 40.0  # m; who is farther is not there yet
STEP = 0.1  # s from frame to frame, as in KITTI


@dataclass
class Actor:
    """Something that moves or could: `heading` is +1 away from the camera, -1 towards it, 0 across (or a walker)."""

    track: int
    cls: int
    x: float
    s: float
    length: float
    width: float
    heading: int = 1
    speed: float = 0.0  # m/s along its heading
    wish: float = 0.0
    vx: float = 0.0  # m/s across
    model: Model | None = None
    parked: bool = False
    lead: bool = False
    mount: "Actor | None" = None  # what a rider sits on
    look: persons.Look | None = None
    phase: float = 0.0
    walks: tuple[float, float] = (0.0, 0.0)
    goal: float = 0.0  # x at which a crossing ends
    cache: dict = field(default_factory=dict)


class World(Street):
    """One video's street and traffic. `step()` moves everything on by a frame; `things()` is what stands in view.

    At most `max_things` persons and cars are near enough to be drawn at any time.
    """

    def __init__(self, rng: np.random.Generator, max_things: int = 12):
        super().__init__(rng)
        self.max_things, self.tracks, self.wish = max_things, 0, self.speed
        self.actors: list[Actor] = []
        self.signals: dict[tuple, Model] = {}  # models of traffic lights
        self.parked_end = {-1: -6.0, 1: -6.0}
        self._extend()
        self._populate()
        for _ in range(12):  # so that the first frame is in the midst of things
            self.step()

    # Who is there --------------------------------------------------------------------------------------------------

    def _extend(self) -> None:
        super()._extend()
        for side in (-1, 1):
            while self.parked_end[side] < self.s + VEHICLE_VIEW:
                s = self.parked_end[side]
                if self.strip[side] and self.rng.random() < self.density[side]:
                    self.parked_end[side] = self._park(side, s) + self.rng.uniform(0.8, 2.5)
                else:
                    self.parked_end[side] += self.rng.uniform(4, 14)
        self.actors = [a for a in self.actors if not self._gone(a)]

    def _track(self) -> int:
        self.tracks += 1
        return self.tracks

    def in_view(self) -> int:
        """Persons and cars that are drawn, or will be in a moment: beside the camera or just beyond the far end."""
        return sum(
            -2.5 < a.s - self.s < (PERSON_VIEW + 1 if a.cls == PERSON else VEHICLE_VIEW + 6)
            for a in self.actors
            if a.cls in (PERSON, CAR)
        )

    def _gone(self, a: Actor) -> bool:
        z = a.s - self.s
        if a.cls == PERSON:
            return z < -4 or z > PERSON_VIEW + 4
        if a.mount is not None:
            a = a.mount
            z = a.s - self.s
        # Who was overtaken may overtake again: its track goes on.
        behind = -25 if a.heading == 1 and not a.parked else -8
        return z < behind or z > VEHICLE_VIEW + 4 or abs(a.x) > 44

    def _full(self, n: int = 1) -> bool:
        return self.in_view() + n > self.max_things

    def _park(self, side: int, s: float) -> float:
        """A parked car or truck whose near end is at s, where there is room. Returns where it ends."""
        yaw = 0.0 if side > 0 or not self.oncoming_lanes or self.rng.random() < 0.2 else np.pi
        make, cls = (models.car, CAR) if self.rng.random() < 0.92 else (models.truck, TRUCK)
        model, length, width = make(self.rng, self.weather.light, yaw)
        x = self.edge[side] + side * (1.15 + self.rng.uniform(-0.12, 0.12))
        if self._free(s + length / 2, 4.0 + length / 2) and not self._full():
            middle = s + length / 2
            self.actors.append(Actor(self._track(), cls, x, middle, length, width, 1, model=model, parked=True))
        return s + length

    def _drive(self, x: float, z: float, heading: int, speed: float, wish: float, vx: float = 0.0, **options) -> bool:
        """A vehicle z metres ahead of the camera; False where its place is taken or the view is full."""
        s = self.s + z
        if self._full() or any(abs(a.x - x) < 2.2 and abs(a.s - s) < 9 for a in self.actors if a.cls != PERSON):
            return False
        kinds = ((models.car, CAR), (models.truck, TRUCK), (models.bus, BUS), (models.motorcycle, MOTORCYCLE))
        make, cls = kinds[
            self.rng.choice(4, p=[0.85, 0.07, 0.0, 0.08] if options.get("lead") else [0.64, 0.13, 0.11, 0.12])
        ]
        yaw = {1: 0.0, -1: np.pi, 0: np.pi / 2 * np.sign(vx)}[heading]
        model, length, width = make(self.rng, self.weather.light, yaw)
        if heading == 0:
            length, width = width, length
        actor = Actor(self._track(), cls, x, s, length, width, heading, speed, wish, vx, model, **options)
        self.actors.append(actor)
        if cls == MOTORCYCLE:
            self._seat(actor, yaw)
        return True

    def _seat(self, mount: Actor, yaw: float) -> None:
        self.actors.append(Actor(self._track(), RIDER, mount.x, mount.s, 0.5, 0.5, mount.heading, mount=mount,
                                 look=persons.look(self.rng, False), walks=(yaw, 0.0)))  # fmt: skip

    def _cycle(self, z: float, speed: float, heading: int) -> None:
        side = heading if self.oncoming_lanes or heading > 0 else 1
        x, s, yaw = self.edge[side] - side * 0.7, self.s + z, 0.0 if heading > 0 else np.pi
        if any(abs(a.x - x) < 1.6 and abs(a.s - s) < 5 for a in self.actors if a.cls != PERSON):
            return
        model, length, width = models.bicycle(self.rng, self.weather.light, yaw)
        actor = Actor(self._track(), BICYCLE, x, s, length, width, heading, speed, speed, model=model)
        self.actors.append(actor)
        self._seat(actor, yaw)

    def _walkers(self, side: int, z: float, crossing: bool = False) -> None:
        """A group of one to four on the pavement of `side`, standing, walking, or (`crossing`) on the road."""
        rng = self.rng
        n = int(rng.choice([1, 2, 3, 4], p=[0.45, 0.33, 0.15, 0.07]))
        direction, pace = float(rng.choice([-1, 1])), rng.uniform(0.8, 1.7)
        lo, hi = sorted((self.kerb[side] + side * 0.9, self.walk[side] - side * 0.3))
        middle = rng.uniform(lo, hi)
        stand = rng.random() < 0.18
        for i in range(n):
            if self._full():
                return
            x = float(np.clip(middle + (i % 2) * rng.uniform(0.5, 0.8) - 0.3, lo, hi))
            a = Actor(self._track(), PERSON, x, self.s + z + 0.5 * i + rng.uniform(0, 0.4), 0.5, 0.5, 0)
            a.look, a.phase = persons.look(rng, self.weather.wet), rng.random()
            a.walks, a.speed = (0.0, direction), 0.0 if stand else pace * rng.uniform(0.95, 1.05)
            if stand:
                a.walks = (float(rng.choice([-1, 1])), 0.0) if rng.random() < 0.5 else (0.0, direction)
            self.actors.append(a)
            if crossing:
                self._send(a, side)
                a.x = rng.uniform(self.kerb[-1], self.kerb[1]) if i == 0 else self.actors[-2].x + rng.uniform(0.4, 1.0)

    def _send(self, a: Actor, side: int) -> None:
        """Let a walker cross the road."""
        a.walks, a.goal = (-float(side), 0.0), self.kerb[-side] - side * self.rng.uniform(0.6, 1.4)
        a.speed = max(a.speed, self.rng.uniform(1.1, 1.7))

    def _populate(self) -> None:
        rng = self.rng
        if rng.random() < 0.78:
            self._drive(0.0, rng.uniform(9, 19), 1, self.speed, self.speed, lead=True)
        if rng.random() < 0.45:
            self._walkers(int(rng.choice([-1, 1])), rng.uniform(10, 20), crossing=True)
        for x in self.oncoming_lanes:
            if rng.random() < 0.75:
                self._drive(x, rng.uniform(8, 45), -1, 6.0, rng.uniform(5, 9))
        for x in self.same_lanes:
            if rng.random() < 0.75:
                self._drive(x, rng.uniform(2, 24), 1, self.speed, self.speed + rng.uniform(-2.5, 2.5))
        for side in (-1, 1):
            for _ in range(rng.poisson(self.crowd)):
                self._walkers(side, rng.uniform(5, 30))
        if rng.random() < 0.7:
            self._cycle(rng.uniform(6, 22), rng.uniform(3, 5.5), 1 if rng.random() < 0.7 else -1)

    def _spawn(self) -> None:
        """Newcomers of this frame, at the far end of the view, from behind, or out of a side street."""
        rng, chance = self.rng, self.rng.random(6)
        for x in self.oncoming_lanes:
            if chance[0] < 0.35 * STEP:
                self._drive(x, VEHICLE_VIEW, -1, 6.0, rng.uniform(5, 9))
        if self.same_lanes and chance[1] < 0.3 * STEP:
            x = self.same_lanes[rng.integers(len(self.same_lanes))]
            if rng.random() < 0.6:
                self._drive(x, -5.0, 1, self.speed + 2, max(self.wish, self.speed) + rng.uniform(1.5, 4))
            else:
                self._drive(x, VEHICLE_VIEW, 1, self.speed, max(1.5, self.wish - rng.uniform(1.5, 4)))
        side = 1 if rng.random() < 0.5 else -1
        if chance[2] < (0.16 * self.crowd + 0.1) * STEP * max(self.speed, 1.5) / 4:
            self._walkers(side, PERSON_VIEW - 1)
        if chance[3] < 0.2 * STEP:
            self._cycle(VEHICLE_VIEW - 10, rng.uniform(2.5, 4.5), 1) if rng.random() < 0.6 else self._cycle(-3, 8.0, 1)
        if chance[4] < 0.35 * STEP:
            self._cross()
        for j in self.junctions:
            if 6 < j.s - self.s < 42 and j.red(self.time) and chance[5] < 0.7 * STEP:
                vx = float(side) * rng.uniform(6, 9)
                self._drive(-side * 36.0, j.s + side * min(1.8, j.half / 2) - self.s, 0, abs(vx), abs(vx), vx)
        if self.in_view() < 3 and chance[5] < 0.1:
            self._walkers(side, PERSON_VIEW - 1)

    def _cross(self) -> None:
        """A group on the pavement decides to cross, where no parked car stands and no vehicle is about to pass."""
        walkers = [a for a in self.actors if a.cls == PERSON and a.walks[0] == 0 and 8 + self.speed < a.s - self.s < 26]
        if not walkers:
            return
        first = walkers[self.rng.integers(len(walkers))]
        vehicles = [a for a in self.actors if a.cls not in (PERSON, RIDER)]
        if any(abs(a.s - first.s) < a.length / 2 + 1.2 and a.parked for a in vehicles):
            return
        if any(0 < (first.s - a.s) * a.heading < a.length / 2 + 1.4 * a.speed for a in vehicles if a.heading):
            return
        side = 1 if first.x > 0 else -1
        for a in walkers:
            if abs(a.s - first.s) < 1.8 and a.x * side > 0:
                self._send(a, side)

    def _gap(self, x: float, s: float, heading: int, front: float, width: float, me: Actor | None) -> float:
        """Metres that are free in the lane before a vehicle whose bumper is `front` ahead of s."""
        gap = 80.0
        for a in self.actors:
            if a is me or a.mount is not None:
                continue
            ahead = (a.s - s) * heading
            if not 0 < ahead < 60:
                continue
            side = abs(a.x - x)
            reach = (width + a.width) / 2 + (0.25 if a.cls != PERSON else 0.5)
            if a.cls == PERSON and a.walks[0] * (x - a.x) > 0 and a.goal:
                reach += 2.2
            if side < reach:
                gap = min(gap, ahead - front - a.length / 2)
        ego_ahead = (self.s - s) * heading
        if me is not None and abs(x) < (width + 1.8) / 2 and ego_ahead > 0:
            gap = min(gap, ego_ahead - front - 2.0)
        for j in self.junctions:
            if j.red(self.time) and j.signals:
                line = (j.s - heading * (j.half + 2.6) - s) * heading - front
                if line > -0.5:
                    gap = min(gap, line + 2.2)
        return gap

    @staticmethod
    def _pace(speed: float, wish: float, gap: float) -> float:
        """The next speed: towards the wish, but slow enough to stop 2 m before what is ahead."""
        allowed = min(wish, max(0.0, gap - 2.2) * 0.85)
        return speed + float(np.clip(allowed - speed, -7.0 * STEP, 1.8 * STEP))

    def step(self) -> None:
        rng = self.rng
        self.wish = float(np.clip(self.wish + rng.normal(0, 0.12), 3.5, 9.0))
        self.speed = max(0.0, self._pace(self.speed, self.wish, self._gap(0.0, self.s, 1, 2.0, 1.8, None)))
        for a in self.actors:
            if a.cls == PERSON:
                self._walk(a)
            elif a.mount is None and not a.parked:
                if a.lead:
                    a.wish = float(np.clip(self.speed + 0.5 * (15.0 - (a.s - self.s)), 2.5, 10.0))
                if a.heading:
                    gap = self._gap(a.x, a.s, a.heading, a.length / 2, a.width, a)
                    a.speed = max(0.0, self._pace(a.speed, a.wish, gap))
                    a.s += a.heading * a.speed * STEP
                else:
                    a.x += a.vx * STEP
        for a in self.actors:
            if a.mount is not None:
                a.x, a.s, a.speed = a.mount.x, a.mount.s, a.mount.speed
                a.phase += a.speed * STEP * 0.22 * (a.mount.cls == BICYCLE)
        self.s += self.speed * STEP
        self.time += STEP
        self._extend()
        self._spawn()

    def _walk(self, a: Actor) -> None:
        dx, ds = a.walks
        a.x += dx * a.speed * STEP
        a.s += ds * a.speed * STEP
        a.phase += a.speed * STEP / (4 * a.look.stride)
        if a.goal and (a.goal - a.x) * dx <= 0:  # across: go on along the other pavement
            a.goal, a.walks = 0.0, (0.0, float(self.rng.choice([-1, 1])))

    # What is seen ------------------------------------------------------------------------------------------------

    def _actor_model(self, a: Actor) -> Model:
        if a.model is not None:
            return a.model
        moving = a.speed > 0.2
        key = int(a.phase * persons.GAIT) % persons.GAIT if moving else 0
        if a.cls == RIDER:
            if key not in a.cache:
                heavy = a.mount.cls == MOTORCYCLE
                a.cache[key] = persons.rider(a.look, self.weather.light, a.walks[0], key / persons.GAIT, heavy)
            return a.cache[key]
        if (a.walks, key) not in a.cache:
            a.cache[a.walks, key] = persons.person(a.look, self.weather.light, a.walks, key / persons.GAIT, moving)
        return a.cache[a.walks, key]

    def things(self) -> list[Thing]:
        """Everything that may be in view, in no order."""
        result = [t for t in self.static if t.s - self.s < (VIEW if t.box[3] > t.s else FURNITURE_VIEW)]
        for j in self.junctions:
            if j.s - self.s < FURNITURE_VIEW:
                state = "red" if j.red(self.time) else "green"
                for x, side, overhead in j.signals:
                    key = (side, state, overhead)
                    if key not in self.signals:
                        self.signals[key] = scenery.traffic_light(self.weather.light, *key)
                    s = j.s - j.half - 1.6 if side > 0 else j.s - j.half - 1.3
                    result.append(Thing(self.signals[key], x, s, (x - 0.15, x + 0.15, s, s), reach=3.5))
        for a in self.actors:
            z = a.s - self.s
            if -6 < z < (PERSON_VIEW if a.cls == PERSON else VEHICLE_VIEW):
                w, h = a.width / 2, a.length / 2
                nudge = 0.02 if a.mount is None else 0.0  # a rider is drawn after what it sits on
                box = (a.x - w, a.x + w, a.s - h + nudge, a.s + h + nudge)
                result.append(Thing(self._actor_model(a), a.x, a.s, box, a.track))
        return result
