"""The data sets by name. To add one, write a class `Name(root: Path | None, split: str)` with the attributes of
`data.sets.frames.FrameSource`, and add one line here.
"""

from data.sets.cityscapes import Cityscapes
from data.sets.coco_panoptic import CocoPanoptic
from data.sets.kitti_step import KittiStep
from data.sets.mots import Mots
from data.streets.source import Streets

DATASETS = {
    "cityscapes": Cityscapes,
    "kitti_step": KittiStep,
    "mots": Mots,
    "coco_panoptic": CocoPanoptic,
    "streets": Streets,
}
