"""The decoder: what it sees, what it returns, what it refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models import layers
from rlm_jax.models.decoder import Decoder, DecoderConfig, gpt2, modern

VOCAB, LENGTH, WIDTH = 23, 6, 8
SIZES = dict(
    vocab_size=VOCAB, num_layers=2, width=WIDTH, num_heads=2, feed_forward_width=12,
    max_length=LENGTH,
)  # fmt: skip
ADAPTIVE = dict(cutoffs=(6, 14), adaptive_factor=2)
CONFIGS = {
    "gpt2": gpt2(**SIZES),
    "modern": modern(**SIZES),
    "sinusoidal": modern(**SIZES, positions="sinusoidal", activation="relu"),
    "gpt2_adaptive": gpt2(**SIZES, **ADAPTIVE),
    "modern_untied_adaptive": modern(**SIZES, **ADAPTIVE, tie_embeddings=False),
}


def randomised(params, seed=5):
    """Larger weights than the usual ones, so that every path matters."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (x + 0.4 * random.normal(size=x.shape)).astype(np.float32), params
    )


def initial(config):
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = Decoder(config).init(jax.random.key(0), tokens, tokens, method="score")
    return init["params"]


def initialised(config):
    """Without running the initialisers, which is most of a small test's time."""
    shapes = jax.eval_shape(lambda: initial(config))
    return randomised(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


def rows(seed=0, batch=2):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (batch, LENGTH + 1)).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def apply(config, params, *args, **options):
    """One compilation, where op by op would be dozens."""

    def run(params, *args):
        return Decoder(config).apply({"params": params}, *args, **options)

    return jax.jit(run)(params, *args)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_depends_on_a_later_token(name):
    """By gradients: those of position t with respect to the embedded inputs."""
    config = CONFIGS[name]
    params = initialised(config)
    tokens, targets = rows(batch=1)

    def everything(decoder, tokens, targets):
        out = decoder(tokens)
        scores = jnp.stack(decoder.vocabulary.scores(out.features, targets), -1)
        return jnp.concatenate([out.features, out.keys, scores], -1)[0]

    def outputs(shift):
        """Each embedded input moves by its own vector."""

        def moved(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            return out + shift if context.method_name == "embed" else out

        with nn.intercept_methods(moved):
            return apply(config, params, tokens, targets, method=everything)

    jacobian = jax.jit(jax.jacrev(outputs))(jnp.zeros((1, LENGTH, WIDTH)))
    strength = np.abs(jacobian).max(axis=-1)[:, :, 0]  # [output t, channel, input s]
    for t in range(LENGTH):
        assert (strength[t, :, t + 1 :] == 0).all()
        # Every output at t feels every input up to it, so the zeros above say a lot.
        features_and_keys = strength[t, : 2 * WIDTH, : t + 1]
        assert (features_and_keys.max(axis=0) > 1e-6).all()


def test_a_rotation_depends_on_the_distance_alone():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 1, 2, 6)), "float32") for _ in "qk")

    def product(i, j):
        a = layers.rotate(q, jnp.array([i]))
        return (a * layers.rotate(k, jnp.array([j]))).sum(-1).ravel()

    for i, j in ((3, 1), (7, 7), (2, 5)):
        moved = product(i + 11, j + 11)
        np.testing.assert_allclose(product(i, j), moved, rtol=1e-4, atol=1e-5)
    assert np.abs(product(3, 1) - product(3, 2)).max() > 1e-2
    np.testing.assert_array_equal(layers.rotate(q, jnp.array([0])), q)


def test_heads_that_share_keys_and_values():
    """As a head of keys and values for each, every one of them repeated."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 5, 8)).astype(np.float32)
    shared, alone = (
        layers.SelfAttention(
            num_heads=4, num_kv_heads=n, head_width=6, bias=False, dtype="float32",
            rotary=True, rotary_base=50.0,
        )
        for n in (2, 4)
    )  # fmt: skip
    q, k, v = (random.normal(size=(8, n, 6)) for n in (4, 2, 2))
    out = {"kernel": random.normal(size=(24, 8))}

    def run(attention, *heads):
        kernel = np.concatenate(heads, axis=1).reshape(8, -1)
        params = {"qkv": {"kernel": kernel}, "out": out}
        return np.asarray(attention.apply({"params": params}, x, jnp.arange(5)))

    found = run(shared, q, k, v)
    wanted = run(alone, q, k.repeat(2, axis=1), v.repeat(2, axis=1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_llama_3_slows_the_pairs_that_hardly_turn():
    """By wavelengths, as the released code has it."""
    half, base, scaling = 16, 1e4, (8.0, 1.0, 4.0, 512.0)
    plain = layers.rotary_rates(half, base)
    np.testing.assert_allclose(plain, [base ** (-i / half) for i in range(half)], 1e-6)
    factor, low, high, length = scaling
    slowed = []
    for rate in plain.tolist():
        wavelength = 2 * np.pi / rate
        smooth = (length / wavelength - low) / (high - low)
        if wavelength < length / high:
            slowed.append(rate)
        elif wavelength > length / low:
            slowed.append(rate / factor)
        else:
            slowed.append((1 - smooth) * rate / factor + smooth * rate)
    found = layers.rotary_rates(half, base, scaling)
    np.testing.assert_allclose(found, slowed, 1e-6)
    share = found / plain
    assert share[0] == 1 and share[-1] == pytest.approx(1 / factor)
    assert ((share > 1.01 / factor) & (share < 0.99)).sum() >= 2


def test_a_slower_rotation_has_a_higher_base():
    """Pair j of d / 2 turns by base^(-2j / d) a position; the first always by 1."""
    x = jnp.zeros((1, 1, 1, 4)).at[..., :2].set(1.0)
    for base in (16.0, 10000.0):
        turned = layers.rotate(x, jnp.array([3]), base)[0, 0, 0]
        angles = np.array([3.0, 3.0 * base**-0.5])
        wanted = np.concatenate([np.cos(angles), np.sin(angles)])
        np.testing.assert_allclose(turned, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "usual"), [("layer", 1e-5), ("rms", 1e-6)], ids=["layer", "rms"]
)
def test_epsilon_of_a_norm(kind, usual):
    x = np.array([[1e-3, -1e-3]], np.float32)  # mean 0, mean of squares 1e-6
    for told, epsilon in ((0.0, usual), (3e-6, 3e-6)):
        norm = layers.norm(kind, "float32", epsilon=told)
        found, _ = norm.init_with_output(jax.random.key(0), x)
        np.testing.assert_allclose(found, x / np.sqrt(1e-6 + epsilon), rtol=1e-4)


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def by_hand(params, tokens):
    """GPT-2 in float64: (features, keys) for one row of tokens [T]."""
    p = jax.tree.map(np.float64, params)
    length, heads = len(tokens), 2
    x = p["vocabulary"]["embedding_0"][tokens] + p["positions"][:length]
    key = x
    for i in range(2):
        block = p[f"block_{i}"]
        h = layer_norm(x, block["attention_norm"])
        qkv = h @ block["attention"]["qkv"]["kernel"]
        qkv = qkv + block["attention"]["qkv"]["bias"]
        q, k, v = np.split(qkv, 3, axis=-1)
        out = np.zeros_like(q)
        d = WIDTH // heads
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            for t in range(length):
                logits = q[t, part] @ k[: t + 1, part].T / np.sqrt(d)
                share = np.exp(logits - logits.max())
                out[t, part] = share / share.sum() @ v[: t + 1, part]
        project = block["attention"]["out"]
        x = x + out @ project["kernel"] + project["bias"]
        key = layer_norm(x, block["feed_forward_norm"])
        h = key @ block["feed_forward"]["in"]["kernel"]
        h = h + block["feed_forward"]["in"]["bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        project = block["feed_forward"]["out"]
        x = x + h @ project["kernel"] + project["bias"]
    return layer_norm(x, p["final_norm"]), key


def test_gpt2_by_hand():
    """Keys are the input of the last feed-forward layer, after its norm."""
    config = CONFIGS["gpt2"]
    params = initialised(config)
    tokens, targets = rows()
    out = apply(config, params, tokens)
    score, normaliser, keys = apply(config, params, tokens, targets, method="score")
    embedding = np.float64(params["vocabulary"]["embedding_0"])
    for b, row in enumerate(tokens):
        features, key = by_hand(params, row)
        np.testing.assert_allclose(out.features[b], features, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(out.keys[b], key, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(keys[b], out.keys[b])
        logits = features @ embedding.T
        wanted = np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(normaliser[b], wanted, rtol=1e-3, atol=1e-3)
        wanted = logits[np.arange(LENGTH), targets[b]]
        np.testing.assert_allclose(score[b], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cutoffs", [(), (6, 14)])
def test_tied_and_untied(cutoffs):
    def tables(tied):
        config = modern(**SIZES, cutoffs=cutoffs, tie_embeddings=tied)
        shapes = jax.eval_shape(lambda: initial(config))
        return {k for k in shapes["vocabulary"] if k.startswith("output")}

    assert tables(tied=True) == set()
    assert len(tables(tied=False)) == 1 + 2 * len(cutoffs)


@pytest.mark.parametrize("name", ["modern", "gpt2_adaptive"])
def test_scores_agree_with_the_distribution(name):
    config = CONFIGS[name]
    params = initialised(config)
    tokens, targets = rows()
    score, normaliser, _ = apply(config, params, tokens, targets, method="score")
    log_p = apply(config, params, tokens, method="log_probs")
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1.0, rtol=1e-4)
    of_target = np.take_along_axis(np.asarray(log_p), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(score - normaliser, of_target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "modern_untied_adaptive"])
def test_bfloat16_compute(name):
    """Parameters and what comes out are float32; the values are nearly the same."""
    config = CONFIGS[name]
    half = dataclasses.replace(config, dtype="bfloat16")
    params = initialised(half)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(lambda: initial(half))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    tokens, targets = rows()
    got = apply(half, params, tokens, targets, method="score")
    wanted = apply(config, params, tokens, targets, method="score")
    assert {x.dtype for x in got} == {jnp.dtype("float32")}
    assert apply(half, params, tokens).features.dtype == jnp.bfloat16
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.3)
        assert np.abs(ours - theirs).max() > 1e-5


def test_rematerialisation_changes_nothing():
    """Not even the dropout that the second pass draws."""
    config = dataclasses.replace(CONFIGS["modern"], dropout=0.3)
    again = dataclasses.replace(config, remat=True)
    params = initialised(config)
    same = jax.eval_shape(lambda: initial(again))
    assert jax.tree.structure(same) == jax.tree.structure(params)
    tokens, targets = rows()

    def gradients(config):
        def loss(params):
            score, normaliser, keys = apply(
                config, params, tokens, targets, method="score",
                deterministic=False, rngs={"dropout": jax.random.key(3)},
            )  # fmt: skip
            return (normaliser - score).sum() + (keys**2).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradients(config),
        gradients(again),
    )


def test_dropout_acts_only_when_asked():
    config = dataclasses.replace(CONFIGS["modern"], dropout=0.5)
    params = initialised(config)
    tokens, _ = rows()
    still = apply(config, params, tokens).features
    plain = apply(CONFIGS["modern"], params, tokens).features
    np.testing.assert_array_equal(still, plain)
    rngs = {"dropout": jax.random.key(0)}
    noisy = apply(config, params, tokens, deterministic=False, rngs=rngs).features
    assert np.abs(noisy - still).max() > 0.1


def test_learned_positions_end_at_max_length():
    config = CONFIGS["gpt2"]
    params = initialised(config)
    long = np.zeros((1, LENGTH + 1), np.int32)
    with pytest.raises(UserError, match="a row is 7, .* max_length, 6"):
        apply(config, params, long)
    modern_params = initialised(CONFIGS["modern"])
    apply(CONFIGS["modern"], modern_params, long)  # rotary positions have no end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(positions="alibi"), "positions is 'alibi'; choose one of rotary"),
        (dict(norm="batch"), "norm is 'batch'; choose one of rms, layer"),
        (dict(activation="tanh"), "activation is 'tanh'; choose one of swiglu"),
        (dict(dtype="float64"), "dtype is 'float64'; choose one of float32"),
        (dict(num_heads=3), "width 8 does not divide into 3 heads"),
        (dict(num_heads=8), "a head is 1 wide"),
        (dict(width=2, num_heads=1, positions="sinusoidal"), "width is 2"),
        (dict(num_kv_heads=3), "2 heads cannot share 3 of keys and values"),
        (dict(num_kv_heads=-1), "num_kv_heads is -1; choose 0 or more"),
        (dict(head_width=3), "a head is 3 wide"),
        (dict(rotary_base=1.0), "rotary_base is 1.0; choose one above 1"),
        (dict(norm_epsilon=-1e-5), "norm_epsilon is -1e-05; choose 0 or more"),
        (dict(vocab_size=0), "vocab_size is 0"),
        (dict(cutoffs=(14, 6)), r"cutoffs are \(14, 6\) .* choose cutoffs that rise"),
        (dict(cutoffs=(6, 6)), "choose cutoffs that rise"),
        (dict(cutoffs=(0, 6)), "choose cutoffs that rise"),
        (dict(cutoffs=(6, VOCAB)), f"vocabulary has {VOCAB} words"),
        (dict(cutoffs=(6, 400)), f"vocabulary has {VOCAB} words"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    config = DecoderConfig(**SIZES | changes)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: initial(config))
