"""A seeded fuzzer: damaged images, labels, checkpoints, archives and JSON against what reads them.

    python -m benchmarks.damage --cases 500

Each case must end in the value that is stated or in an error of ours (one line, exit status 2 for a script): no other
exception, no hang, no file outside the case's own folder, and no code of a checkpoint that is run.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.io.inputs import find_sequences
from data.io.label_files import find_labels, read_labels
from data.io.predictions import check_files
from data.labels import encode_panoptic, read_image, read_panoptic
from data.sets.archives import unpack
from data.sets.cityscapes import read_target
from model import ModelConfig, Pix2SeqD, VideoPredictor
from model import checkpoint as checkpoints
from training.log import Log

OURS = ("DataError", "CheckpointError", "ConfigError", "DownloadError")
SECONDS = 20  # a case that takes longer hangs
SMALL = ModelConfig(
    image_size=(32, 64), mask_size=(16, 32), code_bits=(5, 5), backbone="resnet10", encoder_dim=16, encoder_depth=1,
    encoder_heads=1, map_channels=8, dim=8, multipliers=(1,), denoiser_depth=1, transformer_dim=16, transformer_heads=1,
)  # fmt: skip


class Payload:
    """What a hostile checkpoint carries: a call that would leave a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# ---------------------------------------------------------------------------------------------------------------------
# Sound files
# ---------------------------------------------------------------------------------------------------------------------


def sound_files() -> dict[str, bytes]:
    """One whole file of each kind, by its name."""
    rng = np.random.default_rng(0)
    semantic = rng.integers(0, 19, (40, 60)).astype(np.uint8)
    instance = rng.integers(0, 3, (40, 60)).astype(np.int32)
    pictures = {
        "a_000001_leftImg8bit.png": rng.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        "b.jpg": rng.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        "a_000001_panoptic.png": encode_panoptic(semantic, instance),
        "c_gtFine_instanceIds.png": (24_000 + instance).astype(np.uint16),
        "c_gtFinePanopticParts.tif": (24_000 + instance).astype(np.int32),
    }
    files = {}
    for name, array in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format={"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name[-3:]])
        files[name] = buffer.getvalue()

    torch.manual_seed(0)
    model = Pix2SeqD(SMALL)
    buffer = io.BytesIO()
    stored = {"format": checkpoints.FORMAT, "config": SMALL.to_dict(), "weights": model.state_dict()}
    torch.save(stored, buffer)
    files["model.pt"] = buffer.getvalue()

    for name in ("a.zip", "a.tar"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") if name == "a.zip" else tarfile.open(fileobj=buffer, mode="w") as archive:
            for k in range(4):
                body = rng.integers(0, 256, 300, dtype=np.uint8).tobytes()
                if name == "a.zip":
                    archive.writestr(f"top/{k}.bin", body)
                else:
                    member = tarfile.TarInfo(f"top/{k}.bin")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))
        files[name] = buffer.getvalue()

    segments = [{"id": 1, "category_id": 7, "iscrowd": 0}]
    annotations = [{"image_id": "x", "file_name": "x.png", "segments_info": segments}]
    files["cityscapes_panoptic_val.json"] = json.dumps({"annotations": annotations}).encode()
    files["log.jsonl"] = b"".join(json.dumps({"step": n, "loss": 0.5}).encode() + b"\n" for n in range(1, 9))
    return files


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def truncate(data: bytes, rng: random.Random, _) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random, _) -> bytes:
    altered = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def flip_header(data: bytes, rng: random.Random, _) -> bytes:
    altered = bytearray(data)
    altered[rng.randrange(min(64, len(altered)))] = rng.randrange(256)
    return bytes(altered)


def zero_bytes(data: bytes, rng: random.Random, _) -> bytes:
    start = rng.randrange(len(data))
    count = min(rng.randrange(1, 400), len(data) - start)
    return data[:start] + bytes(count) + data[start + count :]


def cut_out(data: bytes, rng: random.Random, _) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 50) :]


def other_type(data: bytes, rng: random.Random, files: dict[str, bytes]) -> bytes:
    return rng.choice([b"", b"\x00", b"<html>404</html>", bytes(5000), *files.values()])


def huge_header(data: bytes, rng: random.Random, _) -> bytes:
    """A PNG that claims to be enormous; of other files the size fields near the start."""
    altered = bytearray(data)
    if data[:4] == b"\x89PNG":
        side = rng.choice((9_000, 60_000, 2**31 - 1))
        altered[16:24] = side.to_bytes(4, "big") * 2
        altered[29:33] = zlib.crc32(altered[12:29]).to_bytes(4, "big")
    else:
        place = rng.randrange(min(40, len(altered)))
        altered[place : place + 4] = b"\xff\xff\xff\x7f"
    return bytes(altered)


def wrong_mode(data: bytes, rng: random.Random, _) -> bytes:
    """The same picture in another mode; what is no picture becomes nested without end."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            buffer = io.BytesIO()
            image.convert("RGB").convert(rng.choice(("L", "P", "RGBA", "1", "CMYK", "F"))).save(buffer, "TIFF")
            return buffer.getvalue()
    except Exception:
        return b'{"annotations": ' + b"[" * 200_000


DAMAGES = (truncate, flip_bits, flip_header, zero_bytes, cut_out, other_type, huge_header, wrong_mode)


def hostile(name: str, rng: random.Random, mark: Path) -> bytes | None:
    """Files that are whole and mean harm: code in a checkpoint, claims to any memory, a way out of an archive.

    None for other kinds.
    """
    buffer = io.BytesIO()
    if name == "model.pt":
        content = {"format": checkpoints.FORMAT, "config": SMALL.to_dict(), "weights": {}}
        content |= rng.choice(
            (
                {"extra": Payload(mark)},
                {"weights": {"a": torch.zeros(1).expand(10**12)}},  # a kilobyte that unfolds to 4 TB
                {"config": SMALL.to_dict() | {"encoder_dim": 8192, "encoder_depth": 100}},
                {"config": SMALL.to_dict() | {"history_offsets": [-(10**9)]}},
            )
        )
        torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
        return buffer.getvalue()
    target = rng.choice((str(mark), f"../{mark.name}", f"top/../../{mark.name}"))
    if name == "a.zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("top/0.bin", b"x")
            archive.writestr(target, b"x")
        return buffer.getvalue()
    if name == "a.tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo(rng.choice((target, "top/link")))
            if member.name == "top/link":
                member.type, member.linkname = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), target
            archive.addfile(member)
        return buffer.getvalue()
    return None


# ---------------------------------------------------------------------------------------------------------------------
# What reads them
# ---------------------------------------------------------------------------------------------------------------------


def read(path: Path) -> None:
    """Use a file as the repository does. Raises one of OURS, or nothing."""
    name = path.name
    if name.endswith("_leftImg8bit.png") or name == "b.jpg":
        check_files(find_sequences(path.parent))
        read_image(path)
    elif name.endswith("_panoptic.png"):
        for label in find_labels(path.parent, "val").values():
            read_labels(label)
        read_panoptic(path)
    elif name.startswith("c_"):
        read_target(path)
    elif name == "model.pt":
        predictor = VideoPredictor.from_checkpoint(path, device="cpu")
        assert predictor.model.config == SMALL  # what loads is what was saved
    elif name.startswith("a."):
        unpack(path, path.parent / "unpacked", max_bytes=10**7, quiet=True)
    elif name == "log.jsonl":
        log = Log(path, 4)
        log.close()
        for line in path.read_text().splitlines():
            assert json.loads(line)["step"] <= 4
    else:
        find_labels(path.parent, "val")


def case(number: int, seed: int, files: dict[str, bytes], folder: Path) -> str:
    """Do one case in an empty folder; "<kind of file>: <how it ended>". Raises AssertionError for what must not be."""
    rng = random.Random(f"{seed} {number}")
    name = sorted(files)[number % len(files)]
    inside = folder / "inside"
    inside.mkdir()
    data = hostile(name, rng, folder / "mark") if rng.random() < 0.2 else None
    how = "hostile" if data is not None else ""
    if data is None:
        damage = rng.choice(DAMAGES)
        how, data = damage.__name__, damage(files[name], rng, files)
    (inside / name).write_bytes(data)

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(inside / name)
        end = "read"
    except ValueError as error:
        if type(error).__name__ not in OURS or "\n" in str(error):
            raise AssertionError(f"case {number}, {name} with {how}: {type(error).__name__}: {error}") from error
        end = "refused"
    except Exception as error:
        raise AssertionError(f"case {number}, {name} with {how}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    outside = [p for p in folder.iterdir() if p != inside]
    assert not outside, f"case {number}, {name} with {how}: wrote {outside}"
    assert end == "refused" or how != "hostile", f"case {number}, {name}: a hostile file was accepted"
    return f"{name}: {end}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="(default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()
    files, ends, wrong, begin = sound_files(), Counter(), [], time.perf_counter()
    for number in range(args.cases):
        with tempfile.TemporaryDirectory() as folder:
            try:
                ends[case(number, args.seed, files, Path(folder))] += 1
            except AssertionError as error:
                wrong.append(str(error))
    print(f"{args.cases} cases, {len(wrong)} that ended otherwise, {time.perf_counter() - begin:.0f} s")
    print("\n".join(f"  {count:4d} {end}" for end, count in sorted(ends.items())))
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
