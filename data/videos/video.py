"""Read and write video files through PyAV (FFmpeg), one frame at a time, so memory does not grow with their length."""

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.io.images import MAX_PIXELS
from data.labels import DataError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".3gp", ".wmv", ".flv",
    ".ogv", ".mxf", ".y4m",
)  # fmt: skip
PICTURE_COVER = av.stream.Disposition.attached_pic
GIF_RATE = 50  # frames a second: a GIF counts hundredths of a second, and players slow down frames shorter than two
# Where films of these kinds end: a GIF compresses badly, and a WebP is held in memory until its end.
LARGEST = {"gif": 50_000_000}  # bytes
MOST = {"webp": 3_000}  # frames


def is_stream(source: object) -> bool:
    """Whether a name is a camera (/dev/video0) or a stream (rtsp://...), which has no end."""
    return "://" in str(source) or str(source).startswith("/dev/video")


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; a cover picture does not count. Raises DataError."""
    how: dict[str, Any] = {"options": {"protocol_whitelist": "file"}}  # a disguised playlist opens only local files
    name = str(source)
    if is_stream(source):
        how = {"timeout": 20.0} | ({"format": "v4l2"} if name.startswith("/dev/") else {})
    else:
        name = str(Path(source).resolve())
    try:
        with av.open(name, metadata_errors="ignore", **how) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & PICTURE_COVER:
                raise DataError(f"{source} holds no video")
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{source} cannot be decoded as a video ({error.strerror or error})") from None


def read_video(source: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video file or stream, uint8 (H, W, 3) RGB, upright.

    Raises DataError if it cannot be read; where parts cannot be decoded, after all the others.
    """
    lost, why = 0, ""
    with _opened(source) as (container, stream):
        stream.thread_type = "AUTO"
        if stream.width * stream.height > MAX_PIXELS:
            raise DataError(f"{source} claims frames of {stream.width}x{stream.height} pixels; that is refused")
        to_rgb, rotation, matrix = av.video.reformatter.VideoReformatter(), None, None
        for packet in container.demux(stream):
            frames = []
            try:
                if packet.is_corrupt:  # cut off; the decoder's threads keep the error to themselves
                    lost, why = lost + 1, why or "the file is cut off or damaged"
                else:
                    frames = packet.decode()
            except av.FFmpegError as error:
                lost, why = lost + 1, why or error.strerror
            for frame in frames:
                # Only where it changes: `side_data` and its frame refer to each other, so they stay in memory
                if frame.rotation != rotation:
                    rotation, found = frame.rotation, frame.side_data.get("DISPLAYMATRIX")
                    matrix = None if found is None else np.frombuffer(found, np.int32).copy()
                yield upright(to_rgb.reformat(frame, format="rgb24").to_ndarray(), matrix)
    if lost:
        raise DataError(f"{source}: {lost} frame{'s' * (lost > 1)} cannot be decoded ({why})")


def upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turn and mirror an image (H, W, 3) by the display matrix of its video.

    matrix: int32 (9,); its entries a, b, c, d = 0, 1, 3, 4 map a pixel (x, y) to (a x + c y, b x + d y).
    """
    if matrix is None:
        return image
    a, b, c, d = (int(v) for v in matrix[[0, 1, 3, 4]])
    if abs(b) + abs(c) > abs(a) + abs(d):  # x and y are swapped
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def video_length(source: str | Path) -> tuple[float | None, int | None]:
    """Frames a second and number of frames from the file's header; None if unknown."""
    try:
        with _opened(source) as (container, stream):
            rate = stream.average_rate
            if not stream.frames:  # the header's rate may be a guess, as in a browser's WebM: the first frames' times
                times = sorted(p.pts for p in islice(container.demux(stream), 64) if p.pts is not None)
                if len(times) > 1 and times[-1] > times[0]:
                    rate = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
            return float(rate) if rate else None, stream.frames or None
    except DataError:
        return None, None


class VideoWriter:
    """Write frames to a gif, mp4 or webp as they come; the file gets its name when it is complete.

    >>> with VideoWriter("overlay.gif", fps=10) as video:
    ...     video.write(frame)  # uint8 (H, W, 3), all of one size
    """

    def __init__(self, path: str | Path, fps: float = 10.0):
        self.path, self.fps = Path(path), Fraction(fps).limit_denominator(1000)
        self.container = self.stream = self.graph = None
        self.size: tuple[int, int] | None = None
        self.count, self.bytes, self.ended = 0, 0, None  # number of frames so far, and at which the film was full

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self.path.with_name(f".{self.path.name}.part")  # a fixed name, to overwrite a killed run's
        self.temporary.touch()
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.container is not None:
                try:
                    if kind is None:
                        self._flush()
                finally:  # without its threads, which a process that is forked later would wait for
                    self.container.close()
                    self.container = self.stream = self.graph = None
            if kind is None and self.size is not None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def write(self, frame: np.ndarray) -> None:
        """Raises DataError if the frame has another size than the first one."""
        if self.size is None:
            self.size = frame.shape[:2]
            self._open(*self.size)
        self.count += 1
        if self.count > self.most and self.ended is None:
            self.ended = self.count - 1
        if self.ended or (self.count - 1) % self.every:
            return
        if frame.shape[:2] != self.size:
            raise DataError(f"the frames of {self.path} must be of one size, {frame.shape[:2]} is not {self.size}")
        padding = ((0, self.height - frame.shape[0]), (0, self.width - frame.shape[1]), (0, 0))
        picture = av.VideoFrame.from_ndarray(np.pad(frame, padding, "edge"), format="rgb24")
        picture.time_base = 1 / self.fps
        picture.pts = self.count - 1
        self._encode(picture)

    def _open(self, height: int, width: int) -> None:
        kind = self.path.suffix.lower().lstrip(".")
        self.every = -(-self.fps // GIF_RATE) if kind == "gif" else 1
        self.largest, self.most = LARGEST.get(kind, math.inf), MOST.get(kind, math.inf)
        codec = {"gif": "gif", "mp4": "libx264", "webp": "libwebp_anim"}.get(kind)
        if codec is None:
            raise DataError(f"{self.path}: an overlay is gif, mp4 or webp")
        self.height, self.width = (height, width) if kind != "mp4" else (height + height % 2, width + width % 2)
        self.container = av.open(str(self.temporary), "w", format=kind)
        self.stream = self.container.add_stream(codec, rate=self.fps)
        self.stream.width, self.stream.height = self.width, self.height
        if kind == "gif":
            self.stream.pix_fmt = "pal8"
            self.graph = self._palette_graph()
        elif kind == "mp4":
            self.stream.pix_fmt = "yuv420p"
            self.stream.options = {"crf": "20", "preset": "superfast"}
        else:
            self.stream.pix_fmt = "yuv420p"
            self.container.options["loop"] = "0"

    def _palette_graph(self):
        """A palette for each frame, so that a GIF can be written frame by frame with true colours."""
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
            self._mux(self.stream.encode(picture))
            return
        self.graph.push(picture)
        self._drain()

    def _mux(self, packets: list) -> None:
        self.bytes += sum(packet.size for packet in packets)
        if self.bytes > self.largest and self.ended is None:
            self.ended = self.count
        self.container.mux(packets)

    def _drain(self) -> None:
        with contextlib.suppress(av.BlockingIOError, av.EOFError):
            while True:
                self._mux(self.stream.encode(self.graph.pull()))

    def _flush(self) -> None:
        if self.graph is not None:
            self.graph.push(None)
            self._drain()
        self._mux(self.stream.encode(None))
