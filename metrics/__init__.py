"""STQ, VPQ, PQ and mIoU of panoptic video, from one pass over the pixels. NumPy only.

    from metrics import Evaluation
    evaluation = Evaluation(tracked=(11, 13), things=(11, 13), num_classes=19)
    for sequence, truth, prediction in frames:    # truth, prediction: (semantic (H, W), instance (H, W))
        evaluation.update(truth, prediction, sequence)
    evaluation.result()["stq"]["STQ"]

`semantic` holds classes 0..num_classes-1 or 255 = void, `instance` ids from 0, 0 = none; a true thing of id 0 is crowd.
"""

from collections.abc import Hashable, Iterable, Sequence

from .pq import PQ, MeanIoU
from .stq import STQ
from .table import VOID, LabelMap, Table, co_occurrence
from .vpq import VPQ

__all__ = ["PQ", "STQ", "VOID", "VPQ", "Evaluation", "LabelMap", "MeanIoU", "Table", "co_occurrence"]


class Evaluation:
    """All metrics at once, from one table a frame.

    tracked: classes with tracks, for AQ; things: classes with instances, for PQ and VPQ (default: the tracked ones);
    class_names: keys of the per-class results (default: the classes' numbers).
    """

    def __init__(
        self,
        tracked: Iterable[int] = (11, 13),
        things: Iterable[int] | None = None,
        num_classes: int = 19,
        class_names: Sequence[str] | None = None,
    ):
        tracked = tuple(tracked)
        things = tracked if things is None else tuple(things)
        self.num_classes = num_classes
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        self.frames = 0
        self.stq = STQ(tracked, num_classes)
        self.vpq = VPQ(things, num_classes)
        self.pq = PQ(things, num_classes)
        self.miou = MeanIoU(num_classes)

    def update(self, truth: LabelMap, prediction: LabelMap, sequence: Hashable | None) -> None:
        """Add a frame, those of a sequence in their order; sequences may come in turns.

        truth, prediction: (semantic, instance), each (H, W); sequence: None for an image that is no part of a video,
        which only PQ and mIoU take. Raises ValueError (`co_occurrence`), and then nothing has been added.
        """
        self.update_table(co_occurrence(truth, prediction, self.num_classes), sequence)

    def update_table(self, table: Table, sequence: Hashable | None) -> None:
        self.frames += 1
        self.pq.update_table(table)
        self.miou.update_table(table)
        if sequence is not None:
            self.stq.update_table(table, sequence)
            self.vpq.update_table(table, sequence)

    def merge(self, other: "Evaluation") -> None:
        """Add the sequences of another (a shard). The result is the same, to the bit, however sequences were shared.

        Raises ValueError where classes differ or a sequence is in both.
        """
        self.vpq.merge(other.vpq)
        self.stq.merge(other.stq)
        self.pq.merge(other.pq)
        self.miou.merge(other.miou)
        self.frames += other.frames

    def result(self) -> dict:
        """{"stq", "vpq", "pq", "miou"}: the results of the four, fractions of one, per-class figures by class name.

        None where a figure has no meaning: a class that does not occur, and all of STQ and VPQ where no sequence has
        more than one frame.
        """
        stq, vpq = self.stq, self.vpq
        if stq.longest < 2:
            stq, vpq = STQ(stq.tracked, self.num_classes), VPQ((), self.num_classes)
        results = {"stq": stq.result(), "vpq": vpq.result(), "pq": self.pq.result(), "miou": self.miou.result()}
        for result in results.values():
            if "per_class" in result:
                result["per_class"] = {self.class_names[c]: figure for c, figure in result["per_class"].items()}
        return results
