"""How fast, and where the time goes: one command, on a CPU or a GPU.

    python benchmarks/speed.py                                         all sections; some 30 minutes on two cores
    python benchmarks/speed.py --quick                                 the same with few repetitions, to see it work
    python benchmarks/speed.py --preset tiny --sections inference files
    python benchmarks/speed.py --json before.json --markdown page.md   keep the figures, and as a page
    python benchmarks/speed.py --compare before.json                   and set new ones beside them
    python benchmarks/speed.py --preset tiny --sections memory --long_video 10000        some ten minutes

Each figure is a median after a warm-up, with the smallest, the largest and how many they are in brackets. What is
compared was measured in turn, in the same run. Sections: `inference` the network and the sampling loop; `files`
inference.py from files to files; `memory` its memory over a long video; `training` a step and its parts; `loading` the
loader; `estimate` what full trainings would cost; `earlier` against the earlier design; `optimisations` each by itself;
`growth` with size, steps, videos and history; `evaluation` the metrics.
"""

import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import torch

    from benchmarks import (
        speed_compare,
        speed_estimate,
        speed_evaluation,
        speed_files,
        speed_growth,
        speed_inference,
        speed_report,
        speed_training,
    )
    from benchmarks.speed_timing import OtherWork, Row, Setup, apart, machine, matrix_rates
    from model import PRESETS

SECTIONS = tuple(speed_report.TITLES)
TRAINED = Path("results/pretrained/model-tiny.pt")

OPTIONS = {
    "what": [
        cli.Option("preset", ("tiny", "small"), "one or several presets", choices=tuple(PRESETS)),
        cli.Option("sections", SECTIONS, "one or several of them", choices=SECTIONS),
        cli.Option("image_size", None, "height and width, in place of the presets'", kind=int, nargs=2),
        cli.Option("batch_size", 0, "of training steps; 0: by preset and device"),
        cli.Option("weights", TRAINED, "trained weights, for the preset that they fit; the others are untrained"),
        cli.Option("long_video", 500, "frames of the video that the memory's growth is measured on"),
        cli.Option("quick", False, "few repetitions and parts: to see that it works, not to measure"),
    ],
    "machine": [
        cli.Option("device", "auto", "where to compute", ("auto", "cuda", "cpu")),
        cli.Option("mixed_precision", "auto", "autocast; auto: bf16 where it pays", ("auto", "no", "bf16", "fp16")),
        cli.Option("threads", 0, "CPU threads; 0: as many as torch takes"),
        cli.Option("compile", False, "compile the network, in all sections"),
        cli.Option("cuda_graphs", False, "the sampling loop as CUDA graphs, in all sections"),
    ],
    "figures": [
        cli.Option("json", None, "file to write the figures to", kind=Path),
        cli.Option("markdown", None, "file to write the report to, as a page", kind=Path),
        cli.Option("compare", None, "file of an earlier --json: a column with its figures and the ratios", kind=Path),
    ],
}


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    before = speed_report.earlier_figures(args.compare) if args.compare else {}
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise cli.UsageError("--device cuda: there is no CUDA device; use --device cpu")
    for name in ("cuda_graphs", "compile"):
        if getattr(args, name) and device != "cuda":
            raise cli.UsageError(f"--{name} needs a CUDA device")
    if args.weights != TRAINED and not args.weights.is_file():
        raise cli.UsageError(f"there is no weights file {args.weights}")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        setup = Setup(
            tuple(args.preset), Path(folder), device, args.mixed_precision,
            tuple(args.image_size) if args.image_size else None, args.weights, args.threads, args.compile, args.quick,
            args.long_video, args.cuda_graphs, args.batch_size,
        )  # fmt: skip
        report(args, setup, before)


def report(args, setup: Setup, before: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Section after section, printed and written as it is measured."""
    rates = matrix_rates(setup)
    about = machine(setup, rates)
    print(*speed_report.describe(about), sep="\n")
    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    figures: list[dict[str, Any]] = []
    for section in args.sections:
        print(f"\n{section}", flush=True)
        begin = time.perf_counter()
        with OtherWork() as other:
            for row in measure(section, setup, rates):
                print(speed_report.line(row, before.get((section, row.name))), flush=True)
                figures.append({"section": section, **row._asdict()})
        about["other_work_cores"][section] = other.cores
        about["seconds"][section] = time.perf_counter() - begin
        if warning := speed_report.busy(other.cores):
            print(f"  {warning}")
        if args.json:  # after each section, so that a run that is ended leaves what it has
            speed_report.write_json(args.json, about, figures)
        if args.markdown:
            speed_report.write_markdown(args.markdown, command, about, figures, before)
    print(f"\nmeasured in {sum(about['seconds'].values()) / 60:.1f} minutes")


def measure(section: str, setup: Setup, rates: dict[str, float]) -> Iterator[Row]:
    """The rows of one section, preset after preset."""
    if section == "evaluation":
        yield from evaluation(setup)
        return
    if section == "earlier":
        yield from speed_compare.earlier(setup)
        return
    if section == "estimate":
        yield from speed_estimate.estimate(setup)
        return
    if section == "memory":  # the network's size changes nothing about its growth
        yield from speed_files.memory(setup, setup.presets[0])
        return
    functions = {
        "inference": lambda preset: speed_inference.network(setup, preset, rates),
        "files": lambda preset: speed_files.files(setup, preset),
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
    # In a process of its own, whose memory nothing else has raised before
    found, _, _ = apart(setup, speed_evaluation.measure, 600 if setup.quick else 1_000)
    note = f"all metrics, {speed_evaluation.HEIGHT}x{speed_evaluation.WIDTH}, {found['input'].rpartition('/')[2]}"
    yield Row("evaluation, a frame", found["ms_per_frame"], "ms", note=note)
    yield Row("of it the pass over the pixels", found["ms_table"], "ms")
    yield Row("evaluation, a frame of noise", found["ms_noise"], "ms", note="the worst case")
    grown = found["rss_end_mb"] - found["rss_start_mb"]
    yield Row("growth of memory", grown, "MB", note="from the 500th frame on")


if __name__ == "__main__":
    cli.run(main)
