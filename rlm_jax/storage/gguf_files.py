"""GGUF, the file in which llama.cpp keeps a model: metadata and (quantised) arrays.

The package ``gguf`` knows the quantisations. Its reader does not notice that a damaged
file claims a list of 2^40 numbers, and takes seconds for a vocabulary, so the header is
read here: no value may lie beyond the end of the file.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.errors import UserError

SUFFIX = ".gguf"
_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
_NUMBERS = {  # GGUF's types -> struct's
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
    12: "d",
}  # fmt: skip
_STRING, _LIST = 8, 9


class GGUF(NamedTuple):
    """A file that is open; an array is read when it is asked for."""

    path: Path
    fields: Mapping[str, Any]  # key -> number, string, or a list of them
    arrays: "Arrays"


class _Tensor(NamedTuple):
    """Where an array lies, and how it is stored."""

    shape: tuple[int, ...]  # [out, in], as in Hugging Face's layout
    kind: Any  # the package's
    data: np.ndarray  # uint8 [..., bytes of a row]


class Arrays(Mapping[str, np.ndarray]):
    """Name -> float32, dequantised."""

    def __init__(self, path: Path, tensors: Mapping[str, _Tensor]):
        """``path`` is for messages."""
        self._path, self._tensors = path, tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return _dequantised(self._path, name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, which is not read for it."""
        return self._tensors[name].shape

    def kind(self, name: str) -> str:
        """How an array is stored: F32, F16, Q8_0, Q4_K and so on."""
        return self._tensors[name].kind.name


def is_gguf(name: str | os.PathLike) -> bool:
    """Whether a name is that of such a file."""
    return str(name).lower().endswith(SUFFIX)


def read(path: str | os.PathLike) -> GGUF:
    """Opens a file; arrays are mapped, not read.

    Raises:
      UserError: there is no such file, or it is not a whole GGUF file.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(
            f"There is no file {path}; check the path, or see docs/models.md for how "
            "to get one."
        )
    try:
        data = np.memmap(path, mode="r")
        fields, tensors = _read(data)
    except (
        *(ArithmeticError, LookupError, MemoryError, OSError, RecursionError),
        *(ValueError, struct.error),
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{path} is not a whole GGUF file ({reason}); download it again."
        ) from error
    return GGUF(path, fields, Arrays(path, tensors))


def _dequantised(path: Path, name: str, tensor: _Tensor) -> np.ndarray:
    from gguf import dequantize

    try:
        with np.errstate(all="ignore"):  # what is not finite is told below
            x = dequantize(tensor.data, tensor.kind)
    except NotImplementedError as error:
        raise UserError(
            f"{path} holds {name} as {tensor.kind.name}, which cannot be read; take a "
            "file in F16, BF16, Q8_0 or one of the K quantisations."
        ) from error
    x = np.array(x, np.float32).reshape(tensor.shape)  # no view of the file
    if not np.isfinite(x).all():
        raise UserError(
            f"{name} in {path} holds NaN or infinity; download the file again."
        )
    return x


def _read(data: np.ndarray) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    header = _Header(data)
    if header.take(4) != _MAGIC:
        raise ValueError("it does not begin like one")
    (version,) = header.numbers("I", 1)
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, not 2 or 3")
    num_tensors, num_fields = header.numbers("Q", 2)
    fields = {}
    for _ in range(num_fields):
        name = header.string()
        fields[name] = header.value(*header.numbers("I", 1))
    places = {}
    for _ in range(num_tensors):
        name, (rank,) = header.string(), header.numbers("I", 1)
        shape = tuple(reversed(header.numbers("Q", rank)))
        (kind,), (offset,) = header.numbers("I", 1), header.numbers("Q", 1)
        places[name] = shape, GGMLQuantizationType(kind), offset
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    start = -(-header.at // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in places.items():
        block, size = GGML_QUANT_SIZES[kind]
        *rows, width = shape or (1,)
        if width % block:
            raise ValueError(f"{name} has rows of {width} in blocks of {block}")
        row = width // block * size
        whole = _Header(data, start + offset).view(
            int(np.prod(rows, dtype=object)) * row
        )
        tensors[name] = _Tensor(shape, kind, whole.reshape(*rows, row))
    return fields, tensors


class _Header:
    """Values one after another, none of which lies beyond the end."""

    def __init__(self, data: np.ndarray, at: int = 0):
        """Begins at a byte."""
        self._data, self.at = data, at

    def view(self, size: int) -> np.ndarray:
        if self.at + size > len(self._data):
            raise ValueError("it ends early, or is damaged")
        self.at += size
        return self._data[self.at - size : self.at]

    def take(self, size: int) -> bytes:
        return self.view(size).tobytes()

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count  # before a format of that length
        taken = self.take(size)
        return struct.unpack(f"<{count}{code}", taken)

    def string(self) -> str:
        return self.take(*self.numbers("Q", 1)).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _LIST:
            return self.numbers(_NUMBERS[kind], 1)[0]
        (inner,), (count,) = self.numbers("I", 1), self.numbers("Q", 1)
        if inner in _NUMBERS:
            return list(self.numbers(_NUMBERS[inner], count))
        return [self.value(inner) for _ in range(count)]
