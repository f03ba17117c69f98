"""The inverse cloze task: which block has lost this sentence?

A sentence of a block asks, and the rest of the block is the passage that answers; with
probability 0.1 the sentence stays there, so that matching words is learnt as well (Lee
et al. 2019, ORQA, section 5). It warms up retrievers that have no questions yet, such
as REALM's; the batches are `methods.dpr`'s.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.data.batching import Batch
from rlm_jax.data.passages import Passage
from rlm_jax.data.salient_spans import sentences
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows

KEEP = 0.1

Encode = Callable[[Sequence[Passage]], Sequence[np.ndarray]]


def draw(
    rng: np.random.Generator, passage: Passage, *, keep: float = KEEP
) -> tuple[str, Passage] | None:
    """(a sentence, its block), the sentence removed from it unless it is kept.

    None where a block of one sentence would lose it: nothing would be left (the
    released code drops these too).
    """
    spans = sentences(passage.text)
    if not spans:
        return None
    start, stop = spans[rng.integers(len(spans))]
    stays = rng.random() < keep
    sentence = passage.text[start:stop].strip()
    if stays:
        return sentence, passage
    if len(spans) < 2:
        return None
    rest = f"{passage.text[:start].rstrip()} {passage.text[stop:].lstrip()}".strip()
    return sentence, passage._replace(text=rest)


def batches(
    passages: Sequence[Passage],
    questions: Callable[[Sequence[str]], Sequence[np.ndarray]],
    blocks: Encode,
    *,
    batch_size: int,
    question_length: int,
    passage_length: int,
    pad_id: int,
    keep: float = KEEP,
) -> Batches:
    """Blocks in a new order every epoch, each asked for by one of its sentences.

    Args:
      passages: the blocks; those of one sentence are drawn, and count only when it is
        kept.
      questions: sentences -> the tokens of each.
      blocks: passages -> the tokens of each.
      batch_size: B, of the global batch.
      question_length, passage_length: T of either.
      pad_id: what fills up.
      keep: the probability that a sentence stays in its block.

    Returns:
      `Batches` of what `methods.dpr` reads, without hard negatives.

    Raises:
      UserError: a probability out of range, or too few blocks for one batch.
    """
    if not 0 <= keep <= 1:
        raise UserError(f"keep is {keep}; choose a probability.")
    count = len(passages) // batch_size if batch_size > 0 else 0
    if count < 1:
        raise UserError(
            f"{len(passages)} blocks make no batch of {batch_size}: choose another "
            "batch size."
        )

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(passages))

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        epoch, index = divmod(step, count)
        places = order(seed, epoch)[index * batch_size : (index + 1) * batch_size]
        places = places if rows is None else places[rows]
        asked, given, weight = [], [], []
        for place in places.tolist():
            rng = np.random.default_rng((seed, epoch, place))
            drawn = draw(rng, passages[place], keep=keep)
            asked.append(drawn[0] if drawn else "")
            given.append(drawn[1] if drawn else passages[place])
            weight.append(float(drawn is not None))
        padded = contrastive.padded(
            "question", list(questions(asked)), question_length, pad_id
        ) | contrastive.padded("passage", list(blocks(given)), passage_length, pad_id)
        return padded | {
            "passage_ids": padded["passage_ids"][:, None],
            "passage_mask": padded["passage_mask"][:, None],
            "passage": places.astype(np.int32)[:, None],
            "weight": np.asarray(weight, np.float32),
        }

    return Batches(batch_at, len(passages), count)
