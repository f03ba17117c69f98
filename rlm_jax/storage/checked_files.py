"""Folders of files that can be told from damaged ones, by their manifest.

A manifest is a JSON object that carries its own digest beside what its owner puts in
it.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, sealed

MANIFEST = "manifest.json"
FILES = {"files": dict[str, int]}
"""The field of a manifest in which `publish` lists the files."""

_REMEDY = "delete its folder and build it again"


def map_array(path: Path, shape: tuple[int, ...], dtype: str | np.dtype) -> np.ndarray:
    """Memory-maps a raw little-endian array, read-only.

    Raises:
      UserError: the file is missing or has another size.
    """
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} of {expected} bytes"
        raise UserError(f"File {path} {state}; delete its folder and build it again.")
    return np.memmap(path, dtype, mode="r", shape=shape)


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``manifest.json`` with its own digest, and returns it."""
    plain = json.loads(json.dumps(manifest, sort_keys=True))
    sealed.write(directory / MANIFEST, plain)
    atomic.sync(directory)
    return sealed.sealed(plain)


def read_manifest(
    directory: Path, form: str, kinds: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Reads a manifest whose ``format`` is ``form``, with its digest.

    Args:
      directory: of the manifest.
      form: what the folder has to be.
      kinds: of the fields that are needed, as for `sealed.misfit`.

    Raises:
      UserError: it cannot be read, was changed, is of another format, or a field is of
        another type.
    """
    path = directory / MANIFEST
    try:
        manifest = sealed.read(path, {"format": str}, remedy=_REMEDY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise sealed.damaged(path, "it is missing", _REMEDY) from error
    if manifest["format"] != form:
        raise UserError(
            f"Manifest {path} is of the format {manifest['format']!r}, not {form!r}"
            f"; {_REMEDY}."
        )
    sealed.require(manifest, kinds, path, _REMEDY)
    return sealed.sealed(manifest)


def refuse_existing(directory: Path) -> None:
    """Raises UserError where there is something already."""
    if directory.exists():
        raise UserError(
            f"There is something at {directory} already; open it, delete it, or choose "
            "another folder."
        )


def publish(
    directory: Path,
    form: str,
    fields: Mapping[str, Any],
    write: Callable[[Path], object],
) -> None:
    """A new folder of files and a manifest, which has its name when it is whole.

    Args:
      directory: the folder.
      form: what it is, for `read_manifest`.
      fields: of the manifest, beside the files' checksums.
      write: makes the files in the folder it is given.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    refuse_existing(directory)
    partial = directory.with_name(directory.name + ".partial")
    with full_disk_named(directory, "it is built again"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        files = {path.name: atomic.crc32(path) for path in sorted(partial.iterdir())}
        write_manifest(partial, {"format": form, **fields, "files": files})
        os.rename(partial, directory)


def verify_files(
    directory: Path, manifest: Mapping[str, Any], *, checksums: bool = True
) -> None:
    """Compares a folder's files with what `publish` wrote down.

    Raises:
      UserError: a file is missing, was added or, unless ``checksums`` is off, changed;
        or the manifest lists none.
    """
    path = directory / MANIFEST
    sealed.require(manifest, FILES, path, _REMEDY)
    files = manifest["files"]
    if not files:
        raise sealed.damaged(path, "it lists no files", _REMEDY)
    names = {path.name for path in directory.iterdir()} - {MANIFEST}
    if names != set(files) or any(
        checksums and atomic.crc32(directory / name) != files[name] for name in files
    ):
        raise UserError(
            f"The files of {directory} are not those it was saved with; delete it and "
            "build it again."
        )


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it will be read back: tuples become lists, keys strings."""
    try:
        return json.loads(json.dumps(dict(identity), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The identity is not plain JSON ({error}); give strings, integers, lists "
            "and dicts."
        ) from error


def require_equal(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], directory: Path
) -> None:
    """Compares every field of ``wanted`` with what is stored.

    Raises:
      UserError: naming the first field that differs.
    """
    for field in sorted(wanted):
        if field not in stored or stored[field] != wanted[field]:
            raise UserError(
                f"{directory} holds {field} = {stored.get(field)!r} where "
                f"{wanted[field]!r} is wanted; use another folder, or delete this one "
                "and build it again."
            )


@contextlib.contextmanager
def full_disk_named(directory: Path, kept: str) -> Iterator[None]:
    """Turns "no space left" and "may not write" into errors for the user.

    Args:
      directory: what is being written.
      kept: what is safe on the disk, for the message.
    """
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some of the quota",
            errno.EACCES: "allow writing there",
            errno.EPERM: "allow writing there",
            errno.EROFS: "choose a writable place",
            errno.ENOTDIR: "choose a place inside a folder",
        }
        if error.errno not in remedies:
            raise
        raise UserError(
            f"Cannot write {directory} ({os.strerror(error.errno)}); "
            f"{remedies[error.errno]} and run again, {kept}."
        ) from error
