"""Find the videos in folders, files, patterns and streams.

Images named `<sequence>_<frame>_leftImg8bit.png` are grouped by sequence, other images of a folder as in names.py.
A gap, which is a step in the frame numbers of more than twice the usual one, ends the history.
"""

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from data.io.listing import LeftOut, walk
from data.labels import DataError
from data.sets.check import fault_of
from data.sets.frames import gaps, natural_key
from data.videos.names import ordered_videos
from data.videos.pages import MAY_MOVE
from data.videos.sequences import InputFrame, Sequence
from data.videos.video import VIDEO_SUFFIXES, is_stream

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif",
    ".apng", ".avif",
)  # fmt: skip
HEIC = (".heic", ".heif")
with contextlib.suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    IMAGE_SUFFIXES += HEIC
_NAMED = re.compile(r"(?P<sequence>.+)_(?P<number>\d+)_leftImg8bit")
_NUMBERED = re.compile(r"(.+)_\d{6}_panoptic\.png")
_OURS = re.compile(r".*_(panoptic|overlay|gtFine\w*|labelIds|instanceIds)")  # files that may lie beside the images


def find_sequences(sources: str | Path | Iterable[str | Path], left_out: LeftOut | None = None) -> list[Sequence]:
    """All sequences of folders, files, patterns (`films/*.mp4`) and streams; other files are added to `left_out`.

    Raises DataError if there is nothing to read or two frames share an output.
    """
    left_out = {} if left_out is None else left_out
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    streams = [str(source) for source in sources if is_stream(source)]
    paths = [path for source in sources if not is_stream(source) for path in _matching(Path(source))]
    base = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    if paths and base is None:
        paths = [Path(os.path.abspath(path)) for path in paths]
        base = Path(os.path.commonpath([path.parent for path in paths]))
    files = [file for path in paths for file in ([path] if path.is_file() else walk(path, left_out))]
    by_folder: dict[Path, list[Path]] = {}
    for file in dict.fromkeys(files):
        if _is_taken(file, left_out):
            by_folder.setdefault(file.parent, []).append(file)
    sequences: list[Sequence] = []
    for folder in sorted(by_folder, key=lambda p: natural_key(str(p))):
        for sequence in _in_folder(by_folder[folder], folder.relative_to(base), base, left_out):
            label = sequence.name
            while any(s.name == label for s in sequences):  # a folder `a` beside images `a_<n>_leftImg8bit.png`
                label += "+"
            sequences.append(Sequence(label, sequence.frames, sequence.video, sequence.stem))
    for number, stream in enumerate(streams):
        name = re.sub(r"\W+", "_", stream.rpartition("@")[2].rpartition("://")[2]).strip("_") or f"stream_{number}"
        sequences.append(Sequence(name, None, stream, Path(name)))
    if not sequences:
        raise DataError(_nothing(sources, left_out))
    _check_outputs(sequences)
    return sequences


def _matching(path: Path) -> list[Path]:
    """The path if it exists, else all paths that match it as a pattern."""
    if path.exists():
        if path.is_dir() or path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            return [path]
        kinds = " ".join(VIDEO_SUFFIXES)
        raise DataError(f"{path} is neither a folder of images nor an image or a video ({kinds})")
    found = sorted(glob.glob(str(path), recursive=True), key=natural_key)
    if not found:
        raise DataError(
            f"the input folder {path} is missing: put frames there, or name a folder or a video by --input_folder"
        )
    return [Path(p) for p in found]


def _is_taken(path: Path, left_out: LeftOut) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        reason = (
            f"{suffix} files, which need `pip install pillow-heif`" if suffix in HEIC else f"{suffix or 'other'} files"
        )
    elif _OURS.fullmatch(path.stem):
        reason = "named as labels or overlays"
    else:
        return True
    left_out.setdefault(reason, []).append(path)
    return False


def _in_folder(files: list[Path], inside: Path, base: Path, left_out: LeftOut) -> Iterator[Sequence]:
    """The sequences of the files of one folder."""
    moving = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES or _frames_in(p, left_out) > 1]
    images: dict[str, list[Path]] = {}
    for path in sorted(set(files) - set(moving), key=lambda p: (natural_key(p.stem), p.name)):
        match = _NAMED.fullmatch(path.stem)
        images.setdefault(match["sequence"] if match else "", []).append(path)
    for name, group in sorted(images.items(), key=lambda item: natural_key(item[0])):
        videos = ordered_videos([p.stem for p in group])
        if name:
            group.sort(key=lambda p: int(_NAMED.fullmatch(p.stem)["number"]))
            videos = [(name, range(len(group)), [int(_NAMED.fullmatch(p.stem)["number"]) for p in group])]
        for part, places, numbers in videos:
            alone = str(inside) if inside != Path() else os.path.basename(os.path.abspath(base))
            label = str(inside / part) if part else alone
            yield Sequence(label, _frames([group[i] for i in places], numbers, inside))
    for path in sorted(moving, key=lambda p: natural_key(p.name)):
        yield Sequence(str(inside / path.stem), None, path, inside / path.stem)


def _frames(paths: list[Path], numbers: list[int], inside: Path) -> list[InputFrame]:
    return [
        InputFrame(number, inside / f"{path.stem.removesuffix('_leftImg8bit')}_panoptic.png", path, gap)
        for path, number, gap in zip(paths, numbers, gaps(numbers), strict=True)
    ]


def _frames_in(path: Path, left_out: LeftOut) -> int:
    """The number of frames of one size in an image file; 1 if it cannot be read."""
    if path.suffix.lower() not in MAY_MOVE:
        return 1
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            if count == 1 or image.format == "MPO":
                return 1
            if image.format == "TIFF" and len({image.size for page in range(count) if image.seek(page) is None}) > 1:
                left_out.setdefault("with pages of several sizes, of which the first is taken", []).append(path)
                return 1
            return count
    except Exception:  # Pillow raises many types for damaged files; `without_bad` reports them
        return 1


def _nothing(sources: list[str | Path], left_out: LeftOut) -> str:
    there = ", ".join(f"{len(paths)} {reason}" for reason, paths in left_out.items())
    return (
        f"{' '.join(map(str, sources))} holds no images ({' '.join(IMAGE_SUFFIXES)}) and no videos"
        f"{f', but {there}' if there else ''}: put frames there, or name a folder or a video by --input_folder"
    )


def _check_outputs(sequences: list[Sequence]) -> None:
    """Raise DataError if two inputs would share a prediction."""
    outputs: dict[Path, object] = {}
    sequences = sorted(sequences, key=lambda sequence: sequence.frames is not None)  # films first
    for sequence in sequences:
        own = [(sequence.stem, sequence.video)] if sequence.frames is None else []
        for output, source in own or [(frame.output, frame.image) for frame in sequence.frames]:
            numbered = _NUMBERED.fullmatch(output.name)  # as the masks of a film are
            film = output.with_name(numbered[1]) if numbered else output
            if taken := outputs.get(output) or outputs.get(film):
                raise DataError(
                    f"{source} and {taken} would share the prediction {output}: rename one, or name only one "
                    f"kind, --input_folder 'FOLDER/*{Path(source).suffix}'"
                )
            outputs[output] = source


def without_bad(sequences: list[Sequence], skip: bool) -> tuple[list[Sequence], list[str]]:
    """The videos that can be read, and what is wrong with the others. Raises DataError for bad files (no image, too
    large, truncated, or a video without a first frame); with `skip` only where no video is left. Good images are not
    decoded."""
    faults = {}
    for sequence in sequences:
        if sequence.frames is not None:
            faults |= {f.image: fault for f in sequence.frames if (fault := fault_of(f.image)[0])}
        elif not is_stream(sequence.video):
            try:
                if next(sequence.read(), None) is None:
                    faults[sequence.video] = f"{sequence.video} holds no frames"
            except DataError as error:
                faults[sequence.video] = str(error)
    good = [sequence for sequence in sequences if sequence.video not in faults]
    if faults and not (skip and good):
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise DataError(f"{next(iter(faults.values()))}{more}; --skip_bad_files does the others")
    return good, [faults[sequence.video] for sequence in sequences if sequence.video in faults]


def remarks(sequences: list[Sequence], cuts: bool) -> list[str]:
    """What a person should know of the videos: where they are told apart within a folder, and where numbers jump, since
    masks do not show why ids change. cuts: whether a jump ends the history."""
    lines = []
    folders = [{frame.image.parent for frame in sequence.frames or ()} for sequence in sequences]
    if len(set().union(*folders)) < len([f for f in folders if f]):
        names = ", ".join(s.name for s in sequences[:3]) + ", ..." * (len(sequences) > 3)
        lines.append(f"{len(sequences)} videos, told apart by the names of their frames: {names}")
    for sequence in sequences if cuts else ():
        if after := [frame.number for frame in sequence.frames or () if frame.after_gap]:
            shown = ", ".join(map(str, after[:3])) + (", ..." if len(after) > 3 else "")
            times = "a gap" if len(after) == 1 else f"{len(after)} gaps"
            lines.append(
                f"{sequence.name}: {times} in the frame numbers, before {shown}; taken as a cut: no history and new "
                "ids from there on (--no-cuts if it is none)"
            )
    return lines


def share(sequences: list[Sequence], process: int, processes: int) -> list[int]:
    """The numbers of the videos that fall to a process. The longest comes first, and each goes to the process with the
    fewest frames so far. A film counts as a million."""
    lengths = [1_000_000 if s.frames is None else len(s.frames) for s in sequences]
    shares, frames = [[] for _ in range(processes)], [0] * processes
    for number in sorted(range(len(sequences)), key=lambda n: (-lengths[n], n)):
        least = frames.index(min(frames))
        shares[least].append(number)
        frames[least] += lengths[number]
    return sorted(shares[process])
