"""Small made data for the tests of data/: videos whose images are painted from their labels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.clips.clips import Clips
from data.clips.settings import Augmentation, ClipFormat, HistoryConfig
from data.io.images import write_image, write_panoptic
from data.labels import CAR, DEFAULT_SPACE, PERSON, VOID, DataError
from data.sets.frames import FrameRef

FORMAT = ClipFormat(image_size=(48, 96), mask_size=(24, 48), slots=16, history_offsets=(-2, -1))
NO_COLOR = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
STILL = Augmentation(scale_range=(1.0, 1.0), crop=False, flip=0.0, **NO_COLOR)


class Painted:
    """A made video whose images are painted from their labels: red = 10 * class, green = id, blue 40; void is 0."""

    name, space, tracked = "painted", DEFAULT_SPACE, (PERSON, CAR)
    is_video, root, split = True, None, "train"

    def __init__(self, numbers=range(12), size=(60, 128), objects=5, sequence="a", seed=0):
        self.frames = [FrameRef(sequence, n) for n in numbers]
        self.size, self.objects, self.seed = size, objects, seed

    def read_labels(self, i):
        rng = np.random.default_rng(self.seed)
        h, w = self.size
        semantic, instance = np.zeros(self.size, np.uint8), np.zeros(self.size, np.int32)
        semantic[: h // 3] = 10
        semantic[-4:] = VOID
        for k in range(self.objects):
            y, x = rng.integers(h // 4, h // 2), rng.integers(0, w - 20) + 2 * i
            semantic[y : y + 20, x : x + 16] = CAR if k % 2 else PERSON
            instance[y : y + 20, x : x + 16] = 100 + k
        semantic[-12:-4, :20], instance[-12:-4, :20] = CAR, 0  # crowd
        return semantic, instance

    def read(self, i):
        semantic, instance = self.read_labels(i)
        image = np.stack([semantic * 10, instance, np.full(self.size, 40)], -1).astype(np.uint8)
        image[semantic == VOID] = 0
        return image, semantic, instance


class Broken(Painted):
    """Every third frame cannot be read."""

    def read(self, i):
        if i % 3 == 0:
            raise DataError(f"frame {i} is broken")
        return super().read(i)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def make_kitti(folder: Path, numbers=(0, 1, 2, 10), sequence="000000") -> Path:
    for n in numbers:
        image, semantic, instance = Painted(seed=n).read(0)
        write_image(folder / f"{sequence}_{n:06d}_leftImg8bit.png", image)
        write_panoptic(folder / f"{sequence}_{n:06d}_panoptic.png", semantic, instance)
    return folder


def has_history(sample):
    """bool (T,): whether anything is known of each mask of a sample's history."""
    return sample["semantic_known"][:-1].flatten(1).any(dim=1)


class Seeded(Clips):
    """Clips by their number, which seeds what is drawn."""

    def __getitem__(self, i: int) -> dict:
        return self.sample(i, np.random.default_rng(i))


def clips_of(source, fmt=FORMAT, augment=STILL) -> Seeded:
    """Clips with all of their history; by default the middle of the frame, without augmentation."""
    return Seeded(source, fmt, augment, HistoryConfig(history_dropout=0.0))


def make_cityscapes(root: Path, names=("ulm_000000_000019", "ulm_000001_000019"), label="gtFine") -> Path:
    for name in names:
        write_image(root / f"leftImg8bit/train/ulm/{name}_leftImg8bit.png", np.zeros((8, 16, 3), np.uint8))
        target = root / f"gtFine/train/ulm/{name}_gtFine_instanceIds.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 16), 24000, np.uint16)).save(target)
    return root
