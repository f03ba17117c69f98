"""kNN distributions and their mixture against arrays computed by the released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import mixtures

ABSENT = -20.0  # the reference gives about -10000 to a target no neighbour has


@pytest.fixture(params=["knn_lm_topk", "knn_lm_full"])
def z(golden, request):
    return golden(request.param)


def neighbours(z):
    ids = z["neighbours"]
    return (
        jnp.asarray(z["queries"], jnp.float32),
        jnp.asarray(z["keys"][ids], jnp.float32),
        jnp.asarray(z["values"][ids], jnp.int32),
        jnp.asarray(z["targets"], jnp.int32),
    )


def present(z):
    # The reference strips pads (target 1) before it looks at neighbours.
    return (z["knn_log_prob"] > ABSENT) & (z["targets"] != 1)


def assert_close(ours, theirs, where):
    np.testing.assert_allclose(
        np.asarray(ours)[where], theirs[where], rtol=1e-4, atol=1e-4
    )


def test_squared_l2(z):
    queries, keys, _, _ = neighbours(z)
    ours = -mixtures.negative_squared_l2(queries, keys)
    np.testing.assert_allclose(ours, z["sq_l2"], rtol=1e-4, atol=1e-4)


def test_neighbours_are_the_nearest(z):
    distance = np.square(z["queries"][..., None, :] - z["keys"]).sum(-1)
    order = np.argsort(distance, axis=-1, kind="stable")[..., : int(z["k"])]
    np.testing.assert_array_equal(order, z["neighbours"])


def test_log_prob_of_the_target(z):
    queries, keys, values, targets = neighbours(z)
    ours = mixtures.knn_log_probs(
        mixtures.negative_squared_l2(queries, keys), values, targets
    )
    assert present(z).any()
    assert_close(ours, z["knn_log_prob"], present(z))
    absent = (z["knn_log_prob"] <= ABSENT) & (z["targets"] != 1)
    assert (np.asarray(ours)[absent] < ABSENT).all()


def test_inner_product(z):
    queries, keys, values, targets = neighbours(z)
    ours = mixtures.knn_log_probs(
        mixtures.inner_product(queries, keys), values, targets
    )
    where = present(z) & (z["knn_log_prob_dot"] > ABSENT)
    assert_close(ours, z["knn_log_prob_dot"], where)


def test_interpolation(z):
    queries, keys, values, targets = neighbours(z)
    log_p = jnp.take_along_axis(
        jnp.asarray(z["lm_log_probs"], jnp.float32), targets[..., None], -1
    )[..., 0]
    knn = mixtures.knn_log_probs(
        mixtures.negative_squared_l2(queries, keys), values, targets
    )
    ours = mixtures.interpolate(log_p, knn, float(z["lam"]))
    assert_close(ours, z["interp_log_prob"], z["targets"] != 1)


@pytest.mark.parametrize("scaled", [False, True], ids=["1", "temperature"])
def test_whole_distribution(z, scaled):
    """Also with a temperature, which the array's name tells."""
    names = [n for n in z if n.startswith("knn_log_prob_vocab_temp")]
    if not scaled:
        names = ["knn_log_prob_vocab"]
    assert names
    queries, keys, values, _ = neighbours(z)
    for name in names:
        ours = mixtures.knn_distribution(
            mixtures.negative_squared_l2(queries, keys),
            values,
            z["lm_log_probs"].shape[-1],
            temperature=float(name.partition("temp")[2] or 1),
        )
        np.testing.assert_allclose(ours.sum(-1), 1.0, rtol=1e-5)
        where = z[name] > ABSENT
        assert_close(np.log(np.maximum(ours, 1e-38)), z[name], where)
        assert (np.asarray(ours)[z[name] < -1000] == 0).all()


def test_gradient_of_the_queries(z):
    queries, keys, values, targets = neighbours(z)

    def total(queries):
        similarities = mixtures.negative_squared_l2(queries, keys)
        log_p = mixtures.knn_log_probs(similarities, values, targets)
        return jnp.where(jnp.asarray(z["grad_mask"]), log_p, 0.0).sum()

    ours = jax.grad(total)(queries)
    np.testing.assert_allclose(ours, z["grad_queries"], rtol=1e-4, atol=1e-4)
