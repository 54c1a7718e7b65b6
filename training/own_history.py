"""For --history_from: predict the training videos once with an earlier model, as inference would."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from data.clips.cache import source_key
from data.clips.own_history import OwnHistory
from data.io.predictions import fingerprint
from data.labels import DataError
from data.sets.frames import FrameSource, whole_runs
from model import CheckpointError, StreamConfig, StreamState, VideoPredictor

STREAM = StreamConfig(first_steps=4, steps=3, time_difference=0.5)  # nearly as good as more
FRAMES = 10_000  # of a data set, whole videos: all of KITTI-STEP's training split, and enough of longer ones
WIDTH = 4  # videos side by side


def predicted_history(
    source: FrameSource,
    checkpoint: Path,
    folder: Path,
    image_size: tuple[int, int],
    accelerator: Accelerator,
    quiet: bool,
    frames: int = FRAMES,
) -> OwnHistory:
    """A checkpoint's predictions of the first videos of a data set, in their own folder: whole videos, until there are
    `frames` frames.

    The processes share the videos. Existing predictions are kept, so that a resumed run sees the same history. A video
    ends at a gap in its frame numbers, or at a frame that cannot be read. Raises CheckpointError and DataError.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"--history_from {checkpoint}: there is no such file")
    flags = {"stream": repr(STREAM), "image_size": tuple(image_size), "precision": accelerator.mixed_precision}
    key = [fingerprint(checkpoint, flags | {"data": source_key(source)})[:12] if accelerator.is_main_process else ""]
    (key,) = broadcast_object_list(key)
    own = OwnHistory(folder / f"{source.name}-{getattr(source, 'split', 'all')}-{key}", source.frames)
    todo, total = [], 0
    for video in whole_runs(source.frames) if source.is_video else []:
        if total < frames:
            todo.append(video)
            total += len(video)
    mine = [v for v in todo[accelerator.process_index :: accelerator.num_processes] if not own.done(v[0]).exists()]
    if mine:
        predictor = VideoPredictor.from_checkpoint(
            checkpoint,
            config=STREAM,
            device=accelerator.device,
            mixed_precision=accelerator.mixed_precision,
            image_size=tuple(image_size),
        )
        hidden = quiet or not accelerator.is_main_process
        with tqdm(total=sum(map(len, mine)), desc="own history", unit="frame", disable=hidden) as bar:
            for begin in range(0, len(mine), WIDTH):
                _predict(source, predictor, mine[begin : begin + WIDTH], own, bar)
    accelerator.wait_for_everyone()
    return own


def _predict(source: FrameSource, predictor: VideoPredictor, videos: list[list[int]], own: OwnHistory, bar) -> None:
    """Videos side by side; each frame is written, and when a video has ended, that it has."""
    going = {video[0]: (list(video), StreamState(video[0])) for video in videos}
    while going:
        images, states = {}, {}
        for name, (left, state) in list(going.items()):
            try:
                images[name], states[name] = source.read(left[0])[0], state
            except DataError:
                del going[name]
                own.done(name).touch()
                bar.update(len(left))
        if not images:
            break
        answers, after = predictor.step([*images.values()], [*states.values()])
        for name, answer, state in zip(images, answers, after, strict=True):
            left = going[name][0]
            own.write(left.pop(0), answer.semantic, answer.track)
            going[name] = (left, state)
            if not left:
                del going[name]
                own.done(name).touch()
            bar.update()
