"""Matching of true and predicted segments at IoU > 0.5, which PQ does in a frame and VPQ in a window of frames.

Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, section 4; void and crowd as in cityscapesscripts.
"""

from collections.abc import Iterable

import numpy as np

from .table import ID_BITS, ID_MASK, VOID, Table, class_mask, sum_by

# Sums of IoU are kept as whole numbers of this fraction, so that they do not depend on the order in which frames come.
# A match has an IoU in (0.5, 1], where float64 has exactly this spacing: nothing is lost.
IOU_UNIT = 1 << 53


class Matches:
    """Matched and unmatched segments by class: counts tp, fp, fn int64 (num_classes,), and the sums of matched IoUs."""

    def __init__(self, things: Iterable[int], num_classes: int):
        self.num_classes = num_classes
        self.things = tuple(sorted(things))
        self._thing = class_mask(self.things)
        self.tp, self.fp, self.fn = (np.zeros(num_classes, np.int64) for _ in range(3))
        self.iou = [0] * num_classes  # in IOU_UNITs

    def add(self, table: Table) -> None:
        """Match the segments of a table whose stuff ids are folded (`table.fold`)."""
        if not table.area.size:
            return
        truths, t = np.unique(table.truth, return_inverse=True)  # (T,) codes, (N,) row -> true segment
        predictions, p = np.unique(table.prediction, return_inverse=True)
        truth_class, prediction_class = truths >> ID_BITS, predictions >> ID_BITS
        void = truth_class == VOID
        crowd = self._thing[truth_class] & (truths & ID_MASK == 0)
        same_class = truth_class[t] == prediction_class[p]
        row_void, row_crowd = void[t], crowd[t] & same_class

        truth_area = sum_by(t, table.area, truths.size)
        prediction_area = sum_by(p, table.area, predictions.size)
        in_void = sum_by(p, table.area * row_void, predictions.size)
        in_crowd = sum_by(p, table.area * row_crowd, predictions.size)

        # IoU = |t and p| / (|t| + |p| - |t and p| - |p in void|)
        union = truth_area[t] + prediction_area[p] - table.area - in_void[p]
        match = same_class & ~row_void & ~row_crowd & (2 * table.area > union)
        missed = ~void & ~crowd
        missed[t[match]] = False
        wrong = (prediction_class != VOID) & (2 * (in_void + in_crowd) <= prediction_area)
        wrong[p[match]] = False

        classes = truth_class[t[match]]
        self.tp += np.bincount(classes, minlength=self.num_classes)
        self.fn += np.bincount(truth_class[missed], minlength=self.num_classes)
        self.fp += np.bincount(prediction_class[wrong], minlength=self.num_classes)
        units = (table.area[match] / union[match] * IOU_UNIT).astype(np.int64)
        for one_class, unit in zip(classes.tolist(), units.tolist(), strict=True):
            self.iou[one_class] += unit

    def merge(self, other: "Matches") -> None:
        """Add the counts of another. Raises ValueError where its classes are others."""
        if (self.num_classes, self.things) != (other.num_classes, other.things):
            raise ValueError("only metrics of the same classes can be merged")
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        self.iou = [a + b for a, b in zip(self.iou, other.iou, strict=True)]

    def per_class(self) -> dict[int, dict[str, float] | None]:
        """{class: {"PQ", "SQ", "RQ"}}, fractions of one; None for a class that does not occur."""
        scores: dict[int, dict[str, float] | None] = {}
        for c in range(self.num_classes):
            tp, fp, fn = int(self.tp[c]), int(self.fp[c]), int(self.fn[c])
            if tp + fp + fn == 0:
                scores[c] = None
                continue
            iou, whole = self.iou[c] / IOU_UNIT, tp + 0.5 * fp + 0.5 * fn
            scores[c] = {"PQ": iou / whole, "SQ": iou / tp if tp else 0.0, "RQ": tp / whole}
        return scores

    def averages(self) -> dict[str, dict[str, float | None]]:
        """{"all" | "things" | "stuff": {"PQ", "SQ", "RQ"}}: means over the classes that occur, None where none does."""
        scores = self.per_class()
        stuff = [c for c in scores if c not in self.things]
        groups = {"all": list(scores), "things": self.things, "stuff": stuff}
        return {
            name: {key: mean([scores[c][key] for c in classes if scores[c]]) for key in ("PQ", "SQ", "RQ")}
            for name, classes in groups.items()
        }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
