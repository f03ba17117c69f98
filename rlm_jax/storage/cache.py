"""Folders that are built once, by content, and are either whole or absent."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, locks, sealed

MANIFEST = "manifest.json"

# How folders lie on the disk. Those of another layout are left alone, and built anew;
# what is made of them keeps its fingerprint.
_LAYOUT = 2
_FILES = {"files": dict[str, dict[str, int]]}


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


def folder(kind: str, key: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Where the cache keeps what has the fingerprint ``key``, among its kind."""
    return root(cache_dir) / kind / fingerprint(_LAYOUT, key)[:32]


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
        # In a home such as /proc, which there is, no folder can be made.
        absent = not os.path.isdir(target.parent)
        if number and (absent or number in (errno.EACCES, errno.EROFS)):
            raise UserError(
                f"The cache folder {target.parent} cannot be written "
                f"({os.strerror(number)}): set RLM_CACHE to a folder of your own."
            ) from error
        raise
    return target


def write_manifest(
    directory: Path, fields: Mapping[str, Any] = {}, *, of: str = "."
) -> None:
    """Writes down what a folder holds: fields, and the checksum of every file.

    Args:
      directory: gets the manifest.
      fields: plain JSON.
      of: the sub-folder whose files are listed.
    """
    sealed.write(directory / MANIFEST, {**fields, "files": checksums(directory / of)})


def read_manifest(
    directory: Path,
    what: str,
    kinds: Mapping[str, Any] = {},
    *,
    of: str = ".",
    older: bool = False,
    only: Callable[[str], bool] = lambda name: True,
) -> dict[str, Any]:
    """The fields that `write_manifest` wrote, once all files were compared with it.

    Args:
      directory: of the manifest.
      what: the folder's use, for messages.
      kinds: of the fields, as for `sealed.misfit`.
      of: as for `write_manifest`.
      older: as for `sealed.read`.
      only: which files are compared, by their names.

    Raises:
      UserError: the manifest is missing or damaged or lists no files, or a file is
        missing, truncated or altered.
    """
    manifest = read_sealed(directory, MANIFEST, {**kinds, **_FILES}, older=older)
    mend = remedy(directory)
    if not manifest["files"]:
        raise sealed.damaged(directory / MANIFEST, "it lists no files", mend)
    files = {name: x for name, x in manifest["files"].items() if only(name)}
    verify(directory / of, files, what, mend)
    return manifest


def read_sealed(
    directory: Path, name: str, kinds: Mapping[str, Any], *, older: bool = False
) -> dict[str, Any]:
    """`sealed.read` of a file in a folder that is built again where it is damaged.

    Raises:
      UserError: the file is missing or damaged.
    """
    path, mend = directory / name, remedy(directory)
    try:
        return sealed.read(path, kinds, remedy=mend, older=older)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise sealed.damaged(path, "it is missing", mend) from error


def checksums(directory: Path, pattern: str = "*") -> dict[str, dict[str, int]]:
    """The size and the CRC-32 of a folder's files, for its manifest.

    A folder in it has a manifest of its own, or is listed with ``pattern`` ``**/*``.
    """
    return {
        str(path.relative_to(directory)): {
            "size": path.stat().st_size,
            "crc32": atomic.crc32(path),
        }
        for path in sorted(directory.glob(pattern))
        if path.is_file()
    }


def verify(
    directory: Path, files: Mapping[str, Mapping[str, int]], what: str, mend: str
) -> None:
    """Compares the files of a folder with their `checksums`.

    Raises:
      UserError: a file is missing, truncated or altered; `what` names the folder's use,
        and ``mend`` what to do.
    """
    for name, expected in files.items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else 0
        wanted = expected.get("size"), expected.get("crc32")
        whole = path.is_file() and size == wanted[0]
        if not whole or atomic.crc32(path) != wanted[1]:
            raise UserError(
                f"The {what}'s file {name} is truncated or altered ({size} of "
                f"{wanted[0]} bytes): {mend}."
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
