"""Panoptic quality and mean IoU of single frames."""

from collections.abc import Hashable, Iterable

import numpy as np

from .matching import Matches, mean
from .table import LabelMap, Table, co_occurrence, confusion, fold


class PQ:
    """PQ = SQ * RQ: the sum of matched IoUs over (TP + FP / 2 + FN / 2), by class, then averaged over classes.

    As in cityscapesscripts' evalPanopticSemanticLabeling: void pixels leave the union, a crowd segment of the truth (a
    thing with id 0) is neither matched nor missed, a prediction more than half in void or in crowd of its class is no
    false positive. A predicted thing with id 0 is a segment like any other. Ids of stuff are ignored.
    """

    def __init__(self, things: Iterable[int] = (11, 13), num_classes: int = 19):
        self.num_classes = num_classes
        self._matches = Matches(things, num_classes)

    def update(self, truth: LabelMap, prediction: LabelMap, sequence: Hashable = None) -> None:
        """Add a frame; truth, prediction: (semantic, instance), each (H, W). Raises ValueError (`co_occurrence`)."""
        self.update_table(co_occurrence(truth, prediction, self.num_classes), sequence)

    def update_table(self, table: Table, sequence: Hashable = None) -> None:
        self._matches.add(fold(table, self._matches.things))

    def merge(self, other: "PQ") -> None:
        """Add the frames of another. Raises ValueError where its classes are others."""
        self._matches.merge(other._matches)

    def result(self) -> dict:
        """{"All" | "Things" | "Stuff": {"PQ", "SQ", "RQ"}, "per_class": {class: the same}}, each of one, or None."""
        absent = dict.fromkeys(("PQ", "SQ", "RQ"))
        averages = {name.capitalize(): scores for name, scores in self._matches.averages().items()}
        return averages | {"per_class": {c: s or dict(absent) for c, s in self._matches.per_class().items()}}


class MeanIoU:
    """IoU of each class over all pixels, and its mean over the classes that occur in truth or prediction.

    As in cityscapesscripts' evalPixelLevelSemanticLabeling: pixels with void truth are left out, a predicted void is a
    miss of the true class.
    """

    def __init__(self, num_classes: int = 19):
        self.num_classes = num_classes
        self._confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, truth: LabelMap, prediction: LabelMap, sequence: Hashable = None) -> None:
        """Add a frame; truth, prediction: (semantic, instance), each (H, W). Raises ValueError (`co_occurrence`)."""
        self.update_table(co_occurrence(truth, prediction, self.num_classes), sequence)

    def update_table(self, table: Table, sequence: Hashable = None) -> None:
        self._confusion += confusion(table, self.num_classes)

    def merge(self, other: "MeanIoU") -> None:
        """Add the frames of another. Raises ValueError where its classes are others."""
        if self.num_classes != other.num_classes:
            raise ValueError("only metrics of the same classes can be merged")
        self._confusion += other._confusion

    def result(self) -> dict:
        """{"mIoU", "per_class": {class: IoU}}, fractions of one; None for a class that does not occur."""
        per_class = dict(enumerate(class_iou(self._confusion)[:-1]))
        return {"mIoU": mean(per_class.values()), "per_class": per_class}


def class_iou(confused: np.ndarray) -> list[float | None]:
    """IoU of each class and, last, of void, from a confusion matrix (C + 1, C + 1); None where the union is empty.

    Pixels with void truth are left out, so that void has an IoU of 0 where it is predicted on labelled pixels, or None.
    """
    labelled = confused.copy()
    labelled[-1] = 0
    both = np.diagonal(labelled)
    union = labelled.sum(axis=0) + labelled.sum(axis=1) - both
    return [b / u if u else None for b, u in zip(both.tolist(), union.tolist(), strict=True)]
