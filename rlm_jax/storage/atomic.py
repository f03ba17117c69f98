"""Files and folders that a reader sees whole or not at all, and never half written."""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlm_jax import characters

_CHUNK_BYTES = 1 << 22
_GOING = ".going"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``, which takes its name in the end.

    The file is on the disk before it is renamed. Where writing fails, the temporary
    file goes: on a full disk it is what fills it.
    """
    # The same folder, so that the rename stays on one file system; the same name, so
    # that what a killed process leaves is overwritten by the next.
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: memoryview | bytes) -> int:
    """Writes a file atomically and durably; returns the CRC-32 of its bytes."""
    checksum = 0
    data = memoryview(data).cast("B")
    with replacing(path) as partial, partial.open("wb") as file:
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES]
            file.write(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes plain JSON in UTF-8 atomically; NaN and infinity are a ValueError."""
    text = characters.to_json(value, indent=indent)
    write_bytes(path, characters.encode(f"{text}\n"))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes a line of plain JSON for each value, in UTF-8, atomically."""
    with replacing(path) as partial, partial.open("wb") as file:
        for value in values:
            file.write(characters.encode(json.dumps(value, ensure_ascii=False) + "\n"))


def crc32(path: Path) -> int:
    """The CRC-32 of a file's bytes, read in bounded memory."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def remove_folder(path: Path) -> None:
    """Removes a folder, which loses its name first, so that no half of one is seen."""
    going = path.with_name(path.name + _GOING)
    shutil.rmtree(going, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(going)
        shutil.rmtree(going)


def remove_leftovers(parent: Path) -> None:
    """Removes the folders in which a killed process left `remove_folder` undone."""
    for path in parent.glob(f"*{_GOING}"):
        shutil.rmtree(path)


def sync(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk: they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
