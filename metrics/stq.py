"""Segmentation and tracking quality: Weber et al., "STEP: Segmenting and Tracking Every Pixel", arXiv 2102.11859."""

import math
from collections.abc import Hashable, Iterable

import numpy as np

from .matching import mean
from .pq import class_iou
from .table import ID_BITS, ID_MASK, LabelMap, Table, class_mask, co_occurrence, confusion


class STQ:
    """STQ = sqrt(AQ * SQ), over all sequences together, as deeplab2 (the STEP authors' code) defines it.

    SQ is the mean IoU over the classes that occur in truth or prediction. Pixels with void truth are left out; void
    that is predicted on labelled pixels counts as one more class, of IoU 0.

    AQ is the mean over all true tracks g (class and id, id not 0) of 1/|g| sum_p TPA^2 / (TPA + FPA + FNA) over the
    predicted tracks p (class and id, id 0 included). Pixels of crowd in the truth (a class with tracks, id 0) are left
    out of every area; pixels of void are not. Only classes with tracks take part. A predicted track need not have the
    class of the true one.
    """

    def __init__(self, tracked: Iterable[int] = (11, 13), num_classes: int = 19):
        self.num_classes = num_classes
        self.tracked = tuple(sorted(tracked))
        self._tracked = class_mask(self.tracked)
        self._sequences: dict[Hashable, _Sequence] = {}

    def update(self, truth: LabelMap, prediction: LabelMap, sequence: Hashable) -> None:
        """Add a frame of a sequence; truth, prediction: (semantic, instance), each (H, W). Raises ValueError."""
        self.update_table(co_occurrence(truth, prediction, self.num_classes), sequence)

    def update_table(self, table: Table, sequence: Hashable) -> None:
        state = self._sequences.setdefault(sequence, _Sequence(self.num_classes))
        state.frames += 1
        state.confusion += confusion(table, self.num_classes)

        true_track, predicted_track = self._tracked[table.truth >> ID_BITS], self._tracked[table.prediction >> ID_BITS]
        crowd = true_track & (table.truth & ID_MASK == 0)
        true_track &= ~crowd
        predicted_track &= ~crowd
        rows = np.flatnonzero(true_track | predicted_track)
        columns = (table.truth, table.prediction, table.area, true_track, predicted_track)
        for truth, prediction, area, in_truth, in_prediction in zip(*(c[rows].tolist() for c in columns), strict=True):
            if in_truth:
                state.truth[truth] = state.truth.get(truth, 0) + area
            if in_prediction:
                state.prediction[prediction] = state.prediction.get(prediction, 0) + area
            if in_truth and in_prediction:
                state.both[truth, prediction] = state.both.get((truth, prediction), 0) + area

    def merge(self, other: "STQ") -> None:
        """Add the frames of another, whose sequences may be the same or others. Raises ValueError for other classes."""
        if (self.num_classes, self.tracked) != (other.num_classes, other.tracked):
            raise ValueError("only metrics of the same classes can be merged")
        for sequence, state in other._sequences.items():
            self._sequences.setdefault(sequence, _Sequence(self.num_classes)).merge(state)

    @property
    def longest(self) -> int:
        """Frames of the longest sequence."""
        return max((state.frames for state in self._sequences.values()), default=0)

    def result(self) -> dict:
        """{"STQ", "AQ", "SQ", "per_class": {class: IoU}, "per_sequence": {str(sequence): {"STQ", "AQ", "SQ"}}}.

        Fractions of one. AQ, and with it STQ, is None without any true track (deeplab2 says 0 there), SQ without any
        labelled pixel.
        """
        sequences = {str(name): state for name, state in sorted(self._sequences.items(), key=lambda item: str(item[0]))}
        qualities = {name: state.track_qualities() for name, state in sequences.items()}
        total = sum((s.confusion for s in sequences.values()), np.zeros((self.num_classes + 1,) * 2, np.int64))
        everything = [quality for one in qualities.values() for quality in one]
        return {
            **_scores(everything, total),
            "per_class": dict(enumerate(class_iou(total)[:-1])),
            "per_sequence": {name: _scores(qualities[name], s.confusion) for name, s in sequences.items()},
        }


class _Sequence:
    """What is summed up over a sequence: it grows with the number of tracks, not of frames."""

    def __init__(self, num_classes: int):
        self.frames = 0
        self.confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self.truth: dict[int, int] = {}  # code of a track -> pixels
        self.prediction: dict[int, int] = {}
        self.both: dict[tuple[int, int], int] = {}

    def merge(self, other: "_Sequence") -> None:
        self.frames += other.frames
        self.confusion += other.confusion
        for name in ("truth", "prediction", "both"):
            mine = getattr(self, name)
            for key, area in getattr(other, name).items():
                mine[key] = mine.get(key, 0) + area

    def track_qualities(self) -> list[float]:
        """1/|g| sum_p TPA^2 / (TPA + FPA + FNA) of each true track g, sorted by g."""
        terms: dict[int, list[float]] = {truth: [] for truth in sorted(self.truth)}
        for (truth, prediction), area in sorted(self.both.items()):
            union = self.truth[truth] + self.prediction[prediction] - area
            terms[truth].append(area * area / union)
        return [math.fsum(of_track) / self.truth[truth] for truth, of_track in terms.items()]


def _scores(track_qualities: list[float], confused: np.ndarray) -> dict[str, float | None]:
    aq = math.fsum(track_qualities) / len(track_qualities) if track_qualities else None
    sq = mean(class_iou(confused))
    return {"STQ": None if aq is None or sq is None else math.sqrt(aq * sq), "AQ": aq, "SQ": sq}
