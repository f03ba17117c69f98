"""The continuous cache against float64 loops."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import continuous_cache, next_token
from rlm_jax.evaluate.next_token import RunMemory, Text
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory

N, WIDTH, VALUES = 13, 3, 4
MEMORIES = [TokenMemory(5, 4), TokenMemory(0, 4), TokenMemory(100, 1, 0.3)]
MEMORIES += [TokenMemory(4, 13, 2.0)]


@pytest.fixture(scope="module")
def stream():
    random = np.random.default_rng(3)
    return StreamScores(
        random.normal(size=N).astype(np.float32) - 2,
        random.normal(size=N).astype(np.float32) + 1,
        (2 * random.normal(size=(N, WIDTH))).astype(np.float32),
        random.integers(0, VALUES, N).astype(np.int32),
    )


def by_loop(stream, memory, weight):
    """(1 - lambda) p_LM + lambda p_cache of each target, float64 logarithms."""
    keys, out = np.asarray(stream.keys, np.float64), []
    theta = 1 / (memory.temperature * np.sqrt(WIDTH))
    for t in range(N):
        p = np.exp(np.float64(stream.target_score[t]) - stream.log_normaliser[t])
        begins = t // memory.segment * memory.segment
        seen = range(max(0, begins - memory.size), t)
        spoken = {}
        for i in seen:
            value = int(stream.targets[i])
            spoken[value] = spoken.get(value, 0.0) + np.exp(theta * keys[t] @ keys[i])
        if spoken:
            share = spoken.get(int(stream.targets[t]), 0.0) / sum(spoken.values())
            p = (1 - weight) * p + weight * share
        out.append(np.log(p))
    return np.array(out)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_equation(stream, memory, weight):
    got = continuous_cache.log_probs(stream, memory, weight)
    np.testing.assert_allclose(got, by_loop(stream, memory, weight), rtol=1e-5)
    assert got[0] == stream.log_probs[0]  # nothing is cached yet


def test_a_whole_distribution_adds_up_and_agrees(stream):
    """What a continuation is drawn from, over the vocabulary."""
    memory, weight = TokenMemory(5, 4, 0.7), 0.4
    wanted = by_loop(stream, memory, weight)
    ours = RunMemory(memory, None, None, weight)
    for t in range(N):
        text = Text([0, *stream.targets[:t].tolist()], list(stream.keys[: t + 1]))
        plain = np.full(VALUES, -np.inf)
        target = int(stream.targets[t])
        plain[target] = stream.log_probs[t]
        plain[(target + 1) % VALUES] = np.log1p(-np.exp(stream.log_probs[t]))
        made = next_token.log_probs(ours, text, plain, float(stream.log_normaliser[t]))
        assert np.exp(made).sum() == pytest.approx(1, abs=1e-5)
        assert made[target] == pytest.approx(wanted[t], abs=1e-5)


def test_controls(stream):
    memory = TokenMemory(5, 4, 0.5)
    told = continuous_cache.by_control(stream, memory, 0.3)
    assert set(told) == {"real", "off", "shuffled", "foreign"}
    np.testing.assert_array_equal(told["off"], stream.log_probs)
    for name in ("off", "shuffled", "foreign"):
        assert (told[name] != told["real"]).any()


def test_tuning_takes_the_lowest_perplexity(stream):
    memory, grids = TokenMemory(5, 4), ([0.2, 1.0, 4.0], [0.05, 0.3, 0.6])
    got = continuous_cache.tune(stream, memory, *grids)
    means = {
        (memory._replace(temperature=t), w): by_loop(
            stream, memory._replace(temperature=t), w
        ).mean()
        for t in grids[0]
        for w in grids[1]
    }
    assert got == max(means, key=means.__getitem__)
    with pytest.raises(UserError, match="A grid to tune on is empty"):
        continuous_cache.tune(stream, memory, [], [0.1])
