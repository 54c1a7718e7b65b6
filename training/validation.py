"""Validation during training: metrics and pictures of held-out videos, predicted as a stream, as in inference."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.draw import render
from data.io.images import write_image
from data.labels import DataError
from data.sets.frames import FrameSource, whole_runs
from metrics import Evaluation
from model import Pix2SeqD, StreamConfig, VideoPredictor

PICTURE_VIDEOS, PICTURE_FRAMES = 4, 3  # of a sample-<N>.png: the third frame of each video, with its whole history


class HeldOut:
    """Held-out videos: the real metric over them, streamed as in inference, and pictures of them."""

    def __init__(
        self, source: FrameSource, args: argparse.Namespace, sampling: dict[str, Any], accelerator: Accelerator
    ):
        self.source, self.folder, self.accelerator = source, Path(args.results_folder), accelerator
        self.sampling = StreamConfig(**sampling)
        self.videos = first_frames(source, args.validate_videos, args.validate_frames)
        self.skip_bad_files = args.skip_bad_files

    def validate(self, model: Pix2SeqD, step: int) -> dict[str, Any]:
        """STQ, AQ, SQ (None for single images), PQ and mIoU. The processes share the videos; each gets the figures."""
        space = self.source.space
        evaluation = Evaluation(self.source.tracked, num_classes=len(space.classes), class_names=space.names)
        for number in range(self.accelerator.process_index, len(self.videos), self.accelerator.num_processes):
            for sequence, _, truth, answer in self._predicted(model, number, None):
                evaluation.update(truth, (answer.semantic, answer.track), sequence)
        if self.accelerator.num_processes > 1:
            evaluation, *others = gather_object([evaluation])
            for other in others:
                evaluation.merge(other)
        result = evaluation.result()
        figures = {k: result["stq"][k] for k in ("STQ", "AQ", "SQ")}
        return figures | {"PQ": result["pq"]["All"]["PQ"], "mIoU": result["miou"]["mIoU"]}

    def picture(self, model: Pix2SeqD, number: int, step: int) -> None:
        """sample-<number>.png: input, truth and prediction of a frame of a few videos, a row each."""
        rows = []
        for video in range(min(len(self.videos), PICTURE_VIDEOS)):
            if frames := list(self._predicted(model, video, PICTURE_FRAMES)):
                _, image, truth, answer = frames[-1]
                maps = (truth, (answer.semantic, answer.track))
                rows.append([image, *(render.draw_panoptic(*labels, space=self.source.space) for labels in maps)])
        rows = [row for row in rows if row[0].shape == rows[0][0].shape]  # a strip is of one size
        if not rows:
            return
        picture = render.strip(rows)
        with contextlib.suppress(OSError):
            write_image(self.folder / f"sample-{number}.png", picture)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"input, truth, prediction": picture[None]}, step=step, **layout)

    def _predicted(self, model: Pix2SeqD, number: int, frames: int | None):
        """(sequence, image, truth, answer) of the first frames of one video, up to one that cannot be read."""
        predictor = VideoPredictor(model, self.sampling, self.accelerator.device, self.accelerator.mixed_precision)
        predictor.reset(number)
        for i in self.videos[number][:frames]:
            try:
                image, semantic, instance = self.source.read(i)
            except DataError:
                if not self.skip_bad_files:
                    raise
                return
            sequence = self.source.frames[i].sequence if self.source.is_video else None
            yield sequence, image, (semantic, instance), predictor(image)


def first_frames(source: FrameSource, videos: int, frames: int) -> list[list[int]]:
    """Positions of the first frames of the first videos, up to the first gap; of single images, evenly spread ones."""
    if not source.is_video:
        chosen = np.linspace(0, len(source.frames) - 1, min(videos * frames, len(source.frames))).astype(int)
        return [[int(i)] for i in chosen]
    first: dict[str, list[int]] = {}
    for run in whole_runs(source.frames):
        first.setdefault(source.frames[run[0]].sequence, run[:frames])
    return list(first.values())[:videos]
