"""Video panoptic quality: Kim et al., "Video Panoptic Segmentation", arXiv 2006.11339, section 3.2."""

from collections import deque
from collections.abc import Hashable, Iterable

from .matching import Matches, mean
from .table import LabelMap, Table, co_occurrence, combine, fold


class VPQ:
    """PQ of tubes: a segment is what has one class and id in a window of k frames; the mean over k.

    Windows slide by one frame and never leave their sequence; one that is shorter than k gives none. Matches and misses
    are summed over all windows before the division. Void, crowd and stuff are as in `PQ`; VPQ of k = 1 is PQ.
    """

    def __init__(self, things: Iterable[int] = (11, 13), num_classes: int = 19, windows: Iterable[int] = (1, 2, 3, 4)):
        self.num_classes = num_classes
        self.windows = tuple(sorted(windows))
        self._matches = {k: Matches(things, num_classes) for k in self.windows}
        self._things = self._matches[self.windows[0]].things
        # The tables of the last frames of each sequence, newest first: sequences may come in turns.
        self._recent: dict[Hashable, deque[Table]] = {}

    def update(self, truth: LabelMap, prediction: LabelMap, sequence: Hashable) -> None:
        """Add the next frame of a sequence; truth, prediction: (semantic, instance), each (H, W). Raises ValueError."""
        self.update_table(co_occurrence(truth, prediction, self.num_classes), sequence)

    def update_table(self, table: Table, sequence: Hashable) -> None:
        recent = self._recent.setdefault(sequence, deque(maxlen=self.windows[-1]))
        recent.appendleft(fold(table, self._things))
        for k, matches in self._matches.items():
            if len(recent) >= k:
                frames = [recent[i] for i in range(k)]
                matches.add(combine(frames) if k > 1 else frames[0])

    def merge(self, other: "VPQ") -> None:
        """Add the sequences of another.

        Raises ValueError where its classes or windows are others, or where a sequence is in both: the windows across
        such a cut are in neither.
        """
        if self.windows != other.windows:
            raise ValueError("only metrics of the same windows can be merged")
        shared = self._recent.keys() & other._recent.keys()
        if shared:
            raise ValueError(f"sequence {min(map(str, shared))} is in both: its frames must stay together")
        for k, matches in self._matches.items():
            matches.merge(other._matches[k])
        self._recent.update({name: deque(tables, self.windows[-1]) for name, tables in other._recent.items()})

    def result(self) -> dict:
        """{"VPQ" | "1" | "2" | ...: {"all", "things", "stuff"}}, fractions of one, None where there is no window.

        "VPQ" is the mean over those k that have a window.
        """
        groups = ("all", "things", "stuff")
        averages = {k: matches.averages() for k, matches in self._matches.items()}
        each = {str(k): {group: averages[k][group]["PQ"] for group in groups} for k in self.windows}
        return {"VPQ": {group: mean(scores[group] for scores in each.values()) for group in groups}, **each}
