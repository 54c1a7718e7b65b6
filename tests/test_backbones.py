"""Weights of a backbone: fetched as carefully as data, checked before they are read, and put where they belong."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from painted import make_kitti
from running import call
from serving import BODY, SHA
from small import FLAGS

from data.labels import DataError
from data.sets.download import DownloadError
from model import CheckpointError
from model.network.backbones import load_backbone
from model.network.encoder import ImageEncoder
from training import backbone_weights as backbones
from training.backbone_weights import FILES, WeightFile, backbone_file

QUICK = {"timeout": 1.0, "backoff": 0.01, "quiet": True}


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
        file = WeightFile(f"http://127.0.0.1:{server.server_address[1]}/r18.pth", len(BODY), SHA)
        monkeypatch.setitem(FILES, ("imagenet", "resnet18"), file)
        return server

    return start


def encoder_of(backbone):
    return ImageEncoder(backbone, "frozen_batch", dim=16, depth=0, heads=1, map_channels=8, map_stride=8)


def test_the_files_are_those_that_torchvision_names():
    """A name holds the first digits of the sha256, and the size is known in MB."""
    assert {source for source, _ in FILES} == set(backbones.NAMES)
    detector = torchvision.models.detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    megabytes = {
        ("coco", "resnet50"): detector.meta["_file_size"],
        ("imagenet", "resnet50"): torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["_file_size"],
        ("imagenet", "resnet18"): torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["_file_size"],
    }
    for key, file in FILES.items():
        assert Path(file.url).stem.endswith(f"-{file.sha256[:8]}") and len(file.sha256) == 64
        assert file.size / 2**20 == pytest.approx(megabytes[key], abs=1e-3)


@pytest.mark.parametrize(
    "script",
    [[("cut", 100_000), ("cut", 1_900_000)], [("stall", 70_000)], [("length", -10)], [("wrong bytes", 0)]],
    ids=lambda script: script[0][0],
)
def test_weights_are_fetched_whatever_the_server_does(served, tmp_path, script):
    server = served(*script)
    path = backbone_file("imagenet", "resnet18", **QUICK)
    assert path == tmp_path / "hub" / "checkpoints" / "r18.pth" and path.read_bytes() == BODY
    assert not server.script
    asked = len(server.requests)
    assert backbone_file("imagenet", "resnet18", **QUICK) == path and len(server.requests) == asked  # it is there


def test_what_an_earlier_run_fetched_is_gone_on_with(served, tmp_path):
    served(*[("cut", 40_000)] * 2)
    with pytest.raises(
        DownloadError, match=r"backbone weights 'imagenet' cannot be had.*kept.*--backbone_weights PATH"
    ):
        backbone_file("imagenet", "resnet18", **QUICK, attempts=2)
    server = served()
    assert backbone_file("imagenet", "resnet18", **QUICK).read_bytes() == BODY
    assert server.requests == ["bytes=80000-"]


def test_a_file_of_torchs_cache_that_is_not_whole_is_not_trusted(served, tmp_path):
    served()
    path = tmp_path / "hub" / "checkpoints" / "r18.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"r18\.pth is there, but it is not"):
        backbone_file("imagenet", "resnet18", **QUICK)


def test_a_cache_that_is_read_only_serves_what_it_holds(served, tmp_path, monkeypatch):
    served()
    path = tmp_path / "hub" / "checkpoints" / "r18.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert backbone_file("imagenet", "resnet18", **QUICK) == path
    assert [p.name for p in path.parent.iterdir()] == ["r18.pth"]  # no lock was made


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(DataError, match="no coco weights for resnet18"):
        backbone_file("coco", "resnet18")
    assert backbone_file("mine.pth", "resnet18") == Path("mine.pth")


def test_without_a_network_it_is_one_line(tmp_path, capfd, monkeypatch):
    """By the script: nothing is downloaded before the data is there, and the message says both ways out."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(FILES, ("imagenet", "resnet18"), WeightFile("http://127.0.0.1:9/r18.pth", 1000, "0" * 64))
    monkeypatch.setattr("time.sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    make_kitti(tmp_path / "kitti" / "video_sequence" / "train", numbers=range(3))
    flags = ("--data_root", tmp_path / "kitti", "--validate_videos", 0, "--results_folder", tmp_path / "run")
    weights = ("--backbone", "resnet18", "--backbone_weights", "imagenet")
    result = call(capfd, "train", *FLAGS, *flags, *weights)
    assert result.status == 2 and len(result.err.strip().splitlines()) == 1, result.err
    assert "error: backbone weights 'imagenet' cannot be had: no network: " in result.err
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
