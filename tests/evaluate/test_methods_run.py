"""What stands in `methods/` is what runs: evaluation calls each equation there."""

import numpy as np
import pytest

from rlm_jax.evaluate import in_context, knn, token_memory
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.method import Neighbours
from rlm_jax.methods import in_context as ralm
from rlm_jax.methods import knn_lm, replug, trime


class CalledError(Exception):
    """Raised in place of an equation."""


# A size that no other test has: a program compiled before would not call the equation.
N, K = 23, 3
VALUES = np.zeros((N, K, 4), np.float32)
SCORES = np.zeros((N, K), np.float32)
STREAM = StreamScores(
    np.zeros(N, np.float32),
    np.ones(N, np.float32),
    np.ones((N, 2), np.float32),
    np.zeros(N, np.int32),
)
MEMORY = token_memory.TokenMemory(size=5, segment=N)
NEIGHBOURS = knn.NeighbourValues(SCORES, np.zeros((N, K), np.int32))


def score_a_text():
    protocol = in_context.Protocol(
        window=12, stride=4, document_length=3, rank_tokens=1, reuse=1
    )
    text = np.arange(N, dtype=np.int32)
    at = in_context.strides(N, window=12, stride=4, query_length=2)
    documents = np.where(np.arange(len(at.end)) > 0, 0, -1)[:, None]
    in_context.score(
        lambda ids, lengths, last: np.zeros((len(ids), last), np.float32),
        text, at, documents, lambda _: text[:3], protocol,
    )  # fmt: skip


def recompute_similarities():
    knn.look_up(
        lambda queries, k: Neighbours(SCORES, np.zeros((N, k), np.int32)),
        STREAM.keys, K, values=STREAM.targets,
        gather_keys=lambda ids: np.ones((*ids.shape, 2), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name", "evaluate"),
    [
        (ralm, "with_document", score_a_text),
        (replug, "ensemble", lambda: in_context.ensemble(VALUES, SCORES, 1, k=2)),
        (
            replug,
            "log_weights",
            lambda: in_context.log_weights(VALUES, SCORES, k=2, temperature=1.0),
        ),
        (
            knn_lm,
            "neighbour_log_probs",
            lambda: knn.knn_log_probs(NEIGHBOURS, STREAM.targets, k=2, temperature=1.0),
        ),
        (knn_lm, "mix", lambda: knn.mix(STREAM.log_probs, STREAM.log_probs, 0.5)),
        (knn_lm, "SIMILARITIES", recompute_similarities),
        (trime, "log_sums", lambda: token_memory.stream_log_sums(STREAM, MEMORY)),
        (trime, "before", lambda: token_memory.stream_log_sums(STREAM, MEMORY)),
        (
            trime,
            "neighbour_log_sums",
            lambda: token_memory.external_log_sums(NEIGHBOURS, STREAM.targets),
        ),
        (
            trime,
            "nll",
            lambda: token_memory.joint_log_probs(
                STREAM, trime.memory.LogSums(STREAM.log_probs, STREAM.log_probs)
            ),
        ),
    ],
)
def test_evaluation_calls(monkeypatch, module, name, evaluate):
    def stop(*args, **options):
        raise CalledError(name)

    tables = {"SIMILARITIES": {"l2": stop}}
    monkeypatch.setattr(module, name, tables.get(name, stop))
    with pytest.raises(CalledError, match=name):
        evaluate()
