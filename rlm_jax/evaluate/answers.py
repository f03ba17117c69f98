"""Whether a passage holds an answer, and how many questions the top passages answer."""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlm_jax.errors import UserError

DEPTHS = (1, 5, 20, 100)
_LONG = 20_000  # characters of a text that is not remembered


def tokens(text: str) -> list[str]:
    """Lower-case tokens after NFD: runs of letters, digits and marks, or one symbol.

    Control characters, separators and white space are left out.
    """
    words, word = [], []
    for character in unicodedata.normalize("NFD", text):
        category = unicodedata.category(character)
        if category[0] in "LNM":
            word.append(character)
            continue
        if word:
            words.append("".join(word))
            word = []
        if category[0] not in "ZC":
            words.append(character)
    if word:
        words.append("".join(word))
    return [token.lower() for token in words]


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of some answer occur in the text, one after another.

    An answer without a token is in every text, as in the released code.

    Source: Chen et al. 2017, DrQA; Karpukhin et al. 2020, section 5, whose released
    code calls this string matching.
    """
    fenced = _remembered if len(text) < _LONG else _fenced
    joined = fenced(text)
    return any(_remembered(answer) in joined for answer in answers)


def matches_pattern(text: str, patterns: Iterable[str]) -> bool:
    """Whether some regular expression is found in the text; CuratedTREC's answers are.

    Case is ignored, ^ and $ match at line ends, and both sides are in NFD. An invalid
    pattern matches nothing.

    Source: the released code of Karpukhin et al. 2020.
    """
    text = unicodedata.normalize("NFD", text)
    return any(
        _found(unicodedata.normalize("NFD", pattern), text) for pattern in patterns
    )


def answer_recall(
    passages: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    depths: Sequence[int] = DEPTHS,
    *,
    holds: Callable[[str, Iterable[str]], bool] = has_answer,
) -> dict[str, float]:
    """The share of questions with an answer in the first k passages, for each k.

    Arguments:
      passages: for each of N questions, the texts found, best first.
      answers: for each question its answers, or its patterns.
      depths: the values of k.
      holds: `has_answer`, or `matches_pattern` where answers are patterns.

    Returns:
      "answer_recall@k" -> share, in the order of `depths`.

    Raises:
      UserError: no questions, a question without answers, or a k below 1.

    Source: Karpukhin et al. 2020, section 5.1 (top-k retrieval accuracy).
    """
    if not answers or not all(answers):
        raise UserError(
            "Answer recall needs answers to every question; give questions that have "
            "them."
        )
    if not depths or min(depths) < 1:
        raise UserError(f"Depths {list(depths)} are no ranks; use k of at least 1.")
    ranks = answer_ranks([t[: max(depths)] for t in passages], answers, holds=holds)
    return {f"answer_recall@{k}": float((ranks < k).mean()) for k in depths}


def answer_ranks(
    passages: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    *,
    holds: Callable[[str, Iterable[str]], bool] = has_answer,
) -> np.ndarray:
    """Of N questions the rank, from 0, of the first text that holds an answer.

    Arguments: as for `answer_recall`.

    Returns:
      float64 [N], infinity where no text does.
    """
    return np.array(
        [
            next((rank for rank, t in enumerate(texts) if holds(t, wanted)), np.inf)
            for texts, wanted in zip(passages, answers, strict=True)
        ]
    )


# The same passages are found for many questions; 16,384 of them take some 30 MB.
@functools.lru_cache(maxsize=1 << 14)
def _remembered(text: str) -> str:
    return _fenced(text)


def _fenced(text: str) -> str:
    words = tokens(text)
    # No token holds a space, so a substring between spaces is a run of whole tokens.
    return f" {' '.join(words)} " if words else ""


def _found(pattern: str, text: str) -> bool:
    try:
        flags = re.IGNORECASE | re.UNICODE | re.MULTILINE
        return re.search(pattern, text, flags) is not None
    except (re.error, OverflowError, RecursionError):
        return False
