"""Speed on this machine, as times and as ratios against torchvision's networks in the same run.

    python benchmarks/speed.py                                     all sections, about ten minutes on two cores
    python benchmarks/speed.py frame files                         some of them
    python benchmarks/speed.py --quick                             each section once, at a small size: does it run?

  frame     from a decoded frame of 375x1242 to full-size masks with ids, after the first frame, and its parts
  files     inference.py, images in, PNGs out, no overlay: frames a second
  training  one step: samples a second, and what the loader can feed
  memory    a stream of many frames: growth

Times are medians. --json keeps them all. Nothing else should run on the machine.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import numpy as np
    import torch
    import torchvision
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    import inference
    import train
    from data.clips.cache import Cached
    from data.clips.clips import Clips
    from data.clips.mixture import TrainingStream
    from data.clips.settings import ClipFormat
    from data.io.cores import usable_cores
    from data.io.images import write_image
    from data.sets.cityscapes import Cityscapes
    from data.streets.source import Streets, render_video
    from model import PRESETS, Pix2SeqD, StreamConfig, VideoPredictor
    from model import checkpoint as checkpoints
    from training.fit import fit
    from training.options import preset_settings

FRAME = (375, 1242)  # height and width of a KITTI frame
SECTIONS = ("frame", "files", "training", "memory")
OPTIONS = {
    "what": [
        cli.Option("preset", ("tiny",), "presets to measure", choices=tuple(PRESETS)),
        cli.Option("checkpoint", inference.SHIPPED, "weights of tiny; random ones where there is none", kind=Path),
        cli.Option("settings", ("1,1,0", "4,2,0.5", "4,5,0.5"), "first_steps,steps,time_difference"),
        cli.Option("repeats", 15, "timings of each"),
        cli.Option("frames", 2_000, "of the section memory"),
        cli.Option("data_root", None, "Cityscapes for the section training; none: Streets", kind=Path),
        cli.Option("json", None, "file for all figures", kind=Path),
        cli.Option("quick", False, "each section once, at a small size"),
    ]
}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("sections", nargs="*", help="of frame, files, training, memory; none: all")
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        raise cli.UsageError(f"there is no section {unknown.pop()}: use {', '.join(SECTIONS)}")
    if args.quick:
        args.repeats, args.frames, args.settings = 2, 20, args.settings[:1]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA: {torch.cuda.is_available()}")
    figures = {}
    for section in args.sections or SECTIONS:
        print(f"\n{section}")
        figures[section] = globals()[f"measure_{section}"](args)
        for name, value in figures[section].items():
            print(f"  {name:<64}{value:10.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def median_ms(call: Callable[[], object], repeats: int, warm_up: int = 3) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(warm_up + repeats):
        begin = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[warm_up:])) * 1000


def predictor_of(preset: str, args, setting: str) -> VideoPredictor:
    """A predictor ready for a long run: with the shipped weights for tiny, else with random ones."""
    first_steps, steps, time_difference = setting.split(",")
    config = StreamConfig(int(first_steps), int(steps), time_difference=float(time_difference))
    if preset == "tiny" and args.checkpoint.exists():
        predictor = VideoPredictor.from_checkpoint(args.checkpoint, config=config)
    else:
        torch.manual_seed(0)
        predictor = VideoPredictor(Pix2SeqD(PRESETS[preset]), config)
    predictor.only_infer()
    return predictor


def street(frames: int, size: tuple[int, int]) -> list[np.ndarray]:
    return [image for image, _, _ in render_video(0, "test", frames, size)]


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def measure_frame(args) -> dict[str, float]:
    """Milliseconds of a frame after the first, of its encoder, and of torchvision's networks on the same frame."""
    size = (96, 320) if args.quick else FRAME
    frames, figures = street(8, size), {}
    for preset in args.preset:
        for setting in args.settings:
            predictor, count = predictor_of(preset, args, setting), iter(range(10**9))
            figures[f"{preset} {setting}: ms a frame"] = median_ms(
                lambda predictor=predictor, count=count: predictor(frames[next(count) % 8]), args.repeats
            )
        image_size, mask_size = predictor.sizes(frames[0])
        image = torch.rand(1, 3, *image_size, device=predictor.device).contiguous(memory_format=torch.channels_last)
        with (
            torch.inference_mode(),
            torch.autocast(predictor.device.type, predictor.dtype, predictor.dtype is not None),
        ):
            encode = median_ms(lambda: predictor.model.encode(image, mask_size), args.repeats)  # noqa: B023
        figures[f"{preset}: of it the encoder, image {image_size[0]}x{image_size[1]}"] = encode
    networks = {
        "DeepLabV3 MobileNetV3-L (classes only)": torchvision.models.segmentation.deeplabv3_mobilenet_v3_large,
        "Mask R-CNN ResNet-50 FPN": torchvision.models.detection.maskrcnn_resnet50_fpn,
    }
    image = torch.from_numpy(frames[0]).permute(2, 0, 1).float() / 255
    for name, build in networks.items():
        network = build(weights=None, weights_backbone=None).eval()
        batch = [image] if "R-CNN" in name else image[None]
        with torch.inference_mode():
            ms = median_ms(lambda network=network, batch=batch: network(batch), 1 if args.quick else 3, 1)
        figures[f"reference, network alone, untrained: {name}, ms"] = ms
        figures[f"  its ratio to {args.preset[0]} {args.settings[0]}: {name.split()[0]}"] = ms / next(
            iter(figures.values())
        )
    return figures


def measure_files(args) -> dict[str, float]:
    """Frames a second of inference.py without its start: from the difference of a long and a short run."""
    count, size = (4, (96, 320)) if args.quick else (60, FRAME)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for n, frame in enumerate(street(count, size)):
            write_image(Path(folder, "long", f"{n:06d}.png"), frame)
            if n < count // 4:
                write_image(Path(folder, "short", f"{n:06d}.png"), frame)
        weights = args.checkpoint
        if not weights.exists():
            torch.manual_seed(0)
            model, weights = Pix2SeqD(PRESETS["tiny"]), Path(folder, "random.pt")
            stored = {"format": checkpoints.FORMAT, "config": model.config.to_dict(), "weights": model.state_dict()}
            checkpoints.save(weights, stored)
        for setting in args.settings:
            first_steps, steps, time_difference = setting.split(",")
            flags = ["--checkpoint", weights, "--first_steps", first_steps, "--steps", steps, "--quiet"]
            flags += ["--time_difference", time_difference, "--overlay", "none", "--restart"]
            seconds = {}
            for length in ("short", "long", "short", "long"):
                words = ["--input_folder", Path(folder, length), "--output_folder", Path(folder, "out", length)]
                seconds[length] = _run(inference.main, [*words, *flags])
            figures[f"tiny {setting}: frames/s"] = (count - count // 4) / (seconds["long"] - seconds["short"])
    return figures


def measure_training(args) -> dict[str, float]:
    """Samples a second of training (batch of 8 for tiny, else 2), and what the loader feeds with a process a core:
    frames decoded, and again from the cache."""
    figures = {}
    size, count = ((64, 128), 4) if args.quick else (None, 48)
    workers = usable_cores()
    for preset in args.preset:
        settings = preset_settings(preset, train.RECIPE)
        config = settings.model
        if size:
            config = type(config)(**{**vars(config), "image_size": size, "mask_size": config.mask_for(size)})
        fmt = ClipFormat(config.image_size, config.mask_size, config.slots, config.history_offsets)
        with tempfile.TemporaryDirectory() as folder:
            sources = {"made": Streets(None, "train", videos=2, image_size=config.image_size)}
            if args.data_root:
                frames = Cityscapes(args.data_root, "train")
                frames.frames = frames.frames[:count]
                through = Cached(frames, config.image_size, folder, settings.augmentation.scale_range[1])
                sources = {"decoded": frames, "from the cache": through}
            for kind, source in sources.items():
                stream = TrainingStream([Clips(source, fmt, settings.augmentation, settings.history)])
                loader = DataLoader(stream, batch_size=None, num_workers=workers, sampler=range(10**6))
                samples = iter(loader)
                for _ in range(2 * count):  # warm-up, which fills the cache
                    next(samples)
                begin = time.perf_counter()
                for _ in range(count):
                    next(samples)
                feed = count / (time.perf_counter() - begin)
                del samples, loader
                figures[f"{preset}: {workers} loader processes, {source.name} {kind}, samples/s"] = feed
            batch, steps = (2, 3) if args.quick else (8 if preset == "tiny" else 2, 12)
            if torch.cuda.is_available():
                batch = settings.training.batch_size
            run = dataclasses.replace(
                settings.training, steps=steps, batch_size=batch, validate_every=0, save_every=10**6
            )
            precision = "bf16" if predictor_of(preset, args, args.settings[0]).dtype == torch.bfloat16 else "no"
            accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
            fit(Pix2SeqD(config), settings.loss, run, stream, folder, accelerator, quiet=True)
            lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
        need = float(np.median([line["samples_per_s"] for line in lines[steps // 3 :]]))
        figures[f"{preset}: training, batch {batch}, samples/s"] = need
        figures[f"{preset}: the loader feeds so many times what training takes"] = feed / need
    return figures


def measure_memory(args) -> dict[str, float]:
    """Peak MB after a tenth of the frames and after all of them, and growth in KB a frame in between."""
    frames = street(24, (96, 320) if args.quick else FRAME)
    predictor, peaks = predictor_of(args.preset[0], args, args.settings[0]), []
    for n in range(args.frames):
        predictor(frames[n % 24])
        if n + 1 in (args.frames // 10, args.frames):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    return {
        "peak after a tenth of the frames, MB": peaks[0],
        f"peak after {args.frames} frames, MB": peaks[1],
        "growth, KB a frame": 1000 * (peaks[1] - peaks[0]) / (args.frames * 0.9),
    }


def _run(main: Callable[[], object], words: list) -> float:
    """Seconds that a script's main function takes with these flags."""
    before, sys.argv = sys.argv, ["script", *map(str, words)]
    begin = time.perf_counter()
    try:
        main()
    finally:
        sys.argv = before
    return time.perf_counter() - begin


if __name__ == "__main__":
    cli.run(main)
