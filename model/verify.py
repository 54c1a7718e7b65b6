"""What a file of tensors claims to hold, found out before a single tensor is made of it.

`torch.load(weights_only=True)` runs no code, but it believes what it reads: a file of a kilobyte can ask for a storage
of any size, or for a tensor that repeats one value a billion times, and checksums are not compared. So the records are
checked first, and the pickle is read once with stand-ins for all that it may name.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

ITEM_SIZES = {
    "BoolStorage": 1, "ByteStorage": 1, "CharStorage": 1, "ShortStorage": 2, "IntStorage": 4, "LongStorage": 8,
    "HalfStorage": 2, "BFloat16Storage": 2, "FloatStorage": 4, "DoubleStorage": 8,
}  # fmt: skip
MAX_SHARED = 4  # times that the values of a file may be claimed: weights can be stored once for several uses
MAX_PICKLE = 32 << 20  # bytes; the names and sizes of all tensors of `base` take less than one megabyte


class Refused(ValueError):
    """A file that claims what no file of ours does; the message says what."""


class Claim(NamedTuple):
    """A tensor that the file claims to hold."""

    shape: tuple[int, ...]


class _Storage(NamedTuple):
    count: int
    item_size: int


class _Dict(OrderedDict):
    def __setstate__(self, state: Any) -> None:
        """A module's state dict carries `_metadata`; any other attribute would stand in for a method."""
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise Refused("it holds a dictionary with attributes")


class _Reader(pickle._Unpickler):
    """Python's own unpickler, in Python: the one in C allocates memory by numbers that stand in the file.

    It calls nothing but the stand-ins that `find_class` names.
    """

    def __init__(self, data: bytes, sizes: dict[str, int]):
        """sizes: of the records with values, in bytes, by their keys."""
        super().__init__(io.BytesIO(data))
        self.sizes, self.total = sizes, 0

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in ITEM_SIZES:
            return name
        raise Refused(f"it is no checkpoint of tensors and plain values: it names {module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count = pid
        if type(count) is not int or count < 0 or self.sizes.get(key) != count * ITEM_SIZES[kind]:
            raise Refused(f"it claims {count} values in a record of another size")
        return _Storage(count, ITEM_SIZES[kind])

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> Claim:
        numbers = (offset, *shape, *stride)
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(stride):
            raise Refused("it holds a tensor of an impossible size")
        count = math.prod(shape)
        end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else 0
        if end > storage.count:
            raise Refused("it holds a tensor that reaches beyond its values")
        self.total += count * storage.item_size
        return Claim(tuple(shape))


def verify(path: Path) -> Any:
    """Read a file's structure, `Claim`s in place of tensors, with memory in proportion to its size.

    Raises Refused, or zipfile's, pickle's and other errors where it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        # PyTorch's reader is another one, which takes the first of several and does not see case: leave it no choice.
        folders = {name.partition("/")[0] for name in records}
        if len({name.lower() for name in records}) < len(archive.infolist()) or len(folders) != 1:
            raise Refused("two of its records have one name, or they lie in several folders")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise Refused("its records are compressed, which no checkpoint's are")
        if altered := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {altered} does not fit")
        folder = folders.pop()
        structure = f"{folder}/data.pkl"
        if records[structure].file_size > MAX_PICKLE:
            raise Refused("its structure is larger than that of any checkpoint")
        values = f"{folder}/data/"
        sizes = {n.removeprefix(values): r.file_size for n, r in records.items() if n.startswith(values)}
        reader = _Reader(archive.read(structure), sizes)
    content = reader.load()
    if reader.total > MAX_SHARED * path.stat().st_size:
        raise Refused(f"its tensors claim {reader.total:,} bytes, far more than the file holds")
    return content
