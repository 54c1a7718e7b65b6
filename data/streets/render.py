"""The camera of Streets: from a World to pixels and labels.

Faces are drawn from far to near into one image of face numbers at twice the size; colours, classes and tracks are then
looked up in tables, so that image and labels cannot disagree. Colours are averaged over the four samples of a pixel,
labels are those of one of the four. Ground and sky are computed for each pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data.labels import VOID
from data.streets.models import ALONG, BUILDING, ROAD, SHADOW, SIDEWALK, SKY, TERRAIN, VEGETATION, Model
from data.streets.texture import NOISE, bonnet, noise_table
from data.streets.traffic import World
from data.streets.world import Thing

NEAR = 0.6  # m; what is nearer is cut off
_FIELDS = ("normals", "colors", "classes", "texture", "pattern")


@dataclass(frozen=True)
class Frame:
    """image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W); `full` = {track: pixels it would cover in
    the frame if nothing stood before it}, only where asked for."""

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    full: dict[int, int] | None = None


class Renderer:
    """Renders the frames of one video. `rng` draws what belongs to the camera and to the surfaces' texture."""

    def __init__(self, world: World, rng: np.random.Generator, noise_rng: np.random.Generator, size: tuple[int, int]):
        self.world, self.noise_rng = world, noise_rng
        self.h, self.w = size
        self.air = world.weather.horizon.astype(np.float32)  # the colour that distance fades into
        self.focal = rng.uniform(0.6, 0.74) * self.w
        self.horizon = rng.uniform(0.4, 0.5) * self.h
        self.texture = noise_table(rng)
        self.fine = np.clip(rng.standard_normal((NOISE, NOISE)), -2, 2).astype(np.float32)
        asphalt, stone = rng.uniform(66, 112), rng.uniform(118, 176)
        soil = np.array([92, 116, 60]) * rng.uniform(0.75, 1.15) + rng.uniform(0, 40) * np.array([1, 0.5, 0.2])
        direction, ambient, sun = world.weather.light
        self.daylight = float(ambient + sun * max(0.0, direction[1]))
        base = np.zeros((256, 3), np.float32)
        base[ROAD] = asphalt + rng.normal(0, 3, 3)
        base[SIDEWALK] = stone + rng.normal(0, 4, 3)
        base[TERRAIN] = soil
        self.base = base * np.float32(self.daylight * (0.8 if world.weather.wet else 1.0))
        self.paint = np.array([222, 222, 214] if rng.random() < 0.8 else [222, 196, 110], np.float32) * self.daylight
        self.bonnet = bonnet(rng, self.h, self.w) if rng.random() < 0.3 else None
        self.sky, self.sky_labels = self._panorama(rng)
        v, u = np.mgrid[: self.h, : self.w].astype(np.float32)
        self.ray_x = (u[0] + 0.5 - self.w / 2) / self.focal  # (W,)
        self.across = np.tile(self.ray_x, self.h)  # (H * W,), slopes of the pixels' rays
        self.down = ((v + 0.5) / self.focal).ravel()
        radius = ((u / self.w - 0.5) ** 2 + (v / self.h - 0.5) ** 2)[..., None]
        self.gain = ((1 - rng.uniform(0.1, 0.5) * radius) * world.weather.tint).astype(np.float32)
        # Twice as many draws as a frame needs; each frame reads them from a place of its own.
        count = self.h * self.w * 3
        self.sensor = (noise_rng.standard_normal(2 * count, np.float32) * world.weather.noise).astype(np.float32)

    # Behind everything: sky and ground -------------------------------------------------------------------------------

    def _panorama(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sky and skyline above the horizon, twice as wide as a frame: colours (R, 2W, 3) and labels (R, 2W)."""
        weather, rows, width = self.world.weather, self.h, 2 * self.w
        scale = self.w / 320
        up = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
        sky = weather.horizon * (1 - up) + weather.zenith * up
        x = np.arange(width) / scale
        y = np.arange(rows)[::-1] / scale  # up from the horizon
        cloud = self.texture[(y[:, None] * 0.9 + 7).astype(int) % NOISE, (x[None] * 0.33).astype(int) % NOISE]
        cloud = np.clip(
            cloud + 0.25 * self.texture[(y[:, None] * 2).astype(int) % NOISE, x.astype(int)[None] % NOISE], 0, 1
        )
        white = np.clip(weather.horizon * 1.12, 0, 250 if not weather.night else 60)
        sky = sky + (white - sky) * (cloud * weather.clouds)[..., None]
        labels = np.full((rows, width), SKY, np.uint8)
        haze = 1 - np.exp(-weather.fog * 180)
        heights = np.repeat(rng.uniform(0, 16, 200) * (rng.random(200) < 0.55), rng.integers(8, 26, 200))
        houses = heights[x.astype(int)]
        rough = self.texture[5, (x * 0.4).astype(int) % NOISE], self.texture[77, (x * 1.1).astype(int) % NOISE]
        wave = 4 + 5 * np.abs(rough[0]) + 1.5 * rough[1]
        for profile, cls, color in ((houses, BUILDING, (128, 122, 118)), (wave, VEGETATION, (70, 92, 58))):
            mask = y[:, None] < profile[None]
            tone = np.array(color) * self.daylight * (1 - haze) + weather.horizon * haze
            sky[mask] = tone
            labels[mask] = cls
        return sky.astype(np.float32), labels

    def _background(self, pose) -> tuple[np.ndarray, np.ndarray]:
        """Colours float32 (H, W, 3) and labels uint8 (H, W) of the sky and of the ground."""
        world, weather = self.world, self.world.weather
        cam_x, height, yaw, horizon, bend = pose
        color = np.empty((self.h, self.w, 3), np.float32)
        labels = np.empty((self.h, self.w), np.uint8)
        first = int(np.clip(np.ceil(horizon + 0.2), 1, self.h - 1))
        shift = round(self.w / 2 + yaw * self.focal) % self.w
        color[:first] = self.sky[self.h - first :, shift : shift + self.w]
        labels[:first] = self.sky_labels[self.h - first :, shift : shift + self.w]

        z = (self.focal * height / (np.arange(first, self.h) + 0.5 - horizon)).clip(0, 400).astype(np.float32)  # (R,)
        s = z + np.float32(world.s)
        x = z[:, None] * (self.ray_x + yaw) - 0.5 * bend * (z * z)[:, None] + cam_x  # (R, W)
        label, junction, corner = self._ground_labels(x, s)
        ground = self.base[label]
        ground += self._road_marks(x, s, z, junction, corner)[..., None] * (self.paint - ground) * 0.85

        def tile(table: np.ndarray, per_metre: float) -> np.ndarray:
            i, j = (x * per_metre).astype(np.int32), (s * per_metre).astype(np.int32)[:, None]
            return table[i & (NOISE - 1), j & (NOISE - 1)]

        rough = tile(self.fine, 9) * (0.07 * np.minimum(1, 9 / z))[:, None] + tile(self.texture, 1.2) * np.float32(0.13)
        ground *= 1 + (rough * np.where(label == TERRAIN, np.float32(1.8), np.float32(1)))[..., None]
        kerb, pixel = np.zeros(x.shape, np.float32), np.maximum(z / self.focal, 0.02)[:, None]
        for side in (-1, 1):
            kerb += np.clip((0.11 - np.abs(x - world.kerb[side])) / pixel + 0.5, 0, 1)
        ground += (kerb * ~junction[:, None])[..., None] * 18 * self.daylight
        if weather.night:  # our own headlights
            ground *= 1 + (1.4 * np.exp(-(((z - 9) / 11) ** 2))[:, None] * np.exp(-((x / 4) ** 2)))[..., None]
        if weather.wet:  # the sky in the wet road
            ground += ((label == ROAD) * (0.35 * np.minimum(1, z / 30))[:, None])[..., None] * (self.air - ground)
        haze = (1 - np.exp(-weather.fog * z))[:, None, None]
        color[first:] = ground + haze * (self.air - ground)
        labels[first:] = label
        return color, labels

    def _ground_labels(self, x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels uint8 (R, W) of the ground at x (R, W) and s (R,); and which rows lie in a crossing street, and which
        in it or beside it, bool (R,)."""
        world = self.world
        label = np.full(x.shape, ROAD, np.uint8)
        junction, corner = np.zeros(s.shape, bool), np.zeros(s.shape, bool)
        for j in world.junctions:
            distance = np.abs(s - j.s)
            junction |= distance < j.half
            corner |= distance < j.half + 2.2
        for side in (-1, 1):
            across = x if side > 0 else -x
            label[across > side * world.kerb[side]] = SIDEWALK
            if world.green[side]:
                label[(across > side * world.walk[side]) & ~corner[:, None]] = TERRAIN
        label[junction] = ROAD
        return label, junction, corner

    def _road_marks(self, x, s, z, junction, corner) -> np.ndarray:
        """Share of each pixel (R, W) that lines and zebra crossings cover, 0..1."""
        world = self.world
        marks = np.zeros(x.shape, np.float32)
        near = int(np.searchsorted(-z, -60.0))  # rows before this one are too far for paint to show
        x, s, road = x[near:], s[near:], ~corner[near:]
        pixel = np.maximum(z[near:] / self.focal, 0.02)  # m that a pixel covers
        for at, kind in world.marks:
            rows = road & ((s / world.dash) % 1 < 0.45) if kind == "dash" else road
            line = np.clip((0.075 - np.abs(x - at)) / pixel[:, None] + 0.5, 0, 1)
            marks[near:] += line * (rows * np.minimum(1, 0.15 / pixel))[:, None]
        zebra = (corner & ~junction)[near:]
        if zebra.any():
            bars = (x > world.kerb[-1]) & (x < world.kerb[1]) & (x % 1 < 0.5)
            marks[near:] += bars * (zebra * np.minimum(1, 0.5 / pixel))[:, None]
        return np.minimum(marks, 1)

    # What stands on it -----------------------------------------------------------------------------------------------

    def _visible(self, things: list[Thing], pose) -> list[Thing]:
        """The things whose extent meets the view, from far to near."""
        cam_x, _, yaw, _, bend = pose
        box = np.array([t.box for t in things], np.float64) - (cam_x, cam_x, self.world.s, self.world.s)
        z = np.maximum(box[:, [2, 3, 2, 3]], NEAR)
        slope = (box[:, [0, 0, 1, 1]] + 0.5 * bend * z * z) / z - yaw
        edge = self.w / 2 / self.focal * 1.15 + (0.5 + np.array([t.reach for t in things])) / z.min(1)
        seen = (box[:, 3] > NEAR) & (slope.max(1) > -edge) & (slope.min(1) < edge)
        kept = np.flatnonzero(seen)
        return [things[i] for i in kept[_order(box[kept])]]

    def _draw(self, things: list[Thing], pose) -> tuple[np.ndarray, dict[str, np.ndarray], list[list]]:
        """Draw things in order. Returns the face numbers int32 (2H, 2W), 0 = none; tables of the faces; and for each
        thing with a track its polygons, [(track, list of corners)]."""
        cam_x, height, yaw, horizon, bend = pose
        models: list[Model] = [t.model for t in things]
        faces = np.array([len(m.classes) for m in models])
        corners = np.array([len(m.points) for m in models])
        where = np.array([(t.x - cam_x, -height, t.s - self.world.s) for t in things], np.float32)
        table = {name: np.concatenate([getattr(m, name) for m in models]) for name in _FIELDS}
        table["origin"] = np.repeat(where, faces, axis=0)
        table["track"] = np.repeat([t.track for t in things], faces)

        first_corner = np.concatenate([[0], np.cumsum(corners)[:-1]])
        starts = np.concatenate([m.starts[:-1] + o for m, o in zip(models, first_corner, strict=True)])
        points = np.concatenate([m.points for m in models]) + np.repeat(where, corners, axis=0)
        z = points[:, 2]
        bent = points[:, 0] + 0.5 * bend * z * z
        lead = points[starts]
        ahead = np.einsum("ij,ij->i", table["normals"], np.stack([bent[starts], lead[:, 1], lead[:, 2]], 1)) <= 1e-4
        nearest = np.minimum.reduceat(z, starts)
        table["depth"] = np.maximum(nearest, 1.0)
        uv = self._project(bent, points[:, 1], np.maximum(z, NEAR), yaw, horizon)

        canvas = Image.new("I", (2 * self.w, 2 * self.h), 0)
        polygon = ImageDraw.Draw(canvas).polygon
        flat, ends = uv.ravel().tolist(), np.append(starts[1:], len(points))
        visible = np.flatnonzero(ahead & (np.maximum.reduceat(z, starts) > NEAR))
        # Shadows lie on the ground, under all that stands on it.
        dark = table["classes"][visible] == SHADOW
        visible = np.concatenate([visible[dark], visible[~dark]])
        drawn, shadows = [], int(dark.sum())
        begin, end = (2 * starts[visible]).tolist(), (2 * ends[visible]).tolist()
        cut, tracks = (nearest[visible] < NEAR).tolist(), table["track"][visible].tolist()
        for i, number in enumerate((visible + 1).tolist()):
            outline = flat[begin[i] : end[i]]
            if cut[i]:
                outline = self._clip(points[begin[i] // 2 : end[i] // 2], yaw, horizon, bend)
                if len(outline) < 6:
                    continue
            polygon(outline, number)
            if tracks[i] and i >= shadows:
                drawn.append((tracks[i], outline))
        return np.asarray(canvas), table, drawn

    def _project(self, x, y, z, yaw, horizon) -> np.ndarray:
        """Points to whole coordinates (n, 2) of the image at twice the size."""
        u = self.w / 2 + self.focal * (x / z - yaw)
        v = horizon - self.focal * y / z
        return np.floor(np.stack([u, v], 1) * 2).clip(-1_000_000, 1_000_000).astype(np.int32)

    def _clip(self, points: np.ndarray, yaw: float, horizon: float, bend: float) -> list[int]:
        """A face that reaches behind the near plane, cut there (Sutherland-Hodgman) and projected."""
        kept = []
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            if a[2] >= NEAR:
                kept.append(a)
            if (a[2] >= NEAR) != (b[2] >= NEAR):
                kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
        if len(kept) < 3:
            return []
        x, y, z = np.array(kept).T
        return self._project(x + 0.5 * bend * z * z, y, np.maximum(z, NEAR), yaw, horizon).ravel().tolist()

    def _surfaces(self, number: np.ndarray, table: dict[str, np.ndarray], pose) -> tuple[np.ndarray, ...]:
        """Roughness and openings (windows, gaps between bars) of the faces.

        number: (H, W) face numbers, 0 = none. Returns (pixels (n,), factor on their colour (n,)) for all that is drawn
        and (pixels (m,), share of opening (m, 1), its colour (m, 3)) for what has a pattern.
        """
        _, height, yaw, horizon, bend = pose
        pixels = np.flatnonzero(number)
        face = number.ravel()[pixels] - 1
        start = np.maximum(table["origin"], (-np.inf, -np.inf, NEAR)).astype(np.float32)
        kind, offset, z = table["pattern"][:, 0][face], start[:, 0][face], start[:, 2][face]
        ray = self.across.take(pixels) + np.float32(yaw)
        # A plane along the street: where does the ray meet it? By iteration, as the street bends.
        along = np.flatnonzero(kind == ALONG)
        side = ray[along]
        side = np.where(np.abs(side) < 1e-3, np.float32(1e-3), side)
        shift = at = offset[along] / side
        for _ in range(2 if bend else 0):
            at = shift + (0.5 * bend) * np.clip(at, NEAR, 300) ** 2 / side
        z[along] = np.clip(at, NEAR, 300)
        y = height - (self.down.take(pixels) - np.float32(horizon / self.focal)) * z
        a = ray * z - offset
        a[along] = z[along] - table["origin"][:, 2][face[along]]
        grain = self.texture[(a * 7).astype(np.int32) & (NOISE - 1), (y * 7).astype(np.int32) & (NOISE - 1)]
        factor = 1 + grain * table["texture"][face] * np.minimum(1, 25 / z)

        on = np.flatnonzero(kind)
        face, z, a, y, wide, along = face[on], z[on], a[on], y[on], np.abs(offset[on]), kind[on] == ALONG
        _, period, storey, share, low, dark, blue, _ = table["pattern"][face].T
        cell_a, cell_y = a / period, (y - low) / storey
        pixel = np.where(along, z / np.maximum(wide, 0.1), 1) * z / (self.focal * period)  # in periods
        inside = np.clip((share / 2 - np.abs(cell_a % 1 - 0.5)) / np.maximum(pixel, 0.03) + 0.5, 0, 1)
        opening = (
            inside * (np.abs(cell_y % 1 - 0.42) < 0.34) * (y > low) * np.clip(1.6 - 2 * pixel, 0.25, 1) * (share > 0)
        )
        odd = self.fine[cell_a.astype(np.int32) & (NOISE - 1), cell_y.astype(np.int32) & (NOISE - 1)]
        grey = dark * (1 + 0.25 * odd) * (0.35 if self.world.weather.night else self.daylight)
        tone = np.stack([grey, grey + 0.4 * blue, grey + blue], 1)
        if self.world.weather.night:
            tone[(odd > 0.7) & (table["classes"][face] == BUILDING)] = (236, 196, 120)
        clear = np.exp(-self.world.weather.fog * z)[:, None]
        return pixels, factor, pixels[on], opening[:, None], tone * clear + self.air * (1 - clear)

    def frame(self, full: bool = False) -> Frame:
        """The world as it stands now. With `full`, also the tracks' unhidden areas (slower)."""
        world, weather = self.world, self.world.weather
        cam_x, height, yaw, pitch = world.camera()
        # Plain floats: NumPy's own would turn every float32 array that they meet into float64.
        pose = tuple(map(float, (cam_x, height, yaw, self.horizon + pitch * self.focal, world.curvature)))
        color, ground = self._background(pose)
        numbers, table, drawn = self._draw(self._visible(world.things(), pose), pose)

        # Tables over face numbers; 0 is the background.
        paint, depth = table["colors"], table["depth"][:, None]
        if weather.night:
            paint = paint * (1 + 1.1 * np.exp(-depth / 14))
        haze = 1 - np.exp(-weather.fog * depth)
        paint = paint + haze * (self.air - paint)
        shade = table["classes"] == SHADOW
        rgba = np.zeros((len(paint) + 1, 4), np.uint8)
        rgba[1:, :3] = np.clip(paint, 0, 255)
        rgba[1:, 3] = 255
        rgba[1:][shade] = np.stack([np.zeros(shade.sum())] * 3 + [table["colors"][shade, 0] * 255], 1)
        samples = rgba.view(np.uint32).ravel().take(numbers).view(np.uint8).reshape(2 * self.h, 2 * self.w, 4)
        pairs = np.add(samples[0::2], samples[1::2], dtype=np.uint16)
        total = np.add(pairs[:, 0::2], pairs[:, 1::2], dtype=np.float32)  # (H, W, 4)
        total *= 0.25
        image = color * (1 - total[..., 3:] * (1 / 255)) + total[..., :3]

        number = numbers[1::2, 1::2]
        solid = np.where(np.append(True, shade), 0, np.arange(len(rgba), dtype=np.int32)).take(number)
        pixels, factor, patterned, opening, tone = self._surfaces(solid, table, pose)
        flat = image.reshape(-1, 3)
        tone -= flat.take(patterned, axis=0)
        flat[patterned] += opening * tone
        rough = np.ones(flat.shape[0], np.float32)
        rough[pixels] = factor
        flat *= rough[:, None]
        semantic = np.where(solid > 0, np.append(np.uint8(0), table["classes"]).take(solid), ground)
        instance = np.append(0, table["track"]).astype(np.int32).take(solid)
        if self.bonnet is not None:
            mask, metal = self.bonnet
            image[mask], semantic[mask], instance[mask] = metal[mask] * self.daylight, VOID, 0
        image *= self.gain
        image += self._sensor_noise()
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        return Frame(pixels, semantic, instance, self._full_areas(drawn) if full else None)

    def _sensor_noise(self) -> np.ndarray:
        count = self.h * self.w * 3
        start = int(self.noise_rng.integers(count))
        return self.sensor[start : start + count].reshape(self.h, self.w, 3)

    def _full_areas(self, drawn: list) -> dict[int, int]:
        polygons: dict[int, list] = {}
        for track, outline in drawn:
            polygons.setdefault(track, []).append(outline)
        areas = {}
        for track, outlines in polygons.items():
            canvas = Image.new("L", (2 * self.w, 2 * self.h), 0)
            polygon = ImageDraw.Draw(canvas).polygon
            for outline in outlines:
                polygon(outline, 1)
            mask = np.asarray(canvas)[1::2, 1::2].astype(bool)
            if self.bonnet is not None:
                mask = mask & ~self.bonnet[0]
            areas[track] = int(mask.sum())
        return areas


def _order(box: np.ndarray) -> np.ndarray:
    """Indices of boxes (n, 4) = x0, x1, z0, z1 from far to near, so that each is drawn after all that it hides.

    Two boxes are parted by a plane across the street or along it (x = 0 is the camera's); the one on the camera's
    side hides the other, and none does where the camera stands between them.
    """
    x0, x1, z0, z1 = (box[:, i] for i in range(4))
    eps = 1e-3
    behind = z0[:, None] >= z1[None] - eps  # [i, j]: i lies behind j
    apart_z = behind | behind.T
    right = x0[:, None] >= x1[None] - eps  # i lies to the right of j
    behind |= ~apart_z & ((right & (x1 > 0)) | (right.T & (x0 < 0)))
    middle = (z0 + z1) / 2
    behind |= ~(apart_z | right | right.T) & (middle[:, None] > middle[None])
    np.fill_diagonal(behind, False)
    order, left, before = [], np.ones(len(box), bool), behind.sum(0)
    while left.any():
        # Ready: whoever hides nothing that is not yet drawn.
        group = np.flatnonzero(left & (before == 0))
        if not group.size:  # a cycle: begin with the farthest
            group = np.array([np.argmax(np.where(left, z1, -np.inf))])
        order.append(group)
        left[group] = False
        before -= behind[group].sum(0)
    return np.concatenate(order) if order else np.zeros(0, int)


def frames(
    world: World, seeds: list[np.random.SeedSequence], size: tuple[int, int], full: bool = False
) -> Iterator[Frame]:
    """The endless video of a world; `seeds` are those of the camera and of the sensor."""
    renderer = Renderer(world, *[np.random.default_rng(s) for s in seeds], size)
    while True:
        yield renderer.frame(full)
        world.step()
