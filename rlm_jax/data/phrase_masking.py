"""Batches in which phrases are masked that other sequences of the batch hold (NPM).

A batch is a pure function of (seed, step). Its sequences follow one another in a
document, so that they share names and phrases; spans are drawn anew every epoch.

Source: Min et al. 2023, section 3.2 and appendix A.1, whose released code masks once,
before training (mask_spans.py).
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from rlm_jax.configuration import check_fields
from rlm_jax.data import contrastive
from rlm_jax.data.batching import Batch
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows


@dataclasses.dataclass
class MaskingConfig:
    """Which sequences make a batch, and which of their phrases are masked."""

    length: int = 128  # tokens of a sequence, its marks among them
    # same_document: runs of sequences that follow one another; shuffled: from anywhere
    order: Literal["same_document", "shuffled"] = "same_document"
    sequences_per_run: int = 16  # that are next to each other in the text, of one batch
    share: float = 0.15  # of the tokens, masked at most
    stop: float = 0.5  # a phrase ends after each token with this probability
    longest: int = 10  # tokens of a phrase
    most_times: int = 10  # that a batch masks one phrase
    punctuation: float = 0.1  # of phrases without a letter, this share is masked


Form = Literal["phrase", "token", "each"]
"""What stands for a span: two masks (NPM), one mask for its one token (NPM-single), or
a mask for each of its tokens (a masked language model)."""


class Span(NamedTuple):
    """``size`` tokens of a sequence from ``start`` on."""

    start: int
    size: int


class PhraseMasking:
    """Sequences of some documents, with phrases masked; `batches` gives them."""

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        tokenizer: ClozeTokenizer,
        config: MaskingConfig,
        *,
        batch_size: int,
    ):
        """Cuts the documents into sequences.

        Args:
          tokens: int [N], without marks.
          offsets: int64 [documents + 1]; no sequence has tokens of two documents.
          tokenizer: whose tokens they are.
          batch_size: sequences of the global batch.

        Raises:
          UserError: a number out of range, or too little text for one batch.
        """
        _check(config, batch_size)
        self.tokens, self.tokenizer, self.config = tokens, tokenizer, config
        self.room = config.length - 2
        self.starts, self.stops = contrastive.windows(offsets, self.room)
        self.batch_size = batch_size
        run = config.sequences_per_run if config.order == "same_document" else 1
        self.run = run
        self.num_batches = len(self.starts) // run * run // batch_size
        if not self.num_batches:
            raise UserError(
                f"The text has {len(self.starts)} sequences of {config.length} tokens, "
                f"too few for a batch of {batch_size} in runs of {run}; give more "
                "text, or lower batch_size or masking.sequences_per_run."
            )

    def batches(self, form: Form) -> Batches:
        """The batches that `methods.npm.npm` takes, or `methods.masked_lm.masked_lm`.

        All forms mask the same phrases (but "token", whose phrases have one token).
        """

        def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
            texts, spans = self.drawn(seed, step, single=form == "token")
            chosen = np.arange(len(texts))[slice(None) if rows is None else rows]
            texts, spans = [texts[i] for i in chosen], [spans[i] for i in chosen]
            make = self._each if form == "each" else self._phrases
            return make(texts, spans, form) | {
                "weight": np.ones(len(texts), np.float32)
            }

        return Batches(batch_at, len(self.starts), self.num_batches)

    def drawn(
        self, seed: int, step: int, *, single: bool = False
    ) -> tuple[list[np.ndarray], list[list[Span]]]:
        """The sequences of a whole batch, without marks, and what is masked in them."""
        epoch, index = divmod(step, self.num_batches)
        order = self._order(seed, epoch)
        examples = order[index * self.batch_size : (index + 1) * self.batch_size]
        texts = [
            np.asarray(self.tokens[self.starts[i] : self.stops[i]], np.int32)
            for i in examples
        ]
        longest = 1 if single else self.config.longest
        allowed, grams = shared_phrases(texts, self.tokenizer, longest)
        rng = np.random.default_rng((seed, epoch, index, 1))
        return texts, self._draw(texts, allowed, grams, rng)

    def shares(self, seed: int = 0, count: int = 8) -> dict[str, float]:
        """What the first batches hold, for a report.

        "masked": the share of tokens that are masked; "with_positive": of positions at
        which a phrase begins that another sequence of the batch holds as well.
        """
        counts: Counter[str] = Counter()
        for step in range(min(count, self.num_batches)):
            texts, spans = self.drawn(seed, step)
            allowed, _ = shared_phrases(texts, self.tokenizer, 1)
            counts["tokens"] += sum(map(len, texts))
            counts["with_positive"] += int(allowed.sum())
            counts["masked"] += sum(span.size for row in spans for span in row)
        names = ("masked", "with_positive")
        return {name: counts[name] / counts["tokens"] for name in names}

    @functools.lru_cache(maxsize=2)  # noqa: B019, a masking lives as long as its run
    def _order(self, seed: int, epoch: int) -> np.ndarray:
        runs = np.random.default_rng((seed, epoch)).permutation(
            len(self.starts) // self.run
        )
        return (runs[:, None] * self.run + np.arange(self.run)).reshape(-1)

    def _draw(self, texts, allowed, grams, rng) -> list[list[Span]]:
        """Spans of each text in turn, as its share and `allowed` let them be."""
        config, times = self.config, Counter()
        plain = ~self.tokenizer.punctuation
        drawn = []
        for row, text in enumerate(texts):
            left = round(config.share * len(text))
            wanted = np.minimum(rng.geometric(config.stop, len(text)), config.longest)
            sizes = np.zeros(len(text), int)
            for size in range(1, len(allowed) + 1):
                # The longest phrase that was drawn or is shorter, and is shared.
                fits = allowed[size - 1, row, : len(text)] & (size <= wanted)
                sizes[fits] = size
            taken = np.zeros(len(text), bool)
            spans = []
            for start in rng.permutation(np.flatnonzero(sizes)).tolist():
                size = int(sizes[start])
                if size > left or taken[start : start + size].any():
                    continue
                phrase = size, int(grams[size - 1, row, start])
                if times[phrase] >= config.most_times:
                    continue
                if not plain[text[start : start + size]].any():
                    if rng.random() >= config.punctuation:
                        continue
                taken[start : start + size] = True
                times[phrase] += 1
                left -= size
                spans.append(Span(start, size))
            drawn.append(sorted(spans))
        return drawn

    @property
    def _most(self) -> int:
        return max(1, round(self.config.share * self.room))

    def _marked(self, rows: list[np.ndarray], name: str = "") -> Batch:
        """Rows between their marks, cut at the length: ids and mask int32 [B, L]."""
        marks = self.tokenizer.text
        whole = [
            np.concatenate([[marks.cls_id], row[: self.room], [marks.sep_id]])
            for row in rows
        ]
        batch = contrastive.padded("", whole, self.config.length, marks.pad_id)
        return {f"{name}{key.removeprefix('_')}": x for key, x in batch.items()}

    def _phrases(self, texts, spans, form: Form) -> Batch:
        """What NPM takes. Phrases whose masks do not fit into their row stay."""
        masks = 2 if form == "phrase" else 1
        longest = self.config.longest if form == "phrase" else 1
        shape = len(texts), self._most
        at, span_mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        phrases = np.full((*shape, longest), -1, np.int32)
        masked = []
        for row, (text, own) in enumerate(zip(texts, spans, strict=True)):
            parts, end, length = [], 0, 0
            for place, (start, size) in enumerate(own):
                length += start - end
                if length + masks > self.room:
                    break
                parts += [text[end:start], [self.tokenizer.text.mask_id] * masks]
                at[row, place], span_mask[row, place] = 1 + length, 1
                phrases[row, place, :size] = text[start : start + size]
                length, end = length + masks, start + size
            masked.append(np.concatenate([*parts, text[end:]]).astype(np.int32))
        batch = self._marked(texts) | self._marked(masked, "masked_")
        return batch | {"at": at, "spans": phrases, "span_mask": span_mask}

    def _each(self, texts, spans, form: Form) -> Batch:
        """What a masked language model takes."""
        shape = len(texts), self._most
        at, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask, masked = np.zeros(shape, np.float32), []
        for row, (text, own) in enumerate(zip(texts, spans, strict=True)):
            places = np.array([s + i for s, size in own for i in range(size)], int)
            count = len(places)
            at[row, :count], targets[row, :count] = 1 + places, text[places]
            mask[row, :count] = 1
            masked.append(text.copy())
            masked[-1][places] = self.tokenizer.text.mask_id
        names = {"at": at, "targets": targets, "target_mask": mask}
        return self._marked(masked) | names


def shared_phrases(
    texts: list[np.ndarray], tokenizer: ClozeTokenizer, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where phrases begin that another text of the list holds as well.

    A phrase begins where a word does, and ends where one ends; its tokens are equal in
    the other text, whatever stands around them there.

    Args:
      texts: int32 [n] each.
      longest: tokens of a phrase.

    Returns:
      (allowed bool [longest, B, L], grams int64 of that shape): whether the phrase of
      1, 2, ... tokens from here on may be masked, and its number, by which equal
      phrases are told.
    """
    length = max(map(len, texts))
    rows = np.full((len(texts), length + longest), -1, np.int64)
    for row, text in enumerate(texts):
        rows[row, : len(text)] = text
    inside = np.append(tokenizer.inside, False)  # -1, behind the end, is no word's part
    barred = np.append(tokenizer.special, True)
    goes_on = inside[rows]
    shape = longest, len(texts), length
    allowed, grams = np.zeros(shape, bool), np.full(shape, -1, np.int64)
    # Only what is shared can be the beginning of a longer phrase that is.
    at = np.argwhere(~barred[rows[:, :length]])
    keys = rows[at[:, 0], at[:, 1]]
    for size in range(1, longest + 1):
        if not len(at):
            break
        _, numbers = np.unique(keys, return_inverse=True)
        numbers = numbers.reshape(-1)
        count = numbers.max() + 1
        first, last = np.full(count, len(texts)), np.full(count, -1)
        np.minimum.at(first, numbers, at[:, 0])
        np.maximum.at(last, numbers, at[:, 0])
        kept = (first < last)[numbers]
        at, numbers = at[kept], numbers[kept]
        row, start = at.T
        grams[size - 1, row, start] = numbers
        allowed[size - 1, row, start] = (
            ~goes_on[row, start] & ~goes_on[row, start + size]
        )
        following = rows[row, start + size]
        kept = ~barred[following]
        at = at[kept]
        keys = numbers[kept] * (len(inside) + 1) + following[kept]
    return allowed, grams


def documents(titles: Iterator[str], offsets: np.ndarray) -> np.ndarray:
    """Where documents begin, int64 [documents + 1]: runs of passages of one title.

    Args:
      titles: of N passages, in order.
      offsets: int64 [N + 1], where the passages begin.
    """
    bounds, previous = [], None
    for number, title in enumerate(titles):
        if title != previous:
            bounds.append(number)
        previous = title
    return np.asarray(offsets)[[*bounds, len(offsets) - 1]]


def _check(config: MaskingConfig, batch_size: int) -> None:
    check_fields(config, "masking")
    c = config
    if not (
        c.length >= 4 and c.sequences_per_run >= 1 and c.longest >= 1
        and 0 < c.share <= 0.5 and 0 < c.stop <= 1 and c.most_times >= 1
        and 0 <= c.punctuation <= 1
    ):  # fmt: skip
        raise UserError(
            f"Phrases cannot be masked with {c}: choose a length of 4 or more, a share "
            "above 0 and up to 0.5, stop above 0, and counts of 1 or more."
        )
    run = c.sequences_per_run if c.order == "same_document" else 1
    if batch_size < 2 or batch_size % run:
        raise UserError(
            f"A batch of {batch_size} sequences is not made of runs of {run}: set "
            "batch_size to 2 or more and a multiple of masking.sequences_per_run."
        )
