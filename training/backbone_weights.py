"""Weights that a backbone starts from, fetched once: by the downloader that resumes, and checks size and sha256.

They lie where torchvision keeps its own, so that what it has fetched is not fetched again, but is checked as well.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

from data.labels import DataError
from data.sets.download import DownloadError, download


class WeightFile(NamedTuple):
    url: str
    size: int  # bytes
    sha256: str


FILES = {
    ("coco", "resnet50"): WeightFile(
        FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url,
        175_221_657,
        "dd69338a24b8d7381807e247652bdc356325bcbaf1cd3e092e00e0a1a58706bf",
    ),
    ("imagenet", "resnet50"): WeightFile(
        ResNet50_Weights.IMAGENET1K_V2.url,
        102_540_417,
        "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    ),
    ("imagenet", "resnet18"): WeightFile(
        ResNet18_Weights.IMAGENET1K_V1.url,
        46_830_571,
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
}
NAMES = ("coco", "imagenet")
CSPNET = Path(__file__).resolve().parents[1] / "results" / "pretrained" / "backbone-cspnet.pt"


def default_weights(backbone: str) -> str:
    """What `--backbone_weights auto` means: the shipped file, else COCO's or ImageNet's weights, else none."""
    if backbone == "cspnet":
        return str(CSPNET)
    return next((source for source in NAMES if (source, backbone) in FILES), "none")


def backbone_file(source: str, backbone: str, quiet: bool = False, **patience: float) -> Path:
    """The file of the weights `coco` or `imagenet` for a backbone, fetched where it is missing; else `source` itself.

    `coco` is torchvision's FasterRCNN_ResNet50_FPN_V2. patience: of `data.sets.download.download`. Raises DataError
    where there are no such weights, DownloadError where they cannot be had.
    """
    if source not in NAMES:
        return Path(source)
    if (source, backbone) not in FILES:
        there = ", ".join(f"{name} for {of}" for name, of in FILES)
        raise DataError(f"there are no {source} weights for {backbone} ({there}): use --backbone_weights none")
    file = FILES[source, backbone]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(file.url).name
    by_hand = "give a file by --backbone_weights PATH, or --backbone_weights none to start from scratch"
    try:
        return download(file.url, path, file.size, file.sha256, by_hand=by_hand, quiet=quiet, **patience)
    except (DownloadError, OSError) as error:
        raise DownloadError(f"backbone weights {source!r} cannot be had: {error}") from None
