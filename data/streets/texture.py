"""Pictures that Streets lays over its faces: soft noise, and the ego car's bonnet."""

import numpy as np

NOISE = 128  # side of the texture table, a power of two


def noise_table(rng: np.random.Generator) -> np.ndarray:
    """A tile of soft noise (NOISE, NOISE) float32 in about -1..1, the same at its opposite edges."""
    table = np.zeros((NOISE, NOISE))
    for step, weight in ((32, 1.0), (8, 0.7), (2, 0.5), (1, 0.35)):
        grid = rng.standard_normal((NOISE // step, NOISE // step)).repeat(step, 0).repeat(step, 1)
        for _ in range(2 if step > 1 else 0):
            for axis in (0, 1):
                kernel = sum(np.roll(grid, k, axis) for k in range(-(step // 2), step // 2 + 1))
                grid = kernel / (step + 1)
        table += weight * grid / grid.std()
    return (table / (2 * table.std())).clip(-1, 1).astype(np.float32)


def bonnet(rng: np.random.Generator, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """The ego car's bonnet at the bottom of the frame: mask (H, W) and colours float32 (H, W, 3)."""
    v, u = np.mgrid[:h, :w]
    rise = rng.uniform(0.04, 0.1)
    top = 1 - rise * (1 - (2 * (u + 0.5) / w - 1 + rng.uniform(-0.1, 0.1)) ** 2) * 1.3
    depth = (v + 0.5) / h - top
    color = rng.uniform(15, 120, 3) * 0.4 + rng.uniform(10, 90)
    return depth > 0, (color * (1.25 - 4 * depth[..., None].clip(0, 0.2))).astype(np.float32)
