"""Clips: the image of a frame with the label maps of the frame and its history, as the tensors that a model takes.

One rule for sizes: a frame is scaled to the area of the image size times the jitter, and a crop of the image size is
cut from it (`content_size`); its labels go to the mask size by the same geometry.
"""

import numpy as np
import torch

from data.clips.motion import draw_motion, view_moved
from data.clips.paste import paste
from data.clips.settings import Augmentation, ClipFormat, HistoryConfig
from data.clips.slots import assign_slots
from data.clips.transforms import content_size, draw_color, draw_focus, draw_view, view_image, view_labels
from data.labels import VOID
from data.sets.frames import FrameSource, history_index


class Clips:
    """The clips of a data set, one for each of its frames.

    With T history frames, image size (H, W) and mask size (h, w) a sample is a dict of
      image           uint8 (3, H, W)       0 in the padding
      semantic        uint8 (T + 1, h, w)   semantic code: class + 1, 0 = void
      instance        uint8 (T + 1, h, w)   slot 0..slots-1, the same for an instance through the clip
      semantic_known  bool (T + 1, h, w)    False in void and padding
      instance_known  bool (T + 1, h, w)    also False in crowd and for instances without a slot
    with the history first, oldest first, and the current frame last.
    """

    def __init__(self, source: FrameSource, fmt: ClipFormat, augment: Augmentation, history: HistoryConfig):
        self.source, self.fmt, self.augment, self.history_config = source, fmt, augment, history
        if source.is_video:
            self.history = history_index(source.frames, fmt.history_offsets)
        else:
            self.history = np.full((len(source.frames), len(fmt.history_offsets)), -1, np.int64)

    def __len__(self) -> int:
        return len(self.source.frames)

    def sample(self, i: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Clip i; all random choices come from the generator. Raises DataError for a file that cannot be read."""
        fmt, augment, c, is_thing = self.fmt, self.augment, self.history_config, self.source.space.is_thing
        frame, semantic, instance = self.source.read(i)
        size = semantic.shape
        moved = generator.random() < augment.synthetic_history
        if (moved or not self.source.is_video) and generator.random() < augment.paste:
            other = self.source.read(int(generator.integers(len(self))))
            frame, semantic, instance = paste((frame, semantic, instance), other, generator, is_thing)
        focus = draw_focus(semantic, instance, generator, is_thing) if generator.random() < augment.focus else None
        view = draw_view(augment, size, fmt.image_size, generator, focus)
        color = draw_color(augment, generator)

        image = np.zeros((3, *fmt.image_size), np.uint8)
        height, width = content_size(size, fmt.image_size, view.zoom)
        image[:, :height, :width] = view_image(frame, (height, width), view, color).transpose(2, 0, 1)

        height, width = content_size(size, fmt.mask_size, view.zoom)
        classes = np.full((len(fmt.history_offsets) + 1, *fmt.mask_size), VOID, np.uint8)
        ids = np.zeros(classes.shape, np.int32)
        content = (slice(None, height), slice(None, width))
        classes[-1][content] = view_labels(semantic, (height, width), view)
        ids[-1][content] = view_labels(instance, (height, width), view)
        motion = draw_motion(generator) if moved else None
        for t, (offset, past) in enumerate(zip(fmt.history_offsets, self.history[i], strict=True)):
            if motion is not None:
                maps = view_moved(semantic, instance, (height, width), view, motion, -offset, is_thing)
            elif past >= 0:
                maps = [view_labels(labels, (height, width), view) for labels in self.source.read_labels(past)]
            else:
                continue
            classes[t][content], ids[t][content] = maps

        drop_masks(classes[:-1], ids[:-1], c, generator)
        slot, no_slot = assign_slots(classes, ids, fmt.slots, generator, c.slot_order, is_thing)
        semantic_known = classes != VOID
        return {
            "image": torch.from_numpy(image),
            "semantic": torch.from_numpy(classes + np.uint8(1)),  # void, 255, becomes 0
            "instance": torch.from_numpy(slot),
            "semantic_known": torch.from_numpy(semantic_known),
            "instance_known": torch.from_numpy(semantic_known & ~no_slot),
        }


def drop_masks(
    semantic: np.ndarray, instance: np.ndarray, config: HistoryConfig, generator: np.random.Generator
) -> None:
    """Drop history masks in place, so that the model works without them as well: classes (T, h, w) become void, ids
    (T, h, w) become 0."""
    dropped = generator.random(len(semantic)) < config.history_dropout
    dropped |= generator.random() < config.history_absent
    semantic[dropped], instance[dropped] = VOID, 0
