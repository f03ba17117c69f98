"""Cloze questions made of text: a phrase of a passage is the blank's answer."""

import numpy as np

from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passages
from rlm_jax.data.phrase_masking import shared_phrases
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
    rng = np.random.default_rng(seed)
    questions = []
    for number in rng.permutation(len(passages)).tolist():
        if len(questions) == count:
            break
        passage = passages[number]
        ids = tokenizer.passages([passage], max_length=4 * context)[0]
        if len(ids) < 8:
            continue
        allowed, _ = shared_phrases([ids, np.asarray(known)], tokenizer, longest)
        wanted = min(int(rng.geometric(stop)), longest)
        starts = np.flatnonzero(allowed[wanted - 1, 0, : len(ids)])
        plain = ~tokenizer.punctuation[ids]
        starts = starts[[plain[s : s + wanted].all() for s in starts]]
        if not len(starts):
            continue
        start = int(rng.choice(starts))
        before, after = ids[max(0, start - context) : start], ids[start + wanted :]
        text = " ".join(
            [tokenizer.decode(before), BLANK, tokenizer.decode(after[:context])]
        )
        answer = tokenizer.decode(ids[start : start + wanted])
        questions.append(Question(f"{passage.id}@{start}", text, (answer,)))
    if not questions:
        raise UserError(
            f"No passage of {passages.name} shares a phrase with the known text; name "
            "other passages to make questions of."
        )
    return questions
