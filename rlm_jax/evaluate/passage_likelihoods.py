"""What a language model says of an answer beside each passage, as REPLUG-LSR asks.

    log p(y | prompt(d_i, q)),  the mean over y's tokens       (Shi et al. 2023, eq. 3)

The language model is a black box, an `in_context.LogProbs`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.methods.in_context import LogProbs

PROMPT = "{passage}\nQuestion: {question}\nAnswer:"


def check_prompt(prompt: str) -> None:
    """Raises UserError where a prompt has no place for passage and question."""
    try:
        whole = prompt.format(passage="<p>", question="<q>")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"The prompt {prompt!r} cannot be filled in ({error}); write {{passage}} "
            "and {question} where these go, and nothing else in braces."
        ) from error
    if "<p>" not in whole or "<q>" not in whole:
        raise UserError(
            f"The prompt {prompt!r} lacks {{passage}} or {{question}}; write both."
        )


def likelihoods(
    log_probs: LogProbs,
    encode: Callable[[str], np.ndarray],
    questions: Sequence[str],
    passages: Sequence[Sequence[str | None]],
    answers: Sequence[str],
    *,
    prompt: str = PROMPT,
    length: int = 256,
    batch_size: int = 16,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """Of each question's passages the mean log p of its answer's tokens, in nats.

    Args:
      log_probs: the language model.
      encode: text -> its tokens, int [n].
      questions: N.
      passages: of each question K; None = absent.
      answers: one of each question.
      prompt: with {passage} and {question}; the answer follows after a space.
      length: tokens of a row; a longer one loses its first.
      batch_size: rows at a time.
      advance: called with a number of passages when they are done.

    Returns:
      float32 [N, K]; minus infinity where absent.

    Raises:
      UserError: an answer that fills a row, or one without a token.
    """
    check_prompt(prompt)
    rows: dict[int, list[tuple[int, int, np.ndarray]]] = {}  # by tokens of the answer
    for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        said = np.asarray(encode(f" {answer}"), np.int32)
        if not 0 < len(said) < length - 1:
            raise UserError(
                f"The answer {answer!r} has {len(said)} tokens, and rows have "
                f"{length}; leave the question out, or make rows longer."
            )
        for k, passage in enumerate(passages[place]):
            if passage is not None:
                text = prompt.format(passage=passage, question=question)
                before = np.asarray(encode(text), np.int32)
                row = np.concatenate([before, said])[-length:]
                rows.setdefault(len(said), []).append((place, k, row))
    found = np.full((len(questions), max(map(len, passages))), -np.inf, np.float32)
    for last, some in sorted(rows.items()):
        for start in range(0, len(some), batch_size):
            batch = some[start : start + batch_size]
            tokens = np.zeros((batch_size, length), np.int32)
            lengths = np.full(batch_size, last + 1, np.int32)
            for i, (_, _, row) in enumerate(batch):
                tokens[i, : len(row)], lengths[i] = row, len(row)
            told = np.asarray(log_probs(tokens, lengths, last)).mean(-1)
            for (place, k, _), value in zip(batch, told, strict=False):
                found[place, k] = value
            advance(len(batch))
    return found
