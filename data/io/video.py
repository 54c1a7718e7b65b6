"""Video files in and out, through PyAV (FFmpeg), a frame at a time: memory does not grow with their length."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data.labels import MAX_PIXELS, DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def read_video(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video file, uint8 (H, W, 3) RGB. Raises DataError for a file that cannot be decoded."""
    try:
        # A playlist in a video's clothes opens nothing but files, and no text in it is decoded strictly.
        options = {"protocol_whitelist": "file"}
        with av.open(str(Path(path).resolve()), options=options, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.width * stream.height > MAX_PIXELS:
                raise DataError(f"{path} claims frames of {stream.width}x{stream.height} pixels; that is refused")
            for frame in container.decode(stream):
                yield upright(frame.to_ndarray(format="rgb24"), frame.rotation)
    except av.FFmpegError as error:
        raise DataError(f"{path} cannot be decoded as a video ({error.strerror or error})") from None


def upright(image: np.ndarray, degrees: int) -> np.ndarray:
    """An image (H, W, 3) turned counterclockwise by a multiple of 90 degrees, as a phone's video says it is meant."""
    return np.ascontiguousarray(np.rot90(image, round(degrees / 90)))


def video_length(path: str | Path) -> tuple[float | None, int | None]:
    """Frames a second and number of frames, as the file's header has them; None where it does not say."""
    try:
        with av.open(
            str(Path(path).resolve()), options={"protocol_whitelist": "file"}, metadata_errors="ignore"
        ) as file:
            stream = file.streams.video[0]
            return float(stream.average_rate) if stream.average_rate else None, stream.frames or None
    except (av.FFmpegError, IndexError):
        return None, None


class VideoWriter:
    """Write frames to a gif, mp4 or webp as they come; the file appears under its name when it is whole.

    >>> with VideoWriter("overlay.gif", fps=10) as video:
    ...     video.write(frame)  # uint8 (H, W, 3), all of one size
    """

    def __init__(self, path: str | Path, fps: float = 10.0):
        self.path, self.fps = Path(path), Fraction(fps).limit_denominator(1000)
        self.container = self.stream = self.graph = None
        self.size: tuple[int, int] | None = None

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self.path.with_name(f".{self.path.name}.part")  # one name: a killed run's is written over
        self.temporary.touch()
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.container is not None:
                if kind is None:
                    self._flush()
                self.container.close()
            if kind is None and self.size is not None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def write(self, frame: np.ndarray) -> None:
        """Raises DataError where the frame's size is not the first one's."""
        if self.size is None:
            self.size = frame.shape[:2]
            self._open(*self.size)
        if frame.shape[:2] != self.size:
            raise DataError(f"the frames of {self.path} must be of one size, {frame.shape[:2]} is not {self.size}")
        height, width = self.height, self.width
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
        picture.time_base = 1 / self.fps
        picture.pts = self.count
        self.count += 1
        self._encode(picture)

    def _open(self, height: int, width: int) -> None:
        kind = self.path.suffix.lower().lstrip(".")
        codec = {"gif": "gif", "mp4": "libx264", "webp": "libwebp_anim"}.get(kind)
        if codec is None:
            raise DataError(f"{self.path}: an overlay is gif, mp4 or webp")
        self.count = 0
        self.height, self.width = (height, width) if kind != "mp4" else (height // 2 * 2, width // 2 * 2)
        self.container = av.open(str(self.temporary), "w", format=kind)
        self.stream = self.container.add_stream(codec, rate=self.fps)
        self.stream.width, self.stream.height = self.width, self.height
        if kind == "gif":
            self.stream.pix_fmt = "pal8"
            self.graph = self._palette_graph()
        elif kind == "mp4":
            self.stream.pix_fmt = "yuv420p"
            self.stream.options = {"crf": "18"}
        else:
            self.stream.pix_fmt = "yuv420p"
            self.container.options["loop"] = "0"

    def _palette_graph(self):
        """A palette for each frame, so that a GIF can be written as it goes and its colours are true."""
        graph = av.filter.Graph()
        source = graph.add_buffer(width=self.width, height=self.height, format="rgb24", time_base=1 / self.fps)
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=none")
        sink = graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        return graph

    def _encode(self, picture: "av.VideoFrame") -> None:
        if self.graph is None:
            self.container.mux(self.stream.encode(picture))
            return
        self.graph.push(picture)
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(av.BlockingIOError, av.EOFError):
            while True:
                self.container.mux(self.stream.encode(self.graph.pull()))

    def _flush(self) -> None:
        if self.graph is not None:
            self.graph.push(None)
            self._drain()
        self.container.mux(self.stream.encode(None))
