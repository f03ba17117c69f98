"""Memories over a scored stream against float64 loops."""

import numpy as np
import pytest

from rlm_jax.evaluate import controls, token_memory
from rlm_jax.evaluate.knn import NeighbourValues
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory

N, WIDTH, VALUES = 13, 3, 3


@pytest.fixture(scope="module")
def stream():
    random = np.random.default_rng(0)
    return StreamScores(
        random.normal(size=N).astype(np.float32) - 2,
        random.normal(size=N).astype(np.float32) + 1,
        (2 * random.normal(size=(N, WIDTH))).astype(np.float32),
        random.integers(0, VALUES, N).astype(np.int32),
    )


def memory_of(i, memory):
    """Stream positions that prediction i remembers."""
    start = i // memory.segment * memory.segment
    return range(max(0, start - memory.size), i)


def slot_weights(stream, i, memory, source=lambda j: j):
    keys = np.asarray(stream.keys, np.float64)
    scale = np.sqrt(WIDTH) * memory.temperature
    return [
        (np.exp(keys[i] @ keys[source(j)] / scale), stream.targets[source(j)])
        for j in memory_of(i, memory)
    ]


def expected(stream, *slots_of):
    """log p of each target, given (weight, value) of its slots, float64 [N]."""
    out = []
    for i in range(N):
        numerator = np.exp(np.float64(stream.target_score[i]))
        denominator = np.exp(np.float64(stream.log_normaliser[i]))
        for slots in slots_of:
            for weight, value in slots(i):
                denominator += weight
                numerator += weight * (value == stream.targets[i])
        out.append(np.log(numerator / denominator))
    return np.array(out)


MEMORIES = [
    TokenMemory(0, 4),
    TokenMemory(5, 4),
    TokenMemory(3, 4, 1.5),
    TokenMemory(100, 1),
    TokenMemory(4, 13, 0.5),
    TokenMemory(2, 50),
    TokenMemory(10**9, 4),  # beyond the stream, which it holds whole
]


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_past_of_a_stream(stream, memory):
    sums = token_memory.stream_log_sums(stream, memory)
    got = token_memory.joint_log_probs(stream, sums)
    wanted = expected(stream, lambda i: slot_weights(stream, i, memory))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", [TokenMemory(0, 3), TokenMemory(2, 3)], ids=str)
def test_foreign_is_the_past_of_half_a_stream_away(stream, memory):
    sums = token_memory.stream_log_sums(stream, memory, control=controls.FOREIGN)
    got = token_memory.joint_log_probs(stream, sums)
    away = lambda j: (j + N // 2) % N
    wanted = expected(stream, lambda i: slot_weights(stream, i, memory, away))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_foreign_does_not_answer_itself(stream):
    """A memory of half the stream and more would reach around to the query."""
    memory = TokenMemory(N, 4)
    sharp = stream._replace(keys=50 * stream.keys)  # all weight on one's own key
    sums = token_memory.stream_log_sums(sharp, memory, control=controls.FOREIGN)
    start = np.arange(N) // 4 * 4
    keys = np.asarray(sharp.keys, np.float64)
    for i in range(N):
        sources = {(j + N // 2) % N for j in memory_of(i, memory)}
        sources -= set(range(start[i], start[i] + 4))
        logits = [keys[i] @ keys[j] / np.sqrt(WIDTH) for j in sources]
        wanted = max(logits, default=-np.inf)
        assert sums.all[i] == pytest.approx(wanted, rel=1e-3, abs=1.5)


def test_shuffled_keeps_the_keys_and_older_values(stream):
    memory = TokenMemory(N, 1)  # all slots are older ones
    real = token_memory.stream_log_sums(stream, memory)
    shuffled = token_memory.stream_log_sums(stream, memory, control=controls.SHUFFLED)
    np.testing.assert_allclose(shuffled.all, real.all, rtol=1e-6)
    assert (shuffled.positive != real.positive).any()
    again = token_memory.stream_log_sums(stream, memory, control=controls.SHUFFLED)
    np.testing.assert_array_equal(again.positive, shuffled.positive)
    other = token_memory.stream_log_sums(
        stream, memory, control=controls.SHUFFLED, seed=1
    )
    assert (other.positive != shuffled.positive).any()


@pytest.mark.parametrize("control", [controls.REAL, controls.SHUFFLED])
@pytest.mark.parametrize("memory", [TokenMemory(3, 4), TokenMemory(0, 13)], ids=str)
def test_no_prediction_knows_what_comes_later(stream, memory, control):
    cut = 6
    moved = stream._replace(
        keys=np.where(np.arange(N)[:, None] > cut, 7, stream.keys).astype(np.float32),
        targets=np.where(np.arange(N) > cut, 2 - stream.targets, stream.targets),
    )
    both = [
        token_memory.stream_log_sums(x, memory, control=control)
        for x in (stream, moved)
    ]
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a[: cut + 1], b[: cut + 1])
    assert (both[0].all[cut + 1 :] != both[1].all[cut + 1 :]).any()


@pytest.fixture
def neighbours():
    random = np.random.default_rng(1)
    similarities = random.normal(size=(N, 4)).astype(np.float32)
    values = random.integers(0, VALUES, (N, 4)).astype(np.int32)
    similarities[:, 3], values[:, 3] = -np.inf, -1
    similarities[2], values[2] = -np.inf, -1
    return NeighbourValues(similarities, values)


def outside(neighbours, i, temperature):
    return [
        (np.exp(np.float64(s) / temperature), v)
        for s, v in zip(neighbours.similarities[i], neighbours.values[i], strict=True)
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_datastore_beside_the_past(stream, neighbours, temperature):
    memory = TokenMemory(3, 4, temperature)
    found = token_memory.external_log_sums(
        neighbours, stream.targets, temperature=temperature
    )
    assert found.all[2] == found.positive[2] == -np.inf
    past = token_memory.stream_log_sums(stream, memory)
    outer = lambda i: outside(neighbours, i, temperature)
    inner = lambda i: slot_weights(stream, i, memory)
    alone = token_memory.joint_log_probs(stream, found)
    np.testing.assert_allclose(alone, expected(stream, outer), rtol=1e-5, atol=1e-5)
    both = token_memory.joint_log_probs(stream, past, found)
    wanted = expected(stream, inner, outer)
    np.testing.assert_allclose(both, wanted, rtol=1e-5, atol=1e-5)


def test_every_control_is_what_it_says(stream, neighbours):
    memory = TokenMemory(3, 4)
    names = (controls.REAL, controls.SHUFFLED, controls.FOREIGN)
    alone = token_memory.log_probs_by_control(stream, memory)
    assert set(alone) == {"off", *names}
    np.testing.assert_array_equal(alone["off"], stream.log_probs)
    for name in names:
        past = token_memory.stream_log_sums(stream, memory, control=name)
        np.testing.assert_array_equal(
            alone[name], token_memory.joint_log_probs(stream, past)
        )
    moved = neighbours._replace(values=neighbours.values[::-1])
    found = {name: neighbours for name in names}
    found |= {controls.FOREIGN: moved, "exact": moved}
    both = token_memory.log_probs_by_control(stream, memory, found)
    assert set(both) == {"off", "exact", *names}
    real = token_memory.stream_log_sums(stream, memory)
    outer = token_memory.external_log_sums(moved, stream.targets)
    np.testing.assert_array_equal(
        both["exact"], token_memory.joint_log_probs(stream, real, outer)
    )
    assert (both["foreign"] != both["exact"]).any()
    flat = token_memory.log_probs_by_control(
        stream, memory, found, external_temperature=7.0
    )
    outer = token_memory.external_log_sums(moved, stream.targets, temperature=7.0)
    np.testing.assert_array_equal(
        flat["exact"], token_memory.joint_log_probs(stream, real, outer)
    )


def test_tuning_finds_the_temperature_of_the_lowest_perplexity(stream):
    memory = TokenMemory(5, 4)
    temperatures = [0.1, 0.5, 1.0, 4.0]
    got = token_memory.tune_temperature(stream, memory, temperatures)
    means = {}
    for t in temperatures:
        one = memory._replace(temperature=t)
        means[t] = expected(stream, lambda i, m=one: slot_weights(stream, i, m)).mean()
    assert got == memory._replace(temperature=max(temperatures, key=means.__getitem__))


def test_tuning_gives_a_datastore_a_temperature_of_its_own(stream):
    """Neighbours that mislead are made flat, while the past stays sharp."""
    rng = np.random.default_rng(1)
    misleading = NeighbourValues(
        rng.normal(6.0, 1.0, (N, 2)).astype(np.float32),
        np.full((N, 2), VALUES, np.int32),
    )
    memory, temperatures = TokenMemory(5, 4), [0.5, 1.0, 20.0]
    alone = token_memory.tune_temperature(stream, memory, temperatures)
    got, external = token_memory.tune_temperatures(
        stream, memory, temperatures, misleading
    )
    assert external == 20.0
    past = token_memory.stream_log_sums(stream, got)
    outside = token_memory.external_log_sums(
        misleading, stream.targets, temperature=external
    )
    best = token_memory.joint_log_probs(stream, past, outside).mean()
    for t in temperatures:
        shared = alone._replace(temperature=t)
        both = token_memory.joint_log_probs(
            stream,
            token_memory.stream_log_sums(stream, shared),
            token_memory.external_log_sums(misleading, stream.targets, temperature=t),
        )
        assert best >= both.mean()


def test_heaviest_slots(stream):
    memory = TokenMemory(5, 4, 2.0)
    chosen = np.array([0, 1, 6, 11])
    got = token_memory.heaviest_slots(stream, memory, chosen, k=3)
    for row, i in enumerate(chosen):
        slots = list(memory_of(i, memory))
        weights = [w for w, _ in slot_weights(stream, i, memory)]
        order = np.argsort(-np.array(weights), kind="stable")[:3].astype(int)
        wanted = [slots[j] for j in order]
        np.testing.assert_array_equal(got.positions[row, : len(wanted)], wanted)
        assert (got.positions[row, len(wanted) :] == -1).all()
        shares = np.array([weights[j] for j in order]) / max(sum(weights), 1e-9)
        np.testing.assert_allclose(got.weights[row, : len(wanted)], shares, rtol=1e-5)
        hit = sum(w for w, v in slot_weights(stream, i, memory)
                  if v == stream.targets[i])  # fmt: skip
        assert got.target_probability[row] == pytest.approx(
            hit / max(sum(weights), 1e-9), rel=1e-5
        )
