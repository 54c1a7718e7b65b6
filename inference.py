"""Run a trained model over video: panoptic PNGs, tracks and an overlay, frame after frame.

    python inference.py                                                data/input -> data/output
    python inference.py --input_folder my_video.mp4                    a video file, or films/*.mp4
    python inference.py --input_folder rtsp://HOST/STREAM --live       a stream, until Ctrl-C; it cannot be continued
    python inference.py --input_folder IMAGES --independent_frames     images that are no video
    torchrun --nproc_per_node 8 inference.py                           several GPUs share the videos

Input: a folder of images (several videos where their names say so) or of such folders, video files,
animated images. Images named <sequence>_<frame>_leftImg8bit.png are grouped by sequence. Output, at the frames' size:
<sequence>_<frame>_panoptic.png or <stem>_panoptic.png (R = class, 255 = void; G * 256 + B = id),
tracks.jsonl with one line a frame, and <sequence>_overlay.mp4. Run it again to continue.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cli

with cli.imports():
    import numpy as np
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from tqdm import tqdm

    from data.draw.live import Live, opened
    from data.io.listing import LeftOut, in_words
    from data.io.lock import sole_writer
    from data.labels import MAX_ID, DataError, LabelSpace
    from data.videos.cuts import Cuts
    from data.videos.find import find_sequences, remarks, share, without_bad
    from data.videos.folder import check_masks, fingerprint, merge_tracks, note_run
    from data.videos.output import SequenceOutput
    from data.videos.overlays import WRITERS
    from data.videos.sequences import InputFrame, Sequence, prefetched
    from data.videos.video import is_stream
    from model import CheckpointError, StreamConfig, StreamState, VideoPredictor
    from model.checkpoint import weights_file
    from model.stream.ahead import WORKERS, seeing_ahead
    from model.stream.history import adopt
    from model.stream.state import Moment

TRAINED = Path("results/train/model-latest.pt")
SHIPPED = Path("results/pretrained/model-tiny.pt")

OPTIONS = {
    "files": [
        cli.Option("input_folder", ("data/input",), "images or folders of them, videos, a stream", metavar="PATH"),
        cli.Option("output_folder", Path("data/output"), "folder for the predictions"),
        cli.Option("checkpoint", None, f"weights; none: {TRAINED}, else {SHIPPED}", kind=Path),
        cli.Option("overlay", ("mp4",), "what is drawn of each video beside its masks", ("none", *WRITERS)),
        cli.Option("live", False, "show frames and masks in a browser as they come"),
        cli.Option("colorblind", False, "overlay colours that all kinds of colour vision tell apart", rare=True),
        cli.Option("fps", None, "frames a second of the overlay; none: the video's, or 10", kind=float, rare=True),
        cli.Option("skip_bad_files", False, "go on without images that cannot be read, and list them", rare=True),
        cli.Option("restart", False, "do not continue a half-done output folder, start over", rare=True),
    ],
    "history and noise": [
        cli.Option("use_frames_before", 0, "take the first N frames' masks from the output folder as given"),
        cli.Option("independent_frames", False, "images that are no video: no frame has a history"),
        cli.Option("seed", 42, "of the noise"),
        cli.Option("cuts", True, "history ends where the pictures change or the frame numbers jump"),
    ],
    "machine": [
        cli.Option("device", "auto", "where to compute", ("auto", "cuda", "cpu")),
        cli.Option("mixed_precision", "auto", "autocast type", ("auto", "no", "bf16", "fp16")),
        cli.Option("image_size", None, "area that frames are brought to; none: the model's", kind=int, nargs=2),
        cli.Option("batch_videos", 1, "videos predicted side by side", rare=True),
        cli.Option("compile", False, "compile the network, on a GPU; not yet run on one", rare=True),
        cli.Option("cuda_graphs", False, "the sampling loop as CUDA graphs, on a GPU", rare=True),
        cli.Option("quiet", False, "no progress bar", rare=True),
    ],
}  # fmt: skip
COMMON = ("first_steps", "steps", "time_difference", "sampler")  # of the sampling: what -h shows


def main() -> int:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    cli.add_dataclass(parser, StreamConfig, "sampling (none: what the checkpoint recommends)", COMMON, ("seed",))
    args = parser.parse_args()

    # Everything is checked before anything is computed or written
    if args.batch_videos < 1 or args.use_frames_before < 0:
        raise cli.UsageError("--batch_videos must be 1 or more, --use_frames_before 0 or more")
    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise cli.UsageError(f"--fps must be 0.01 to 1000, not {args.fps:g}")
    if "none" in args.overlay and len(args.overlay) > 1:
        raise cli.UsageError("--overlay none stands alone: nothing is drawn")
    sampling = cli.given(args, StreamConfig)
    StreamConfig(**sampling)
    left_out: LeftOut = {}
    sequences = inputs(args.input_folder, left_out)
    if not args.quiet and not int(os.environ.get("RANK", 0)):  # of processes that torchrun started the first speaks
        print("".join(f"{line}\n" for line in remarks(sequences, args.cuts and not args.independent_frames)), end="")
    sequences, no_videos = without_bad(sequences, args.skip_bad_files)
    check_masks(sequences, args.output_folder, args.use_frames_before, args.restart)
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    processes = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # who is done waits for the longest video
    if 0 < (streams := sum(is_stream(s.video) for s in sequences)) < len(sequences):
        raise cli.UsageError("a stream has no end and cannot be continued: give films and folders by another command")
    if streams > args.batch_videos * processes.num_processes:
        raise cli.UsageError(f"{streams} streams, which have no end, need --batch_videos {streams}")
    usual = (TRAINED, SHIPPED, Path(__file__).parent / SHIPPED)  # the last is found from any folder
    if args.checkpoint is None and processes.is_main_process and not args.quiet:
        print(f"weights: {weights_file(None, usual)}")
    args.checkpoint = weights_file(args.checkpoint, usual)
    version = args.checkpoint.stat().st_mtime_ns
    predictor = load(args, sampling, processes)
    with cli.writable(args.output_folder):
        args.output_folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(args.output_folder, "--output_folder", processes):
        failures = no_videos + write_all(args, sequences, predictor, version, processes)

    if left_out and processes.is_main_process and not args.quiet:
        print(f"left out: {in_words(left_out)}")
    if failures and processes.is_main_process:
        print(f"inference.py: frames without a prediction: {len(failures)}", file=sys.stderr)
        print("\n".join(f"  {failure}" for failure in failures), file=sys.stderr)
    processes.wait_for_everyone()  # the first to end with status 1 ends all
    processes.destroy_process_group()
    return 1 if failures else 0


def write_all(
    args, sequences: list[Sequence], predictor: VideoPredictor, version: int | None, processes: PartialState
) -> list[str]:
    """The videos, shared by the processes, a few side by side in each. Returns what could not be read.

    version: the time of change of the checkpoint before it was read.
    """
    flags = vars(predictor.config) | {"image_size": args.image_size, "precision": str(predictor.dtype)}
    flags |= {option.name: getattr(args, option.name) for option in OPTIONS["history and noise"]}
    run = fingerprint(args.checkpoint, flags)
    if args.checkpoint.stat().st_mtime_ns != version:
        raise CheckpointError(f"{args.checkpoint} was replaced while it was read, by a training? start again")
    if processes.is_main_process:
        names = [s.name for s in sequences]
        given = args.use_frames_before
        note_run(args.output_folder, args.input_folder, args.checkpoint, names, args.restart, predictor.space, given)
    mine = share(sequences, processes.process_index, processes.num_processes)
    lengths = [sequences[n].rate_and_length()[1] for n in mine]
    total = None if None in lengths else sum(lengths)
    quiet = args.quiet or not processes.is_main_process
    page = args.live and processes.is_main_process
    with (
        contextlib.closing(opened(args.colorblind, predictor.space)) if page else contextlib.nullcontext() as live,
        tqdm(total=total, unit="frame", disable=quiet, dynamic_ncols=True) as bar,
    ):
        jobs = [Job(sequences[number], number, args, run, bar, predictor.space, live) for number in mine]
        try:
            predict(predictor, jobs, args.batch_videos)
        except KeyboardInterrupt:
            cli.fail("interrupted; the same command goes on from here", status=130)
        finally:  # lists what was predicted before an error or Ctrl-C, too
            if processes.num_processes == 1:
                merge_tracks(args.output_folder, [s.name for s in sequences])
    failures = [failure for job in jobs for failure in job.failures]
    if processes.num_processes > 1:
        failures = gather_object(failures)  # waits for all
        if processes.is_main_process:
            merge_tracks(args.output_folder, [s.name for s in sequences])
    if processes.num_processes == 1 and not args.quiet:
        print("".join(f"{remark}\n" for job in jobs for remark in job.remarks), end="")
        print(f"{sum(job.done - len(job.failures) for job in jobs)} frames are in {args.output_folder}")
    return failures


def inputs(paths: list[str], left_out: LeftOut) -> list[Sequence]:
    """The videos of folders and files. With nothing in the default folder, say how to try it out."""
    try:
        return find_sequences(paths, left_out)
    except DataError as error:
        if tuple(paths) != OPTIONS["files"][0].default:
            raise
        cli.fail(
            f"{error}. To try it out with synthetic frames:\n"
            "  python -m data.streets --split test --output_folder data/sample\n"
            "  python inference.py --input_folder data/sample"
        )


def load(args, sampling: dict, processes: PartialState) -> VideoPredictor:
    """The predictor of the checkpoint, on this process's device. sampling: what differs from what it recommends."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise cli.UsageError("--device cuda: there is no CUDA device; use --device cpu")
    options = {"device": processes.device, "mixed_precision": args.mixed_precision, "image_size": args.image_size}
    predictor = VideoPredictor.from_checkpoint(args.checkpoint, **options, **sampling)
    predictor.only_infer(args.cuda_graphs, args.compile)
    return predictor


class Coming(NamedTuple):
    """A frame that has been read, and that the network may see already."""

    frame: InputFrame
    image: np.ndarray | DataError
    first: bool  # the history ends before it
    cut: bool  # because the picture changes
    cuts: dict  # the state of that comparison after it
    seen: Future | None


class Job:
    """One video on its way: its frames, its state, and what is written of it."""

    def __init__(
        self, sequence: Sequence, number: int, args, run: str, bar: tqdm, space: LabelSpace, live: Live | None = None
    ):
        self.sequence, self.args, self.bar, self.live = sequence, args, bar, live
        fps = args.fps or sequence.rate_and_length()[0] or 10.0
        self.output = SequenceOutput(
            sequence, args.output_folder, run, args.overlay, fps, args.restart, args.use_frames_before,
            args.colorblind, space,
        )  # fmt: skip
        self.state, self.cuts = StreamState(number), Cuts().state
        self.done = 0
        self.failures: list[str] = []
        self.cut_before: list[int] = []
        self.remarks: list[str] = []

    def start(self, predictor: VideoPredictor, pool: Executor | None) -> None:
        """Take up a half-done video: its state, and its first frames drawn again for the overlay."""
        stored = self.output.open()
        if stored is not None:
            self.state, self.done = StreamState.from_dict(stored["state"]["stream"]), stored["done"]
            self.cuts, self.cut_before = stored["state"]["cuts"], list(stored["state"]["cut_before"])
            self.failures = list(stored["failures"])
        drawn = set(self.args.overlay) != {"none"}
        frames = self.sequence.read(0 if drawn else self.done)
        for item in islice(frames, self.done if drawn else 0):
            self.output.redraw(*item)
        self.bar.update(self.done)
        self.frames = prefetched(self._read(frames, predictor, pool), 1 + WORKERS)

    def _read(self, frames: Iterator, predictor: VideoPredictor, pool: Executor | None) -> Iterator[Coming]:
        """The frames from here on, in a thread ahead of the others; with a pool the network sees them from there."""
        args, cuts, (video, _, first) = self.args, Cuts(self.cuts), self.state.moment
        for number, (frame, image) in enumerate(frames, self.done):
            bad, cut, seen = isinstance(image, DataError), False, None
            if not bad:
                cut = args.cuts and not args.independent_frames and cuts(image)
                first |= cut or (frame.after_gap and args.cuts) or args.independent_frames
                if pool and number >= args.use_frames_before:
                    seen = pool.submit(predictor.see, [image], [Moment(video, number, first)])
            yield Coming(frame, image, first, cut, cuts.state, seen)
            first = bad  # nothing is known of it

    def next_frame(self, predictor: VideoPredictor) -> Coming | None:
        """The next frame that is to be predicted, or None at the end."""
        for coming in self.frames:
            frame, image = coming.frame, coming.image
            self.cuts = coming.cuts
            if isinstance(image, DataError):
                self.failures.append(str(image))
                self.state = self.state.forget()
                self.state.frame += 1  # its number seeds the noise of the frames after it
                self.finish_frame(None, None, None)
                continue
            if coming.cut and not frame.after_gap:
                self.cut_before.append(frame.number)
            if coming.first:
                self.state = self.state.forget()
            if self.args.independent_frames:
                self.state.next_track = 1
            if self.done < self.args.use_frames_before:
                semantic, track = self.output.read_given(frame, image)
                self.state = adopt(self.state, semantic, track, predictor.model.config, predictor.sizes(image)[1])
                self.finish_frame(frame, image, (semantic, track))
                continue
            return coming
        return None

    def finish_frame(self, frame, image, answer) -> None:
        """Write one frame's prediction; None for one that could not be read."""
        self.done += 1
        if frame is not None:
            self.output.write(frame, image, *answer, is_given=self.done <= self.args.use_frames_before)
            if self.live is not None:
                self.live.show(image, *answer)
        self.output.checkpoint(self.done, self.stored, self.failures)
        self.bar.update()

    @property
    def stored(self) -> dict:
        return {"stream": self.state.to_dict(), "cuts": self.cuts, "cut_before": self.cut_before}

    def finish(self) -> None:
        self.remarks = self.output.finish(self.done, self.stored, self.failures)
        if self.cut_before:
            shown = ", ".join(map(str, self.cut_before[:5])) + ", ..." * (len(self.cut_before) > 5)
            self.remarks.append(f"{self.sequence.name}: cut before frame {shown}, where the picture changes")
        self.state = None  # those of hundreds of videos would fill the memory


def predict(predictor: VideoPredictor, jobs: list[Job], width: int) -> None:
    """All videos, at most `width` of them side by side, each frame after frame; streams until they are interrupted."""
    waiting, running = list(jobs), []
    streams = any(is_stream(job.sequence.video) for job in jobs)  # shown as a camera gives them
    ahead = contextlib.nullcontext() if streams else seeing_ahead(predictor)
    with ahead as pool, contextlib.ExitStack() as stack:
        try:
            while waiting or running:
                while waiting and len(running) < width:
                    job = waiting.pop(0)
                    stack.callback(job.output.close)
                    job.start(predictor, pool)
                    stack.callback(job.frames.close)  # its thread ends
                    running.append(job)
                predict_next(predictor, running)
        except KeyboardInterrupt:
            if not running or not all(is_stream(job.sequence.video) for job in running):
                raise
            for job in running:
                job.finish()


def predict_next(predictor: VideoPredictor, running: list[Job]) -> None:
    """The next frame of each video; those that have none are finished and leave the list."""
    due = []
    for job in list(running):
        if (coming := job.next_frame(predictor)) is None:
            job.finish()
            running.remove(job)
        else:
            due.append((job, coming))
    try:
        unseen = [(coming.image, job.state.moment, job.state) for job, coming in due if coming.seen is None]
        batch = iter(predictor.see(*zip(*unseen, strict=True)) if unseen else ())
        for job, coming in due:
            seen = next(batch) if coming.seen is None else coming.seen.result()[0]
            before = job.state
            answer, job.state = predictor.follow(seen, before, coming.image)
            if answer.track.max() > MAX_ID:
                job.state = before
                job.finish()
                running.remove(job)
                job.done += 1  # tried
                job.failures.append(
                    f"{job.sequence.name} ends before frame {coming.frame.number}, which would need more than "
                    f"{MAX_ID:,} ids: give the rest as a video of its own"
                )
                continue
            job.finish_frame(coming.frame, coming.image, (answer.semantic, answer.track))
    except Exception as error:  # says which frames it is about
        names = (str(c.frame.image or f"{job.sequence.video}, frame {c.frame.number}") for job, c in due)
        error.add_note(" and ".join(names))
        raise


if __name__ == "__main__":
    cli.run(main)
