"""Folders that are built once, by content, and are either whole or absent."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, locks


def root(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder of caches: `cache_dir`, else ``$RLM_CACHE``, else ``~/.cache``.

    Raises:
      UserError: there is no home folder, or the name is not UTF-8.
    """
    named = cache_dir if cache_dir is not None else os.environ.get("RLM_CACHE")
    if named:
        folder = Path(named)
    else:
        try:
            folder = Path.home() / ".cache" / "rlm_jax"
        except RuntimeError as error:
            raise UserError(
                "There is no home folder to keep prepared data in: set RLM_CACHE to a "
                "folder of your own."
            ) from error
    if characters.shown(str(folder)) != str(folder):
        raise UserError(
            f"The cache folder {characters.shown(str(folder))} is not named in UTF-8, "
            "which libraries below need: set RLM_CACHE to another."
        )
    return folder


def fingerprint(*parts: object) -> str:
    """SHA-256 (hexadecimal) of JSON-able values; equal values, equal fingerprint."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def once(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns the folder `target`, built by ``build(temporary folder)`` if absent.

    The temporary folder is a neighbour of `target` and takes its name only when it is
    whole and on the disk, so a killed build leaves nothing that could be read. Other
    processes that want the same folder wait, and then find it.

    Raises:
      UserError: the disk is full, or the cache folder cannot be written.
    """
    try:
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _build_and_rename(target, build)
    except (OSError, RuntimeError) as error:
        # array_record, which is written in C++, has the reason in its message alone.
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EDQUOT or os.strerror(errno.ENOSPC) in str(error):
            raise UserError(
                f"The disk is full while writing {target}: free some space, or set "
                "RLM_CACHE to a folder with room."
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"The cache folder {target.parent} cannot be written "
                f"({os.strerror(number)}): set RLM_CACHE to a folder of your own."
            ) from error
        raise
    return target


def checksums(directory: Path) -> dict[str, dict[str, int]]:
    """The size and the CRC-32 of every file in a folder, for its manifest."""
    return {
        path.name: {"size": path.stat().st_size, "crc32": atomic.crc32(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


def verify(directory: Path, files: Mapping[str, Mapping[str, int]], what: str) -> None:
    """Compares the files of a folder with their `checksums`.

    Raises:
      UserError: a file is missing, truncated or altered; `what` names the folder's use.
    """
    for name, expected in files.items():
        path = directory / name
        size = path.stat().st_size if path.exists() else 0
        if size != expected["size"] or atomic.crc32(path) != expected["crc32"]:
            raise UserError(
                f"The {what}'s file {name} is truncated or altered ({size} of "
                f"{expected['size']} bytes): {remedy(directory)}."
            )


def remedy(directory: Path) -> str:
    """What to do about a damaged folder, as the second half of a sentence."""
    return f"delete the folder {directory} and run again to rebuild it"


def map_array(path: Path, dtype: np.dtype | str) -> np.ndarray:
    """Memory-maps a raw array, read-only."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _build_and_rename(target: Path, build: Callable[[Path], None]) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    # The lock is ours, so whatever is here was left by a build that died.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        build(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            atomic.sync(path)
        temporary.rename(target)
        atomic.sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
