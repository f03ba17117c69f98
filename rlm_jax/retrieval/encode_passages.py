"""Texts through an encoder into a datastore: batches of like length, all devices.

A shard's rows are sorted by length and cut into batches of about equally many tokens,
whose widths come from a short list, so that few programs are compiled and little of a
batch is padding. A batch never reaches beyond its shard: a killed build that goes on
from its last finished shard makes the very batches that an uninterrupted one makes.
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.retrieval import datastore, merge_datastores

SHARD_SIZE = 1 << 15
"""Passages a shard: what is held in memory, and what a killed run loses at most."""

Embed = Callable[[Params, Mapping[str, Any]], jax.Array]
"""``embed(params, {"ids", "mask"})`` -> [N, D]."""

Tokenise = Callable[[Sequence[Any]], list[np.ndarray]]
"""Some passages -> their token ids, int32 [n] each."""


class Plan(NamedTuple):
    """One batch: which rows, and its shape [num_rows, width]."""

    rows: np.ndarray  # int64, of the texts; at most num_rows
    num_rows: int
    width: int


def plan(
    lengths: np.ndarray, *, max_length: int, batch_tokens: int, max_rows: int = 0
) -> list[Plan]:
    """Batches of like length; every text is in one.

    Args:
      lengths: int [N], in tokens, none above ``max_length``.
      max_length: the widest batch.
      batch_tokens: about how many tokens a batch has, padding included.
      max_rows: the most texts of a batch; 0: as many as its tokens allow.

    Raises:
      UserError: ``batch_tokens`` does not hold the longest text.
    """
    if lengths.max(initial=0) > max_length:
        raise UserError(
            f"A text has {lengths.max()} tokens and batches are at most {max_length} "
            "wide; cut texts shorter."
        )
    if batch_tokens < max_length:
        raise UserError(
            f"Batches of {batch_tokens} tokens do not hold a text of {max_length}; "
            f"choose batch_tokens of {max_length} or more."
        )
    steps = widths(max_length)
    # The longest first: what does not fit in memory fails at once.
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        width = int(steps[np.searchsorted(steps, lengths[order[start]])])
        num_rows = max(1, batch_tokens // width)
        num_rows = processes.whole_rows(min(num_rows, max_rows or num_rows))
        batches.append(Plan(order[start : start + num_rows], num_rows, width))
        start += num_rows
    return batches


def widths(max_length: int) -> np.ndarray:
    """The widths of batches, in small steps: 16, 24, 32, 40, ..., 64, 80, ..."""
    steps = [16]
    while steps[-1] < max_length:
        last = steps[-1]
        steps.append(last + max(8, 1 << (last.bit_length() - 3)))
    return np.minimum(steps, max_length)


def pad(
    rows: Sequence[np.ndarray],
    *,
    pad_id: int,
    num_rows: int | None = None,
    width: int | None = None,
) -> dict[str, np.ndarray]:
    """Rows int32 [n] as one encoder batch: ids and mask, int32 [num_rows, width].

    Args:
      rows: none longer than ``width``.
      pad_id: what fills them up.
      num_rows: as many as there are by default; more are empty texts.
      width: the longest row by default.
    """
    lengths = np.zeros(len(rows) if num_rows is None else num_rows, np.int64)
    lengths[: len(rows)] = [len(row) for row in rows]
    mask = np.arange(width or int(lengths.max(initial=1))) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int32)
    if len(rows):
        ids[mask] = np.concatenate(list(rows))
    return {"ids": ids, "mask": mask.astype(np.int32)}


class TextEncoder:
    """An embedding function on this process's devices, with its parameters there."""

    def __init__(
        self,
        embed: Embed,
        params: Params,
        *,
        max_length: int,
        batch_tokens: int,
        pad_id: int,
        max_rows: int = 0,
    ):
        """Places the parameters; see `plan` for the sizes."""
        self.counts: collections.Counter[str] = collections.Counter()
        self._embed = jax.jit(embed)
        self._params = processes.replicated(params)
        self._sizes = {
            "max_length": max_length,
            "batch_tokens": batch_tokens,
            "max_rows": max_rows,
        }
        self._pad_id = pad_id

    @property
    def padding(self) -> float:
        """The share of padding among all token slots so far."""
        return 1 - self.counts["tokens"] / max(1, self.counts["slots"])

    @property
    def dim(self) -> int:
        """The width of a vector."""
        one = np.ones((1, 1), np.int32)
        output = jax.eval_shape(self._embed, self._params, {"ids": one, "mask": one})
        return output.shape[-1]

    def __call__(
        self,
        rows: Sequence[np.ndarray],
        *,
        advance: Callable[[int], object] = lambda count: None,
    ) -> np.ndarray:
        """One vector a row, float32 [N, D], in the order of the rows.

        Args:
          rows: int32 [n] each.
          advance: called with a number of rows when they are done, for a progress bar.

        Raises:
          UserError: there are no rows.
        """
        lengths = np.array([len(row) for row in rows], np.int64)
        batches = plan(lengths, **self._sizes)
        vectors: np.ndarray | None = None
        for numbers, of_batch in self._in_batches(batches, rows):
            if vectors is None:
                vectors = np.empty((len(rows), of_batch.shape[1]), np.float32)
            vectors[numbers] = of_batch[: len(numbers)]
            advance(len(numbers))
        if vectors is None:
            raise UserError("There is no text to encode; check the corpus.")
        self.counts["tokens"] += int(lengths.sum())
        self.counts["slots"] += sum(b.num_rows * b.width for b in batches)
        return vectors

    def _in_batches(self, batches, rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, their vectors) of each batch; one computes while the last is read."""
        pending = None
        for batch in batches:
            padded = pad(
                [rows[i] for i in batch.rows],
                pad_id=self._pad_id,
                num_rows=batch.num_rows,
                width=batch.width,
            )
            vectors = self._embed(self._params, processes.spread(padded))
            if pending is not None:
                yield pending[0], np.asarray(pending[1])
            pending = batch.rows, vectors
        if pending is not None:
            yield pending[0], np.asarray(pending[1])


def build(
    encoder: TextEncoder,
    passages: Sequence[Any],
    tokenise: Tokenise,
    directory: str | os.PathLike,
    *,
    dtype: str = "float32",
    identity: Mapping[str, Any],
    shard_size: int = SHARD_SIZE,
    share: tuple[int, int] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> datastore.Datastore:
    """The vectors of all passages on disk; entry i, with the value i, is passage i's.

    Opens what is there already, if its identity is the same; goes on from the last
    finished shard of a killed build. Passages are read and tokenized a shard ahead, in
    a thread; memory is bounded by two shards. Of several processes, which share a file
    system, each encodes a run of whole shards, and the first joins them.

    Args:
      encoder: what makes the vectors.
      passages: read by slices.
      tokenise: some passages -> their rows.
      directory: where the datastore goes.
      dtype: of the stored vectors: float16, float32 or int8.
      identity: what the vectors are: the encoder's fingerprint, the passages'.
      shard_size: passages a shard.
      share: this process's number among those that encode, and their count; by default
        JAX's own. (0, 1) where the others have left.
      advance: called with a number of passages when they are done, for a progress bar.

    Raises:
      UserError: there are no passages, a vector holds NaN or infinity, or as
        `datastore.create` and `datastore.open`.
    """
    directory = Path(directory)
    if not len(passages):
        raise UserError("There are no passages to encode; check the corpus.")
    identity = dict(identity) | {"entries": len(passages), "dtype": dtype}
    if directory.exists():
        return datastore.open(directory, identity=identity)
    index, count = share or (jax.process_index(), jax.process_count())
    ends = _ends(len(passages), shard_size, count)
    shares = [
        _Share(directory.with_name(f"{directory.name}.part-{i}-of-{len(ends)}"), *end)
        for i, end in enumerate(ends)
    ]
    if len(shares) == 1:
        shares = [shares[0]._replace(directory=directory)]
    own = shares[index]
    if own.directory.exists():
        datastore.open(own.directory, identity=identity, verify=False)
    elif own.start < own.stop:
        _encode_share(
            encoder, passages, tokenise, own, dtype=dtype, identity=identity,
            shard_size=shard_size, advance=advance,
        )  # fmt: skip
    if len(shares) > 1:
        processes.wait("passages encoded")
        if index == 0:
            folders = [x.directory for x in shares if x.start < x.stop]
            merge_datastores.join(folders, directory)
        processes.wait("passages joined")
    return datastore.open(directory, identity=identity)


class _Share(NamedTuple):
    """What one process encodes: passages start..stop-1."""

    directory: Path
    start: int
    stop: int


def _ends(total: int, shard_size: int, num_parts: int) -> list[tuple[int, int]]:
    """(start, stop) of each part; all but the last hold whole shards."""
    num_shards = -(-total // shard_size)
    cuts = [
        min(total, i * num_shards // num_parts * shard_size)
        for i in range(num_parts + 1)
    ]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _encode_share(
    encoder: TextEncoder,
    passages: Sequence[Any],
    tokenise: Tokenise,
    share: _Share,
    *,
    dtype: str,
    identity: Mapping[str, Any],
    shard_size: int,
    advance: Callable[[int], object],
) -> None:
    def read(start: int) -> list[np.ndarray]:
        return tokenise(passages[start : min(start + shard_size, share.stop)])

    writer = datastore.create(
        share.directory,
        dim=encoder.dim,
        dtype=dtype,
        num_entries=share.stop - share.start,
        identity=identity,
        shard_size=shard_size,
    )
    advance(writer.num_written)
    starts = range(share.start + writer.num_written, share.stop, shard_size)
    with concurrent.futures.ThreadPoolExecutor(1, "passages") as thread:
        coming = thread.submit(read, starts[0]) if starts else None
        for start in starts:
            assert coming is not None
            rows = coming.result()
            if start + shard_size < share.stop:
                coming = thread.submit(read, start + shard_size)
            writer.append(encoder(rows, advance=advance), start + np.arange(len(rows)))
    writer.publish()
