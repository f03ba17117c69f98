"""One datastore of several, which different processes have built."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore
from rlm_jax.storage import atomic, checked_files


def join(parts: Sequence[str | os.PathLike], directory: str | os.PathLike) -> None:
    """Makes one datastore of several, entries one part after another.

    The parts must have one form and identity, and all but the last must hold whole
    shards. Files are linked, not copied, and the parts deleted when the whole is
    published; a join that was killed is done again.

    Args:
      parts: folders of published datastores.
      directory: where the whole goes.

    Raises:
      UserError: parts that do not fit together, or something at ``directory`` already.
    """
    directory = Path(directory)
    checked_files.refuse_existing(directory)
    opened = [datastore.open(part, verify=False) for part in parts]
    first, *others = (part.manifest for part in opened)
    size = first["shard_size"]
    own = ("checksum", "shards", "num_entries", "shard_size")
    for part, manifest in zip(parts[1:], others, strict=True):
        wanted = {field: first[field] for field in first if field not in own}
        checked_files.require_equal(wanted, manifest, Path(part))
    if any(part.num_entries % size for part in opened[:-1]):
        raise UserError(
            f"The parts of {directory} do not hold whole shards of {size}; build them "
            "again with one shard_size."
        )
    manifest = {field: first[field] for field in first if field != "checksum"}
    manifest["num_entries"] = sum(part.num_entries for part in opened)
    manifest["shards"] = [s for part in opened for s in part.manifest["shards"]]
    partial = datastore.partial_of(directory)
    with checked_files.full_disk_named(directory, "its parts are kept"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        number = 0
        for part in opened:
            for old, shard in enumerate(part.shards):
                for name in shard:
                    os.link(
                        datastore.shard_path(part.directory, old, name),
                        datastore.shard_path(partial, number, name),
                    )
                number += 1
        checked_files.write_manifest(partial, manifest)
        os.rename(partial, directory)
        atomic.sync(directory.parent)
    for part in opened:
        atomic.remove_folder(part.directory)
