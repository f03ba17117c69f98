"""A language model's likelihoods of answers beside passages, against a loop."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import passage_likelihoods


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def log_probs(tokens, lengths, last):
    """log p of a token falls with how far it is from the one before."""
    rows = [
        [-abs(int(row[t]) - int(row[t - 1])) / 9 for t in range(n - last, n)]
        for row, n in zip(tokens, lengths, strict=True)
    ]
    return np.array(rows, np.float32)


def test_every_passage_of_every_question():
    passages = [["aaa", None, "zzzzzzzz" * 9], ["b", "c", "d"]]
    asked = ["who", "where"], passages, ["me", "rome"]
    found = passage_likelihoods.likelihoods(
        log_probs, encode, *asked, length=40, batch_size=2
    )
    assert np.isneginf(found[0, 1]) and np.isfinite(found).sum() == 5
    for n, (question, some, answer) in enumerate(zip(*asked, strict=True)):
        for k, passage in enumerate(some):
            if passage is None:
                continue
            text = f"{passage}\nQuestion: {question}\nAnswer: {answer}"
            row = encode(text)[-40:].astype(int)
            steps = -np.abs(np.diff(row))[-len(answer) - 1 :] / 9
            np.testing.assert_allclose(found[n, k], steps.mean(), rtol=1e-5)


@pytest.mark.parametrize("prompt", ["{passage} {", "{passage} {answer}", "{passage}"])
def test_a_prompt_has_both(prompt):
    with pytest.raises(UserError, match="prompt"):
        passage_likelihoods.check_prompt(prompt)


def test_an_answer_that_fills_a_row():
    with pytest.raises(UserError, match="has 31 tokens, and rows have 20"):
        passage_likelihoods.likelihoods(
            log_probs, encode, ["q"], [["p"]], ["x" * 30], length=20
        )
