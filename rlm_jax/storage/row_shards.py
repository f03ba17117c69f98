"""An array of records that is made in shards, so that a killed build goes on.

A published folder holds one array and a manifest:

    manifest.json  identity, shape, and the CRC-32 of every shard of rows
    rows           the records, of one NumPy dtype

While it is being built the folder is called ``<name>.partial``. A shard counts as
written once the manifest names it; after a kill the build goes on from the last one and
ends with the same bytes.
"""

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, checked_files

FILE = "rows"
_KINDS = {
    **{"identity": dict[str, Any], "dtype": str, "shards": list[int]},
    **{"total": int, "shard_size": int},
}


def build(
    directory: str | os.PathLike,
    form: str,
    dtype: np.dtype,
    total: int,
    make: Callable[[int, int], np.ndarray],
    *,
    identity: Mapping[str, Any],
    shard_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """The records, made or found.

    Args:
      directory: where they go.
      form: what they are, for the manifest.
      dtype: of a record, little-endian.
      total: N, how many.
      make: (start, stop) -> the records of a shard.
      identity: what they depend on, plain JSON.
      shard_size: records after which a killed build goes on.
      advance: called with a number of records when they are done.

    Returns:
      [N], memory-mapped.

    Raises:
      UserError: what is there has another identity or is damaged, or the disk is full.
    """
    directory = Path(directory)
    wanted = {
        "identity": checked_files.as_json(identity),
        "dtype": str(np.dtype(dtype).descr),
        "total": total,
        "shard_size": shard_size,
    }
    if directory.exists():
        advance(total)
        return open(directory, form, dtype, identity=identity)
    manifest = _begin(directory, form, wanted, dtype, total)
    done = min(len(manifest["shards"]) * shard_size, total)
    advance(done)
    partial = _partial(directory)
    for start in range(done, total, shard_size):
        rows = make(start, min(start + shard_size, total)).astype(dtype)
        data = rows.tobytes()
        kept = f"the first {start} records are kept"
        with checked_files.full_disk_named(directory, kept):
            with (partial / FILE).open("r+b") as file:
                file.seek(start * np.dtype(dtype).itemsize)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            shards = [*manifest["shards"], zlib.crc32(data)]
            manifest = checked_files.write_manifest(
                partial, manifest | {"shards": shards}
            )
        advance(len(rows))
    with checked_files.full_disk_named(directory, "every record is kept"):
        os.rename(partial, directory)
        atomic.sync(directory.parent)
    return checked_files.map_array(directory / FILE, (total,), dtype)


def open(
    directory: str | os.PathLike,
    form: str,
    dtype: np.dtype,
    *,
    identity: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """What `build` published; every byte is checked.

    Raises:
      UserError: there is nothing, it is damaged, or of another identity.
    """
    directory = Path(directory)
    if not (directory / checked_files.MANIFEST).exists():
        raise UserError(
            f"There are no finished records at {directory}; run their build, which "
            "goes on where it stopped."
        )
    manifest = checked_files.read_manifest(directory, form, _KINDS)
    stored = manifest["identity"]
    checked_files.require_equal(
        checked_files.as_json(identity or {}), stored, directory
    )
    checked_files.require_equal(
        {"dtype": str(np.dtype(dtype).descr)}, manifest, directory
    )
    if len(manifest["shards"]) * manifest["shard_size"] < manifest["total"]:
        raise UserError(
            f"The manifest of {directory} does not list all {manifest['total']} "
            "records; delete the folder and build them again."
        )
    return _verified(directory, manifest, dtype)


def _begin(directory, form, wanted, dtype, total) -> dict[str, Any]:
    """A new build's manifest, or that of the one that was killed."""
    partial = _partial(directory)
    with checked_files.full_disk_named(directory, "nothing was written yet"):
        if not (partial / checked_files.MANIFEST).exists():
            partial.mkdir(parents=True, exist_ok=True)
            with (partial / FILE).open("wb") as file:
                file.truncate(np.dtype(dtype).itemsize * total)
            new = {"format": form, **wanted, "shards": []}
            checked_files.write_manifest(partial, new)
    manifest = checked_files.read_manifest(partial, form, _KINDS)
    checked_files.require_equal(wanted["identity"], manifest["identity"], partial)
    checked_files.require_equal(wanted, manifest, partial)
    _verified(partial, manifest, dtype)
    return manifest


def _verified(directory: Path, manifest, dtype) -> np.ndarray:
    total, size = manifest["total"], manifest["shard_size"]
    rows = checked_files.map_array(directory / FILE, (total,), dtype)
    for number, checksum in enumerate(manifest["shards"]):
        if zlib.crc32(rows[number * size : (number + 1) * size].tobytes()) != checksum:
            raise UserError(
                f"The records at {directory} are not those that were written; delete "
                "the folder and build them again."
            )
    return rows


def _partial(directory: Path) -> Path:
    return directory.with_name(directory.name + ".partial")
