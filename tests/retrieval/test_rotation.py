import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import rotation as rotations


def vectors(num, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.arange(1, dim + 1) ** 2
    return (scales * (1 + rng.normal(size=(num, dim)))).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_scores_are_those_of_the_vectors_as_they_were(metric, monkeypatch):
    monkeypatch.setattr(rotations, "_ROWS", 7)  # 30 is no multiple of it
    keys, queries = vectors(30), vectors(5, seed=1)
    wanted = queries.astype(np.float64) @ keys.T.astype(np.float64)
    if metric == "l2":
        wanted = -np.array(
            [[((q - k).astype(np.float64) ** 2).sum() for k in keys] for q in queries]
        )
    rotation = rotations.of_keys(keys, metric)
    turned = np.empty((30, rotations.width(12, metric)), np.float32)
    turned[:, :12] = keys
    rotations.turn_keys(rotation, turned)
    products = rotations.turn_queries(rotation, queries) @ turned.T
    found = rotations.scores(rotation, products, queries)
    np.testing.assert_allclose(
        found, wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max()
    )
    assert turned.dtype == products.dtype == found.dtype == np.float32


def test_no_distance_is_negative():
    keys = vectors(30)
    rotation = rotations.of_keys(keys, "l2")
    turned = np.pad(keys, ((0, 0), (0, 1)))
    rotations.turn_keys(rotation, turned)
    products = rotations.turn_queries(rotation, keys) @ turned.T
    assert (rotations.scores(rotation, products, keys) <= 0).all()


@pytest.mark.parametrize("long", [False, True])
def test_the_added_coordinate_is_as_large_in_keys_as_in_queries(long):
    keys = vectors(3000)
    if long:
        keys[:60] *= 50
    rotation = rotations.of_keys(keys, "l2")
    moved = (keys - rotation.centre)[60:]
    added = (rotation.offset - (moved**2).sum(axis=1) / 2) / rotation.scale
    assert 0.5 < np.std(added) / rotation.scale < 2


def test_keys_of_one_length_are_no_special_case():
    keys = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)
    rotation = rotations.of_keys(keys, "l2")
    turned = np.pad(keys, ((0, 0), (0, 1)))
    rotations.turn_keys(rotation, turned)
    products = rotations.turn_queries(rotation, keys) @ turned.T
    found = rotations.scores(rotation, products, keys)
    wanted = -((keys[:, None] - keys) ** 2).sum(axis=-1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_turned_keys_have_no_mean_and_no_coordinate_that_dominates():
    keys = vectors(2000, dim=64)
    rotation = rotations.of_keys(keys, "ip")
    np.testing.assert_allclose(
        rotation.matrix @ rotation.matrix.T, np.eye(64), atol=1e-5
    )
    before = keys.var(axis=0)
    rotations.turn_keys(rotation, keys)
    np.testing.assert_allclose(keys.mean(axis=0), 0, atol=1.0)
    after = keys.var(axis=0)
    assert after.max() / after.mean() < 2.5 < 0.6 * before.max() / before.mean()


def test_a_seed_gives_one_matrix():
    one, same, other = (rotations.of_keys(vectors(9), "ip", seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.matrix, same.matrix)
    assert np.abs(one.matrix - other.matrix).max() > 0.1


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_written_and_read_it_is_the_same(metric, tmp_path):
    rotation = rotations.of_keys(vectors(9), metric)
    rotations.write(rotation, tmp_path)
    loaded = rotations.read(tmp_path, 12, metric)
    for array, wanted in zip(loaded, rotation, strict=True):
        np.testing.assert_array_equal(array, wanted)
        assert array.dtype == np.float32
    with pytest.raises(UserError, match="build it again"):
        rotations.read(tmp_path, 11, metric)
