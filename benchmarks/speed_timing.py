"""What the speed benchmarks share: what they measure, times with warm-up and spread, counted work, memory, machine."""

import dataclasses
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import PRESETS, ModelConfig, Pix2SeqD, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.stream.predictor import precision


class Row(NamedTuple):
    """One figure: the median with its spread; `value` is None where it could not be measured, and `note` says why."""

    name: str
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""
    count: int | None = None  # how many the median is of


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is measured, and how long for."""

    presets: tuple[str, ...]
    folder: Path  # for files made on the way
    device: str = "cpu"
    mixed_precision: str = "auto"
    image_size: tuple[int, int] | None = None  # in place of the presets'
    weights: Path | None = None  # for the preset whose network it fits; the others are untrained
    threads: int = 0  # 0: as many as torch takes
    compile: bool = False
    quick: bool = False
    long_video: int = 500  # frames, for the memory's growth
    cuda_graphs: bool = False  # in all that samples frames
    batch_size: int = 0  # of the training steps; 0: by preset and device

    @property
    def seconds(self) -> float:
        """How long one call is repeated, beyond the fewest repetitions."""
        return 0.2 if self.quick else 2.5

    @property
    def fewest(self) -> int:
        return 2 if self.quick else 3

    @property
    def cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


def config_of(preset: str, image_size: Sequence[int] | None = None) -> ModelConfig:
    """A preset at an image size; the mask keeps its proportion. Norms as its training by default has them."""
    config = PRESETS[preset]
    image = tuple(image_size or config.image_size)
    norm = "group" if preset == "tiny" else "frozen_batch"
    return dataclasses.replace(config, image_size=image, mask_size=config.mask_for(image), backbone_norm=norm)


def build(config: ModelConfig, weights: Path | None = None) -> tuple[Pix2SeqD, bool]:
    """The model, and whether it has the trained weights: where the file is of this network."""
    torch.manual_seed(0)
    model = Pix2SeqD(config)
    if weights is None or not weights.exists():
        return model, False
    stored = checkpoints.load(weights)
    try:
        checkpoints.load_weights(model, stored["weights"], weights)
    except checkpoints.CheckpointError:
        return model, False
    model.config = dataclasses.replace(config, scale=stored["config"]["scale"])
    return model, True


def predictor_of(setup: Setup, config: ModelConfig, **stream: Any) -> VideoPredictor:
    """A predictor as inference.py has it."""
    model, _ = build(config, setup.weights)
    predictor = VideoPredictor(model, StreamConfig(**stream), setup.device, setup.mixed_precision)
    predictor.only_infer(cuda_graphs=setup.cuda_graphs)
    if setup.compile:
        predictor.model.compile_parts()
    return predictor


def parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def once(call: Callable[[], Any], device: str | torch.device) -> float:
    """Milliseconds of one call: by events on a GPU, with the device idle before and after; by the clock elsewhere."""
    if torch.device(device).type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def in_turn(
    calls: dict[str, Callable[[], Any]], setup: Setup, warm_up: int = 1, longer: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each call, repeated one after the other in turn, so that a slow moment of the machine meets all
    alike: at least `setup.fewest` rounds, and as many as fit into `longer` times `setup.seconds` for each call, 50 at
    most."""
    for call in calls.values():
        for _ in range(1 if setup.quick else warm_up):
            once(call, setup.device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(1, 51):
        for name, call in calls.items():
            times[name].append(once(call, setup.device))
        if done >= setup.fewest and time.perf_counter() - begin > longer * setup.seconds * len(calls):
            break
    return times


def row(name: str, values: Sequence[float], unit: str = "ms", note: str = "") -> Row:
    return Row(name, statistics.median(values), unit, min(values), max(values), note, len(values))


def ratio_row(name: str, above: Sequence[float], below: Sequence[float], note: str = "") -> Row:
    """How many times as long `above` took as `below`, taken in turn: of the medians, with the spread of the pairs."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    ratio = statistics.median(above) / statistics.median(below)
    return Row(name, ratio, "x as fast", min(pairs), max(pairs), note, len(pairs))


# ---------------------------------------------------------------------------------------------------------------------
# Work
# ---------------------------------------------------------------------------------------------------------------------


def gflops(call: Callable[[], Any]) -> float:
    """Billions of floating-point operations of matrix products, convolutions and attention (a multiply-add is two),
    by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def matrix_rates(setup: Setup) -> dict[str, float]:
    """The device's measured rate in GFLOP/s for each type: the best of square products of a few sizes."""
    sizes = (4096, 8192) if setup.cuda else (512,) if setup.quick else (1024, 2048)
    rates = {}
    for kind in (torch.float32, torch.bfloat16):
        best = 0.0
        for n in sizes:
            a, b = (torch.randn(n, n, device=setup.device).to(kind) for _ in range(2))
            calls = {"product": lambda a=a, b=b: a @ b}
            best = max(best, 2 * n**3 / 1e6 / statistics.median(in_turn(calls, setup)["product"]))
        rates[str(kind).removeprefix("torch.")] = best
    return rates


def share_of_rate(work: float, ms: float, setup: Setup, rates: dict[str, float]) -> float:
    """Percent of the measured matrix rate, in the type that the model computes in, that `work` GFLOP in ms reach."""
    kind = precision(setup.mixed_precision, torch.device(setup.device)) or torch.float32
    rate = rates.get(str(kind).removeprefix("torch."), rates["float32"])
    return 100 * work / (ms / 1e3) / rate


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def peak_mb(children: bool = False) -> float:
    """Largest resident memory so far of this process, or of its largest child that has ended, in MB."""
    status = Path("/proc/self/status")
    if not children and status.exists():  # a new process inherits its parent's ru_maxrss, but not its high water mark
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere


def _apart(connection, threads: int, function: Callable, arguments: tuple) -> None:
    if threads:
        torch.set_num_threads(threads)
    start = peak_mb()
    answer = function(*arguments)
    peak, start = (
        (torch.cuda.max_memory_allocated() / 1e6, 0.0)
        if torch.cuda.is_available() and torch.cuda.is_initialized()
        else (peak_mb(), start)
    )
    connection.send((answer, peak, start))


def apart(setup: Setup, function: Callable, *arguments: Any) -> tuple[Any, float, float]:
    """Call a function in a process of its own. Returns its answer, the process's peak memory in MB (on a GPU: the
    device's), and what of it was there before the call: Python and torch."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_apart, args=(there, setup.threads, function, arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with status {process.exitcode}: out of memory?") from None
    finally:
        process.join()


# ---------------------------------------------------------------------------------------------------------------------
# Machine
# ---------------------------------------------------------------------------------------------------------------------


class OtherWork:
    """`with OtherWork() as other: ...`; then `other.cores` is how many of the machine's cores did something else
    meanwhile, or were taken from it by its host; None where the system does not say (no /proc/stat)."""

    cores: float | None = None

    def __enter__(self) -> "OtherWork":
        self.begin = time.perf_counter(), _busy_seconds(), sum(os.times()[:4])
        return self

    def __exit__(self, *_: Any) -> None:
        seconds, busy, own = self.begin
        if busy is not None:
            others = (_busy_seconds() - busy) - (sum(os.times()[:4]) - own)
            self.cores = max(others, 0.0) / max(time.perf_counter() - seconds, 1e-3)


def _busy_seconds() -> float | None:
    """Of all cores together, since the machine was started."""
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def machine(setup: Setup, rates: dict[str, float]) -> dict[str, Any]:
    """What the figures are measured on."""
    flags = torch.cpu.get_capabilities()
    name = torch.cuda.get_device_name(setup.device) if setup.cuda else platform.machine()
    kind = precision(setup.mixed_precision, torch.device(setup.device))
    return {
        "device": name,
        "cpu": " ".join(f for f in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if flags.get(f)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "autocast": "none" if kind is None else str(kind).removeprefix("torch."),
        "compiled": setup.compile,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "matrix_rate_gflops": {k: round(v, 1) for k, v in rates.items()},
        "other_work_cores": {},  # of each section
        "seconds": {},
    }
