"""Batches for contrastive training of retrievers, as pure functions of (seed, step).

`crops` gives two crops of one text (Contriever), `pairs` questions with a positive
passage and hard negatives (DPR). Every epoch sees every window or question once, in a
new order, except for the few that do not fill a last batch. What is drawn for a row
comes from (seed, epoch, example), so that processes can make their own rows alone.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from rlm_jax.data.batching import Batch
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows

TokenRows = Sequence[np.ndarray]
"""int32 token ids of each text, with [CLS] in front and [SEP] at the end."""


def crops(
    split: TokenSplit,
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    batch_size: int,
    window: int = 256,
    crop: tuple[float, float] = (0.05, 0.5),
    deletion: float = 0.1,
    length: int | None = None,
) -> Batches:
    """Two independent crops of one window of a document, with tokens deleted.

    Documents are cut into windows one after another; what is left at the end of a
    document is a window too if it has a quarter of the length. A crop's share of its
    window is uniform in ``crop``, and so is its place.

    Args:
      split: of a token store whose ids are the encoder's.
      cls_id, sep_id, pad_id: put around each crop, and behind it.
      batch_size: B, of the global batch.
      window: tokens of a window.
      crop: smallest and largest share of the window. The paper has 0.05; of the
        released commands one has 0.05 and another 0.1.
      deletion: the probability of a token to be left out of a crop.
      length: T; by default what the largest crop needs. Longer crops are cut.

    Returns:
      `Batches` of query_ids, query_mask, key_ids and key_mask, int32 [B, T], and
      weight, float32 [B].

    Raises:
      UserError: a number out of range, or too little text for one batch.

    Izacard et al. 2022, section 3.1 and appendix A.1.
    """
    smallest, largest = crop
    if not (0 < smallest <= largest <= 1 and 0 <= deletion < 1 and window >= 2):
        raise UserError(
            f"Crops of {smallest} to {largest} of windows of {window} tokens with "
            f"deletion {deletion} are empty: choose shares above 0 and up to 1, 2 "
            "tokens or more, and a deletion below 1."
        )
    length = length or int(window * largest) + 2
    _check_sizes(batch_size, length)
    starts, stops = windows(np.asarray(split.document_offsets), window)

    def draw(rng, start, stop):
        size = max(1, int((stop - start) * rng.uniform(smallest, largest)))
        first = rng.integers(start, stop - size + 1)
        tokens = np.asarray(split.tokens[first : first + size], np.int32)
        kept = tokens[rng.random(size) >= deletion][: length - 2]
        return np.concatenate([[cls_id], kept, [sep_id]])

    def make(seed: int, epoch: int, examples: np.ndarray, rows: np.ndarray) -> Batch:
        sides: tuple[list, list] = [], []
        for example in examples[rows]:
            rng = np.random.default_rng((seed, epoch, example))
            for side in sides:
                side.append(draw(rng, starts[example], stops[example]))
        batch = {"weight": np.ones(len(rows), np.float32)}
        for name, side in zip(("query", "key"), sides, strict=True):
            batch |= padded(name, side, length, pad_id)
        return batch

    return _batches(make, len(starts), batch_size, "windows of text")


def pairs(
    questions: TokenRows,
    lookup: Callable[[np.ndarray], TokenRows],
    positives: Sequence[np.ndarray],
    negatives: np.ndarray | None,
    *,
    batch_size: int,
    hard_negatives: int = 1,
    question_length: int,
    passage_length: int,
    pad_id: int,
    known: int = 8,
) -> Batches:
    """Questions, each with one of its positive passages and h hard negatives.

    Args:
      questions: of Q questions, the token ids.
      lookup: int64 passage numbers [N] -> the token ids of these passages.
      positives: of each question, the numbers of the passages that answer it.
      negatives: int32 [Q, H], numbers of passages that do not (`retrieval.mining`), -1
        = none; or None where h is 0.
      batch_size: B, of the global batch.
      hard_negatives: h. One that is missing has the number -1 and the positive's text.
      question_length, passage_length: longer texts are cut before their last token.
      pad_id: the token behind the shorter ones.
      known: P, how many further positives among the batch's passages are named for a
        question; those beyond it pass for negatives.

    Returns:
      `Batches` of what `methods.dpr.dpr` wants.

    Raises:
      UserError: a question without positives, lengths that do not fit, or too few
        questions for one batch.

    Karpukhin et al. 2020, section 3.2.
    """
    _check_sizes(batch_size, min(question_length, passage_length))
    _check_pairs(questions, positives, negatives, hard_negatives)

    def draw(seed, epoch, question):
        rng = np.random.default_rng((seed, epoch, question))
        drawn = np.full(1 + hard_negatives, -1, np.int64)
        drawn[0] = rng.choice(positives[question])
        if hard_negatives and negatives is not None:
            hard = negatives[question]
            hard = rng.permutation(hard[hard >= 0])[:hard_negatives]
            drawn[1 : 1 + len(hard)] = hard
        return drawn

    def make(seed: int, epoch: int, examples: np.ndarray, rows: np.ndarray) -> Batch:
        # Numbers are drawn for the whole global batch: a row's known positives are
        # those that any of its rows brings.
        passage = np.stack([draw(seed, epoch, question) for question in examples])
        own = passage[rows]
        texts = lookup(np.where(own < 0, own[:, :1], own).reshape(-1))
        passage_side = padded("passage", texts, passage_length, pad_id)
        return {
            **padded(
                "question",
                [questions[question] for question in examples[rows]],
                question_length,
                pad_id,
            ),
            **{
                name: x.reshape(len(rows), -1, passage_length)
                for name, x in passage_side.items()
            },
            "passage": own.astype(np.int32),
            "known": _known(
                own[:, 0], [positives[q] for q in examples[rows]], passage, known
            ),
            "weight": np.ones(len(rows), np.float32),
        }

    return _batches(make, len(questions), batch_size, "questions")


def _known(own, positives, passages, size):
    """int32 [B, P]: each row's positives among ``passages`` besides its own, or -1."""
    present = np.unique(passages)
    known = np.full((len(own), size), -1, np.int32)
    for row, (first, all_of_it) in enumerate(zip(own, positives, strict=True)):
        others = np.intersect1d(all_of_it, present)
        others = others[others != first][:size]
        known[row, : len(others)] = others
    return known


def windows(offsets: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The first position of each window, and the first behind it, int64 [W].

    What is left at the end of a document is a window if it has a quarter of the length.
    """
    sizes = np.diff(offsets)
    counts = sizes // window + (sizes % window >= max(window // 4, 1))
    document = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[document] + within * window
    return starts, np.minimum(starts + window, offsets[document + 1])


def _batches(make, num_examples: int, batch_size: int, noun: str) -> Batches:
    num_batches = num_examples // batch_size
    if num_batches < 1:
        raise UserError(
            f"There are {num_examples} {noun}, too few for one batch of {batch_size}: "
            "lower the batch size."
        )

    # A memo, not state: the order of an epoch is needed again at its every step.
    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(num_examples)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        epoch, index = divmod(step, num_batches)
        examples = order(seed, epoch)[index * batch_size : (index + 1) * batch_size]
        numbers = np.arange(batch_size)
        return make(seed, epoch, examples, numbers if rows is None else numbers[rows])

    return Batches(batch_at, num_examples, num_batches)


def padded(name: str, rows: TokenRows, length: int, pad_id: int) -> Batch:
    """Ids and mask [N, length]; a row that is cut keeps its last token, the [SEP]."""
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        size = min(len(row), length)
        ids[i, :size] = row[:size]
        if size:
            ids[i, size - 1] = row[-1]
        mask[i, :size] = 1
    return {f"{name}_ids": ids, f"{name}_mask": mask}


def _check_sizes(batch_size: int, length: int) -> None:
    if batch_size < 1 or length < 3:
        raise UserError(
            f"A batch of {batch_size} texts of {length} tokens has no room for a word "
            "between its marks: choose a batch of 1 or more and a length of 3 or more."
        )


def _check_pairs(questions, positives, negatives, hard_negatives) -> None:
    if hard_negatives and negatives is None:
        raise UserError(
            f"hard_negatives={hard_negatives} but none were mined; mine some or set it "
            "to 0."
        )
    lengths = {len(questions), len(positives)}
    if negatives is not None:
        lengths.add(len(negatives))
    if len(lengths) > 1:
        raise UserError(
            f"There are {len(questions)} questions, {len(positives)} lists of "
            "positives and negatives of "
            f"{'none' if negatives is None else len(negatives)}; "
            "give as many of each."
        )
    for number, rows in enumerate(positives):
        if not len(rows):
            raise UserError(
                f"Question {number} has no positive passage; leave it out of training."
            )
