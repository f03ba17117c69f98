"""Keys and values on disk: memory-mapped shards that are written once and checked.

A published datastore is a folder of raw little-endian arrays and a manifest:

    manifest.json   form, identity, and the CRC-32 of every file
    00000.keys      float16, float32 or int8 [S, D]
    00000.scales    float32 [S], beside int8 keys alone: key = scale * int8
    00000.values    int32 [S]

While it is being built the folder is called ``<name>.partial``. A shard counts as
written once its files are renamed into place and the manifest names them, so a killed
build continues from the last finished shard, and readers see a whole datastore or none.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, checked_files

DTYPES = ("float16", "float32", "int8")
_FORMAT = "rlm_jax datastore 1"
_KINDS = {
    **dict.fromkeys(("dim", "num_entries", "shard_size"), int),
    **{"dtype": str, "identity": dict[str, Any], "shards": list[dict[str, int]]},
}

_Shard = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Datastore:
    """A published datastore; rows are read from disk when they are asked for.

    Entries are numbered 0..num_entries-1 in the order of writing. An id of -1, which is
    how `Neighbours` says "absent", gathers a key of zeros and the value -1.
    """

    directory: Path
    manifest: Mapping[str, Any]
    shards: tuple[_Shard, ...]

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    @property
    def num_entries(self) -> int:
        return self.manifest["num_entries"]

    @property
    def checksum(self) -> str:
        """A digest of the manifest, hence of the identity and of every file."""
        return self.manifest["checksum"]

    def keys(self, start: int, stop: int) -> np.ndarray:
        """Keys of the entries start..stop-1, float32 [stop - start, D]."""
        parts = [_decode(shard, rows) for shard, rows in self._pieces(start, stop)]
        return np.concatenate(parts or [np.zeros((0, self.dim), np.float32)])

    def values(self, start: int, stop: int) -> np.ndarray:
        """Values of the entries start..stop-1, int32 [stop - start]."""
        parts = [shard["values"][rows] for shard, rows in self._pieces(start, stop)]
        return np.concatenate(parts or [np.zeros(0, np.int32)])

    def gather_keys(self, ids: np.ndarray) -> np.ndarray:
        """Keys of the given entries: int [...] to float32 [..., D]."""
        keys = np.zeros((np.size(ids), self.dim), np.float32)
        for shard, rows, places in self._groups(ids):
            keys[places] = _decode(shard, rows)
        return keys.reshape(*np.shape(ids), self.dim)

    def gather_values(self, ids: np.ndarray) -> np.ndarray:
        """Values of the given entries: int [...] to int32 [...]."""
        values = np.full(np.size(ids), -1, np.int32)
        for shard, rows, places in self._groups(ids):
            values[places] = shard["values"][rows]
        return values.reshape(np.shape(ids))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[_Shard, slice]]:
        if not 0 <= start <= stop <= self.num_entries:
            raise UserError(
                f"Entries {start}:{stop} are not in {self.directory}; ask for entries "
                f"within 0:{self.num_entries}."
            )
        size = self.manifest["shard_size"]
        while start < stop:
            number, first = divmod(start, size)
            last = min(size, first + stop - start)
            yield self.shards[number], slice(first, last)
            start += last - first

    def _groups(
        self, ids: np.ndarray
    ) -> Iterator[tuple[_Shard, np.ndarray, np.ndarray]]:
        flat = np.asarray(ids).reshape(-1)
        if flat.size and not -1 <= flat.min() <= flat.max() < self.num_entries:
            raise UserError(
                f"Ids {flat.min()}..{flat.max()} are not in {self.directory}; ask for "
                f"ids within 0:{self.num_entries}, or -1 for an absent neighbour."
            )
        # Sorted, so that each shard is visited once and read forwards.
        order = np.argsort(flat, kind="stable")
        order = order[np.searchsorted(flat[order], 0) :]
        numbers, rows = np.divmod(flat[order], self.manifest["shard_size"])
        for number in np.unique(numbers):
            first, last = np.searchsorted(numbers, [number, number + 1])
            yield self.shards[number], rows[first:last], order[first:last]


class Writer:
    """Writes a datastore shard by shard; `create` makes one.

    At most one shard is in memory. ``num_written`` counts the entries of finished
    shards, which is where a resumed build has to continue; call `publish` after the
    last entry.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory = directory
        self.partial = partial_of(directory)
        self.manifest = manifest
        self._rows = 0
        self._buffer = {
            part: np.empty(shape, dtype)
            for part, (shape, dtype) in _arrays(manifest, len(self._shards)).items()
        }

    @property
    def _shards(self) -> list:
        return self.manifest["shards"]

    @property
    def num_written(self) -> int:
        """Entries of finished shards: what a killed build keeps."""
        size, total = self.manifest["shard_size"], self.manifest["num_entries"]
        return min(len(self._shards) * size, total)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Adds entries: keys float [n, D] and values int [n].

        Raises:
          UserError: wrong shapes, more entries than announced, keys that are not finite
            or do not fit the dtype, values that do not fit int32, or a full disk.
        """
        with np.errstate(over="ignore"):  # an overflow is reported as not finite
            keys = np.asarray(keys, np.float32)
        values = self._checked(keys, np.asarray(values))
        written = 0
        while written < len(keys):
            room = len(self._buffer["values"]) - self._rows
            take = slice(written, min(written + room, len(keys)))
            place = slice(self._rows, self._rows + take.stop - take.start)
            for part, array in _encode(keys[take], self.manifest["dtype"]).items():
                self._buffer[part][place] = array
            self._buffer["values"][place] = values[take]
            self._rows, written = place.stop, take.stop
            if self._rows == len(self._buffer["values"]):
                self._finish_shard()

    def publish(self) -> Datastore:
        """Renames the finished folder into place and opens it.

        Raises:
          UserError: entries are missing, or something is at the destination already.
        """
        total = self.manifest["num_entries"]
        if self.num_written < total:
            raise UserError(
                f"Datastore {self.directory} has {self.num_written + self._rows} of "
                f"{total} entries; append the rest before publishing it."
            )
        checked_files.refuse_existing(self.directory)
        with self._disk_errors():
            os.rename(self.partial, self.directory)
            atomic.sync(self.directory.parent)
        return open(self.directory, verify=False)

    def _checked(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        dim, total = self.manifest["dim"], self.manifest["num_entries"]
        where = f"Datastore {self.directory}"
        if keys.ndim != 2 or keys.shape[1] != dim or values.shape != keys.shape[:1]:
            raise UserError(
                f"{where} takes keys [n, {dim}] and values [n], but was given "
                f"{list(keys.shape)} and {list(values.shape)}; use the encoder it was "
                "created for."
            )
        if self.num_written + self._rows + len(keys) > total:
            raise UserError(
                f"{where} was created for {total} entries and was given more; create "
                "it with the right num_entries."
            )
        if not np.isfinite(keys).all():
            raise UserError(
                f"{where} was given keys with NaN or infinity; check the encoder's "
                "checkpoint."
            )
        limit = np.finfo(np.float16).max
        if self.manifest["dtype"] == "float16" and keys.size:
            largest = np.abs(keys).max()
            if largest > limit:
                raise UserError(
                    f"{where} stores float16, and a key holds {largest:g}, above "
                    f"{limit:g}; use dtype float32."
                )
        int32 = np.iinfo(np.int32)
        if values.size and (
            not np.issubdtype(values.dtype, np.integer)
            or values.min() < int32.min
            or values.max() > int32.max
        ):
            raise UserError(
                f"{where} stores int32 values and was given {values.dtype} "
                f"{values.min()}..{values.max()}; give integers within int32."
            )
        return values.astype(np.int32)

    def _finish_shard(self) -> None:
        number = len(self._shards)
        with self._disk_errors():
            checksums = {
                part: atomic.write_bytes(
                    shard_path(self.partial, number, part), array.data
                )
                for part, array in self._buffer.items()
            }
            shards = [*self._shards, checksums]
            self.manifest = checked_files.write_manifest(
                self.partial, self.manifest | {"shards": shards}
            )
        self._rows = 0
        rows = _num_rows(self.manifest, number + 1)  # the last shard may be shorter
        self._buffer = {part: a[:rows] for part, a in self._buffer.items()}

    def _disk_errors(self):
        kept = f"the first {self.num_written} entries are kept"
        return checked_files.full_disk_named(self.directory, kept)


def create(
    directory: str | os.PathLike,
    *,
    dim: int,
    dtype: str = "float16",
    num_entries: int,
    identity: Mapping[str, Any],
    shard_size: int = 1 << 17,
) -> Writer:
    """Starts a datastore at ``directory``, or continues a build that was killed.

    Args:
      directory: where it will be published; its parent is made if missing.
      dim: D, the width of a key.
      dtype: "float16", "float32", or "int8" (symmetric, one float32 scale a row).
      num_entries: the number of entries that will be appended.
      identity: JSON values that say what the keys are: encoder step, fingerprints.
      shard_size: entries a shard; a shard is what is held in memory.

    Raises:
      UserError: an impossible argument, something at ``directory`` already, or a
        half-built datastore of another form or identity.
    """
    directory = Path(directory)
    if dtype not in DTYPES:
        raise UserError(f"Datastore dtype {dtype!r} is unknown; use one of {DTYPES}.")
    if dim < 1 or shard_size < 1 or not 1 <= num_entries <= np.iinfo(np.int32).max:
        raise UserError(
            f"A datastore of {num_entries} entries of width {dim} in shards of "
            f"{shard_size} cannot be; all must be positive and ids must fit int32."
        )
    form = {"format": _FORMAT, "dim": dim, "dtype": dtype, "num_entries": num_entries}
    form["shard_size"] = shard_size = min(shard_size, num_entries)
    form["identity"] = checked_files.as_json(identity)
    checked_files.refuse_existing(directory)
    partial = partial_of(directory)
    with checked_files.full_disk_named(directory, "nothing was written yet"):
        if not (partial / checked_files.MANIFEST).exists():
            partial.mkdir(parents=True, exist_ok=True)
            checked_files.write_manifest(partial, form | {"shards": []})
    manifest = checked_files.read_manifest(partial, _FORMAT, _KINDS)
    checked_files.require_equal(form["identity"], manifest["identity"], partial)
    checked_files.require_equal(form, manifest, partial)
    for number in range(len(manifest["shards"])):
        _map_shard(partial, manifest, number)
    return Writer(directory, manifest)


def open(
    directory: str | os.PathLike,
    *,
    identity: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> Datastore:
    """Opens a published datastore.

    Args:
      directory: what `create` was given.
      identity: fields that must agree with the stored identity; None checks nothing.
      verify: read every file and compare its CRC-32; False compares sizes alone.

    Raises:
      UserError: there is none, a file is missing, truncated or changed, or a field of
        the identity differs.
    """
    directory = Path(directory)
    if not (directory / checked_files.MANIFEST).exists():
        unfinished = partial_of(directory).exists()
        raise UserError(
            f"There is no {'finished ' if unfinished else ''}datastore at {directory}; "
            + ("run its build again to finish it." if unfinished else "build it first.")
        )
    manifest = checked_files.read_manifest(directory, _FORMAT, _KINDS)
    if identity is not None:
        wanted = checked_files.as_json(identity)
        checked_files.require_equal(wanted, manifest["identity"], directory)
    shards = []
    listed = range(len(manifest["shards"]))
    if sum(_num_rows(manifest, x) for x in listed) != manifest["num_entries"]:
        raise UserError(
            f"The manifest of {directory} lists {len(listed)} shards, not all "
            f"of its {manifest['num_entries']} entries; delete the datastore and "
            "build it again."
        )
    for number, checksums in enumerate(manifest["shards"]):
        shards.append(_map_shard(directory, manifest, number))
        for part in shards[-1] if verify else ():
            path = shard_path(directory, number, part)
            if atomic.crc32(path) != checksums.get(part):
                raise UserError(
                    f"Datastore file {path} does not have the checksum it was written "
                    "with; delete the datastore and build it again."
                )
    return Datastore(directory, manifest, tuple(shards))


def partial_of(directory: Path) -> Path:
    """The folder of a datastore that is still being built."""
    return directory.with_name(directory.name + ".partial")


def shard_path(directory: Path, number: int, part: str) -> Path:
    """The file of one part (keys, scales, values) of a shard."""
    return directory / f"{number:05d}.{part}"


def _num_rows(manifest: Mapping[str, Any], number: int) -> int:
    size = manifest["shard_size"]
    return max(0, min(size, manifest["num_entries"] - number * size))


def _arrays(
    manifest: Mapping[str, Any], number: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays of one shard: part -> (shape, dtype)."""
    rows, dtype = _num_rows(manifest, number), np.dtype(manifest["dtype"])
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    arrays["keys"] = (rows, manifest["dim"]), dtype.newbyteorder("<").str
    if dtype == np.int8:
        arrays["scales"] = (rows,), "<f4"
    arrays["values"] = (rows,), "<i4"
    return arrays


def _map_shard(directory: Path, manifest: Mapping[str, Any], number: int) -> _Shard:
    return {
        part: checked_files.map_array(shard_path(directory, number, part), shape, dtype)
        for part, (shape, dtype) in _arrays(manifest, number).items()
    }


def _encode(keys: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if dtype != "int8":
        return {"keys": keys.astype(dtype)}
    scales = np.abs(keys).max(axis=1) / np.float32(127)
    safe = np.where(scales > 0, scales, 1)  # a row of zeros stays zeros
    return {"keys": np.rint(keys / safe[:, None]).astype(np.int8), "scales": scales}


def _decode(shard: _Shard, rows: slice | np.ndarray) -> np.ndarray:
    keys = shard["keys"][rows].astype(np.float32)
    if "scales" in shard:
        keys *= shard["scales"][rows][:, None]
    return keys
