"""T5's layers against loops, and what the model does at its edges."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models import t5, t5_layers
from rlm_jax.models.layers import KeysValues
from rlm_jax.models.seq2seq import T5, seq2seq


def exact_bucket(distance, num_buckets, max_distance, bidirectional):
    """In whole numbers: bucket k above the exact ones begins where
    (d / exact)^wide >= (max / exact)^k."""
    after = 0
    if bidirectional:
        num_buckets //= 2
        after, distance = num_buckets * (distance > 0), abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return after + distance
    wide, k = num_buckets - exact, 0
    while (
        k < wide - 1
        and distance**wide * exact ** (k + 1) >= max_distance ** (k + 1) * exact**wide
    ):
        k += 1
    return after + exact + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 20), (4, 3)])
def test_buckets_of_distances(num_buckets, max_distance, bidirectional):
    distances = np.arange(-300, 301)
    options = dict(
        num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    found = t5_layers.relative_buckets(distances, **options)
    assert found.tolist() == [exact_bucket(int(d), **options) for d in distances]
    assert found.min() == 0 and found.max() == num_buckets - 1
    # A bias at traced positions is the table's, however far the keys.
    table = np.random.default_rng(0).normal(size=(num_buckets, 2)).astype(np.float32)
    del options["num_buckets"]
    positions = jnp.array([0, 7, 290])
    bias = t5_layers.relative_bias(table, positions, 300, **options)
    for i, position in enumerate((0, 7, 290)):
        expected = table[found[300 - position : 600 - position]]
        np.testing.assert_array_equal(bias[:, i], expected.T)


@pytest.mark.torch
def test_buckets_are_those_of_transformers():
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-1000, 1001)
    for num_buckets, max_distance in ((32, 128), (32, 256), (8, 20), (16, 100)):
        for bidirectional in (True, False):
            options: dict[str, Any] = dict(
                num_buckets=num_buckets, max_distance=max_distance,
                bidirectional=bidirectional,
            )  # fmt: skip
            expected = T5Attention._relative_position_bucket(
                torch.from_numpy(distances), **options
            )
            found = t5_layers.relative_buckets(distances, **options)
            np.testing.assert_array_equal(found, expected.numpy())


def test_attention_against_a_loop():
    """Fewer heads of keys and values, a bias, and a row that sees nothing."""
    random = np.random.default_rng(0)
    batch, length, states, heads, groups, d = 2, 3, 5, 4, 2, 3
    q = random.normal(size=(batch, length, heads, d))
    keys = random.normal(size=(batch, groups, d, states))
    values = random.normal(size=(batch, groups, states, d))
    bias = random.normal(size=(heads, length, states)).astype(np.float32)
    visible = random.random((batch, length, states)) < 0.6
    visible[0, 0] = False
    f = lambda x: jnp.asarray(x, jnp.float32)
    out, scores = jax.jit(t5_layers.attend)(
        f(q), KeysValues(f(keys), f(values)), jnp.asarray(bias), jnp.asarray(visible)
    )
    for b, t, h in np.ndindex(batch, length, heads):
        g = h // (heads // groups)
        logits = q[b, t, h] @ keys[b, g] + bias[h, t]
        np.testing.assert_allclose(scores[b, h, t], logits, atol=1e-5)
        share = np.exp(logits) * visible[b, t]
        expected = share @ values[b, g] / max(share.sum(), 1e-300)
        np.testing.assert_allclose(out[b, t, h], expected, atol=1e-5)


SMALL: dict[str, Any] = dict(
    vocab_size=20, width=12, num_layers=1, num_decoder_layers=1, num_heads=2,
    head_width=4, feed_forward_width=10, num_buckets=8, max_distance=20, dropout=0.0,
)  # fmt: skip


def random_params(config, seed=0):
    shapes = jax.eval_shape(seq2seq(config).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes
    )


IDS = np.array([[3, 4, 5, 1, 0], [6, 7, 1, 0, 0], [8, 9, 10, 11, 1]], np.int32)
MASK = (IDS > 0).astype(np.int32)
TARGETS = np.array([[0, 5, 6], [0, 7, 8], [0, 9, 9]], np.int32)


def loss_of(config):
    """(params, memory's mask, states to add, key) -> (loss, (logits, hidden))."""
    model = seq2seq(config)

    def loss(params, mask, more=0.0, key=None):
        states = model.encode(params, IDS, MASK, key=key) + more
        hidden = model.decode(params, TARGETS, states, mask, key=key).hidden
        logits = model.logits(params, hidden)
        return jnp.square(logits).mean(), (logits, hidden)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@cache
def plain():
    """A small v1.1 in float32: (config, parameters, loss and gradient)."""
    config = t5.v1_1(**SMALL)
    return config, random_params(config), loss_of(config)


def test_a_memory_of_padding_is_no_memory():
    _, params, loss = plain()
    mask = MASK.copy()
    mask[0] = 0
    (_, (logits, _)), gradient = loss(params, mask)
    (_, (whole, _)), _ = loss(params, MASK)
    (_, (other, _)), _ = loss(params, mask, np.float32(3.0) * (mask == 0)[..., None])
    np.testing.assert_array_equal(logits, other)  # what is masked is not read
    np.testing.assert_array_equal(logits[1:], whole[1:])  # nor do rows meet
    assert np.abs(logits[0] - whole[0]).max() > 1e-3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient))
    (_, (nothing, _)), gradient = loss(params, np.zeros_like(MASK))
    assert np.isfinite(nothing).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_bfloat16_keeps_logits_and_gradients_in_float32():
    config, params, loss = plain()
    half = loss_of(dataclasses.replace(config, dtype="bfloat16"))
    (_, (logits, hidden)), gradient = half(params, MASK)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    (_, (expected, _)), _ = loss(params, MASK)
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_remat_gives_the_same_gradients():
    config, params, loss = plain()
    found = loss_of(dataclasses.replace(config, remat=True))(params, MASK)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        found, loss(params, MASK),
    )  # fmt: skip


def test_dropout_wants_a_key():
    config, params, _ = plain()
    model = seq2seq(dataclasses.replace(config, dropout=0.3))

    @jax.jit
    def encode(key):
        return model.encode(params, IDS, MASK, key=key)

    a, b, c = (encode(jax.random.key(i)) for i in (1, 1, 2))
    assert (a == b).all() and (a != c).any()
    assert 0.2 < (a == 0).mean() < 0.4  # the last norm's own
    # In the decoder, too; without a key there is none.
    scores = [
        jax.jit(model.decode)(params, TARGETS, a, MASK, key=key).hidden
        for key in (jax.random.key(1), None)
    ]
    assert 0.2 < (scores[0] == 0).mean() < 0.4 and (scores[1] != 0).all()


def test_cheaper_decoders_have_fewer_parameters():
    config = t5.v1_1(
        **SMALL | {"num_decoder_layers": 5},
        cross_attention_every=2, decoder_kv_heads=1, legacy_cross_bias=True,
    )  # fmt: skip
    shapes = jax.eval_shape(seq2seq(config).init, jax.random.key(0))
    decoder, width = shapes["decoder"], config.head_width
    reading = [i for i in range(5) if "cross" in decoder[f"block_{i}"]]
    assert reading == [1, 3]
    block = decoder["block_1"]
    assert block["cross"]["kv"]["kernel"].shape == (config.width, 2 * width)
    assert block["cross"]["q"]["kernel"].shape == (config.width, 2 * width)
    assert block["attention"]["qkv"]["kernel"].shape == (config.width, 4 * width)
    encoder = shapes["encoder"]["block_0"]["attention"]
    assert encoder["qkv"]["kernel"].shape == (config.width, 6 * width)
    assert decoder["cross_bias"].shape == decoder["relative_bias"].shape


def test_initial_weights_are_those_of_t5():
    config = t5.v1_1(**SMALL | dict(width=64, head_width=16, num_heads=6,
                                    feed_forward_width=100))  # fmt: skip
    x, mask = jnp.zeros((1, 1, 64)), jnp.ones((1, 1))
    params: Any = jax.jit(t5.T5Decoder(config).init)(jax.random.key(0), x, x, mask)
    block = params["params"]["block_0"]
    q, k, v = np.split(block["attention"]["qkv"]["kernel"], 3, 1)
    joined: Any = jax.jit(partial(T5(config).init, method="embed"))(
        jax.random.key(1), jnp.zeros(1, jnp.int32)
    )
    for found, expected in (
        (q, (64 * 16) ** -0.5),
        (k, 64**-0.5),
        (v, 64**-0.5),
        (joined["params"]["embedding"], 1.0),
        (joined["params"]["head"], 1.0),
        (block["cross"]["q"]["kernel"], (64 * 16) ** -0.5),
        (block["cross"]["kv"]["kernel"], 64**-0.5),
        (block["cross"]["out"]["kernel"], 96**-0.5),
        (block["feed_forward"]["into"]["kernel"], 64**-0.5),
        (block["feed_forward"]["out"]["kernel"], 100**-0.5),
    ):
        assert np.std(found) == pytest.approx(expected, rel=0.06)
    assert (block["cross_norm"]["scale"] == 1).all()


def test_the_decoder_stands_over_states_of_another_width():
    decoder = t5.T5Decoder(t5.T5Config(**SMALL))
    x, states = jnp.zeros((2, 3, 12)), jnp.zeros((2, 4, 7))
    shapes: Any = jax.eval_shape(
        decoder.init, jax.random.key(0), x, states, MASK[:2, :4]
    )
    assert shapes["params"]["block_0"]["cross"]["kv"]["kernel"].shape == (7, 2 * 8)
    decoded: Any = jax.eval_shape(decoder.apply, shapes, x, states, MASK[:2, :4])
    assert decoded.hidden.shape == x.shape and decoded.attention is None


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_decoder_layers": 0}, "num_decoder_layers"),
        ({"num_buckets": 7}, "num_buckets"),
        ({"max_distance": 4}, "max_distance"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"dtype": "float16"}, "float16"),
        ({"activation": "gelu"}, "activation"),
        ({"end_id": 20}, "end_id"),
        ({"cross_attention_every": 2}, "cross_attention_every"),
        ({"decoder_kv_heads": 3}, "decoder_kv_heads"),
    ],
)
def test_bad_sizes_are_named(changes, word):
    with pytest.raises(UserError, match=word):
        seq2seq(t5.T5Config(**SMALL | changes))


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 3, 40])
def test_states_are_attended_to_as_their_keys_and_values_are(length, num_kv_heads):
    """Values and gradients, and the same parameters; a row without memory gives 0."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    layer = t5_layers.MemoryAttention(4, num_kv_heads, 6, 10, 0.0, "float32")
    x, states, out = normal(2, length, 10), normal(2, 7, 14), normal(2, length, 10)
    visible = np.array([[1, 1, 1, 1, 0, 1, 0], [0] * 7], bool)[:, None]
    params = layer.init(jax.random.key(0), x, states, None, visible)["params"]

    def of_states(params, x, states):
        given = {"params": params}
        return layer.apply(given, x, states, None, visible)

    def of_keys(params, x, states):
        given = {"params": params}
        memory = layer.apply(given, states, method="read")
        return layer.apply(given, x, memory, None, visible, method="over")[0]

    # Each way is taken: to few tokens no keys are made, which have 7 rows of 2 G d.
    made = f"f32[2,7,{2 * num_kv_heads * 6}]" in str(
        jax.make_jaxpr(of_states)(params, x, states)
    )
    assert made == (length == 40 or (length == 3 and num_kv_heads == 1))
    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *a, f=f: (f(*a) * out).sum(), (0, 1, 2)))(
            params, x, states
        )
        for f in (of_states, of_keys)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        found,
        wanted,
    )
    assert not np.asarray(of_states(params, x, states))[1].any()
