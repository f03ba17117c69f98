"""An encoder that reads a question with a passage, and gives the pair a score."""

from collections.abc import Sequence

import numpy as np

from rlm_jax.data.passages import Passages
from rlm_jax.method import Neighbours
from rlm_jax.retrievers import dense
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import Tower


def pairs(
    tower: Tower,
    questions: Sequence[str],
    passages: Passages,
    ids: np.ndarray,
    length: int,
) -> list[np.ndarray]:
    """[CLS] question [SEP] passage [SEP] of every question and passage, in order.

    Args:
      questions: B texts.
      ids: int [B, K], the rows of passages; an absent one, -1, is read as the first.
      length: tokens of a pair, at most.

    Returns:
      B * K rows, int32 [n] each.
    """
    texts = [passages[max(row, 0)].joined for row in ids.reshape(-1)]
    repeated = [question for question in questions for _ in range(ids.shape[1])]
    return tower.tokenizer.encode(repeated, texts, max_length=length)


def scores(
    tower: Tower,
    questions: Sequence[str],
    passages: Passages,
    neighbours: Neighbours,
    search: SearchConfig,
    length: int,
) -> np.ndarray:
    """f(question, passage), float32 [B, K]; -inf where the passage is absent."""
    rows = pairs(tower, questions, passages, neighbours.ids, length)
    values = dense.encoder_of(tower, search, length)(rows)
    values = values.reshape(neighbours.ids.shape)
    return np.where(neighbours.ids >= 0, values, -np.inf)
