"""Weights of a backbone: fetched as carefully as data, checked before they are read, and put where they belong."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from painted import make_kitti
from running import call
from serving import BODY, SHA
from small import FLAGS

from model import CheckpointError, ModelConfig
from model.backbone_weights import FILES, backbone_file
from model.network.backbones import load_backbone
from model.network.encoder import ImageEncoder


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture
def served(serve, tmp_path, monkeypatch):
    """Weights for a ResNet-18 on a server that follows a script; torch's cache is an empty folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def start(*script):
        server = serve(*script)
        monkeypatch.setitem(FILES, ("imagenet", "resnet18"), f"{server.url}/r18-{SHA[:8]}.pth")
        return server

    return start


def encoder_of(backbone):
    return ImageEncoder(
        ModelConfig(
            image_size=(64, 64), mask_size=(8, 8), backbone=backbone, backbone_norm="frozen_batch", encoder_dim=16,
            encoder_depth=0, encoder_heads=1, map_channels=8,
        )
    )  # fmt: skip


def test_weights_are_fetched_once(served, tmp_path):
    server = served()
    for _ in range(2):
        path = backbone_file("imagenet", "resnet18", quiet=True)
        assert path == tmp_path / "hub" / "checkpoints" / f"r18-{SHA[:8]}.pth" and path.read_bytes() == BODY
    assert len(server.requests) == 1


def test_several_processes_fetch_weights_once(served):
    server = served()
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: backbone_file("imagenet", "resnet18", quiet=True), range(4)))) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [("cut", 100_000), ("wrong bytes", 0), ("status", 404)], ids=lambda fault: fault[0])
def test_weights_that_are_not_whole_are_not_kept(served, tmp_path, fault):
    served(fault)
    with pytest.raises(CheckpointError, match=r"backbone weights 'imagenet' cannot be had.*--backbone_weights PATH"):
        backbone_file("imagenet", "resnet18", quiet=True)
    assert not list((tmp_path / "hub" / "checkpoints").glob("*.pth*[!k]"))  # but the lock
    assert backbone_file("imagenet", "resnet18", quiet=True).read_bytes() == BODY


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(CheckpointError, match="no coco weights for resnet18"):
        backbone_file("coco", "resnet18")
    assert backbone_file("mine.pth", "resnet18") == Path("mine.pth")


def test_without_a_network_it_is_one_line(tmp_path, capfd, monkeypatch):
    """By the script: nothing is downloaded before the data is there, and the message says both ways out."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(FILES, ("imagenet", "resnet18"), "http://127.0.0.1:9/r18-00000000.pth")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    make_kitti(tmp_path / "kitti" / "video_sequence" / "train", numbers=range(3))
    flags = ("--data_root", tmp_path / "kitti", "--validate_videos", 0, "--results_folder", tmp_path / "run")
    weights = ("--backbone", "resnet18", "--backbone_weights", "imagenet")
    result = call(capfd, "train", *FLAGS, *flags, *weights)
    assert result.status == 2 and len(result.err.strip().splitlines()) == 1, result.err
    assert "error: backbone weights 'imagenet' cannot be had (" in result.err
    assert "--backbone_weights PATH" in result.err and "--backbone_weights none" in result.err


# ---------------------------------------------------------------------------------------------------------------------
# Into the encoder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "detector", "wrapped", "old format"])
def test_weights_are_put_where_they_belong(resnet, tmp_path, form):
    prefix = {"detector": "backbone.body.", "wrapped": "module."}.get(form, "")
    state = {f"{prefix}{k}": v for k, v in resnet.items()} | {"rpn.head.weight": torch.zeros(1)}
    content = {"model": state} if form == "wrapped" else state
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form != "old format")
    encoder = encoder_of("resnet18")
    load_backbone(encoder, "resnet18", tmp_path / "a.pth")
    own = encoder.state_dict()
    assert torch.equal(own["stem.0.weight"], resnet["conv1.weight"])
    assert torch.equal(own["stages.2.1.bn2.running_var"], resnet["layer3.1.bn2.running_var"])
    loaded = [k for k in own if k.startswith(("stem.", "stages."))]
    assert len(loaded) == sum(not k.startswith(("layer4", "fc")) and "tracked" not in k for k in resnet)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "hold a list, and no state dict"),
        ({"conv1.weight": torch.zeros(3)}, r"do not fit a resnet18: stem\.0\.weight is missing or another size"),
        ({"conv1.weight": "x", 3: torch.zeros(1)}, "do not fit a resnet18"),
        ({"conv1.weight": print}, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        load_backbone(encoder_of("resnet18"), "resnet18", tmp_path / "a.pth")
