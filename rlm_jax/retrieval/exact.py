"""Exact search in JAX: blocks of keys, a running top-k, every local device.

No array is larger than [queries of a chunk, keys of a block], whatever the number of
keys. Blocks are dealt to the devices in turn; each keeps its own best k, and these are
merged once, at the end. Blocks of a datastore stay in its own dtype on the devices
(float16 takes half of float32, int8 a quarter); products are float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import check_metric, check_search, check_target, none_found

_QUERY_CHUNK = 1024


class Block(NamedTuple):
    """Some keys on a device; what they stand for is keys * scales - shift."""

    keys: Any  # an array [S, D], float32, float16 or int8
    scales: Any = None  # an array float32 [S], or None
    shift: Any = None  # an array float32 [D], or None


@dataclass(frozen=True)
class Exact:
    """An index that compares every query with every key; `build` makes one."""

    metric: str
    dim: int
    num_entries: int
    block_size: int
    centre: np.ndarray
    devices: tuple[Any, ...]  # of jax.Device
    load_block: Callable[[int], Block]
    recall_target: float = 1.0

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest keys of each query; of equal scores the lower id comes first.

        Queries are padded to a power of two, at most 1,024 at a time, so that few
        programs are compiled. A recall target below 1 gives up the order of equals.

        Args:
          queries: float32 [N, D].
          k: how many; beyond num_entries, ids are -1 and scores minus infinity.

        Raises:
          UserError: queries of another width or with NaN or infinity, or k below 1.
        """
        queries = check_search(queries, k, self.dim)
        if not len(queries):
            return none_found(0, k)
        chunks = _pad_and_split(queries - self.centre)
        copies = [[jax.device_put(c, d) for c in chunks] for d in self.devices]
        empty = tuple(none_found(len(chunks[0]), k))
        best = [[jax.device_put(empty, d) for _ in chunks] for d in self.devices]
        num_blocks = -(-self.num_entries // self.block_size)
        for number in range(num_blocks):
            turn = number % len(self.devices)
            block = self.load_block(number)
            start = number * self.block_size
            count = min(self.block_size, self.num_entries - start)
            # Waiting for the device's previous block bounds the blocks in flight.
            jax.block_until_ready(best[turn])
            best[turn] = [
                _merge_block(
                    state,
                    chunk,
                    block,
                    start,
                    count,
                    metric=self.metric,
                    recall_target=self.recall_target,
                )
                for state, chunk in zip(best[turn], copies[turn], strict=True)
            ]
        merged = _merge_devices([_join(states) for states in best], k)
        return Neighbours(*(array[: len(queries)] for array in merged))


def build(
    keys: Datastore | np.ndarray,
    *,
    metric: str = "l2",
    block_size: int | None = None,
    resident_bytes: int = 1 << 30,
    devices: Sequence[Any] | None = None,
    recall_target: float = 1.0,
) -> Exact:
    """Makes an exact index over a datastore or over an array float [M, D].

    Args:
      keys: what is searched.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      block_size: keys a block; None takes what suits the platform.
      resident_bytes: keys that take less than this stay on the devices, in the dtype
        they are stored in; others are read again for each search.
      devices: the jax.Devices to search on; None takes all local ones.
      recall_target: below 1, a TPU selects the best of a block by
        `jax.lax.approx_max_k` with this recall; other platforms stay exact.

    Raises:
      UserError: an unknown metric, a recall target outside (0, 1], or an array that is
        not [M, D] of finite numbers.
    """
    check_target(recall_target)
    devices = tuple(devices or jax.local_devices())
    if isinstance(keys, Datastore):
        read, (num_entries, dim) = keys.keys, (keys.num_entries, keys.dim)
        stored = partial(_stored, keys)
        width = np.dtype(keys.manifest["dtype"]).itemsize
    else:
        array = np.asarray(keys, np.float32)
        if array.ndim != 2 or not array.size or not np.isfinite(array).all():
            raise UserError(
                f"Keys of shape {list(array.shape)} cannot be searched; give finite "
                "numbers [M, D] with at least one key."
            )
        read, (num_entries, dim) = lambda i, j: array[i:j], array.shape
        stored, width = lambda i, j: (array[i:j], None), 4
    if block_size is None:
        # On a CPU the scores of a block should stay near the caches; an accelerator
        # wants few, large products.
        block_size = 8192 if devices[0].platform == "cpu" else 1 << 16
    block_size = min(block_size, num_entries)
    centre = np.zeros(dim, np.float32)
    if check_metric(metric) == "l2":
        # Distances do not change when everything is moved, but the cancellation in
        # |q|^2 - 2 q.k + |k|^2 shrinks with the length of the vectors.
        centre = read(0, block_size).mean(axis=0, dtype=np.float64).astype(np.float32)

    def load_block(number: int) -> Block:
        start = number * block_size
        rows, scales = stored(start, min(start + block_size, num_entries))
        block = np.zeros((block_size, dim), rows.dtype)
        shift = None
        if rows.dtype == np.float32:
            np.subtract(rows, centre, out=block[: len(rows)])
        else:
            # Only the device has room for what is no longer float16 or int8.
            block[: len(rows)], shift = rows, centre if centre.any() else None
        if scales is not None:
            scales = np.pad(scales, (0, block_size - len(scales)))
        device = devices[number % len(devices)]
        return jax.device_put(Block(block, scales, shift), device)

    get_block: Callable[[int], Block] = load_block
    if num_entries * dim * width <= resident_bytes:
        blocks = [load_block(i) for i in range(-(-num_entries // block_size))]
        get_block = lambda number: blocks[number]  # noqa: E731
    if devices[0].platform != "tpu":
        recall_target = 1.0
    return Exact(
        metric,
        dim,
        num_entries,
        block_size,
        centre,
        devices,
        get_block,
        recall_target,
    )


def _stored(
    datastore: Datastore, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys of the entries start..stop-1 as they are on disk, and their scales."""
    size = datastore.manifest["shard_size"]
    pieces = [
        (shard, slice(max(start - number * size, 0), stop - number * size))
        for number in range(start // size, -(-stop // size))
        for shard in [datastore.shards[number]]
    ]
    keys = np.concatenate([shard["keys"][rows] for shard, rows in pieces])
    if "scales" not in pieces[0][0]:
        return keys, None
    return keys, np.concatenate([shard["scales"][rows] for shard, rows in pieces])


@partial(jax.jit, static_argnames=("metric", "recall_target"))
def _merge_block(
    best: tuple[jax.Array, jax.Array],  # scores float32 [N, K], ids int32 [N, K]
    queries: jax.Array,  # float32 [N, D]
    block: Block,
    start: int,
    count: int,
    *,
    metric: str,
    recall_target: float,
) -> tuple[jax.Array, jax.Array]:
    """The best k of the best so far and of the first ``count`` keys of a block."""
    scores, ids = best
    keys = block.keys.astype(jnp.float32)
    if block.scales is not None:
        keys = keys * block.scales[:, None]
    if block.shift is not None:
        keys = keys - block.shift
    k, size = scores.shape[1], keys.shape[0]
    products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    if metric == "l2":
        query_norms = jnp.sum(queries * queries, axis=1)
        key_norms = jnp.sum(keys * keys, axis=1)
        distances = query_norms[:, None] - 2 * products + key_norms[None, :]
        products = -jnp.maximum(distances, 0)
    slots = jnp.arange(size, dtype=jnp.int32)
    products = jnp.where((slots < count)[None, :], products, -jnp.inf)

    def merge(width: int) -> tuple[jax.Array, jax.Array]:
        if recall_target < 1:
            new_scores, places = jax.lax.approx_max_k(
                products, width, recall_target=recall_target
            )
        else:
            new_scores, places = jax.lax.top_k(products, width)
        new_ids = jnp.where(places < count, places + start, -1)
        # Entries that come first win ties, and the earlier blocks have the lower ids.
        both, order = jax.lax.top_k(jnp.concatenate([scores, new_scores], axis=1), k)
        new_ids = jnp.concatenate([ids, new_ids], axis=1)
        return both, jnp.take_along_axis(new_ids, order, axis=1)

    # After the first blocks few keys beat the k-th best so far, and selecting those few
    # takes a fraction of the time of selecting k.
    few, many = min(max(k // 4, 1), size), min(k, size)
    num_better = jnp.sum(products > scores[:, -1:], axis=1)
    return jax.lax.cond(
        jnp.all(num_better <= few), partial(merge, few), partial(merge, many)
    )


def _pad_and_split(queries: np.ndarray) -> np.ndarray:
    """Splits float32 [N, D] into chunks of one size, padded with zeros: [C, S, D]."""
    size = min(_QUERY_CHUNK, 1 << (len(queries) - 1).bit_length())
    padding = -len(queries) % size
    padded = np.pad(queries, ((0, padding), (0, 0)))
    return padded.reshape(-1, size, queries.shape[1])


def _join(states: list[tuple[jax.Array, jax.Array]]) -> tuple[np.ndarray, np.ndarray]:
    scores, ids = zip(*jax.device_get(states), strict=True)
    return np.concatenate(scores), np.concatenate(ids)


def _merge_devices(
    best: list[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    if len(best) == 1:
        return best[0]
    scores, ids = (np.concatenate(arrays, axis=1) for arrays in zip(*best, strict=True))
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
