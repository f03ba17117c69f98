"""A stream of tokens through an encoder, row by row: for datastores and for scores.

The stream of N tokens has N - 1 predictions; prediction i has token i as its last input
and token i + 1 as its target. Windows of ``window`` inputs advance by ``stride``: each
prediction is made once, with at least ``window - stride`` tokens of left context as
soon as the stream has them.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Params
from rlm_jax.retrieval import datastore


class Windows(NamedTuple):
    """Where the windows of a stream lie, and which of their predictions are fresh."""

    start: np.ndarray  # int64 [W], first input
    offset: np.ndarray  # int32 [W], first fresh prediction, counted from the start
    window: int
    stride: int
    num_predictions: int


def windows(num_tokens: int, *, window: int, stride: int) -> Windows:
    """Windows whose fresh predictions tile a stream.

    Raises:
      UserError: the stream is empty, or not 1 <= stride <= window.
    """
    if num_tokens < 2:
        raise UserError(
            f"the stream to evaluate has {num_tokens} tokens; give at least 2."
        )
    if not 1 <= stride <= window:
        raise UserError(
            f"stride {stride} and window {window}: choose 1 <= stride <= window."
        )
    fresh = np.arange(0, num_tokens - 1, stride, dtype=np.int64)
    start = np.maximum(0, fresh + stride - window)
    offset = (fresh - start).astype(np.int32)
    return Windows(start, offset, window, stride, num_tokens - 1)


def window_batch(tokens: np.ndarray, spec: Windows, rows: np.ndarray):
    """The language-model batch of some windows; beyond the stream the mask is 0."""
    at = spec.start[rows, None] + np.arange(spec.window + 1)
    inside = at < len(tokens)
    ids = np.where(inside, tokens[np.minimum(at, len(tokens) - 1)], 0).astype(np.int32)
    number = np.arange(len(rows), dtype=np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": inside[:, 1:].astype(np.float32),
        "segment": number,
        "group": number,
    }


def encode_stream(
    encode: Callable[[Any, Any], Any],
    params,
    tokens: np.ndarray,
    *,
    window: int,
    stride: int,
    batch_size: int,
    first: int = 0,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Any]:
    """Run ``encode(params, batch)`` over a stream; yield fresh rows in order.

    Windows are spread over this process's devices. Memory stays bounded by two batches:
    one computes while the last one is consumed.

    Args:
      encode: returns a pytree of arrays [B, window, ...] (a method's ``score``, or the
        ``encode_keys`` of its retrieval).
      tokens: int [N], may be memory-mapped.
      window, stride: in tokens.
      batch_size: windows at a time; one compilation serves all.
      first: prediction to start from, a multiple of the stride (to resume).
      wrap: what to put around the batches' iterator, such as a progress bar.

    Yields:
      The pytree in NumPy, [n, ...], n predictions on from the last; always in order.
    """
    spec = windows(len(tokens), window=window, stride=stride)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; choose 1 or more windows.")
    if first % stride:
        raise ValueError(f"first={first} is not a multiple of the stride {stride}")

    @jax.jit
    def fresh(params, batch, offset):
        return jax.tree.map(
            lambda x: jax.vmap(
                lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, stride)
            )(x, offset),
            encode(params, batch),
        )

    def fetch(pending):
        out, count = pending
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:count], out
        )

    rows = np.arange(first // stride, len(spec.start))
    params = processes.replicated(params)  # once, not with every batch
    num_rows = processes.whole_rows(batch_size)
    pending = None
    for i in wrap(range(0, len(rows), batch_size)):
        numbers = rows[i : i + batch_size]
        # The last batch repeats windows to keep its shape, and all do on many devices.
        padded = np.resize(numbers, num_rows)
        batch = window_batch(tokens, spec, padded)
        out = fresh(params, *processes.spread((batch, spec.offset[padded])))
        end = min(int(numbers[-1] + 1) * stride, spec.num_predictions)
        if pending is not None:
            yield fetch(pending)
        pending = out, end - int(numbers[0]) * stride
    if pending is not None:
        yield fetch(pending)


def build_datastore(
    encode_keys: Callable[[Params, Batch], jax.Array],
    params: Params,
    tokens: np.ndarray,
    directory: str | os.PathLike,
    *,
    window: int,
    stride: int,
    batch_size: int,
    dtype: str = "float16",
    identity: Mapping[str, Any],
    shard_size: int = 1 << 17,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> datastore.Datastore:
    """The (key, next token) pairs of a stream on disk, with full left context.

    Opens what is there already, if its identity is the same; continues a killed build
    from its last finished shard. Memory is bounded by a shard and two batches.

    Args:
      encode_keys: a method's ``retrieval.encode_keys``, [B, window, D].
      params: the method's.
      tokens: int [N]; N - 1 entries come of them.
      directory: where the datastore goes.
      window, stride, batch_size: as for `encode_stream`.
      dtype: float16, float32 or int8.
      identity: what the keys are: the encoder's fingerprint and step, the text's.
      shard_size: entries a shard.
      wrap: what to put around the batches' iterator, such as a progress bar.

    Raises:
      UserError: as `datastore.create` and `datastore.open`.
    """
    directory = Path(directory)
    identity = dict(identity) | {"window": window, "stride": stride}
    spec = windows(len(tokens), window=window, stride=stride)
    identity |= {"entries": spec.num_predictions, "dtype": dtype}
    if directory.exists():
        return datastore.open(directory, identity=identity)
    one_window = window_batch(tokens, spec, np.zeros(1, np.int32))
    dim = jax.eval_shape(encode_keys, params, one_window).shape[-1]
    writer = datastore.create(
        directory,
        dim=dim,
        dtype=dtype,
        num_entries=spec.num_predictions,
        identity=identity,
        # A killed build resumes at a shard, which therefore holds whole strides.
        shard_size=max(1, shard_size // stride) * stride,
    )
    at = writer.num_written
    if at < spec.num_predictions:
        for keys in encode_stream(
            encode_keys,
            params,
            tokens,
            window=window,
            stride=stride,
            batch_size=batch_size,
            first=at,
            wrap=wrap,
        ):
            writer.append(keys, tokens[at + 1 : at + 1 + len(keys)])
            at += len(keys)
    return writer.publish()


def fingerprint(params: Params) -> str:
    """CRC-32 over the names and bytes of all parameters: which model made the keys."""
    value = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        value = zlib.crc32(jax.tree_util.keystr(path).encode(), value)
        value = zlib.crc32(np.ascontiguousarray(x).tobytes(), value)
    return f"{value:08x}"
