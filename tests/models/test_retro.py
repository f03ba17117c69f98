"""RETRO: off is the decoder; by hand; cached; what its neighbours may be."""

import dataclasses
from functools import cache
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Decoder, gpt2, modern
from rlm_jax.models.neighbours import (
    ChunkedCrossAttention,
    NeighbourEncoder,
    NeighbourEncoderConfig,
    filled,
)
from rlm_jax.models.retro import Retro, empty_cache, usual_layers

VOCAB, WIDTH, M, K, LENGTH = 50, 8, 4, 2, 15
SIZES = dict(
    vocab_size=VOCAB, num_layers=3, width=WIDTH, num_heads=2, feed_forward_width=12,
    max_length=LENGTH,
)  # fmt: skip
CONFIGS = {"gpt2": gpt2(**SIZES), "modern": modern(**SIZES)}
ENCODER = NeighbourEncoderConfig(2, width=8, num_heads=2, feed_forward_width=12)


class Sizes(NamedTuple):
    """Of a text and its neighbours; the golden arrays have their own."""

    vocab: int
    chunk: int
    neighbours: int
    length: int


OWN = Sizes(VOCAB, M, K, LENGTH)


def decoder_of(name, sizes):
    return dataclasses.replace(
        CONFIGS[name], vocab_size=sizes.vocab, max_length=sizes.length
    )


def model(layers=(2, 3), name="modern", encoder=ENCODER, sizes=OWN):
    return Retro(decoder_of(name, sizes), encoder, sizes.chunk, layers)


def randomised(shapes, seed=5):
    """Weights of some size everywhere: those that start at zero too."""
    random = np.random.default_rng(seed)

    def draw(x):
        value = 1.0 * (x.ndim == 1) + 0.4 * random.normal(size=x.shape)
        return jnp.asarray(value, jnp.float32)

    return jax.tree.map(draw, shapes)


@cache
def initialised(layers=(2, 3), name="modern", sizes=OWN):
    tokens = jnp.zeros((1, sizes.chunk), jnp.int32)
    neighbours = jnp.zeros((1, 1, sizes.neighbours, 2 * sizes.chunk), jnp.int32)

    def init():
        args = tokens, tokens, neighbours
        return model(layers, name, sizes=sizes).init(
            jax.random.key(0), *args, method="score"
        )

    return randomised(jax.eval_shape(init)["params"])


def text(length=LENGTH, batch=1, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (batch, length)).astype(np.int32)
    shape = batch, length // M, K, 2 * M
    return tokens, random.integers(0, VOCAB, shape).astype(np.int32)


def cross_attention(sizes=OWN):
    config = decoder_of("modern", sizes)
    module = ChunkedCrossAttention(config, filled(ENCODER, config), sizes.chunk)
    random = np.random.default_rng(3)
    x = random.normal(size=(1, sizes.length, WIDTH)).astype(np.float32)
    shape = sizes.length // sizes.chunk, sizes.neighbours, 2 * sizes.chunk
    encoded = random.normal(size=(*shape, 8)).astype(np.float32)
    mask = np.ones(shape)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), x, encoded, mask, True)
    )
    return module, randomised(shapes["params"]), x, encoded, mask


def turned(x, position):
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(
        1j * position * 10000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate([z.real, z.imag])


def test_chunked_cross_attention_by_hand():
    """A loop over positions, heads and slots in float64; one chunk has nothing."""
    module, params, x, encoded, mask = cross_attention()
    mask[1] = 0
    mask[2, 0, 5:] = 0
    run = jax.jit(lambda *args: module.apply({"params": params}, *args, True))
    found = run(x, encoded, mask)[0]
    p = jax.tree.map(np.float64, params)
    kernels = {name: part["kernel"] for name, part in p["attention"].items()}
    wanted = np.zeros((LENGTH, WIDTH))
    d = WIDTH // 2
    for t in range(M - 1, LENGTH):
        u = (t + 1) // M - 1
        h = np.float64(x[0, t])
        h = h / np.sqrt((h**2).mean() + 1e-6) * p["norm"]["scale"]
        q = h @ kernels["query"]
        nothing = h @ p["nothing"]["kernel"] + p["nothing"]["bias"]
        heads = np.zeros(WIDTH)
        for head in (slice(0, d), slice(d, WIDTH)):
            logits, values = [], []
            for k, i in np.ndindex(K, 2 * M):
                if mask[u, k, i]:
                    key, value = np.split(encoded[u, k, i] @ kernels["key_value"], 2)
                    # i - i' + m - 1, i counted from the chunk's last token.
                    place = t - ((u + 1) * M - 1) + M - 1
                    turn = turned(q[head], place) @ turned(key[head], i)
                    logits.append(turn / np.sqrt(d))
                    values.append(value[head])
            if logits:
                logits.append(nothing[head.start // d])
                values.append(np.zeros(d))
                share = np.exp(np.array(logits) - max(logits))
                heads[head] = share / share.sum() @ np.array(values)
        wanted[t] = heads @ kernels["out"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    # From its last token chunk 1 has nothing to read, up to that of chunk 2.
    assert (found[2 * M - 1 : 3 * M - 1] == 0).all()
    assert (found[: M - 1] == 0).all() and (found[M - 1 : 2 * M - 1] != 0).all()


@cache
def applied(name, method="log_probs"):
    def run(params, *args):
        retro = model(name=name)
        return retro.apply({"params": params}, *args, method=method)

    return jax.jit(run)


@pytest.mark.parametrize("name", CONFIGS)
def test_without_retrieval_it_is_the_decoder_to_the_bit(name):
    params = initialised(name=name)
    tokens, neighbours = text(batch=2)
    # Of its parameters as arguments: a compiler computes otherwise with constants.
    plain = jax.jit(
        lambda params, tokens: Decoder(CONFIGS[name]).apply(
            {"params": params}, tokens, method="log_probs"
        )
    )(params["decoder"], tokens)
    off = applied(name)(params, tokens)
    np.testing.assert_array_equal(off, plain)
    absent = applied(name)(params, tokens, neighbours, np.zeros_like(neighbours))
    np.testing.assert_array_equal(absent, plain)
    on = applied(name)(params, tokens, neighbours, np.ones_like(neighbours))
    differs = np.abs(on - plain).max(axis=(0, 2))
    assert (differs[: M - 1] == 0).all() and (differs[M - 1 :] > 1e-3).all()


@pytest.mark.slow
def test_a_new_retro_is_its_decoder():
    """Its output starts at zero, and the first gradient reaches that."""
    tokens, neighbours = text()
    retro = model()
    init = jax.jit(lambda k: retro.init(k, tokens, tokens, neighbours, method="score"))
    params = init(jax.random.key(0))["params"]
    off = applied("modern")(params, tokens)
    on = applied("modern")(params, tokens, neighbours, np.ones_like(neighbours))
    np.testing.assert_array_equal(on, off)

    def loss(params):
        out = applied("modern")(params, tokens, neighbours)
        return out[..., 0].sum()

    gradient = jax.jit(jax.grad(loss))(params)
    for i in (1, 2):
        out = gradient[f"cross_block_{i}"]["attention"]["out"]["kernel"]
        assert np.abs(out).max() > 0


def test_what_is_masked_and_which_neighbour_is_first_do_not_matter():
    params = initialised()
    tokens, neighbours = text(batch=2)
    mask = np.ones(neighbours.shape, np.float32)
    mask[0, 0, 1] = 0
    mask[0, 1, 0, 5:] = 0
    mask[1, 2] = 0
    run = applied("modern")
    found = run(params, tokens, neighbours, mask)
    noise = np.where(mask > 0, neighbours, (neighbours + 17) % VOCAB)
    np.testing.assert_allclose(run(params, tokens, noise, mask), found, atol=1e-5)
    swapped = run(params, tokens, neighbours[:, :, ::-1], mask[:, :, ::-1])
    np.testing.assert_allclose(swapped, found, atol=1e-4)
    other = run(params, tokens, noise, np.ones_like(mask))
    assert np.abs(other - found).max() > 1e-2


@pytest.mark.parametrize(
    "name", ["gpt2", pytest.param("modern", marks=pytest.mark.slow)]
)
def test_the_cache_gives_what_the_whole_row_gives(name):
    """By windows, by single tokens, and past a window whose chunk has no neighbours."""
    params = initialised(name=name)
    tokens, neighbours = text(batch=2)
    mask = np.ones(neighbours.shape, np.float32)
    mask[:, 2] = 0
    mask[0, 0, 1, 6:] = 0
    wanted = applied(name)(params, tokens, neighbours, mask)
    step = applied(name, "extend_and_predict")
    held = empty_cache(CONFIGS[name], ENCODER, M, (2, 3), (2, LENGTH, K, 2 * M))
    # The last chunk is told of no neighbours: what chunk 1's window left is not read.
    for start, stop in ((0, 2), (2, 3), (3, 5), (5, 6), (6, 7), (7, 11), (11, 12),
                        (12, 15)):  # fmt: skip
        new = tokens[:, start:stop]
        given = ()
        if start in (3, 7):
            given = neighbours[:, start // M], mask[:, start // M]
        found, held = step(params, new, np.ones_like(new), held, *given)
        np.testing.assert_allclose(found, wanted[:, stop - 1], atol=1e-3)


def test_neighbours_in_the_middle_of_a_chunk_make_no_prediction():
    tokens, neighbours = text()
    held = empty_cache(CONFIGS["modern"], ENCODER, M, (2, 3), (1, LENGTH, K, 2 * M))
    new = tokens[:, :2]
    found, _ = applied("modern", "extend_and_predict")(
        initialised(), new, np.ones_like(new), held, neighbours[:, 0]
    )
    assert np.isnan(found).all()


def test_usual_layers():
    assert usual_layers(12) == (6, 9, 12) and usual_layers(5) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layers=()), "no layer of 3 has cross-attention"),
        (dict(layers=(0, 2)), r"cca_layers are \(0, 2\); choose layers that rise"),
        (dict(layers=(2, 4)), "rise from 1 to 3"),
        (dict(layers=(3, 2)), "rise from 1 to 3"),
        (
            dict(encoder=NeighbourEncoderConfig(num_heads=3)),
            "encoder is 8 wide with 3 heads",
        ),
        (dict(encoder=NeighbourEncoderConfig(0)), "encoder's num_layers is 0"),
        (dict(encoder=NeighbourEncoderConfig(head_width=3)), "head_width is 3"),
        (
            dict(encoder=NeighbourEncoderConfig(2, cca_layers=(1, 3))),
            "the encoder's cca_layers are .1, 3.; choose layers that rise from 1 to 2",
        ),
    ],
    ids=[
        *("none", "zero", "deep", "falling", "heads", "empty", "odd_heads"),
        "encoder_layers",
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    tokens, neighbours = text()
    with pytest.raises(UserError, match=message):
        model(**changes).init(jax.random.key(0), tokens, neighbours)


def test_neighbours_of_other_chunks_are_refused():
    tokens, neighbours = text()
    with pytest.raises(UserError, match="neighbours of 2 chunks in 1 rows .* have 3"):
        model().init(jax.random.key(0), tokens, neighbours[:, :2])


@pytest.mark.parametrize(("layers", "read"), [((), [1, 2]), ((2,), [2])])
def test_the_encoder_reads_the_chunk_where_it_is_told_to(layers, read):
    """Rows of one chunk and its neighbour: what the encoder has of the chunk."""
    config = CONFIGS["modern"]
    sizes = filled(
        NeighbourEncoderConfig(
            2, width=8, num_heads=2, feed_forward_width=12, head_width=6,
            cca_layers=layers,
        ),
        config,
    )  # fmt: skip
    module = NeighbourEncoder(config, sizes)
    random = np.random.default_rng(0)
    embedded = random.normal(size=(1, 1, 2 * M, config.width)).astype(np.float32)
    chunk = random.normal(size=(1, M, config.width)).astype(np.float32)
    mask = np.ones((1, 1, 2 * M), np.float32)
    init = jax.jit(lambda key: module.init(key, embedded, mask, chunk, True))
    params = init(jax.random.key(0))["params"]
    found = [i for i in (1, 2) if "cross_attention" in params[f"block_{i - 1}"]]
    assert found == read
    query = params[f"block_{read[0] - 1}"]["cross_attention"]["query"]["kernel"]
    assert query.shape == (8, 12)

    def spread(chunk):
        states = module.apply({"params": params}, embedded, mask, chunk, True)
        return jnp.std(cast(jax.Array, states))

    gradient = jax.jit(jax.grad(spread))(chunk)
    assert (np.abs(gradient) > 0).all()
