"""Names of frames: their order, and which of them are one video.

The constant part of the names in a folder names a video, the varying part numbers its frames. Text separates videos if
several names share it (`a_0001 a_0002 b_0001 b_0002`). A number separates videos if it counts up while a later number
starts again (`0005_0027 0010_0025`), unless the two are a time of day or a time stamp.
"""

import re
from collections import Counter
from itertools import groupby, pairwise

from data.sets.frames import natural_key

_DECORATION = re.compile(r"(_leftImg8bit|[_.](jpe?g|png|bmp)\.rf\.\w+)$", re.IGNORECASE)  # Cityscapes, Roboflow
_CLOCK = re.compile(r"(?<!\d)[0-2]\d\D[0-5]\d\D[0-5]\d(?!\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(\d\d)([-_.])(\d\d)\2(\d{4})(?!\d)")  # 31.12.2023
_HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)
_NUMBER = r"(?:(?<=[_ ])-)?\d+"
_STAMP = 8  # digits of a date; seconds since 1970 have more


def ordered_videos(stems: list[str]) -> list[tuple[str, list[int], list[int]]]:
    """[(name of the video, ordered positions of its frames in `stems`, frame numbers)]; a single video has no name."""
    cores = [_DAY_FIRST.sub(r"\4\2\3\2\1", _DECORATION.sub("", stem)) for stem in stems]
    is_hex = len({len(core) for core in cores}) == 1 and all(_HEX.fullmatch(core) for core in cores)
    key = str.lower if is_hex else natural_key
    order = sorted(range(len(stems)), key=lambda i: (key(cores[i]), stems[i]))
    texts = {i: tuple(re.split(_NUMBER, cores[i])) for i in order}
    digits = {i: re.findall(_NUMBER, cores[i]) for i in order}
    kinds = Counter(texts.values())
    if 2 * len(kinds) > len(stems):  # names without a pattern
        return [("", order, list(range(len(order))) if len(order) > 1 else _numbers([digits[i] for i in order]))]
    videos = []
    for kind in kinds:
        members = [i for i in order if texts[i] == kind]
        videos += _by_numbers(members, digits, cores)
    return [
        (_name([digits[i] for i in video], texts[video[0]]) if len(videos) > 1 else "", video,
         _numbers([digits[i] for i in video]))
        for video in videos
    ]  # fmt: skip


def _by_numbers(members: list[int], digits: dict[int, list[str]], cores: list[str]) -> list[list[int]]:
    """Split frames whose names differ only in numbers into videos."""
    runs = [members[:1]]
    for a, b in pairwise(members):
        if _starts_again(digits[a], digits[b], cores[a], cores[b]):
            runs.append([])
        runs[-1].append(b)
    if 3 * len(runs) <= len(members):
        return runs
    by_last = sorted(members, key=lambda i: [int(n) for n in digits[i][-1:]])
    cameras = [list(group) for _, group in groupby(by_last, key=lambda i: [int(n) for n in digits[i][-1:]])]
    if 3 * len(cameras) <= len(members):  # first the frame, then the camera
        return cameras
    return runs if 2 * len(runs) <= len(members) else [members]


def _starts_again(a: list[str], b: list[str], name_a: str, name_b: str) -> bool:
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if int(x) != int(y)), len(a))
    if not any(int(y) < int(x) for x, y in zip(a[first + 1 :], b[first + 1 :], strict=True)):
        return False
    if any(len(number) >= _STAMP for number in b[max(0, first - 1) : first + 1]):  # a date or stamp, then its parts
        return False
    clocks = _CLOCK.search(name_a), _CLOCK.search(name_b)
    return not (all(clocks) and len(re.findall(r"\d+", name_b[: clocks[1].end()])) > first)


def _name(rows: list[list[str]], texts: tuple[str, ...]) -> str:
    """The parts of the names that do not vary."""
    constant = [column[0] if len(set(column)) == 1 else "" for column in zip(*rows, strict=True)]
    parts = [part for pair in zip(texts, [*constant, ""], strict=True) for part in pair]
    return re.sub(r"([_\-. ])[_\-. ]+", r"\1", "".join(parts)).strip("_-. ")


def _numbers(rows: list[list[str]]) -> list[int]:
    """The frame numbers: the last number that varies in the names, or 0, 1, 2, ... if that does not rise."""
    columns = [[int(n) for n in column] for column in zip(*rows, strict=False)]
    varying = [column for column in columns if len(set(column)) > 1] or columns[-1:]
    if varying and all(a < b for a, b in pairwise(varying[-1])):
        return varying[-1]
    return list(range(len(rows)))
