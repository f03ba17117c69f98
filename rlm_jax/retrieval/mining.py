"""Hard negatives: passages that rank high for a question and do not answer it.

The first round of DPR takes them from BM25, the second from the model of the first.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.storage import atomic, checked_files

_FORMAT = "rlm_jax hard negatives 1"
_FILE = "negatives.int32"
_BLOCK = 1024


def mine(
    search: Callable[[Any, int], Neighbours],
    queries: Any,
    positives: Sequence[np.ndarray],
    *,
    num: int,
    depth: int = 0,
    excluded: Callable[[int, int], bool] | None = None,
) -> np.ndarray:
    """The best passages of each question that are not known to answer it, best first.

    Args:
      search: an index's ``search(queries, k)``.
      queries: of Q questions, what that takes: a list of texts, or vectors [Q, D].
      positives: of each question, the numbers of the passages that answer it.
      num: H, negatives of a question.
      depth: how many passages are searched; 0 = ``num`` and room for the most positives
        that a question has, or 100 if that is more.
      excluded: (question, passage) -> whether the passage answers it anyway, as it
        holds the answer's string.

    Returns:
      int32 [Q, H], -1 where the search gave too few.

    Raises:
      UserError: a number out of range, or other positives than questions.

    Karpukhin et al. 2020, sections 3.2 and 4.1.
    """
    if len(queries) != len(positives):
        raise UserError(
            f"There are {len(queries)} questions and positives of {len(positives)}; "
            "give as many of each."
        )
    if num < 1 or (depth and depth < num):
        raise UserError(
            f"{num} negatives cannot come from a search of depth {depth}; choose 1 or "
            "more, and a depth of at least as many."
        )
    most = max((len(passages) for passages in positives), default=0)
    depth = depth or max(num + most, 100)
    negatives = np.full((len(queries), num), -1, np.int32)
    for start in range(0, len(queries), _BLOCK):
        ids = search(queries[start : start + _BLOCK], depth).ids
        for question, passages in enumerate(ids, start):
            kept = _negatives(question, passages, positives[question], num, excluded)
            negatives[question, : len(kept)] = kept
    return negatives


def _negatives(question, ranked, positives, num, excluded):
    kept: list[int] = []
    answers = {int(passage) for passage in positives}
    for passage in ranked.tolist():
        if len(kept) == num:
            break
        if passage < 0 or passage in answers:
            continue
        if excluded is None or not excluded(question, passage):
            kept.append(passage)
    return kept


def save(
    folder: str | Path, negatives: np.ndarray, identity: Mapping[str, Any]
) -> None:
    """Writes mined negatives with what they were mined from, whole or not at all.

    Args:
      folder: a new one.
      negatives: int32 [Q, H].
      identity: plain JSON: the questions', passages' and index's fingerprints.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    folder = Path(folder)
    data = np.ascontiguousarray(negatives, "<i4")
    checked_files.publish(
        folder,
        _FORMAT,
        {"identity": checked_files.as_json(identity), "shape": list(data.shape)},
        lambda there: atomic.write_bytes(there / _FILE, data.tobytes()),
    )


def load(folder: str | Path, identity: Mapping[str, Any]) -> np.ndarray:
    """The negatives that `save` wrote, int32 [Q, H].

    Raises:
      UserError: they are missing or damaged, or were mined from something else.
    """
    folder = Path(folder)
    kinds = {"identity": dict[str, Any], "shape": list[int]}
    manifest = checked_files.read_manifest(folder, _FORMAT, kinds)
    wanted = checked_files.as_json(identity)
    checked_files.require_equal(wanted, manifest["identity"], folder)
    checked_files.verify_files(folder, manifest)
    array = checked_files.map_array(folder / _FILE, tuple(manifest["shape"]), "<i4")
    return np.array(array, np.int32)
