"""Batches for a reader: B questions, each beside K passages, and an answer to learn.

  passage_ids    int32 [B, K, T]   a question beside each passage (`reader_tokens`)
  passage_mask   int32 [B, K, T]   1 = a token; an absent passage is 0 throughout
  targets        int32 [B, L]      an answer and the end mark, then padding
  target_mask    int32 [B, L]      1 = this token counts
  weight         float32 [B]       0 = a row that only fills the last batch
  question       int32 [B]         its place among the questions, -1 where weight is 0

A reader without passages (closed book) has K = 1, and its row holds the question alone;
so does the first row of a question for which nothing was found.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.batching import Batch
from rlm_jax.data.passage_tokens import PassageTokens
from rlm_jax.data.question_files import Question
from rlm_jax.data.reader_tokens import ReaderTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows


@dataclass(frozen=True)
class ReaderRows:
    """N questions in tokens, with what they read; `rows` makes them.

    Attributes:
      questions: as they are named, for messages.
      passage_length: T.
      target_length: L.
      targets: of each question the answers that fit into L; there may be none.
      facts: for the report: how many answers and questions are too long.
    """

    questions: tuple[Question, ...]
    passage_length: int
    target_length: int
    targets: tuple[tuple[np.ndarray, ...], ...]
    facts: dict[str, int]
    _tokenizer: ReaderTokenizer = field(repr=False)
    _prefixes: list[np.ndarray] = field(repr=False)
    _ids: np.ndarray = field(repr=False)  # int32 [N, K]
    _passages: PassageTokens = field(repr=False)

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def prefixes(self) -> list[np.ndarray]:
        """What stands before each question's passages, in tokens."""
        return self._prefixes

    def beside(self, ids: np.ndarray) -> "ReaderRows":
        """The same questions beside other passages, int32 [N, K]."""
        return dataclasses.replace(self, _ids=np.asarray(ids, np.int32))

    def batch(self, places: np.ndarray, targets: Sequence[np.ndarray]) -> Batch:
        """The rows of some questions.

        Args:
          places: int [B], of the questions; -1 fills up, with weight 0.
          targets: of each the tokens of an answer; none where nothing is to be learnt.
        """
        filled = np.maximum(places, 0)  # whatever it is, the weight is 0
        made = assemble(
            self._tokenizer,
            self._passages,
            [self._prefixes[place] for place in filled],
            self._ids[filled],
            targets,
            passage_length=self.passage_length,
            target_length=self.target_length,
        )
        made["target_mask"][places < 0] = 0
        return {
            **made,
            "weight": (places >= 0).astype(np.float32),
            "question": places.astype(np.int32),
        }


def assemble(
    tokenizer: ReaderTokenizer,
    passages: PassageTokens,
    prefixes: Sequence[np.ndarray],
    ids: np.ndarray,
    targets: Sequence[np.ndarray],
    *,
    passage_length: int,
    target_length: int,
) -> Batch:
    """passage_ids, passage_mask, targets and target_mask of B questions.

    Args:
      prefixes: what stands before each passage, as `ReaderTokenizer.questions` gives.
      ids: int32 [B, K], the passages that each reads, -1 = absent.
      targets: the tokens to be written, L at most; there may be none.
    """
    num, k, t = len(prefixes), max(ids.shape[1], 1), passage_length
    passage_ids = np.full((num, k, t), tokenizer.pad_id, np.int32)
    passage_mask = np.zeros((num, k, t), np.int32)
    target_ids = np.full((num, target_length), tokenizer.pad_id, np.int32)
    target_mask = np.zeros((num, target_length), np.int32)
    for b, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
        read: list = [(j, passages[p]) for j, p in enumerate(ids[b]) if p >= 0]
        for j, passage in read or [(0, None)]:
            row = tokenizer.row(prefix, passage, t)
            passage_ids[b, j, : len(row)], passage_mask[b, j, : len(row)] = row, 1
        target_ids[b, : len(target)], target_mask[b, : len(target)] = target, 1
    return {
        "passage_ids": passage_ids,
        "passage_mask": passage_mask,
        "targets": target_ids,
        "target_mask": target_mask,
    }


def rows(
    tokenizer: ReaderTokenizer,
    questions: Sequence[Question],
    ids: np.ndarray,
    passages: PassageTokens,
    *,
    passage_length: int,
    target_length: int,
) -> ReaderRows:
    """Tokenizes questions and answers, and says what is too long.

    Args:
      questions: N of them; without answers they can be answered, not trained on.
      ids: int32 [N, K], the passages that each reads, best first, -1 = absent.
      passages: the tokens of the collection.
      passage_length: T, tokens of a question beside a passage.
      target_length: L, tokens of an answer and the end mark.

    Raises:
      UserError: lengths without room, other numbers of questions and ids, ids of no
        passage, or no answer that fits into L.
    """
    if passage_length < 8 or target_length < 2:
        raise UserError(
            f"Rows of {passage_length} tokens and answers of {target_length} leave no "
            "room: choose passage_length of at least 8, target_length of at least 2."
        )
    if ids.ndim != 2 or len(questions) != len(ids):
        raise UserError(
            f"There are {len(questions)} questions and passages of shape "
            f"{list(ids.shape)}: give a row of passages for each question."
        )
    if ids.size and ids.max() >= len(passages):
        raise UserError(
            f"Passage {ids.max()} is beyond the {len(passages)} of the collection: "
            "find the passages in this collection."
        )
    prefixes = tokenizer.questions(
        [question.text for question in questions], max_length=passage_length
    )
    strings = [answer for question in questions for answer in question.answers]
    encoded = iter(tokenizer.answers(strings, max_length=target_length))
    every = [[next(encoded) for _ in question.answers] for question in questions]
    targets = tuple(
        tuple(t for t in own if 1 < len(t) <= target_length) for own in every
    )
    unfit = [i for i, own in enumerate(every) if own and not targets[i]]
    facts = {
        "questions_too_long": sum(len(p) >= passage_length - 1 for p in prefixes),
        "answers_too_long": len(strings) - sum(map(len, targets)),
        "questions_without_short_answer": len(unfit),
    }
    if strings and not any(targets):
        raise UserError(
            f"Not one answer fits into target_length = {target_length} tokens, such as "
            f"'{strings[0]}': choose a longer one."
        )
    if facts["questions_too_long"]:
        terminal.say(
            f"{facts['questions_too_long']:,} questions fill all {passage_length} "
            "tokens of a row and leave no room for a passage"
        )
    if unfit:
        terminal.say(
            f"{len(unfit):,} questions have no answer of at most {target_length} "
            f"tokens (the first is '{questions[unfit[0]].id}') and teach nothing"
        )
    return ReaderRows(
        tuple(questions),
        passage_length,
        target_length,
        targets,
        facts,
        tokenizer,
        prefixes,
        np.asarray(ids, np.int32),
        passages,
    )


class Draws(NamedTuple):
    """Which questions are learnt from at each step, and what of; see `draws`."""

    at: Callable[..., tuple[np.ndarray, list[np.ndarray]]]
    """``at(seed, step, rows=None)`` -> (places int [B], an answer's tokens of each)."""
    num_questions: int
    num_batches: int


def draws(examples: ReaderRows, *, batch_size: int) -> Draws:
    """Every question once an epoch, in a new order, with one of its answers.

    Order and answers are drawn by (seed, epoch); questions that have no answer of at
    most L tokens, and the few that do not fill a last batch, are left out.

    Args:
      examples: N questions.
      batch_size: B, of the global batch.

    Raises:
      UserError: a question without answers, or too few questions for one batch.
    """
    for question in examples.questions:
        if not question.answers:
            raise UserError(
                f"The question '{question.id}' has no answer to learn: leave it out of "
                "training."
            )
    usable = np.flatnonzero([len(own) > 0 for own in examples.targets])
    num_batches = len(usable) // batch_size if batch_size > 0 else 0
    if num_batches < 1:
        raise UserError(
            f"There are {len(usable)} questions to learn from, which make no batch of "
            f"{batch_size}: choose another batch size."
        )

    # A memo, not state: the order of an epoch is needed again at its every step.
    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(usable)

    def at(seed: int, step: int, rows: Rows | None = None):
        epoch, index = divmod(step, num_batches)
        places = order(seed, epoch)[index * batch_size : (index + 1) * batch_size]
        places = places if rows is None else places[rows]
        drawn = []
        for place in places:
            own = examples.targets[place]
            rng = np.random.default_rng((seed, epoch, int(place)))
            drawn.append(own[rng.integers(len(own))])
        return places, drawn

    return Draws(at, len(usable), num_batches)


def training(examples: ReaderRows, *, batch_size: int) -> Batches:
    """What `draws` draws, beside the passages that the questions read.

    Arguments and errors: as for `draws`.
    """
    drawn = draws(examples, batch_size=batch_size)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        return examples.batch(*drawn.at(seed, step, rows))

    return Batches(batch_at, drawn.num_questions, drawn.num_batches)


def in_order(examples: ReaderRows, *, batch_size: int) -> Batches:
    """All questions in their order, the last batch filled up with weight 0.

    The target is the first answer of at most L tokens; without one no token counts.
    The seed does not matter.

    Args:
      examples: N questions.
      batch_size: B, of the global batch.

    Raises:
      UserError: no question, or a batch size below 1.
    """
    if batch_size < 1 or not len(examples):
        raise UserError(
            f"{len(examples)} questions make no batch of {batch_size}: give at least "
            "one question, and a batch size of at least 1."
        )
    num_batches = -(-len(examples) // batch_size)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        del seed
        places = np.arange(batch_size) + step % num_batches * batch_size
        places = np.where(places < len(examples), places, -1)
        places = places if rows is None else places[rows]
        nothing = np.zeros(0, np.int32)
        firsts = [
            examples.targets[place][0] if examples.targets[place] else nothing
            for place in places
        ]
        return examples.batch(places, firsts)

    return Batches(batch_at, len(examples), num_batches)
