"""Folders of files that can be told from damaged ones, by their manifest.

A manifest is a JSON object that carries its own digest beside what its owner puts in
it.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic

MANIFEST = "manifest.json"


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
    complete = {**manifest, "checksum": _digest(manifest)}
    text = json.dumps(complete, indent=1, sort_keys=True)
    atomic.write_bytes(directory / MANIFEST, text.encode())
    atomic.sync(directory)
    return complete


def read_manifest(directory: Path, form: str) -> dict[str, Any]:
    """Reads a manifest whose ``format`` is ``form``.

    Raises:
      UserError: it cannot be read, was changed, or is of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = characters.read_json(path)
        intact = manifest["checksum"] == _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        intact, manifest = False, {}
    if not intact:
        raise UserError(
            f"Manifest {path} is damaged; delete its folder and build it again."
        )
    if manifest.get("format") != form:
        raise UserError(
            f"Manifest {path} is of the format {manifest.get('format')!r}, not {form!r}"
            "; delete its folder and build it again."
        )
    return manifest


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
      UserError: a file is missing, was added or, unless ``checksums`` is off, changed.
    """
    files = manifest["files"]
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


def _digest(manifest: Mapping[str, Any]) -> str:
    body = {field: manifest[field] for field in manifest if field != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
