"""How fast, and where the time goes: one command, on a CPU or a GPU.

    python benchmarks/speed.py                                         all sections; some hours without a GPU
    python benchmarks/speed.py --quick                                 the same with few repetitions, to see it work
    python benchmarks/speed.py --preset tiny --sections inference files
    python benchmarks/speed.py --json before.json                      keep the figures
    python benchmarks/speed.py --compare before.json                   and set new ones beside them

Each figure is a median after a warm-up, with the smallest and the largest in brackets. What is compared was measured
in turn, in the same run. Sections: `inference` the network and the sampling loop; `files` inference.py from files to
files, its memory; `training` a step and its parts; `loading` the loader; `earlier` against the earlier design;
`optimisations` each by itself; `growth` with size, steps, videos and history; `evaluation` the metrics.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import torch

    from benchmarks import speed_compare, speed_evaluation, speed_growth, speed_inference, speed_training
    from benchmarks.speed_timing import OtherWork, Row, Setup, machine, matrix_rates
    from model import PRESETS

SECTIONS = ("inference", "files", "training", "loading", "earlier", "optimisations", "growth", "evaluation")
TRAINED = Path("results/streets/model-tiny.pt")
BUSY = 0.1  # cores of other work, from which on the figures of a section are marked

OPTIONS = {
    "what": [
        cli.Option("preset", ("tiny", "small"), "one or several presets", choices=tuple(PRESETS)),
        cli.Option("sections", SECTIONS, "one or several of them", choices=SECTIONS),
        cli.Option("image_size", None, "height and width, in place of the presets'", kind=int, nargs=2),
        cli.Option("batch_size", 0, "of training steps; 0: by preset and device"),
        cli.Option("weights", TRAINED, "trained weights, for the preset that they fit; the others are untrained"),
        cli.Option("long_video", 1_000, "frames of the video that the memory's growth is measured on"),
        cli.Option("quick", False, "few repetitions and parts: to see that it works, not to measure"),
    ],
    "machine": [
        cli.Option("device", "auto", "where to compute", ("auto", "cuda", "cpu")),
        cli.Option("mixed_precision", "auto", "autocast; auto: bf16 where it pays", ("auto", "no", "bf16", "fp16")),
        cli.Option("threads", 0, "CPU threads; 0: as many as torch takes"),
        cli.Option("compile", False, "compile the network, in all sections"),
    ],
    "figures": [
        cli.Option("json", None, "file to write the figures to", kind=Path),
        cli.Option("compare", None, "file of an earlier --json: a column with its figures and the ratios", kind=Path),
    ],
}


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    before = earlier_figures(args.compare) if args.compare else {}
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise cli.UsageError("--device cuda: there is no CUDA device; use --device cpu")
    if args.weights != TRAINED and not args.weights.is_file():
        raise cli.UsageError(f"there is no weights file {args.weights}")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        setup = Setup(
            tuple(args.preset), Path(folder), device, args.mixed_precision,
            tuple(args.image_size) if args.image_size else None, args.weights, args.threads, args.compile, args.quick,
            args.long_video, args.batch_size,
        )  # fmt: skip
        rates = matrix_rates(setup)
        about = machine(setup, rates)
        print_machine(about)
        figures: list[dict[str, Any]] = []
        for section in args.sections:
            print(f"\n{section}", flush=True)
            with OtherWork() as other:
                for row in measure(section, setup, rates):
                    print(line(row, before.get((section, row.name))), flush=True)
                    figures.append({"section": section, **row._asdict()})
            about["other_work_cores"][section] = other.cores
            if (other.cores or 0) > BUSY:
                print(f"  the machine was busy: {other.cores:.2f} cores of other work meanwhile, so these are too slow")
            if args.json:  # after each section, so that a run that is ended leaves what it has
                write(args.json, about, figures)


def measure(section: str, setup: Setup, rates: dict[str, float]) -> Iterator[Row]:
    """The rows of one section, preset after preset."""
    if section == "evaluation":
        yield from evaluation(setup)
        return
    if section == "earlier":
        yield from speed_compare.earlier(setup)
        return
    functions = {
        "inference": lambda preset: speed_inference.network(setup, preset, rates),
        "files": lambda preset: speed_inference.files(setup, preset),
        "training": lambda preset: speed_training.training(setup, preset, rates),
        "loading": lambda preset: speed_training.loading(setup, preset),
        "optimisations": lambda preset: speed_compare.optimisations(setup, preset),
        "growth": lambda preset: speed_growth.growth(setup, preset),
    }
    for preset in setup.presets:
        yield from functions[section](preset)
    if not setup.cuda:
        yield from unmeasured(section)


def unmeasured(section: str) -> Iterator[Row]:
    """What a section says of the targets that only a GPU can show."""
    targets = {
        "files": "base at 384x1248, 8 steps, on a GPU (target 30 frames/s)",
        "training": "share of a GPU's bf16 matrix rate in training (target 40 %)",
    }
    if section in targets:
        yield Row(targets[section], None, note=speed_compare.NOT_OF_A_GPU)


def evaluation(setup: Setup) -> Iterator[Row]:
    found = speed_evaluation.measure(frames=600 if setup.quick else 2_000)
    note = f"all metrics, {speed_evaluation.HEIGHT}x{speed_evaluation.WIDTH}, {found['input'].rpartition('/')[2]}"
    yield Row("evaluation, a frame", found["ms_per_frame"], "ms", note=note)
    yield Row("of it the pass over the pixels", found["ms_table"], "ms")
    yield Row("evaluation, a frame of noise", found["ms_noise"], "ms", note="the worst case")
    grown = found["rss_end_mb"] - found["rss_start_mb"]
    yield Row("growth of memory", grown, "MB", note="from the 500th frame on")


# ---------------------------------------------------------------------------------------------------------------------
# Figures in, figures out
# ---------------------------------------------------------------------------------------------------------------------


def print_machine(about: dict[str, Any]) -> None:
    rates = ", ".join(f"{kind} {rate:,.0f} GFLOP/s" for kind, rate in about["matrix_rate_gflops"].items())
    print(f"{about['device']}, {about['cores']} cores, {about['threads']} threads ({about['cpu']}), ", end="")
    print(f"torch {about['torch']}, autocast {about['autocast']}")
    print(f"measured matrix rate: {rates}")


def line(row: Row, before: dict[str, Any] | None) -> str:
    """One row of the table: name, median, unit, spread, comparison, note."""
    value = "-" if row.value is None else number(row.value)
    spread = "" if row.low is None else f"[{number(row.low)} .. {number(row.high)}]"
    compared = ""
    if before and before.get("value") and row.value is not None:
        compared = f"was {number(before['value'])}: x {row.value / before['value']:.2f}"
    return f"  {row.name:<58}{value:>9} {row.unit:<11}{spread:<22} {compared:<22} {row.note}".rstrip()


def number(value: float) -> str:
    """Three digits."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def write(path: Path, about: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    with cli.writable(path):
        path.write_text(json.dumps({"machine": about, "figures": figures}, indent=1) + "\n")


def earlier_figures(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The figures of a file by section and name. Raises UsageError for a file that holds none."""
    try:
        figures = json.loads(path.read_text())["figures"]
        return {(figure["section"], figure["name"]): figure for figure in figures}
    except (ValueError, KeyError, TypeError):
        raise cli.UsageError(f"{path} holds no figures of this benchmark: --compare takes a file of --json") from None


if __name__ == "__main__":
    cli.run(main)
