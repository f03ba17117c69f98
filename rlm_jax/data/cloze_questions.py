"""Cloze questions made of text: a phrase of a passage is the blank's answer."""

import numpy as np

from rlm_jax.data.cloze_tokens import STOP_WORDS, ClozeTokenizer
from rlm_jax.data.passages import Passages
from rlm_jax.data.question_files import BLANK, Question
from rlm_jax.errors import UserError


def from_passages(
    passages: Passages,
    tokenizer: ClozeTokenizer,
    known: np.ndarray,
    *,
    count: int,
    seed: int = 0,
    context: int = 40,
    longest: int = 4,
    stop: float = 0.5,
) -> list[Question]:
    """A blank in each of some passages, whose phrase a text that is known holds too.

    Args:
      passages: that no model was trained on, of which ``count`` are drawn.
      tokenizer: says where words begin.
      known: int [M], the tokens of the text in which answers are looked for.
      count: questions, at most.
      context: tokens on each side of the blank.
      longest: tokens of an answer, whose number is geometric with ``stop``.

    Raises:
      UserError: no passage shares a phrase with the known text.
    """
    if not 1 <= longest <= 4 or tokenizer.vocab_size > 1 << 16:
        raise UserError(
            f"Answers of {longest} of {tokenizer.vocab_size} tokens cannot be drawn; "
            "choose 1 to 4 tokens of a vocabulary of at most 65,536."
        )
    rng = np.random.default_rng(seed)
    known = np.asarray(known)
    held = [np.unique(_codes(known, size)) for size in range(1, longest + 1)]
    questions = []
    for number in rng.permutation(len(passages)).tolist():
        if len(questions) == count:
            break
        passage = passages[number]
        ids = tokenizer.passages([passage], max_length=4 * context)[0]
        if len(ids) < 8:
            continue
        wanted = min(int(rng.geometric(stop)), longest)
        plain = ~tokenizer.punctuation[ids] & ~tokenizer.special[ids]
        goes_on = np.append(tokenizer.inside[ids], False)
        starts = np.flatnonzero(np.isin(_codes(ids, wanted), held[wanted - 1]))
        starts = starts[~goes_on[starts] & ~goes_on[starts + wanted]]
        starts = [
            s
            for s in starts
            if plain[s : s + wanted].all()
            and tokenizer.decode(ids[s : s + wanted]) not in STOP_WORDS
        ]
        if not starts:
            continue
        start = int(rng.choice(starts))
        before = ids[max(0, start - context) : start]
        after = ids[start + wanted :]
        if len(before):
            before = before[
                int(tokenizer.inside[before].argmin()) :
            ]  # from a whole word
        sides = tokenizer.decode(before), tokenizer.decode(after[:context])
        text = f"{sides[0]} {BLANK} {sides[1]}"
        answer = tokenizer.decode(ids[start : start + wanted])
        questions.append(Question(f"{passage.id}@{start}", text, (answer,)))
    if not questions:
        raise UserError(
            f"No passage of {passages.name} shares a phrase with the known text; name "
            "other passages to make questions of."
        )
    return questions


def written(question: Question, tokenizer: ClozeTokenizer) -> list[np.ndarray]:
    """The answers of a question that tokens can write, int32 [n] each."""
    found = []
    for answer in question.answers:
        try:
            found.append(tokenizer.phrase(answer))
        except UserError:
            continue
    return found


def occurrences(tokens: np.ndarray, phrase: np.ndarray) -> int:
    """How often a phrase int [n] stands in a row of tokens int [M]."""
    places = np.flatnonzero(tokens[: len(tokens) - len(phrase) + 1] == phrase[0])
    for i, token in enumerate(phrase[1:], 1):
        places = places[tokens[places + i] == token]
    return len(places)


def _codes(ids: np.ndarray, size: int) -> np.ndarray:
    """A number of each phrase of ``size`` tokens, equal for equal ones, uint64."""
    if len(ids) < size:
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), size)
    return (windows << (16 * np.arange(size, dtype=np.uint64))).sum(1, dtype=np.uint64)
