"""RPT's retrieval and ranking loss, against the released code's arrays and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.methods import rpt
from rlm_jax.ops import ranking, self_retrieval


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("rpt_retriever")


def candidates(z, rows=slice(None)):
    places = z["nei_idx"][rows].astype(np.int32)
    targets = z["nei_scores"][rows].astype(np.float32)
    return ranking.Candidates(places, targets, np.ones(places.shape, bool))


def test_windows_of_the_released_code(arrays):
    names = [name for name in arrays if name.startswith("segmask_")]
    assert names
    for name in names:
        count, per_window = map(int, name.split("_")[1:])
        found = self_retrieval.allowed("previous_windows", count, 0, per_window, count)
        np.testing.assert_array_equal(found, arrays[name])


def test_loss_and_gradient_of_the_released_code(arrays):
    z = arrays
    scores = z["scores"].astype(np.float32)
    rule = functools.partial(
        ranking.pair_loss,
        candidates=candidates(z),
        visible=z["chunk_mask"],
        threshold=float(z["threshold"]),
        margin=float(z["margin"]),
    )

    def mean(scores):
        found = rule(scores)
        return found.total.sum() / found.pairs.sum(), found

    (value, found), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(scores)
    assert found.pairs.sum() == z["n_valid_pairs"]
    np.testing.assert_allclose(found.total.sum(), z["raw_aux_loss"], rtol=1e-4)
    np.testing.assert_allclose(value, z["aux_loss"], rtol=1e-4)
    np.testing.assert_allclose(gradient, z["grad_scores"], atol=1e-4, rtol=1e-4)


def test_weights_of_the_released_code(arrays):
    """Of every pair that counts: theirs has a row for each choice, ours for scored."""
    z = arrays
    threshold = float(z["threshold"])
    given = candidates(z)
    found = ranking.pair_weights(
        z["scores"].astype(np.float32), given, z["chunk_mask"], threshold
    )
    wanted = np.take_along_axis(z["ndcg_lambda"], z["nei_idx"][..., None], axis=1)
    at = np.take_along_axis(z["chunk_mask"], z["nei_idx"], axis=1)
    valid = (z["nei_scores"] > threshold) & at
    valid = valid[..., None] & z["chunk_mask"][:, None]
    assert valid.sum() > 50
    np.testing.assert_allclose(found[valid], wanted[valid], rtol=1e-4, atol=1e-4)


def test_neighbours_of_the_released_code(arrays):
    z = arrays
    k = z["predicted_idx"].shape[1]
    visible = z["chunk_mask"][None]
    found = self_retrieval.top(z["scores"].astype(np.float32)[None], visible, k)
    np.testing.assert_array_equal(found.present[0], z["predicted_nei_mask"])
    there = z["predicted_nei_mask"]
    np.testing.assert_array_equal(found.places[0][there], z["predicted_idx"][there])

    mine = rpt.best_targets(
        jax.tree.map(lambda x: x[None], candidates(z)), visible, k, z["threshold"]
    )
    there = z["target_nei_mask"]
    np.testing.assert_array_equal(mine.present[0], there)
    np.testing.assert_array_equal(mine.places[0][there], z["target_idx"][there])

    states = self_retrieval.with_successors(
        z["encoded_hidden"].astype(np.float32)[None],
        z["predicted_idx"][None].astype(np.int32),
    )
    np.testing.assert_allclose(states[0], z["neighbor_states"], atol=1e-6)


def test_schedules_of_the_released_code(arrays):
    z = arrays
    # What the arrays were made with, as their note says.
    sampling = rpt.SamplingConfig(min_probability=0.1, max_probability=0.9, steps=100)
    found = [rpt.probability(sampling, jnp.float32(x)) for x in z["ss_steps"]]
    np.testing.assert_allclose(found, z["ss_prob"], atol=1e-6)
    auxiliary = rpt.AuxiliaryConfig(scale=0.7, warmup_steps=60)
    found = rpt.auxiliary_scale(auxiliary, jnp.float32(z["train_step"]))
    np.testing.assert_allclose(found, z["loss_scale"], rtol=1e-6)
    auxiliary = rpt.AuxiliaryConfig(max_margin=3.0, margin_steps=100)
    found = rpt.margin(auxiliary, jnp.float32(z["train_step"]))
    np.testing.assert_allclose(found, z["margin"], rtol=1e-6)


def loop(scores, places, targets, present, visible, threshold, margin):
    """Sum and number of pairs of one query, float64."""
    p = len(scores)
    scored = np.flatnonzero(present)
    t = {int(places[i]): targets[i] for i in scored}
    seen = [j for j in range(p) if visible[j]]
    ranks = {j: 1 + r for r, j in enumerate(sorted(seen, key=lambda j: -scores[j]))}
    gain = lambda j: t[j] if j in t and t[j] > threshold and visible[j] else 0.0
    ideal = sorted((2 ** gain(j) - 1 for j in t), reverse=True)
    best = max(sum(g / np.log2(2 + r) for r, g in enumerate(ideal)), 0.001)
    total, pairs = 0.0, 0
    for a in seen:
        for b in seen:
            if a in t and t[a] > threshold and t[a] > t.get(b, -np.inf):
                change = (2 ** gain(a) - 2 ** gain(b)) * (
                    np.log2(1 + ranks[a]) - np.log2(1 + ranks[b])
                )
                hinge = max(margin - (scores[a] - scores[b]), 0)
                total += abs(change) / best * hinge
                pairs += 1
    return total, pairs


@pytest.mark.parametrize("scale", [1.0, 60.0])  # 2^60 and more
def test_loss_against_a_loop(scale):
    rng = np.random.default_rng(3)
    queries, pool, count = 6, 9, 4
    scores = rng.normal(size=(queries, pool)).astype(np.float32)
    places = np.stack([rng.permutation(pool)[:count] for _ in range(queries)])
    targets = (scale * rng.normal(size=places.shape)).astype(np.float32)
    present = rng.random(places.shape) < 0.8
    visible = rng.random((queries, pool)) < 0.7
    visible[0] = False
    found = ranking.pair_loss(
        scores,
        ranking.Candidates(places.astype(np.int32), targets, present),
        visible,
        threshold=0.1,
        margin=1.5,
    )
    for i in range(queries):
        total, pairs = loop(
            scores[i].astype(np.float64), places[i], targets[i].astype(np.float64),
            present[i], visible[i], 0.1, 1.5,
        )  # fmt: skip
        assert found.pairs[i] == pairs
        np.testing.assert_allclose(found.total[i], total, rtol=1e-4)


@pytest.mark.parametrize("rule", ["previous_windows", "all_earlier"])
def test_what_may_be_retrieved(rule):
    count, memory, per_window, reach = 6, 4, 2, 3
    found = self_retrieval.allowed(rule, count, memory, per_window, reach)
    for i in range(count):
        begin = i // per_window * per_window
        for place in range(memory + count):
            j = place - memory
            end = begin - 2 if rule == "previous_windows" else i - 1
            assert found[i, place] == (begin - reach <= j < end)
    assert found.any()


def test_distances_and_places():
    visible = jnp.ones((1, 3, 5), bool).at[0, 1, 0].set(False)
    distances = jnp.array([[[1, 0], [3, 2], [5, 4]]])
    chosen = self_retrieval.at_distances(distances, visible)
    # The row's chunks are 2, 3 and 4 of the pool; one is hidden, one out of it.
    np.testing.assert_array_equal(chosen.places[0, :, 1], [0, 1, 0])
    np.testing.assert_array_equal(
        chosen.present[0], [[True, False], [False, True], [False, True]]
    )
    back = self_retrieval.to_distances(chosen, 5)
    np.testing.assert_array_equal(back[0], [[1, 0], [0, 2], [0, 4]])
