"""Scores of a stream, and what they add up to."""

import jax
import numpy as np
import pytest

from rlm_jax.evaluate import perplexity
from rlm_jax.method import Batches
from tests.methods import systems


@pytest.fixture(scope="module")
def model():
    method = systems.method("lm")
    assert method.score is not None
    params = jax.jit(method.init)(jax.random.key(0))
    return jax.jit(method.score), jax.tree.map(lambda x: 6 * x, params)


def direct(model, tokens):
    score, params = model
    batch = {"tokens": tokens[None, :-1], "targets": tokens[None, 1:]}
    return jax.tree.map(lambda x: np.asarray(x)[0], score(params, batch))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, systems.VOCAB, 15).astype(np.int32)


@pytest.mark.parametrize(("window", "stride"), [(14, 14), (16, 5), (20, 1)])
def test_a_window_over_the_whole_stream_is_one_forward_pass(
    model, tokens, window, stride
):
    score, params = model
    got = perplexity.score_stream(
        score, params, tokens, window=window, stride=stride, batch_size=2
    )
    wanted = direct(model, tokens)
    for name in ("target_score", "log_normaliser", "keys"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(wanted, name), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(got.targets, tokens[1:])
    np.testing.assert_allclose(
        got.log_probs, wanted.target_score - wanted.log_normaliser, rtol=1e-4
    )


def test_short_windows_are_passes_over_their_own_tokens(model, tokens):
    """Window 6, stride 3: prediction 7 is fresh in the window of inputs 3..8."""
    score, params = model
    got = perplexity.score_stream(
        score, params, tokens, window=6, stride=3, batch_size=2
    )
    assert len(got.targets) == len(got.keys) == 14
    for i in range(14):
        start = max(0, i // 3 * 3 + 3 - 6)
        # Filled up to one shape: what follows a causal prediction does not matter.
        wanted = direct(model, np.resize(tokens[start : i + 2], 7))
        target_score = wanted.target_score[i - start]
        assert got.target_score[i] == pytest.approx(target_score, rel=1e-4)
    # The context matters, so the equality above says something.
    whole = direct(model, tokens)
    assert np.abs(got.target_score - whole.target_score).max() > 1e-3


def test_metrics_by_hand():
    """Four tokens of probability 1/4 are 8 bits, over 5 bytes and 2 words."""
    log_probs = np.full(4, np.log(0.25), np.float32)
    got = perplexity.text_metrics(log_probs, num_words=2, num_bytes=5)
    assert got == pytest.approx(
        {"perplexity": 4.0, "word_perplexity": 16.0, "bits_per_byte": 8 / 5}
    )


def test_metrics_are_summed_in_float64():
    log_probs = np.full(1 << 20, -0.1, np.float32)
    log_probs[0] = -(2.0**22)
    got = perplexity.text_metrics(log_probs, num_words=1 << 20, num_bytes=1 << 20)
    exact = (2.0**22 + float(np.float32(0.1)) * ((1 << 20) - 1)) / (1 << 20)
    assert np.log(got["perplexity"]) == pytest.approx(exact, rel=1e-9)


def test_a_text_without_words_still_has_figures():
    got = perplexity.text_metrics(np.full(2000, -5, "f"), num_words=0, num_bytes=9)
    assert np.isfinite(list(got.values())).all()


def test_batches_give_what_the_stream_does(model, tokens):
    """The windows of a text as batches, whose masks say what is scored."""
    method = systems.method("lm")
    _, params = model
    windows = [(0, 8, 0), (4, 12, 8), (6, 14, 12)]  # begin, end, first scored

    def batch_at(seed, step, *, rows=None):
        begin, end, first = windows[step]
        position = np.arange(begin, end)
        return {
            "tokens": tokens[None, begin:end],
            "targets": tokens[None, begin + 1 : end + 1],
            "mask": (position >= first).astype(np.int32)[None],
        }

    batches = Batches(batch_at, len(windows), len(windows))
    log_probs = perplexity.target_log_probs(method)
    got = perplexity.score_batches(log_probs, params, batches)
    wanted = np.empty(14)
    for begin, end, first in windows:
        scores = direct(model, tokens[begin : end + 1])
        part = scores.target_score - scores.log_normaliser
        wanted[first:end] = part[first - begin :]
    assert got.shape == (14,)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_log_probs_alone_stand_as_a_scored_text(tokens):
    log_probs = np.log(np.linspace(0.1, 0.9, 14)).astype(np.float32)
    scored = perplexity.as_scored(tokens, log_probs, (30, 7))
    np.testing.assert_array_equal(scored.stream.log_probs, log_probs)
    np.testing.assert_array_equal(scored.stream.targets, tokens[1:])
    assert scored.stream.keys.shape == (14, 0)
    wanted = perplexity.text_metrics(log_probs, num_words=7, num_bytes=30)
    assert scored.metrics(log_probs) == wanted
