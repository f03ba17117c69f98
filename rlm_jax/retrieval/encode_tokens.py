"""Every token of some texts through an encoder into a datastore: key and token id.

Texts are encoded in chunks of a fixed grid, and a chunk in batches of like length. A
killed build goes on with the chunk that its last finished shard ends in, and makes the
very batches that an uninterrupted one makes.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.retrieval import datastore, encode_passages

CHUNK = 1024
"""Texts of a chunk."""

_OF_QUESTIONS = 1024  # tokens of questions that are encoded at once

States = Callable[[Params, Mapping[str, Any]], jax.Array]
"""``states(params, {"ids", "mask"})`` -> [N, T, D]."""


class StatesEncoder:
    """Rows of tokens to the vector of each token, on this process's devices."""

    def __init__(
        self,
        states: States,
        params: Params,
        *,
        max_length: int,
        batch_tokens: int,
        pad_id: int,
    ):
        """Places the parameters; see `encode_passages.plan` for the sizes."""
        self._function, self._states = states, jax.jit(states)
        self._params = processes.replicated(params)
        self._max_length, self._batch_tokens = max_length, batch_tokens
        self._pad_id = pad_id

    @property
    def dim(self) -> int:
        """The width of a vector."""
        one = np.ones((1, 1), np.int32)
        output = jax.eval_shape(self._states, self._params, {"ids": one, "mask": one})
        return output.shape[-1]

    def __call__(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The vectors of each row, float32 [n, D].

        Args:
          rows: int32 [n] each, n <= max_length.
        """
        out = [np.zeros((0, 0), np.float32)] * len(rows)
        for numbers, states in self._batches(rows, None):
            for number, vectors in zip(numbers, states, strict=False):
                out[number] = vectors[: len(rows[number])].astype(np.float32)
        return out

    def at(self, rows: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
        """The vectors at some places of each row, float32 [N, P, D].

        Args:
          rows: int32 [n] each.
          places: int32 [N, P].
        """
        out = np.zeros((*places.shape, self.dim), np.float32)
        for numbers, states in self._batches(rows, places):
            out[numbers] = states[: len(numbers)]
        return out

    def _batches(
        self, rows: Sequence[np.ndarray], places: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, their states) of each batch; one computes while the last is read."""
        lengths = np.array([len(row) for row in rows], np.int64)
        pending = None
        # A few questions must not pay for as many rows as there are of passages.
        size = self._batch_tokens if places is None else _OF_QUESTIONS
        for batch in encode_passages.plan(
            lengths,
            max_length=self._max_length,
            batch_tokens=max(self._max_length, min(size, self._batch_tokens)),
        ):
            padded = encode_passages.pad(
                [rows[i] for i in batch.rows],
                pad_id=self._pad_id,
                num_rows=batch.num_rows,
                width=batch.width,
            )
            if places is None:
                states = self._states(self._params, processes.spread(padded))
            else:
                at = places[np.resize(batch.rows, batch.num_rows)]
                spread = processes.spread((padded, at))
                states = _states_at(self._function, self._params, *spread)
            if pending is not None:
                yield pending[0], np.asarray(pending[1])
            pending = batch.rows, states
        if pending is not None:
            yield pending[0], np.asarray(pending[1])


@functools.partial(jax.jit, static_argnums=0)
def _states_at(function: States, params, rows, at):
    return jax.numpy.take_along_axis(function(params, rows), at[..., None], axis=1)


def build(
    encoder: StatesEncoder,
    texts: Sequence[np.ndarray],
    lengths: np.ndarray,
    directory: str | os.PathLike,
    *,
    dtype: str = "float16",
    identity: Mapping[str, Any],
    shard_size: int = 1 << 17,
    advance: Callable[[int], object] = lambda count: None,
) -> datastore.Datastore:
    """The vectors of all tokens on disk, text after text, with the tokens as values.

    Opens what is there already, if its identity is the same; goes on from the last
    finished shard of a killed build.

    Args:
      encoder: what makes the vectors.
      texts: ``texts[i]`` is int32 [n + 2], between its marks, which are no entries.
      lengths: int [N], the n of each text.
      directory: where the datastore goes.
      dtype: of the stored vectors: float16, float32 or int8.
      identity: what the vectors are: the encoder's fingerprint, the texts'.
      shard_size: entries a shard.
      advance: called with a number of tokens when they are done, for a progress bar.

    Raises:
      UserError: there is no token, a vector holds NaN or infinity, or as
        `datastore.create` and `datastore.open`.
    """
    directory = Path(directory)
    ends = np.cumsum(lengths, dtype=np.int64)
    if not len(ends) or not ends[-1]:
        raise UserError("There is no token to encode; check the passages.")
    identity = dict(identity) | {"entries": int(ends[-1]), "dtype": dtype}
    if directory.exists():
        return datastore.open(directory, identity=identity)
    writer = datastore.create(
        directory,
        dim=encoder.dim,
        dtype=dtype,
        num_entries=int(ends[-1]),
        identity=identity,
        shard_size=shard_size,
    )
    done = writer.num_written
    advance(done)
    first = int(np.searchsorted(ends, done, side="right")) // CHUNK * CHUNK
    for start in range(first, len(ends), CHUNK):
        rows = [texts[i] for i in range(start, min(start + CHUNK, len(ends)))]
        keys = np.concatenate([states[1:-1] for states in encoder(rows)])
        values = np.concatenate([row[1:-1] for row in rows])
        skipped = max(0, done - int(ends[start - 1] if start else 0))
        writer.append(keys[skipped:], values[skipped:])
        advance(len(keys) - skipped)
    return writer.publish()
