"""What a reader and its retriever learn from together: questions, or texts alone.

A problem is what is asked, what is to be written, and which passages would give it
away. Questions with answers make problems, and so do the passages themselves: spans of
a passage are hidden (`data.spans.masked`), or its second half (`data.spans.divided`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rlm_jax.data import passage_tokens, reader_batches, spans
from rlm_jax.data.batching import Batch
from rlm_jax.data.collections import Collection
from rlm_jax.data.passage_tokens import PassageTokens
from rlm_jax.data.passages import Passages
from rlm_jax.data.question_files import BLANK
from rlm_jax.data.reader_tokens import ReaderTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows

Kind = Literal["questions", "spans", "prefix"]
LeftOut = Literal["nothing", "own", "title"]

Evidence = Callable[[Collection, np.ndarray], Sequence[np.ndarray]]

JUDGED = 1 << 20
"""Seed of the passages by which training on texts is judged, and of what they hide."""


class Lengths(NamedTuple):
    """Tokens of a row, question and passage, and of an answer with its end."""

    passage: int
    target: int


class Problems(NamedTuple):
    """B problems in tokens."""

    texts: list[str]  # what a retriever is asked
    prefixes: list[np.ndarray]  # what stands before each passage that is read
    targets: list[np.ndarray]
    own: list[np.ndarray]  # rows of the passages that would give the answer away

    def at(self, places: np.ndarray) -> "Problems":
        """Some of them."""
        return Problems(*([x[i] for i in places] for x in self))

    def batch(
        self,
        tokenizer: ReaderTokenizer,
        tokens: PassageTokens,
        ids: np.ndarray,
        lengths: Lengths,
    ) -> Batch:
        """The reader's batch beside passages, int32 [B, K]; K = 0: closed book."""
        made = reader_batches.assemble(
            tokenizer,
            tokens,
            self.prefixes,
            ids,
            self.targets,
            passage_length=lengths.passage,
            target_length=lengths.target,
        )
        return made | {"weight": np.ones(len(self.texts), np.float32)}


class Source(NamedTuple):
    """Problems without end, as a function of seed and step."""

    at: Callable[..., Problems]
    """``at(seed, step, rows=None)`` -> the problems of a batch, or some of its rows."""
    judged: Problems  # those by which training is judged, the same at every step
    tokens: PassageTokens
    tokenizer: ReaderTokenizer
    lengths: Lengths
    num_problems: int
    num_batches: int
    most_own: int  # of one problem

    def beside(
        self, retriever: Callable[[Sequence[str], np.ndarray], Batch]
    ) -> "BatchOf":
        """What a reader and its retriever read of problems and passages.

        Args:
          retriever: (texts, int32 [B, K]) -> what it reads of them.
        """

        def batch_of(drawn: Problems, ids: np.ndarray) -> Batch:
            made = drawn.batch(self.tokenizer, self.tokens, ids, self.lengths)
            return {**made, **retriever(drawn.texts, ids)}

        return batch_of

    def closed_book(self) -> Batches:
        """The same problems, each read alone."""

        def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
            drawn = self.at(seed, step, rows)
            nothing = np.zeros((len(drawn.texts), 0), np.int32)
            return drawn.batch(self.tokenizer, self.tokens, nothing, self.lengths)

        return Batches(batch_at, self.num_problems, self.num_batches)


BatchOf = Callable[[Problems, np.ndarray], Batch]
"""(problems, int32 [B, K] that they read) -> the batch of reader and retriever."""


def of_questions(
    training: Collection,
    validation: Collection,
    tokenizer: ReaderTokenizer,
    lengths: Lengths,
    *,
    batch_size: int,
    num_judged: int,
    evidence: Evidence | None,
) -> Source:
    """Questions with answers, in a new order every epoch.

    Args:
      training, validation: the splits, over the same passages.
      num_judged: questions of the validation split by which training is judged.
      evidence: (collection, numbers of questions) -> the rows of the passages that are
        known to answer each, which are then not read; None: they may be.

    Raises:
      UserError: as `reader_batches.rows` and `draws`, or passages to leave out that no
        question has.
    """
    tokens = passage_tokens.build(
        training.passages, tokenizer, max_length=lengths.passage
    )

    def asked(collection: Collection, count: int | None):
        every = collection.questions.questions
        numbers = [i for i, question in enumerate(every) if question.answers][:count]
        own = [np.zeros(0, np.int32)] * len(numbers)
        if evidence is not None:
            own = list(evidence(collection, np.asarray(numbers, np.int32)))
            if not any(map(len, own)):
                raise UserError(
                    "No question has a passage that is known to answer it, so none can "
                    "be left out: set left_out to nothing, or give questions with their"
                    " passages."
                )
        rows = reader_batches.rows(
            tokenizer,
            [every[number] for number in numbers],
            np.zeros((len(numbers), 0), np.int32),
            tokens,
            passage_length=lengths.passage,
            target_length=lengths.target,
        )
        return rows, own

    def problems(rows, own, places, targets) -> Problems:
        return Problems(
            [rows.questions[place].text.replace(BLANK, " ") for place in places],
            [rows.prefixes[place] for place in places],
            targets,
            [own[place] for place in places],
        )

    rows, own = asked(training, None)
    drawn = reader_batches.draws(rows, batch_size=batch_size)
    held_out, held_own = asked(validation, num_judged)
    nothing = np.zeros(0, np.int32)
    firsts = [x[0] if x else nothing for x in held_out.targets]
    return Source(
        lambda seed, step, rows_=None: problems(
            rows, own, *drawn.at(seed, step, rows_)
        ),
        problems(held_out, held_own, range(len(held_out)), firsts),
        tokens,
        tokenizer,
        lengths,
        drawn.num_questions,
        drawn.num_batches,
        max(map(len, own)),
    )


def of_texts(
    kind: Literal["spans", "prefix"],
    passages: Passages,
    tokenizer: ReaderTokenizer,
    lengths: Lengths,
    *,
    batch_size: int,
    num_judged: int,
    left_out: LeftOut,
    text_length: int,
) -> Source:
    """The passages themselves, in a new order every epoch.

    What is hidden of a passage is drawn anew every epoch. The passage itself is never
    read; with "title" no other of its title is. Those by which training is judged are
    not trained on.

    Args:
      kind: "spans" are hidden, or the rest of a "prefix".
      text_length: tokens of a passage from which problems are made.

    Raises:
      UserError: a passage may not be read for its own problem, lengths without room, or
        too few passages for a batch.
    """
    if left_out == "nothing":
        raise UserError(
            "A passage would give away what is hidden of it: set left_out to own, or "
            "to title."
        )
    tokens = passage_tokens.build(passages, tokenizer, max_length=lengths.passage)
    sizes = np.array([min(len(tokens[i]), text_length) for i in range(len(tokens))])
    usable = np.flatnonzero(sizes >= 8)
    judged = np.random.default_rng(JUDGED).permutation(usable)[:num_judged]
    usable = np.setdiff1d(usable, judged)
    count = len(usable) // batch_size if batch_size > 0 else 0
    if count < 1:
        raise UserError(
            f"{len(usable)} passages of 8 tokens or more make no batch of {batch_size}:"
            " choose another batch size."
        )
    siblings = siblings_of(passages) if left_out == "title" else None

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(usable)

    def hidden(seed: int, epoch: int, place: int) -> spans.Hidden:
        ids = tokens[place][:text_length]
        if kind == "prefix":
            return spans.divided(ids)
        return spans.masked(np.random.default_rng((seed, epoch, place)), ids, tokenizer)

    def problems(seed: int, epoch: int, places: Sequence[int]) -> Problems:
        made = [hidden(seed, epoch, place) for place in places]
        own = siblings or (lambda place: np.array([place], np.int32))
        return Problems(
            [tokenizer.decode(x.kept) for x in made],
            [_prefix(tokenizer, x.read, lengths.passage) for x in made],
            [_target(tokenizer, x.target, lengths.target) for x in made],
            [own(place) for place in places],
        )

    def at(seed: int, step: int, rows: Rows | None = None) -> Problems:
        epoch, index = divmod(step, count)
        places = order(seed, epoch)[index * batch_size : (index + 1) * batch_size]
        return problems(
            seed, epoch, (places if rows is None else places[rows]).tolist()
        )

    return Source(
        at,
        problems(JUDGED, 0, judged.tolist()),
        tokens,
        tokenizer,
        lengths,
        len(usable),
        count,
        1 if siblings is None else max(len(siblings(i)) for i in range(len(passages))),
    )


def _prefix(tokenizer: ReaderTokenizer, ids: np.ndarray, length: int) -> np.ndarray:
    """A text with what is hidden, as a question's tokens stand before a passage."""
    if tokenizer.layout == "t5":
        return ids[:length]
    whole = [tokenizer.start_id, *ids[: length - 2].tolist(), tokenizer.end_id]
    return np.asarray(whole, np.int32)


def _target(tokenizer: ReaderTokenizer, ids: np.ndarray, length: int) -> np.ndarray:
    """What is hidden and the end, or as much of it as fits."""
    whole = np.append(ids, tokenizer.end_id)
    return whole[:length].astype(np.int32)


def siblings_of(passages: Passages) -> Callable[[int], np.ndarray]:
    """Row -> the rows of its title, itself alone where it has none."""
    by_title: dict[str, list[int]] = {}
    titles = [passage.title for passage in passages]
    for row, title in enumerate(titles):
        if title:
            by_title.setdefault(title, []).append(row)

    def rows(row: int) -> np.ndarray:
        return np.asarray(by_title.get(titles[row], [row]), np.int32)

    return rows
