"""Random label maps, and the files of the layouts that hold them."""

import numpy as np
from PIL import Image

from data.io.images import write_panoptic
from data.labels import THINGS, TRAIN_TO_LABEL, VOID


def random_labels(rng, height=24, width=40, block=4):
    """A map of blocks: 19 classes and void, things with ids 0..3; some stuff has ids too, which mean nothing."""
    shape = (height // block, width // block)
    semantic = rng.choice([*range(19), *THINGS, VOID], shape)
    maps = semantic.astype(np.uint8), rng.integers(0, 4, shape).astype(np.int32)
    return tuple(np.ascontiguousarray(m.repeat(block, 0).repeat(block, 1)) for m in maps)


def blend(rng, labels, other, keep):
    """`labels`, with `other` wherever a random block is not kept."""
    height, width = labels[0].shape
    mask = (rng.random((height // 4, width // 4)) < keep).repeat(4, 0).repeat(4, 1)
    return tuple(np.where(mask, a, b) for a, b in zip(labels, other, strict=True))


def write_video(folder, sequence, frames):
    for number, labels in enumerate(frames):
        write_panoptic(folder / f"{sequence}_{number:06d}_panoptic.png", *labels)


def write_cityscapes(root, names, frames):
    """Labels as gtFine and as PanopticParts of the split val, city `x`. Crowd and things of id 0 have no instance."""
    for name, (semantic, instance) in zip(names, frames, strict=True):
        label = TRAIN_TO_LABEL[semantic].astype(np.int32)
        ids = np.where(np.isin(semantic, THINGS) & (instance > 0), label * 1000 + instance - 1, label)
        for folder, end in (("gtFine", "gtFine_instanceIds.png"), ("gtFinePanopticParts", "gtFinePanopticParts.tif")):
            path = root / folder / "val" / "x" / f"{name}_{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder == "gtFine":
                Image.fromarray(ids.astype(np.uint16)).save(path)
            else:
                with_parts = np.where(ids >= 1000, ids * 100 + 3, ids)
                Image.fromarray(with_parts.astype(np.int32)).save(path)
