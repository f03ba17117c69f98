"""Sentences with a salient span masked, alone and beside documents: REALM's examples.

Guu et al. 2020, section 3.4: one span of a passage is drawn, the sentence that it
stands in is what is asked, and each token of the span is masked there. The batches are
`methods.realm`'s.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.data.batching import Batch
from rlm_jax.data.passages import Passage
from rlm_jax.data.salient_spans import Rule, salient, sentences
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Rows

JUDGED = 1 << 20
"""Seed of the sentences by which training is judged."""


class MaskedSentence(NamedTuple):
    """A sentence with marks, and what they hide."""

    text: str
    ids: np.ndarray  # int32 [n], between the encoder's marks
    positions: np.ndarray  # int32 [M], of the masks among them
    targets: np.ndarray  # int32 [M]


def draw(
    rng: np.random.Generator,
    text: str,
    rules: Sequence[Rule],
    tokenizer: TextTokenizer,
    *,
    length: int,
    most: int = 10,
) -> MaskedSentence | None:
    """A random salient span of a text, masked in its sentence.

    None where the text has no such span, or none of at most ``most`` tokens that fits.

    Args:
      rng: which span.
      text: of a passage.
      rules: what is salient.
      length: tokens of a sentence with its marks; of a longer one its middle, around
        the span, is read.
      most: tokens of a span; REALM: 10.
    """
    spans = salient(text, rules)
    if not spans:
        return None
    start, stop = spans[rng.integers(len(spans))]
    inside = (x for x in sentences(text) if x[0] <= start and stop <= x[1])
    first, last = next(inside, (start, stop))
    (hidden,) = tokenizer.encode([text[start:stop]], max_length=most + 3)
    hidden = hidden[1:-1]
    if not 0 < len(hidden) <= most or len(hidden) > length - 2:
        return None
    marks = " ".join([tokenizer.mask_token] * len(hidden))
    before, after = text[first:start].split(), text[stop:last].split()
    while True:
        # What touches the span, such as a full stop, is a token of its own anyway.
        masked = " ".join([*before, marks, *after])
        (ids,) = tokenizer.encode([masked], max_length=length)
        positions = np.flatnonzero(ids == tokenizer.mask_id)
        if len(positions) == len(hidden):
            break
        if not before and not after:
            return None  # the text itself has a mask
        before = before[-(len(before) // 2) :] if len(before) > 1 else []
        after = after[: len(after) // 2]
    as_ids = lambda x: np.asarray(x, np.int32)
    return MaskedSentence(masked, as_ids(ids), as_ids(positions), as_ids(hidden))


def batch(
    asked: Sequence[MaskedSentence | None],
    documents: Sequence[Sequence[np.ndarray | None]],
    tokenizer: TextTokenizer,
    *,
    sentence_length: int,
    document_length: int,
    most: int = 10,
) -> Batch:
    """B sentences beside the null document and K - 1 others.

    Args:
      asked: B sentences; None: a row of weight 0.
      documents: of each sentence the tokens of K - 1 passages between the encoder's
        marks, best first; None: there is none.
      sentence_length, document_length: T and T'; [x; z] has T + T' tokens.
      most: M.
    """
    null = np.array([tokenizer.cls_id, tokenizer.sep_id], np.int32)
    nothing = MaskedSentence("", null, np.zeros(0, np.int32), np.zeros(0, np.int32))
    given = [sentence or nothing for sentence in asked]
    rows, number = len(given), len(documents[0]) + 1
    alone = [[null, *(null if z is None else z for z in row)] for row in documents]
    width = sentence_length + document_length
    shape = rows, number, width
    ids = np.full(shape, tokenizer.pad_id, np.int32)
    mask, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    present = np.ones((rows, number), bool)
    positions, targets, target_mask = (np.zeros((rows, most), np.int32) for _ in "123")
    for b, sentence in enumerate(given):
        count = len(sentence.positions)
        positions[b, :count], targets[b, :count] = sentence.positions, sentence.targets
        target_mask[b, :count] = 1
        for k, document in enumerate(alone[b]):
            present[b, k] = k == 0 or documents[b][k - 1] is not None
            # [CLS] x [SEP] z [SEP]: of z its first mark goes.
            rest = document[1 : document_length + 1]
            size = len(sentence.ids) + len(rest)
            ids[b, k, :size] = np.concatenate([sentence.ids, rest])
            mask[b, k, :size] = present[b, k]
            types[b, k, len(sentence.ids) : size] = 1
    flat = [row for per in alone for row in per]
    padded = contrastive.padded("candidate", flat, document_length, tokenizer.pad_id)
    return {
        **contrastive.padded(
            "query", [x.ids for x in given], sentence_length, tokenizer.pad_id
        ),
        **{n: x.reshape(rows, number, -1) for n, x in padded.items()},
        "passage_ids": ids,
        "passage_mask": mask,
        "passage_types": types,
        "positions": positions,
        "targets": targets,
        "target_mask": target_mask.astype(np.float32),
        "present": present,
        "weight": np.array([x is not None for x in asked], np.float32),
    }


class Sentences(NamedTuple):
    """What is drawn of a collection; see `of_passages`."""

    at: Callable[..., tuple[np.ndarray, list[MaskedSentence | None]]]
    """``at(seed, step, rows=None)`` -> (rows of passages, the sentence of each)."""
    judged: tuple[np.ndarray, list[MaskedSentence]]
    num_passages: int
    num_batches: int


def of_passages(
    passages: Sequence[Passage],
    rules: Sequence[Rule],
    tokenizer: TextTokenizer,
    *,
    batch_size: int,
    num_judged: int,
    length: int,
    most: int = 10,
) -> Sentences:
    """Passages in a new order every epoch, a span of each drawn anew.

    Args:
      batch_size: B, of the global batch.
      num_judged: sentences by which training is judged; their passages teach nothing.
      rules, length, most: as for `draw`.

    Raises:
      UserError: too few passages for a batch, or none with a salient span to judge by.
    """

    def sentence(seed: int, epoch: int, place: int) -> MaskedSentence | None:
        rng = np.random.default_rng((seed, epoch, place))
        text = passages[place].text
        return draw(rng, text, rules, tokenizer, length=length, most=most)

    mixed = np.random.default_rng(JUDGED).permutation(len(passages))
    held_out: list[tuple[int, MaskedSentence]] = []
    for place in mixed.tolist():
        if len(held_out) == num_judged:
            break
        made = sentence(JUDGED, 0, place)
        held_out += [(place, made)] if made else []
    usable = np.setdiff1d(mixed, [place for place, _ in held_out])
    count = len(usable) // batch_size if batch_size > 0 else 0
    if count < 1 or (num_judged and not held_out):
        raise UserError(
            f"{len(usable)} passages beside {len(held_out)} with salient spans to judge"
            f" by make no batch of {batch_size}: choose a smaller batch size, or other "
            "passages."
        )

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(usable)

    def at(seed: int, step: int, rows: Rows | None = None):
        epoch, index = divmod(step, count)
        places = order(seed, epoch)[index * batch_size : (index + 1) * batch_size]
        places = places if rows is None else places[rows]
        return places, [sentence(seed, epoch, place) for place in places.tolist()]

    judged = np.array([x for x, _ in held_out], np.int32), [x for _, x in held_out]
    return Sentences(at, judged, len(usable), count)
