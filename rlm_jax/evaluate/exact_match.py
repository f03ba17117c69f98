"""How well a reader answers: exact match and F1, by what it had been given to read."""

import collections
import functools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers as answers_lib
from rlm_jax.evaluate.answers import DEPTHS, has_answer

Protocol = Literal["squad", "orqa"]

_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FLAGS = re.IGNORECASE | re.UNICODE | re.MULTILINE


def normalise(text: str, protocol: Protocol = "squad") -> str:
    """Lower case, without ASCII punctuation and articles, words parted by one space.

    Arguments:
      text: a prediction or an answer.
      protocol: "squad" compares code points, as FiD, DPR, Atlas and NPM do; "orqa" (of
        ORQA and REALM) puts the text in NFD first, so that a composed accent equals a
        decomposed one.

    Source: Rajpurkar et al. 2016, SQuAD, whose script the others copied; the released
    code of Lee et al. 2019, ORQA.
    """
    if protocol == "orqa":
        text = unicodedata.normalize("NFD", text)
    elif protocol != "squad":
        raise UserError(
            f"There is no protocol {protocol!r} of exact match; choose squad or orqa."
        )
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(
    prediction: str, answers: Iterable[str], *, protocol: Protocol = "squad"
) -> bool:
    """Whether the prediction equals some answer, both normalised."""
    wanted = normalise(prediction, protocol)
    return any(normalise(answer, protocol) == wanted for answer in answers)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The harmonic mean of precision and recall of normalised words, best over answers.

    Two texts without a word agree (1), as in SQuAD's second script; Atlas's released
    code gives them 0.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    words = normalise(prediction).split()
    return max((_overlap(words, normalise(a).split()) for a in answers), default=0.0)


def pattern_match(prediction: str, patterns: Iterable[str]) -> bool:
    """Whether some regular expression matches from the prediction's start.

    Exact match of ORQA and REALM where answers are patterns (CuratedTREC). Case is
    ignored, nothing is normalised, and an invalid pattern matches nothing. It differs
    from `answers.matches_pattern`, which judges passages.

    Source: the released code of Lee et al. 2019.
    """
    return any(_matches(pattern, prediction) for pattern in patterns)


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether some normalised answer is a substring of the normalised text.

    A looser rule than `answers.has_answer`: "York" is in "New Yorker".

    Source: the released code of Ram et al. 2023, in-context RALM.
    """
    text = normalise(text)
    return any(normalise(answer) in text for answer in answers)


class Figures(NamedTuple):
    """What a reader achieves on N questions.

    Attributes:
      means: "exact_match", "f1"; and where passages are known "answer_recall@k",
        "exact_match_where_found" (an answer was among the passages: reading) and
        "exact_match_where_not" (the rest). The mean over no question is left out.
      counts: "questions", "found" (an answer was among the passages), "not_found" and
        "without_passages".
      per_question: measure -> float32 [N].
    """

    means: dict[str, float]
    counts: dict[str, int]
    per_question: dict[str, np.ndarray]


def judge(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    passages: Sequence[Sequence[str]] | None = None,
    *,
    protocol: Protocol = "squad",
    depths: Sequence[int] = DEPTHS,
    holds: Callable[[str, Iterable[str]], bool] = has_answer,
    matches: Callable[[str, Iterable[str]], bool] | None = None,
) -> Figures:
    """Exact match and F1, and exact match apart where an answer was there to be read.

    Arguments:
      predictions: of N questions.
      answers: of each question, at least one.
      passages: of each question, the texts that the reader saw, best first; None for a
        reader without passages.
      protocol: of exact match.
      depths: the k of answer recall; those beyond the most passages are left out.
      holds: whether a text holds an answer.
      matches: whether a prediction is an answer; None: `exact_match`. With another
        rule, such as `pattern_match`, there is no F1.

    Raises:
      UserError: no questions, a question without answers, or other numbers of
        predictions or passages than of questions.
    """
    given = [len(predictions), len(answers if passages is None else passages)]
    if given != [len(answers)] * 2 or not answers or not all(answers):
        raise UserError(
            f"{given[0]} predictions and the passages of {given[1]} questions cannot "
            f"be judged by the answers to {sum(map(bool, answers))} of {len(answers)}; "
            "give as many of each, and answers to every question."
        )
    pairs = list(zip(predictions, answers, strict=True))
    is_answer = matches or functools.partial(exact_match, protocol=protocol)
    exact = _float32(is_answer(p, a) for p, a in pairs)
    per_question = {"exact_match": exact}
    if matches is None:
        per_question["f1"] = _float32(f1(p, a) for p, a in pairs)
    means = {name: float(values.mean()) for name, values in per_question.items()}
    counts = {"questions": len(answers)}
    if passages is not None:
        most = max(map(len, passages))
        ranks = answers_lib.answer_ranks(passages, answers, holds=holds)
        for k in depths:
            if k <= most:
                means[f"answer_recall@{k}"] = float((ranks < k).mean())
        found = np.isfinite(ranks)
        for name, chosen in (("found", found), ("not", ~found)):
            if chosen.any():
                means[f"exact_match_where_{name}"] = float(exact[chosen].mean())
        counts |= {
            "found": int(found.sum()),
            "not_found": int((~found).sum()),
            "without_passages": sum(not texts for texts in passages),
        }
        per_question["answer_found"] = found.astype(np.float32)
    return Figures(means, counts, per_question)


def by_number(
    predictions: Mapping[int, Sequence[str]],
    answers: Sequence[Sequence[str]],
    passages: Sequence[Sequence[str]],
    *,
    protocol: Protocol = "squad",
    depths: Sequence[int] = DEPTHS,
    holds: Callable[[str, Iterable[str]], bool] = has_answer,
    matches: Callable[[str, Iterable[str]], bool] | None = None,
) -> dict[int, Figures]:
    """The figures of `judge` for each number of passages that the reader was given.

    Arguments:
      predictions: number of passages -> predictions of N questions; 0 without any.
      answers, passages: as for `judge`; each number reads the first ones.

    Source: Izacard and Grave 2021, FiD, section 4 (scaling with passages).
    """
    return {
        number: judge(
            predicted,
            answers,
            [texts[:number] for texts in passages],
            protocol=protocol,
            depths=depths,
            holds=holds,
            matches=matches,
        )
        for number, predicted in sorted(predictions.items())
    }


def _overlap(predicted: list[str], answer: list[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    common = collections.Counter(predicted) & collections.Counter(answer)
    # 2 P R / (P + R), where P and R are shares of the same number of common words.
    return 2 * common.total() / (len(predicted) + len(answer))


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.match(pattern, text, _FLAGS) is not None
    except (re.error, OverflowError, RecursionError):
        return False


def _float32(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)
