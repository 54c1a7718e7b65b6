"""The data sets by name. A new one is a class `Name(root: Path | None, split: str)` with the attributes of
`data.frames.FrameSource`, and one line here.
"""

from data.cityscapes import Cityscapes
from data.kitti_step import KittiStep
from data.streets import Streets

DATASETS = {"cityscapes": Cityscapes, "kitti_step": KittiStep, "streets": Streets}
