"""A walk through segments of text in which neighbours share words (BM25)."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1


def walk(
    segments: np.ndarray,
    *,
    num_hits: int = 20,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> np.ndarray:
    """An order of all segments: each is followed by its nearest one not yet taken.

    Where none of the `num_hits` nearest is left, a random segment follows. Nearness is
    BM25 with a segment's own token ids as the query's terms.

    Arguments:
      segments: integers [N, T], token ids.
      num_hits: neighbours per segment.
      seed: of the random steps.
      cache_dir: where the walk is kept, keyed by the segments' content.

    Returns:
      int32 [N], a permutation.

    Raises:
      UserError: the stored walk is damaged, or the disk is full.

    Source: Zhong et al. 2022, section 4.3, and the released data preparation, which
    walks the same way over 20 hits of a search engine.
    """
    content = hashlib.sha256(segments.astype("<i4").tobytes()).hexdigest()
    key = cache.fingerprint(_FORMAT, content, segments.shape, num_hits, seed)
    directory = cache.folder("walks", key, cache_dir)

    def build(path: Path) -> None:
        hits = nearest(segments, num_hits, progress=progress)
        np.save(path / "walk.npy", greedy(hits, seed))
        cache.write_manifest(path)

    cache.read_manifest(cache.once(directory, build), "order of segments")
    try:
        order = np.load(directory / "walk.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        order = np.zeros(0, np.int32)
    if not np.array_equal(np.sort(order), np.arange(len(segments))):
        raise UserError(
            f"The stored order of segments in {directory} is damaged: delete that "
            "folder and run again."
        )
    return order


def nearest(
    segments: np.ndarray, num_hits: int, *, progress: bool = True
) -> Iterator[np.ndarray]:
    """Yields for each segment the rows that BM25 ranks highest, itself left out.

    Arguments:
      segments: integers [N, T], token ids.
      num_hits: most rows per segment; those that share no token are not among them.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    # bm25s keeps a list per possible id: dense ids make it as small as it can be.
    terms, ids = np.unique(segments, return_inverse=True)
    ids = ids.reshape(segments.shape)
    index = bm25s.BM25()
    index.index(
        (ids.tolist(), {int(t): int(t) for t in range(len(terms))}),
        show_progress=False,
    )
    for row in tqdm(range(len(ids)), desc="BM25 neighbours", disable=not progress):
        scores = index.get_scores_from_ids(ids[row])
        scores[row] = 0
        # A partition leaves equal scores in any order; by row, the walk is the same
        # on every machine.
        k = min(num_hits, len(scores))
        bound = np.partition(scores, -k)[-k]
        top = np.flatnonzero((scores >= bound) & (scores > 0))
        yield top[np.argsort(-scores[top], kind="stable")][:k]


def greedy(hits: Iterable[np.ndarray], seed: int) -> np.ndarray:
    """The walk over known neighbours; a random unused segment where all are used."""
    hits = list(hits)  # [N] arrays of rows, nearest first
    used = np.zeros(len(hits), bool)
    reserve = iter(np.random.default_rng(seed).permutation(len(hits)))
    order = np.zeros(len(hits), np.int32)
    current = None
    for position in range(len(hits)):
        candidates = hits[current] if current is not None else ()
        current = next((h for h in candidates if not used[h]), None)
        if current is None:
            current = next(segment for segment in reserve if not used[segment])
        used[current] = True
        order[position] = current
    return order
