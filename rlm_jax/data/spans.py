"""Texts without labels made into what a reader can learn: masked spans, continuations.

`masked` is T5's corruption of spans (Raffel et al. 2020, section 3.1.4): 15% of the
tokens are hidden in spans of 3 on average, each span becomes a sentinel, and the target
names each sentinel before what it hides. `divided` is prefix language modelling: the
target is how a text goes on. Izacard et al. 2022, section 2.3, train Atlas by either.
"""

from typing import NamedTuple

import numpy as np

from rlm_jax.data.reader_tokens import ReaderTokenizer
from rlm_jax.errors import UserError


class Hidden(NamedTuple):
    """What is read, and what is to be written of it; int32, without marks at the ends.

    ``kept`` are the tokens that are read without the sentinels: what a retriever, which
    has none, is asked with.
    """

    read: np.ndarray
    target: np.ndarray
    kept: np.ndarray


def masked(
    rng: np.random.Generator,
    tokens: np.ndarray,
    tokenizer: ReaderTokenizer,
    *,
    density: float = 0.15,
    mean_length: float = 3.0,
) -> Hidden:
    """Spans hidden at random, at least one token and never all.

    The target is sentinel 0, span 0, sentinel 1, span 1 ...; T5's own has one more
    sentinel at its end, where here the end mark stands. Sentinels are those of
    `ReaderTokenizer.hidden_marks`.

    Args:
      rng: what is hidden.
      tokens: int32 [n] of one text, n of 2 or more.
      density: the share of tokens that are hidden.
      mean_length: tokens of a span.

    Raises:
      UserError: a density or a length out of range, or a text of fewer than 2 tokens.
    """
    if not 0 < density < 1 or mean_length < 1:
        raise UserError(
            f"Spans of {mean_length} tokens that hide {density} of a text are none: "
            "choose a density between 0 and 1, and a length of 1 or more."
        )
    if len(tokens) < 2:
        raise UserError(
            f"A text of {len(tokens)} tokens has nothing to hide beside what is read: "
            "leave it out."
        )
    hidden = spans_at_random(rng, len(tokens), density, mean_length)
    marks = tokenizer.hidden_marks(int(hidden.max()) + 1)
    read: list[int] = []
    target: list[int] = []
    last = -1
    for token, span in zip(tokens.tolist(), hidden.tolist(), strict=True):
        if span < 0:
            read.append(token)
        else:
            if span != last:
                read.append(int(marks[span]))
                target.append(int(marks[span]))
            target.append(token)
        last = span
    as_ids = lambda ids: np.asarray(ids, np.int32)
    return Hidden(as_ids(read), as_ids(target), as_ids(tokens[hidden < 0]))


def spans_at_random(
    rng: np.random.Generator, length: int, density: float, mean_length: float
) -> np.ndarray:
    """int32 [length]: the number of the span that hides each token; -1 = none.

    The hidden tokens are divided into spans, each division with equal probability, and
    the spans put between what is read, no two at one place. (T5's code puts one at the
    very end always, which of a short text hides the end alone.)
    """
    num_hidden = min(max(round(length * density), 1), length - 1)
    num_read = length - num_hidden
    num_spans = min(max(round(num_hidden / mean_length), 1), num_read + 1)
    cuts = 1 + np.sort(rng.choice(num_hidden - 1, num_spans - 1, replace=False))
    sizes = np.diff([0, *cuts, num_hidden])
    # How many tokens are read before each span.
    before = np.sort(rng.choice(num_read + 1, num_spans, replace=False))
    between = np.diff([0, *before, num_read])
    numbers = np.stack([np.full(num_spans, -1), np.arange(num_spans)], axis=1)
    counts = np.stack([between[:-1], sizes], axis=1)
    hidden = np.full(length, -1, np.int32)
    filled = np.repeat(numbers.ravel(), counts.ravel())
    hidden[: len(filled)] = filled
    return hidden


def divided(tokens: np.ndarray, share: float = 0.5) -> Hidden:
    """A text's beginning, to be read, and the rest, to be written.

    Args:
      tokens: int32 [n] of one text, n of 2 or more.
      share: of it that is read; Atlas: a half.

    Raises:
      UserError: a share out of range, or a text of fewer than 2 tokens.
    """
    if not 0 < share < 1 or len(tokens) < 2:
        raise UserError(
            f"A text of {len(tokens)} tokens has no beginning of {share} of it beside "
            "an end: choose a share between 0 and 1, and texts of 2 tokens or more."
        )
    cut = min(max(round(len(tokens) * share), 1), len(tokens) - 1)
    first, rest = (x.astype(np.int32) for x in (tokens[:cut], tokens[cut:]))
    return Hidden(first, rest, first)
