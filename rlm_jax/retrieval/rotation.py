"""A random orthogonal turn of the keys, made before they are hashed.

The states of language models have a strong mean, a few coordinates that dominate all
distances, and some keys that are many times as long as the others. Product quantisation
codes every pair of coordinates alike, so that nearly all of its bits go to pairs that
decide nothing. A random orthogonal matrix R spreads the variance evenly over the
coordinates, and with the keys' mean c taken away no inner product changes but for what
is the same for every key:

    <q, k>     = <q R, (k - c) R> + <q, c>
    -|q - k|^2 = 2 <[q - c, s] R, [k - c, (m - n) / s] R> - 2 m - |q - c|^2

where n = |k - c|^2 / 2, m is its mean, and [., .] adds a coordinate. Distances become
inner products since ScaNN codes what is left of a key beside its leaf's centre, and
gives it a second leaf, for inner products alone: without both, the longest keys set the
grid on which the others are coded. Any s is exact; the square root of n's spread makes
the added coordinate as large in keys as in queries.

Source: Jegou et al. 2010, "Aggregating Local Descriptors into a Compact Image
Representation", which turns vectors before product quantisation for the same reason;
the added coordinate is that of Bachrach et al. 2014, "Speeding Up the Xbox Recommender
System Using a Euclidean Transformation for Inner-Product Spaces", the other way round.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlm_jax.storage import atomic, checked_files

_FILE = "rotation.f32"  # matrix, centre, offset, scale
_ROWS = 16_384  # keys turned at a time, so that no second copy of them is needed
_ROUNDING = 4e-6  # of a sum of float32 products, some 30 units in the last place
_QUARTILES = 1.349  # between those of a normal distribution, in standard deviations


class Rotation(NamedTuple):
    """What keys and queries go through; see this file's first lines.

    E is D for inner products and D + 1 for distances.
    """

    matrix: np.ndarray  # float32 [E, E], R
    centre: np.ndarray  # float32 [D], c
    offset: np.float32  # m
    scale: np.float32  # s


def width(dim: int, metric: str) -> int:
    """E: of a turned key, for keys of width D and the metric "l2" or "ip"."""
    return dim + (metric == "l2")


def of_keys(keys: np.ndarray, metric: str, *, seed: int = 0) -> Rotation:
    """A random rotation for the keys float32 [M, D] and the metric "l2" or "ip"."""
    dim = keys.shape[1]
    total = np.zeros(dim)
    for rows in _blocks(keys):
        total += keys[rows].sum(axis=0, dtype=np.float64)
    centre = (total / len(keys)).astype(np.float32)
    size = width(dim, metric)
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    offset, scale = 0.0, 1.0
    if metric == "l2":
        halves = np.concatenate(
            [_half_squares(keys[rows] - centre) for rows in _blocks(keys)]
        )
        offset = halves.mean(dtype=np.float64)
        # Between the quartiles, since a few long keys would set the deviation.
        low, high = np.quantile(halves, [0.25, 0.75])
        scale = ((high - low) / _QUARTILES) ** 0.5 or 1.0
    return Rotation(
        matrix.astype(np.float32), centre, np.float32(offset), np.float32(scale)
    )


def turn_keys(rotation: Rotation, keys: np.ndarray) -> None:
    """Turns keys float32 [M, E] in place, block by block.

    The first D columns hold the keys; for distances there is one more, which is filled.
    """
    dim = len(rotation.centre)
    for rows in _blocks(keys):
        moved = keys[rows]
        moved[:, :dim] -= rotation.centre
        if keys.shape[1] > dim:
            halves = _half_squares(moved[:, :dim])
            moved[:, dim] = (rotation.offset - halves) / rotation.scale
        keys[rows] = moved @ rotation.matrix


def turn_queries(rotation: Rotation, queries: np.ndarray) -> np.ndarray:
    """The queries float32 [N, D] for turned keys, [N, E]."""
    if len(rotation.matrix) == len(rotation.centre):
        return queries @ rotation.matrix
    added = np.full((len(queries), 1), rotation.scale)
    moved = np.concatenate([queries - rotation.centre, added], axis=1)
    return moved @ rotation.matrix


def scores(rotation: Rotation, products: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores of the keys as they were, from inner products of what was turned.

    Args:
      rotation: the keys'.
      products: float32 [N, K].
      queries: float32 [N, D], as they were.

    Returns:
      float32 [N, K], inner products or negated squared distances.
    """
    if len(rotation.matrix) == len(rotation.centre):
        return products + (queries @ rotation.centre)[:, None]
    same = rotation.offset + _half_squares(queries - rotation.centre)
    return np.minimum(2 * (products - same[:, None]), 0)


def rounding(
    rotation: Rotation | None, queries: np.ndarray, exact_scores: np.ndarray
) -> np.ndarray:
    """What `scores` may differ by from exact ones, float32 [N].

    Args:
      rotation: the keys'; None where they stand as they are.
      queries: float32 [N, D].
      exact_scores: float32 [N, K], of the nearest; minus infinity where absent.
    """
    parts = np.max(
        np.abs(exact_scores), axis=1, where=np.isfinite(exact_scores), initial=0
    )
    if rotation is None:
        return np.float32(_ROUNDING) * parts
    if len(rotation.matrix) == len(rotation.centre):
        parts = parts + np.abs(queries @ rotation.centre)
    else:
        parts = parts + 4 * _half_squares(queries - rotation.centre)
    return np.float32(_ROUNDING) * parts


def write(rotation: Rotation, folder: Path) -> None:
    """Adds a rotation to the files of an index."""
    flat = np.concatenate([np.ravel(part) for part in rotation])
    atomic.write_bytes(folder / _FILE, flat.astype("<f4").tobytes())


def read(folder: Path, dim: int, metric: str) -> Rotation:
    """The rotation that `write` put among the files of an index.

    Raises:
      UserError: it is missing or of another size.
    """
    size = width(dim, metric)
    total = size * size + dim + 2
    flat = np.array(checked_files.map_array(folder / _FILE, (total,), "<f4"))
    matrix, centre, (offset, scale) = np.split(flat, [size * size, -2])
    return Rotation(matrix.reshape(size, size), centre, offset, scale)


def _blocks(keys: np.ndarray) -> Iterator[slice]:
    return (slice(i, i + _ROWS) for i in range(0, len(keys), _ROWS))


def _half_squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", vectors, vectors) / 2
