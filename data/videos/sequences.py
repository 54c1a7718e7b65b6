"""A video that inference reads, frame after frame: images, a video file, an animated image, a stream."""

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.images import MAX_PIXELS, read_image
from data.io.pixels import to_rgb
from data.labels import DataError
from data.videos.video import is_stream, read_video, video_length

MAY_MOVE = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".avif")  # may hold several frames


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
        number, images = 0, _read_pages(self.video) if moving else read_video(self.video)
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
        with Image.open(self.video) as image:
            durations = []
            with contextlib.suppress(Exception):  # what is damaged is said when it is read
                for page in range(min(image.n_frames, 16)):  # they may differ
                    image.seek(page)
                    image.load()  # a WebP knows it then
                    durations.append(image.info.get("duration") or 0)
            return (1000 * len(durations) / sum(durations) if sum(durations) else None), image.n_frames


def _read_pages(path: Path) -> Iterator[np.ndarray]:
    """The frames of an animated image or of a stack of images."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} claims {image.width}x{image.height} pixels; that is refused")
            for page in range(image.n_frames):
                image.seek(page)
                yield to_rgb(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(f"{path} cannot be read as an image ({error})") from None


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
