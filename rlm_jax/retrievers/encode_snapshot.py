"""Encodes a collection with a snapshot of an encoder in training, beside the training.

    python -m rlm_jax.retrievers.encode_snapshot FOLDER/step_<n>.partial

The job stands with the snapshot, as `rlm_jax.retrieval.refresh` began it, and the index
takes the name ``FOLDER/step_<n>`` when it is whole. A job that was killed goes on
from its last finished shard when it is started again; two of one folder take turns. The
process ends with the trainer that holds the other end of its standard input, and says
what a user can mend in one line.
"""

import dataclasses
import os
import pathlib
import sys
import threading
from typing import Any

from rlm_jax import processes, terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.passages import Passages
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.retrieval import encode_passages, refresh
from rlm_jax.retrieval.refresh import INDEX, SNAPSHOT
from rlm_jax.retrievers import dense, encoder_towers
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.storage import locks, sealed

JOB, ENCODER, VECTORS = "job.json", "encoder", "vectors"


@dataclasses.dataclass
class Job:
    """What is encoded, and how. ``cores`` are those that the process may use."""

    passages: str  # the name of the collection, for `data.passages.load`
    fingerprint: str  # and its content
    encoder: EncoderConfig
    text: TextConfig
    search: SearchConfig
    cores: tuple[int, ...] = ()  # none named: any
    shard_size: int = encode_passages.SHARD_SIZE


def write(partial: pathlib.Path, job: Job) -> None:
    """Writes a job beside its snapshot."""
    sealed.write(partial / SNAPSHOT / JOB, dataclasses.asdict(job))


def read(partial: pathlib.Path) -> Job:
    """The job that stands with a snapshot.

    Raises:
      UserError: it cannot be read, or is none.
    """
    path = partial / SNAPSHOT / JOB
    try:
        kinds = {
            **dict.fromkeys(("passages", "fingerprint"), str),
            **dict.fromkeys(("encoder", "text", "search"), dict[str, Any]),
            **{"cores": list[int], "shard_size": int},
        }
        remedy = "start the run again, which writes it"
        fields = sealed.read(path, kinds, remedy=remedy, older=True)
        return Job(
            fields["passages"],
            fields["fingerprint"],
            EncoderConfig(**fields["encoder"]),
            TextConfig(**fields["text"]),
            SearchConfig(**fields["search"]),
            tuple(fields["cores"]),
            fields["shard_size"],
        )
    except (OSError, TypeError) as error:
        raise UserError(
            f"{path} is no job for the worker ({error}); start the run again, which "
            "writes it."
        ) from error


def encode(
    partial: pathlib.Path, job: Job, passages: Passages, *, alone: bool = True
) -> None:
    """Encodes with the snapshot in ``partial``, and builds what the search wants.

    Args:
      alone: whether only this process encodes; else all of them do, together.
    """
    tower = encoder_towers.load(refresh.snapshot_of(partial) / ENCODER, job.encoder)
    store, _ = dense.encode_collection(
        tower,
        passages,
        job.fingerprint,
        job.text,
        job.search,
        partial / INDEX / VECTORS,
        alone=alone,
        shard_size=job.shard_size,
    )
    if processes.is_first():
        # An approximate index takes time to build and stays beside the vectors.
        dense.open_index(store, job.search)


def run(partial: pathlib.Path) -> None:
    """Does the job of a snapshot, unless its index is whole already.

    Raises:
      UserError: the collection has changed, or as encoding does.
    """
    folder, step = partial.parent, int(partial.name.split("_")[1].split(".")[0])
    with locks.locked(folder / ".worker"):
        if refresh.exists(folder, step):
            return
        job = read(partial)
        if job.cores:
            os.sched_setaffinity(0, job.cores)  # inherited by threads that come later
        passages = passages_lib.load(job.passages)
        if passages.fingerprint != job.fingerprint:
            raise UserError(
                f"The passages {job.passages} have changed since the run began; "
                "restore them, or start again in another workdir."
            )
        encode(partial, job, passages)
        refresh.publish(folder, step)


def _end_with_trainer() -> None:
    """Ends this process when its standard input does."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> Any:
    """The program; its exit status."""
    if len(arguments) != 1:
        terminal.say("error: Which snapshot? Name its folder, step_<n>.partial.")
        return 2
    _end_with_trainer()
    try:
        run(pathlib.Path(arguments[0]))
    except UserError as error:
        terminal.say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
