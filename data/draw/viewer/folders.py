"""Make pages from the folder of an inference: its predictions, their frames, the truth, a second run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.draw.shown import Inference, last_inference, listed, truths_of, videos_of
from data.draw.viewer.coding import Labels
from data.draw.viewer.page import Page, shown_classes
from data.io.images import read_panoptic
from data.io.label_files import read_labels
from data.labels import DEFAULT_SPACE, VOID, DataError, label_space_of


@dataclass(frozen=True)
class Frame:
    """A prediction on disk: its sequence, its number, its path in the output folder, its picture, and its video's
    frames a second, where it has any."""

    sequence: str
    number: int
    file: Path
    image: np.ndarray
    fps: float | None = None


def write_pages(
    output_folder: str | Path,
    other_folder: str | Path | None = None,
    *,
    input_folder: str | Path | None = None,
    ground_truth: str | Path | None = None,
    split: str = "val",
    names: Sequence[str] | None = None,
    fps: float | None = None,
    width: int = 640,
    quality: int = 75,
    tracked: Sequence[str] | None = None,
) -> list[Path]:
    """Write a page for each video of an output folder into it: `<video>_view.html`; with `other_folder`, that of a
    second run on the same frames, `<video>_compare_view.html`.

    input_folder: the frames, by default where the inference found them; ground_truth: a folder of it; split: of the
    truth, if it holds several; names: of the two runs, by default their folders'; fps: by default the video's own, 10
    for images; tracked: names of the classes with tracks, for STQ, by default the label space's. Raises DataError, and
    then removes a half-written page.
    """
    output, other = Path(output_folder), Path(other_folder) if other_folder else None
    for folder in filter(None, (output, other)):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: name the output folder of an inference")
    inference = last_inference(output, input_folder)
    if inference is None:
        raise DataError(f"{output} holds no predictions (*_panoptic.png): run inference.py, or name its output folder")
    if input_folder is not None and not Path(inference.inputs).exists():
        raise DataError(
            f"--input_folder {input_folder} is missing: name the folder or the video that the frames are in"
        )
    truths = truths_of(Path(ground_truth), split, inference, list(listed(output))) if ground_truth else {}
    if ground_truth and not truths:
        raise DataError(f"{ground_truth} has the truth of no frame in {output}: name the data set that they are from")
    runs = ("prediction",) if other is None else tuple(names or _names(output, other))
    space = label_space_of(output) or DEFAULT_SPACE
    if unknown := [name for name in tracked or () if name not in space.names]:
        raise DataError(f"--tracked {unknown[0]}: classes are {', '.join(space.names)}")
    classes = shown_classes(space, None if tracked is None else [space.names.index(name) for name in tracked])
    settings = {"runs": runs, "width": width, "quality": quality, "classes": classes}

    pages: list[Path] = []
    page, missing = None, 0
    try:
        for frame in _frames(inference):
            second = _prediction(other / frame.file) if other else None
            if other and second is None:
                missing += 1
                continue
            path = output / f"{frame.sequence.strip('.') or 'video'}{'_compare' if other else ''}_view.html"
            if page is None or page.path != path:
                _close(page, pages)
                page = Page(path, title=frame.sequence, fps=fps or frame.fps or 10.0, **settings).__enter__()
            labels = truths.get(frame.file)
            page.add(
                frame.image,
                *_prediction(output / frame.file),
                other=second,
                truth=read_labels(labels) if labels else None,
                number=frame.number,
            )
        _close(page, pages)
        page = None
    finally:
        if page is not None:
            page.__exit__(InterruptedError)
    if not pages:
        raise DataError(f"{other} holds none of the frames of {output}: compare runs on the same frames")
    if missing:
        print(f"{missing} frames of {output} are not in {other} and are left out")
    return pages


def _close(page: Page | None, pages: list[Path]) -> None:
    if page is not None:
        page.__exit__(None)
        pages.append(page.path)


def _frames(inference: Inference) -> Iterator[Frame]:
    """All frames of all videos, in order; with grey pictures if the input is not found."""
    found = False
    for sequence in videos_of(inference):
        try:
            fps = sequence.rate_and_length()[0]
            for frame, image in sequence.read():
                if not isinstance(image, DataError) and (inference.output / frame.output).is_file():
                    found = True
                    yield Frame(sequence.name, frame.number, frame.output, image, fps)
        except DataError as error:  # a film that inference could not read either
            print(error)
    if found:
        return
    print(f"the frames of {inference.output} are not in {inference.inputs}; their pictures are grey (--input_folder)")
    for file, (sequence, number) in listed(inference.output).items():
        grey = np.full((*_prediction(inference.output / file)[0].shape, 3), 128, np.uint8)
        yield Frame(sequence, number, file, grey)


def _prediction(path: Path) -> Labels | None:
    return read_panoptic(path, VOID) if path.is_file() else None


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Names that distinguish two folders: the last parts of their paths that differ."""
    a, b = first.resolve().parts, second.resolve().parts
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a[-1], b[-1]
