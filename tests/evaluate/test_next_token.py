"""The whole distribution over the next token, against the equations of evaluation."""

import numpy as np
import pytest

from rlm_jax.evaluate import knn, next_token, token_memory
from rlm_jax.evaluate.knn import NeighbourValues
from rlm_jax.evaluate.next_token import RunMemory, Text, log_probs
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory

SIZE, WIDTH, LENGTH = 7, 4, 30


@pytest.fixture(scope="module")
def stream():
    """A text of random tokens; its model's scores of every token, unnormalised."""
    random = np.random.default_rng(0)
    tokens = random.integers(SIZE, size=LENGTH + 1)
    scores = random.normal(size=(LENGTH, SIZE))
    normalisers = np.log(np.exp(scores).sum(1))
    keys = random.normal(size=(LENGTH, WIDTH)).astype(np.float32)
    targets = tokens[1:].astype(np.int32)
    scored = StreamScores(
        scores[np.arange(LENGTH), targets].astype(np.float32),
        normalisers.astype(np.float32),
        keys,
        targets,
    )
    return tokens, scores - normalisers[:, None], scored


def at(stream, place: int) -> Text:
    tokens, _, scored = stream
    return Text(tokens[: place + 1].tolist(), list(scored.keys[: place + 1]))


@pytest.mark.parametrize(
    "memory", [(0, 8, 1.0), (8, 4, 0.7), (100, 100, 2.0), (3, 1, 1)]
)
def test_trimes_own_past(stream, memory):
    """At the token that followed it is what evaluation says; over all it adds to 1."""
    past = token_memory.stream_log_sums(stream[2], TokenMemory(*memory))
    wanted = token_memory.joint_log_probs(stream[2], past)
    run = RunMemory(TokenMemory(*memory), None, None)
    for place in range(LENGTH):
        normaliser = float(stream[2].log_normaliser[place])
        found = log_probs(run, at(stream, place), stream[1][place], normaliser)
        np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-9)
        target = stream[2].targets[place]
        np.testing.assert_allclose(found[target], wanted[place], rtol=2e-5, atol=1e-5)


@pytest.fixture(scope="module")
def neighbours():
    random = np.random.default_rng(1)
    values = random.integers(SIZE, size=(LENGTH, 5)).astype(np.int32)
    near = np.sort(random.normal(size=(LENGTH, 5)), axis=1)[:, ::-1].astype(np.float32)
    values[3, 2:], near[3, 2:] = -1, -np.inf
    return NeighbourValues(near, values)


@pytest.mark.parametrize("mixture", [(5, 1.0, 0.3), (2, 3.0, 0.9), (5, 0.5, 0.0)])
def test_knn_lms_mixture(stream, neighbours, mixture):
    k, temperature, weight = mixture
    own = knn.knn_log_probs(neighbours, stream[2].targets, k=k, temperature=temperature)
    wanted = knn.mix(stream[2].log_probs, own, weight)
    for place in range(LENGTH):
        slots = next_token.Slots(
            neighbours.similarities[place, :k] / temperature,
            neighbours.values[place, :k],
        )
        near = next_token.neighbours(slots, SIZE)
        found = next_token.mix(stream[1][place], near, weight)
        np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-6)
        target = stream[2].targets[place]
        np.testing.assert_allclose(found[target], wanted[place], rtol=2e-5, atol=1e-5)


def test_past_and_neighbours_share_a_normaliser(stream, neighbours):
    past = token_memory.stream_log_sums(stream[2], TokenMemory(8, 4))
    outside = token_memory.external_log_sums(
        neighbours, stream[2].targets, temperature=0.5
    )
    wanted = token_memory.joint_log_probs(stream[2], past, outside)
    for place in range(LENGTH):
        slots = next_token.Slots(
            neighbours.similarities[place] / 0.5, neighbours.values[place]
        )
        found = next_token.joint(
            stream[1][place],
            float(stream[2].log_normaliser[place]),
            at(stream, place).past(TokenMemory(8, 4, 1.0)),
            slots,
        )
        target = stream[2].targets[place]
        np.testing.assert_allclose(found[target], wanted[place], rtol=2e-5, atol=1e-5)


def test_nothing_found_leaves_the_model_alone(stream):
    none = next_token.Slots(np.full(3, -np.inf), np.full(3, -1))
    plain = stream[1][0]
    np.testing.assert_allclose(next_token.joint(plain, 1.0, none), plain, rtol=1e-9)
    near = next_token.neighbours(none, SIZE)
    np.testing.assert_array_equal(next_token.mix(plain, near, 0.4), plain)
