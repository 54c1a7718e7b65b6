"""Comparisons: `small` against the earlier design in the same run, and what each optimisation gives by itself."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import train
from benchmarks import earlier_design
from benchmarks.earlier_design import EarlierDesign
from benchmarks.earlier_unet import EarlierReference
from benchmarks.speed_files import arguments, call_inference, checkpoint_of, make_frames
from benchmarks.speed_inference import autocast, inputs, sizes
from benchmarks.speed_timing import (
    Row,
    Setup,
    build,
    config_of,
    in_turn,
    parameters,
    predictor_of,
    ratio_row,
    row,
)
from benchmarks.speed_training import Stepper, batch_of, clips, loader_rates, rendered, repeat
from data.io import predictions
from model import ModelConfig, Pix2SeqD, StreamConfig, VideoPredictor
from model.diffusion.loss import LossConfig
from model.diffusion.samplers import SAMPLERS, denoiser_of
from model.diffusion.schedule import sampling_times
from model.stream.fast import cast_weights, fold_norms
from training import options
from training.config import TrainingConfig

NOT_OF_A_GPU = "not measured: needs a CUDA GPU"

# ---------------------------------------------------------------------------------------------------------------------
# Against the earlier design
# ---------------------------------------------------------------------------------------------------------------------


def earlier(setup: Setup, preset: str = "small", config: ModelConfig = earlier_design.CONFIG) -> list[Row]:
    """A frame after the first, and a training step of batch 2, at the earlier design's sizes.

    The reference has the earlier repository's U-Net and runs as it did: float32, plain memory layout. Its frame
    is its encoder and 100 times the mean step of the few that are measured.
    """
    now = config_of(preset, config.image_size)
    if math.prod(now.mask_size) < math.prod(config.mask_size):
        now = dataclasses.replace(now, mask_size=config.mask_size)
    torch.manual_seed(0)
    reference = EarlierReference(config).eval().to(setup.device)
    ours = predictor_of(setup, now)
    then, frame = _frames(setup, reference, ours)
    recorded = earlier_design.ORIGINAL
    rows = [
        Row("earlier: encoder's parameters", parameters(reference.encoder), "M", note=sizes(config)),
        Row("earlier: denoiser's parameters", parameters(reference.denoiser), "M"),
        Row(f"{preset}: parameters", parameters(ours.model), "M", note=sizes(now)),
        row("earlier: encoder, a frame", then["encoder"], note=f"the original: {recorded['encoder']} s"),
        row(
            "earlier: a step", then["step"], note=f"of {then['count'][0]} measured; the original: {recorded['step']} s"
        ),
        row("earlier: a frame", then["frame"], note=f"extrapolated to 100 steps; the original: {recorded['frame']} s"),
        row(f"{preset}: a frame after the first", frame, note=f"{ours.config.steps} steps, all measured"),
        ratio_row("a frame after the first", then["frame"], frame, "target 20"),
    ]
    return rows + _against_in_training(setup, preset, reference, now)


@torch.inference_mode()
def _frames(setup: Setup, reference: EarlierDesign, ours: VideoPredictor):
    """Milliseconds, taken in turn: of the reference's encoder, step, and whole frame; of a frame of ours."""
    c = reference.config
    i = inputs(c, setup.device, channels_last=False)
    steps = 2 if setup.quick else 4
    times = sampling_times(earlier_design.STEPS)[: steps + 1]  # the last is given no next state

    def sample():
        condition = reference.condition(reference.encode(i["image"]), i["history"])
        return SAMPLERS["ddim"](denoiser_of(reference, condition), i["x"], times, lambda: i["x"])

    pictures = torch.zeros(1, 3, *ours.image_size, dtype=torch.uint8)
    _, states = ours.predict(pictures, [ours.state])
    measured = in_turn(
        {
            "encoder": lambda: reference.encode(i["image"]),
            "sample": sample,
            "ours": lambda: ours.predict(pictures, states),
        },
        setup,
        warm_up=1,
    )
    pairs = list(zip(measured["encoder"], measured["sample"], strict=True))
    step = [(sample - encoder) / (steps + 1) for encoder, sample in pairs]
    frame = [encoder + earlier_design.STEPS * s for (encoder, _), s in zip(pairs, step, strict=True)]
    then = {"encoder": measured["encoder"], "step": step, "frame": frame, "count": [steps + 1]}
    return then, measured["ours"]


def _against_in_training(setup: Setup, preset: str, reference: EarlierDesign, now: ModelConfig) -> list[Row]:
    """Training steps of both in turn. The reference's is the mean of one with and one without the first estimate."""
    plain, loss = dataclasses.replace(setup, mixed_precision="no", compile=False), LossConfig(instance_weight=0.0)
    then = Stepper(plain, reference, TrainingConfig(), loss, earlier_design.BATCH)
    _, training, loss, *varied = options.preset_settings(preset, train.RECIPE)
    ours = Stepper(setup, build(now)[0], training, loss, earlier_design.BATCH)
    batches = []
    for config in (reference.config, now):
        stream = clips(rendered(setup.folder, config), config, varied)
        batches.append(torch.utils.data.default_collate([stream[n] for n in range(earlier_design.BATCH)]))

    def step() -> dict[str, float]:
        with_estimate, without = (then.step(iter([batches[0]]), coins)["step"] for coins in (0.0, 1.0))
        return {"then": (with_estimate + without) / 2, "ours": ours.step(iter([batches[1]]))["step"]}

    done = repeat(setup, step, warm_up=1)
    before, after = ([d[name] for d in done] for name in ("then", "ours"))
    low, high = earlier_design.ORIGINAL["training"]
    return [
        row("earlier: training step of batch 2", before, note=f"the original: {low:.0f} to {high:.0f} s"),
        row(f"{preset}: training step of batch 2", after, note="without waiting for data, as above"),
        ratio_row("training step of batch 2", before, after, "target 2"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Each optimisation by itself
# ---------------------------------------------------------------------------------------------------------------------


def optimisations(setup: Setup, preset: str) -> list[Row]:
    """How much faster a frame after the first (network and sampling, in memory) is with each than without it."""
    rows = _network_ones(setup, preset)
    if not setup.quick:
        rows += [compiling(setup, preset), compiling_training(setup, preset)]
    rows.append(graphs(setup, preset) if setup.cuda else Row(f"{preset}: CUDA graphs", None, note=NOT_OF_A_GPU))
    rows.append(overlap(setup, preset))
    rows.append(side_by_side(setup, preset))
    rows.append(caching(setup, preset))
    return rows


def frame_call(
    predictor: VideoPredictor, model: Pix2SeqD | None = None, channels_last: bool = True, half: bool = True
) -> Callable[[], torch.Tensor]:
    """One frame: encode, condition, sample at the default steps."""
    model = predictor.model if model is None else model
    i = inputs(model.config, predictor.device, channels_last=channels_last)
    times = sampling_times(predictor.config.steps)

    @torch.inference_mode()
    def frame() -> torch.Tensor:
        with autocast(predictor) if half else contextlib.nullcontext():
            condition = model.condition(model.encode(i["image"]), i["history"])
            return predictor.sampling(model, "ddim", condition, i["x"], times, None)

    return frame


def _network_ones(setup: Setup, preset: str) -> list[Row]:
    config = config_of(preset, setup.image_size)
    predictor = predictor_of(dataclasses.replace(setup, compile=False), config, steps=2 if setup.quick else 8)
    weights = build(config, setup.weights)[0].state_dict()

    def copy(
        kind: type[Pix2SeqD] = Pix2SeqD,
        layout: torch.memory_format = torch.channels_last,
        cast: bool = True,
        fold: bool = True,
    ) -> Pix2SeqD:
        model = kind(config).eval()
        model.load_state_dict(weights)
        if fold:
            fold_norms(model)
        cast_weights(model, predictor.dtype if cast else None)
        return model.to(predictor.device, memory_format=layout)

    with_all, float_weights = frame_call(predictor), copy(cast=False)

    def unfused() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return with_all()

    calls = {
        "all": with_all,
        "conditions once a frame": frame_call(predictor, copy(EarlierDesign)),
        "channels-last": frame_call(predictor, copy(layout=torch.contiguous_format), channels_last=False),
        "fused attention": unfused,
    }
    if config.backbone_norm == "frozen_batch":
        calls["norms folded"] = frame_call(predictor, copy(fold=False))
    if predictor.dtype is not None:
        calls["weights cast once"] = frame_call(predictor, float_weights)
        calls["autocast to bf16"] = frame_call(predictor, float_weights, half=False)
    times = in_turn(calls, setup)
    rows = [row(f"{preset}: a frame with all of them", times["all"], note=f"{predictor.config.steps} steps")]
    rows += [ratio_row(f"{preset}: {name}", times[name], times["all"]) for name in calls if name != "all"]
    if predictor.dtype is None:
        rows.append(Row(f"{preset}: autocast to bf16", None, note="not used: the device does not gain from it"))
    return rows


def compiling(setup: Setup, preset: str) -> Row:
    """torch.compile of encoder and denoiser, and after how many frames it has paid for itself."""
    config = config_of(preset, setup.image_size)
    eager, compiled = (predictor_of(dataclasses.replace(setup, compile=c), config) for c in (False, True))
    return _compiled(f"{preset}: compile", setup, frame_call(eager), frame_call(compiled), "frames")


def compiling_training(setup: Setup, preset: str) -> Row:
    """torch.compile of the whole network in training, of one batch again and again."""
    config = config_of(preset, setup.image_size)
    _, training, loss, *varied = options.preset_settings(preset, train.RECIPE)
    size = batch_of(setup, preset, training)
    stream = clips(rendered(setup.folder, config), config, varied)
    batch = torch.utils.data.default_collate([stream[n] for n in range(size)])
    eager, compiled = (
        Stepper(dataclasses.replace(setup, compile=c), build(config)[0], training, loss, size) for c in (False, True)
    )
    calls = (lambda s=s: s.step(iter([batch])) for s in (eager, compiled))
    return _compiled(f"{preset}: compile, a training step", setup, *calls, "steps")


def _compiled(name: str, setup: Setup, eager: Callable, compiled: Callable, unit: str) -> Row:
    begin = time.perf_counter()
    try:
        with torch.compiler.config.patch(force_disable_caches=True):  # as for somebody's first run
            compiled()
    except Exception as error:  # there is no compiler, or it does not know the device
        return Row(name, None, note=f"not measured: {type(error).__name__}, {str(error).strip()[:60]}")
    seconds = time.perf_counter() - begin
    times = in_turn({"eager": eager, "compiled": compiled}, setup)
    gain = (statistics.median(times["eager"]) - statistics.median(times["compiled"])) / 1e3
    pays = f"pays off after {math.ceil(seconds / gain):,} {unit}" if gain > 0 else "never pays off"
    return ratio_row(name, times["eager"], times["compiled"], f"{seconds:.0f} s to compile: {pays}")


def graphs(setup: Setup, preset: str) -> Row:
    """`--cuda_graphs`: a frame in memory with the sampling loop as one graph, against launch after launch."""
    config = config_of(preset, setup.image_size)
    plain, graphed = (predictor_of(dataclasses.replace(setup, cuda_graphs=g), config) for g in (False, True))
    times = in_turn({"plain": frame_call(plain), "graphed": frame_call(graphed)}, setup)
    return ratio_row(f"{preset}: CUDA graphs", times["plain"], times["graphed"], "--cuda_graphs")


def one_by_one(sequence, skip: int = 0):
    """Stands in for the thread that reads ahead."""
    yield from sequence.read(skip)


class Unhurried:
    """Stands in for the thread that writes: each task is done before `submit` returns."""

    def __init__(self, *_):
        pass

    def submit(self, function: Callable, *arguments):
        answer = function(*arguments)
        return type("Done", (), {"result": lambda self: answer})()

    def shutdown(self, **_) -> None:
        pass


def overlap(setup: Setup, preset: str) -> Row:
    """Reading and writing beside the computing, against one after the other: inference.py, whole videos."""
    checkpoint, _ = checkpoint_of(setup, preset)
    size = config_of(preset, setup.image_size).image_size
    count = 4 if setup.quick else 40 if preset == "tiny" else 6
    frames = make_frames(setup.folder / f"{size[0]}x{size[1]}-{count}", count, size)
    words = arguments(setup, checkpoint, frames, setup.folder / "output", "--first_steps", "2", "--steps", "2")

    def plain() -> None:
        with (
            mock.patch("inference.prefetched", one_by_one),
            mock.patch.object(predictions, "ThreadPoolExecutor", Unhurried),
        ):
            call_inference(words)

    times = in_turn({"plain": plain, "overlapped": lambda: call_inference(words)}, setup, warm_up=1)
    note = f"{count} frames, 2 steps, GIF overlay, start included"
    return ratio_row(f"{preset}: reading and writing overlapped", times["plain"], times["overlapped"], note)


def side_by_side(setup: Setup, preset: str, videos: int = 2) -> Row:
    """`--batch_videos`: a frame of several videos at once, against one after the other."""
    predictor = predictor_of(setup, config_of(preset, setup.image_size))
    one = torch.zeros(1, 3, *predictor.image_size, dtype=torch.uint8)
    states = [dataclasses.replace(predictor.state, video=v) for v in range(videos)]
    _, states = predictor.predict(one.expand(videos, -1, -1, -1), states)
    calls = {
        "apart": lambda: [predictor.predict(one, [state]) for state in states],
        "together": lambda: predictor.predict(one.expand(videos, -1, -1, -1), states),
    }
    times = in_turn(calls, setup, warm_up=1)
    note = f"--batch_videos: {StreamConfig().steps} steps"
    return ratio_row(f"{preset}: {videos} videos side by side", times["apart"], times["together"], note)


def caching(setup: Setup, preset: str) -> Row:
    """`--cache`: samples a second of a loader process, of PNGs in KITTI's size."""
    rates = loader_rates(setup, preset)
    with_cache, without = ([1 / rate for rate in rates[name]] for name in ("PNGs, cached", "PNGs"))
    count = min(len(with_cache), len(without))
    note = "--cache: loader, a worker, PNGs of KITTI's size"
    return ratio_row(f"{preset}: frame cache", without[:count], with_cache[:count], note)
