"""A video that inference reads, frame after frame: images, a video file, an animated image, a stream."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.io.images import read_image
from data.labels import DataError
from data.videos.pages import MAY_MOVE, rate_and_pages, read_pages
from data.videos.video import is_stream, read_video, video_length


@dataclass(frozen=True)
class InputFrame:
    number: int
    output: Path  # of its prediction, relative to the output folder
    image: Path | None  # None for a frame of a video
    after_gap: bool = False  # this frame has no history


@dataclass(frozen=True)
class Sequence:
    """One video: a unique name, and the frames in order or a video file or stream with them."""

    name: str
    frames: list[InputFrame] | None
    video: Path | str | None = None
    stem: Path = Path()  # of a video: the start of its predictions' names

    def read(self, skip: int = 0) -> Iterator[tuple[InputFrame, np.ndarray | DataError]]:
        """Each frame without the first `skip`, with its image uint8 (H, W, 3) or the DataError of a bad image.

        Raises DataError if nothing of a video can be read. One that breaks off or is damaged ends with the DataError.
        """
        if self.video is None:
            for frame in self.frames[skip:]:
                try:
                    yield frame, read_image(frame.image)
                except DataError as error:
                    yield frame, error
            return
        moving = Path(self.video).suffix.lower() in MAY_MOVE
        number, images = 0, read_pages(self.video) if moving else read_video(self.video)
        while True:
            frame = InputFrame(number, self._output(number), None)
            try:
                image = next(images, None)
            except DataError as error:
                if number == 0:
                    raise
                if number >= skip:
                    yield frame, DataError(f"{error}; {number} frames were read")
                return
            if image is None:
                return
            if number >= skip:
                yield frame, image
            number += 1

    def outputs(self, count: int) -> list[Path]:
        """The first masks, relative to the output folder."""
        if self.frames is not None:
            return [frame.output for frame in self.frames[:count]]
        length = self.rate_and_length()[1] if count else None
        return [self._output(number) for number in range(count if length is None else min(count, length))]

    def _output(self, number: int) -> Path:
        return Path(f"{self.stem}_{number:06d}_panoptic.png")

    def rate_and_length(self) -> tuple[float | None, int | None]:
        """Frames a second and number of frames; None if unknown."""
        if self.video is None:
            return None, len(self.frames)
        if is_stream(self.video):
            return None, None
        if Path(self.video).suffix.lower() not in MAY_MOVE:
            return video_length(self.video)
        return rate_and_pages(self.video)


def prefetched(items: Iterator, ahead: int = 4) -> Iterator:
    """The items of an iterator, none of which is None; a thread takes a few ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, None) for _ in range(ahead))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, items, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
