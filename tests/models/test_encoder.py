"""The encoder: padding, pooling, dropout, types, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models.encoder import Encoder, EncoderConfig, MaskedLM, embedder

CONFIG = EncoderConfig(
    vocab_size=31, num_layers=2, width=8, num_heads=2, feed_forward_width=12,
    max_length=10,
)  # fmt: skip


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def batch(lengths=(5, 3), width=6, seed=0):
    random = np.random.default_rng(seed)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    ids = random.integers(1, 31, mask.shape).astype(np.int32) * mask
    return {"ids": ids, "mask": mask}


def initial(config, seed=0):
    shapes = jax.eval_shape(embedder(config).init, jax.random.key(seed))
    return randomised(shapes, seed)


def randomised(shapes, seed=0):
    """Scales near 1, everything else near 0."""
    random = np.random.default_rng(seed)

    def draw(path, x):
        value = 1.0 * (path[-1].key == "scale") + 0.3 * random.normal(size=x.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("first_position", [0, 2], ids=["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(first_position, pooling):
    config = changed(first_position=first_position, pooling=pooling)
    params, embed = initial(config), embedder(config).embed
    narrow, wide = batch(width=6), batch(width=9)
    wide["ids"][:, :6] = narrow["ids"]
    wide["ids"][:, 6:] = 7  # whatever stands there
    np.testing.assert_allclose(
        embed(params, narrow), embed(params, wide), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("ids", "positions"),
    [
        ([5, 6, 7, 8, 9], [2, 3, 4, 5, 6]),
        ([5, 1, 7, 8, 9], [2, 1, 3, 4, 5]),  # the mark of padding as a text has it
        ([1, 1, 7, 1, 9], [1, 1, 2, 1, 3]),
        ([5, 6, 7, 8, 1], [2, 3, 4, 5, 1]),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ([0, 1, 2, 1, 3], [2, 1, 3, 1, 4]),
    ],
)
def test_robertas_positions_count_ids_that_are_not_padding(ids, positions):
    """As an encoder that counts from 0 does whose rows stand in that order."""
    config = changed(first_position=2, pad_id=1)
    params = initial(config)
    plain = {**params, "positions": params["positions"][np.array(positions)]}
    row = {"ids": np.array([ids], np.int32), "mask": np.ones((1, 5), np.int32)}
    np.testing.assert_allclose(
        embedder(config).embed(params, row),
        embedder(changed(max_length=5)).embed(plain, row),
        rtol=1e-6,
        atol=1e-6,
    )


def test_mean_pooling_is_the_mean_over_tokens():
    params, some = initial(CONFIG), batch()
    hidden = np.asarray(Encoder(CONFIG).apply({"params": params}, **some))
    expected = [row[:n].mean(0) for row, n in zip(hidden, (5, 3), strict=True)]
    np.testing.assert_allclose(
        embedder(CONFIG).embed(params, some), expected, rtol=1e-5, atol=1e-6
    )


def test_projection_and_normalisation():
    config = changed(projection=3, normalise=True)
    vectors = np.asarray(embedder(config).embed(initial(config), batch()))
    assert vectors.shape == (2, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_an_empty_text_has_a_vector():
    vectors = embedder(CONFIG).embed(initial(CONFIG), batch(lengths=(5, 0)))
    assert np.isfinite(vectors).all()


def test_types_are_zero_where_none_are_given():
    params, some = initial(CONFIG), batch()

    def apply(**more):
        return np.asarray(Encoder(CONFIG).apply({"params": params}, **some, **more))

    zeros, ones = np.zeros_like(some["ids"]), np.ones_like(some["ids"])
    np.testing.assert_allclose(apply(), apply(types=zeros), rtol=1e-6)
    assert np.abs(apply() - apply(types=ones)).max() > 1e-2


def test_dropout_needs_a_key_and_follows_it():
    params, some, embed = initial(CONFIG), batch(), embedder(CONFIG).embed
    a, b = (embed(params, some, key=jax.random.key(i)) for i in (1, 2))
    np.testing.assert_array_equal(a, embed(params, some, key=jax.random.key(1)))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(embed(params, some), embed(params, some))


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_gradient():
    some, params = batch(), initial(CONFIG)

    def gradient(config):
        embed = embedder(config).embed
        return jax.grad(lambda p: (embed(p, some) ** 2).sum())(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradient(CONFIG),
        gradient(changed(remat=True)),
    )


def test_bfloat16_is_near_float32_and_returns_float32():
    params, some = initial(CONFIG), batch()
    exact = embedder(CONFIG).embed(params, some)
    rounded = embedder(changed(dtype="bfloat16")).embed(params, some)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(exact, rounded, atol=0.1)


def test_the_masked_lm_ties_its_embedding():
    module, some = MaskedLM(CONFIG), batch()
    init = functools.partial(module.init, jax.random.key(0))
    params = randomised(jax.eval_shape(init, **some)["params"])
    logits = np.asarray(module.apply({"params": params}, **some))
    assert logits.shape == (2, 6, 31) and logits.dtype == jnp.float32
    moved = jax.tree.map(np.array, params)
    moved["encoder"]["tokens"][30, 0] += 9.0
    other = np.asarray(module.apply({"params": moved}, **some))
    assert np.abs(other - logits)[..., 30].max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_heads": 3}, "does not divide into 3 heads"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"projection": -1}, "projection is -1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        embedder(changed(**changes))


def test_a_text_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="11 tokens and max_length"):
        embedder(CONFIG).embed(initial(CONFIG), batch(width=11))
