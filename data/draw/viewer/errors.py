"""Compare the label maps of two sources of a video: which tracks match, and how many pixels of a frame are wrong."""

import numpy as np

from data.draw.viewer.coding import Labels
from metrics import STQ, co_occurrence
from metrics.table import ID_BITS, ID_MASK, VOID, Table


class Comparison:
    """Collects, frame by frame, how a first label map (the truth, or one run) agrees with a second.

    tracked: classes with tracks, for STQ. It keeps some hundred bytes a frame.
    """

    def __init__(self, num_classes: int, tracked: tuple[int, ...]):
        self.num_classes = num_classes
        self.stq = STQ(tracked, num_classes)
        self.overlap: dict[tuple[int, int], int] = {}  # (segment of the first, id in the second) -> pixels
        self.frames: list[tuple | None] = []

    def add(self, first: Labels | None, second: Labels) -> None:
        """Add a frame; first: None for a frame without truth. Raises ValueError if a class is out of range."""
        if first is None:
            self.frames.append(None)
            return
        table = co_occurrence(first, second, self.num_classes)
        self.stq.update_table(table, "video")
        known = table.truth >> ID_BITS != VOID
        same = table.truth >> ID_BITS == table.prediction >> ID_BITS
        has_track = known & (table.truth & ID_MASK > 0)
        for segment, other, area in _rows(table, has_track & (table.prediction & ID_MASK > 0)):
            key = segment, other & ID_MASK
            self.overlap[key] = self.overlap.get(key, 0) + area
        labelled, wrong = int(table.area[known].sum()), int(table.area[known & ~same].sum())
        self.frames.append((labelled, wrong, list(_rows(table, has_track & same))))

    def partners(self) -> dict[tuple[int, int], int]:
        """{(class, id) of the first: id in the second}: those that share most pixels over the video, one to one."""
        found: dict[int, int] = {}
        taken: set[int] = set()
        for segment, other in sorted(self.overlap, key=lambda pair: (-self.overlap[pair], pair)):
            if segment not in found and other not in taken:
                found[segment] = other
                taken.add(other)
        return {(segment >> ID_BITS, segment & ID_MASK): other for segment, other in found.items()}

    def shares(self) -> list[tuple[float, float] | None]:
        """For each frame, the share of labelled pixels with the wrong class, or the right class and the wrong track."""
        partners = {c << ID_BITS | g: p for (c, g), p in self.partners().items()}
        result: list[tuple[float, float] | None] = []
        for frame in self.frames:
            if frame is None:
                result.append(None)
                continue
            labelled, wrong, rows = frame
            astray = sum(area for segment, other, area in rows if partners.get(segment) != other & ID_MASK)
            result.append((wrong / max(labelled, 1), astray / max(labelled, 1)))
        return result

    def quality(self) -> dict[str, float | None]:
        """STQ, AQ and SQ of the video; None if they have no meaning."""
        result = self.stq.result()
        return {name: result[name] if self.stq.longest > 1 else None for name in ("STQ", "AQ", "SQ")}


def _rows(table: Table, chosen: np.ndarray):
    columns = (table.truth, table.prediction, table.area)
    return zip(*(column[chosen].tolist() for column in columns), strict=True)
