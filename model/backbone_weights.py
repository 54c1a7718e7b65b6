"""Weights that a backbone starts from, fetched once, to where torchvision keeps its own."""

from pathlib import Path

import torch
from filelock import FileLock
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

from model.checkpoint import CheckpointError

FILES = {  # the first digits of a file's sha256 are in its name
    ("coco", "resnet50"): FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url,
    ("imagenet", "resnet50"): ResNet50_Weights.IMAGENET1K_V2.url,
    ("imagenet", "resnet18"): ResNet18_Weights.IMAGENET1K_V1.url,
}
NAMES = ("coco", "imagenet")
CSPNET = Path(__file__).resolve().parents[1] / "results" / "pretrained" / "backbone-cspnet.pt"


def default_weights(backbone: str) -> str:
    """What `--backbone_weights auto` means: the shipped file, else COCO's or ImageNet's weights, else none."""
    if backbone == "cspnet":
        return str(CSPNET)
    return next((source for source in NAMES if (source, backbone) in FILES), "none")


def backbone_file(source: str, backbone: str, quiet: bool = False) -> Path:
    """The file of the weights `coco` or `imagenet` for a backbone, fetched where it is missing; else `source` itself.

    `coco` is torchvision's FasterRCNN_ResNet50_FPN_V2. Raises CheckpointError where there are no such weights, or
    they cannot be had.
    """
    if source not in NAMES:
        return Path(source)
    if (source, backbone) not in FILES:
        there = ", ".join(f"{name} for {of}" for name, of in FILES)
        raise CheckpointError(f"there are no {source} weights for {backbone} ({there}): use --backbone_weights none")
    url = FILES[source, backbone]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):  # of several processes one downloads
                if not path.exists():
                    torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=not quiet)
    except Exception as error:  # no network, a server's refusal, other bytes than expected, a full disk
        raise CheckpointError(
            f"backbone weights {source!r} cannot be had ({error}): give a file by --backbone_weights PATH, or "
            "--backbone_weights none to start from scratch"
        ) from None
    return path
