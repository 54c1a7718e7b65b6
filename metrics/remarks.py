"""The figures in words: their table, why some have no meaning, and labels that look damaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def why_not(result: dict[str, Any], lengths: Mapping[str, int], has_tracks: bool) -> list[str]:
    """Why figures have no meaning, a line each.

    lengths: frames of each sequence, none for single images. Without `has_tracks` the predictions' ids hold for one
    frame: the figures of tracks are then taken out of `result`.
    """
    stq, vpq, pq = (result[name] for name in ("stq", "vpq", "pq"))
    remarks = []
    if not lengths:
        remarks.append("STQ, VPQ: -, as these are single images")
    elif not has_tracks:
        remarks.append("STQ, VPQ: -, as the JSON of the predictions numbers its segments anew in each frame: no tracks")
        stq |= {"STQ": None, "AQ": None, "per_class": dict.fromkeys(stq["per_class"])}
        for scores in (*vpq.values(), *stq["per_sequence"].values()):
            scores |= {name: None for name in scores if name != "SQ"}
    elif stq["AQ"] is None and max(lengths.values()) < 2:
        remarks.append("STQ, AQ: -, as no sequence has two frames")
    elif stq["AQ"] is None:
        remarks.append("STQ, AQ: -, as no thing of the ground truth has an id: there are no tracks")
    if lengths and max(lengths.values()) < 4:
        remarks.append(f"VPQ of k > {max(lengths.values())}: -, as no sequence has more frames")
    if pq["Things"]["PQ"] is None:
        remarks.append("PQ of things: -, as neither ground truth nor predictions hold instances")
    return remarks


def shape_of(semantic: np.ndarray) -> np.ndarray:
    """int64 (2, 256): pixels of each value, and those of them whose four neighbours have it, too."""
    middle = semantic[1:-1, 1:-1]
    others = semantic[:-2, 1:-1], semantic[2:, 1:-1], semantic[1:-1, :-2], semantic[1:-1, 2:]
    inner = np.logical_and.reduce([middle == other for other in others])
    return np.stack([np.bincount(values.ravel(), minlength=256) for values in (semantic, middle[inner])])


def on_edges(shapes: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Classes that lie along edges alone, as after a JPEG or a smooth resize. shapes: of truth and prediction."""
    remarks = []
    for whose, (pixels, inner) in zip(("ground truth", "predictions"), shapes, strict=True):
        odd = [name for c, name in enumerate(class_names) if pixels[c] and not inner[c]]
        if len(odd) > 2:  # a few are found in sound labels
            where = f"{whose}: {', '.join(odd)} on edges or single pixels alone"
            remarks.append(f"{where}; were labels saved as JPEG, or resized smoothly?")
    return remarks


def in_table(result: dict[str, Any], frames: int) -> str:
    """The figures of `Evaluation.result` in percent, as a table; a dash where one has no meaning."""
    stq, vpq, pq, miou = (result[name] for name in ("stq", "vpq", "pq", "miou"))
    windows = {f"  k = {k}": scores for k, scores in vpq.items() if k != "VPQ"}
    classes = {f"  {name}": {"IoU": iou, **pq["per_class"][name]} for name, iou in miou["per_class"].items()}
    blocks = [
        ("STQ", ("STQ", "AQ", "SQ"), {"all": stq, **{f"  {name}": s for name, s in stq["per_sequence"].items()}}),
        ("VPQ", ("all", "things", "stuff"), {"mean over k": vpq["VPQ"], **windows}),
        ("PQ", ("PQ", "SQ", "RQ"), {name.lower(): pq[name] for name in ("All", "Things", "Stuff")}),
        ("classes", ("IoU", "PQ", "SQ", "RQ"), {"mean": {"IoU": miou["mIoU"], **pq["All"]}, **classes}),
    ]
    return "\n".join([f"{frames} frames; all figures in percent", *(_block(*block) for block in blocks)])


def _block(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float | None]]) -> str:
    width = max(18, *(len(name) + 1 for name in rows))
    lines = ["", title.ljust(width) + "".join(f"{column:>8}" for column in columns)]
    for name, scores in rows.items():
        figures = (scores[column] for column in columns)
        lines.append(name.ljust(width) + "".join("       -" if f is None else f"{100 * f:8.2f}" for f in figures))
    return "\n".join(lines)
