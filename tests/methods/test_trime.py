"""TRIME's memories against float64 loops of the equation, and what they may see."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import trime
from rlm_jax.ops import losses
from tests.methods import systems

ROWS, LENGTH, WIDTH, VALUES = 4, 5, 3, 4
VARIANTS: dict[str, tuple[Any, float]] = {
    "local": ("local", 0.0),
    "long": ("long", 0.0),
    "external": ("external", 0.0),
    "external_own_off": ("external", 1.0),
}


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    mask = np.ones((ROWS, LENGTH), np.float32)
    mask[1, 2] = mask[3, 3:] = 0
    return {
        "targets": random.integers(0, VALUES, (ROWS, LENGTH)).astype(np.int32),
        "mask": mask,
        "segment": np.array([4, 5, 6, 7], np.int32),  # the second device's of two
        "group": np.array([2, 2, 2, 3], np.int32),
    }


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(1)
    keys = 2 * random.normal(size=(ROWS, LENGTH, WIDTH))
    scores = random.normal(size=(2, ROWS, LENGTH)) + np.array([[[-1]], [[2]]])
    return np.float32(keys), np.float32(scores)


def sees(variant, batch, query, slot):
    """Whether row, position ``query`` has ``slot`` in its memory M(t)."""
    (b, t), (c, s) = query, slot
    if not batch["mask"][c, s]:
        return False
    if variant == "local":
        return b == c and s < t
    if variant == "long":
        same = batch["group"][b] == batch["group"][c]
        return bool(same and (c < b or (c == b and s < t)))
    return b != c or (variant == "external" and s < t)


def expected(variant, batch, keys, scores):
    """Loss of each token, float64 [B, T], by equation 4."""
    keys = np.asarray(keys, np.float64)
    target_score, normaliser = np.asarray(scores, np.float64)
    out = np.zeros((ROWS, LENGTH))
    for query in np.ndindex(ROWS, LENGTH):
        numerator = np.exp(target_score[query])
        denominator = np.exp(normaliser[query])
        for slot in np.ndindex(ROWS, LENGTH):
            if sees(variant, batch, query, slot):
                weight = np.exp(keys[query] @ keys[slot] / np.sqrt(WIDTH))
                denominator += weight
                if batch["targets"][slot] == batch["targets"][query]:
                    numerator += weight
        out[query] = -np.log(numerator / denominator)
    return out


@functools.partial(jax.jit, static_argnames="variant")
def per_token(keys, scores, batch, variant):
    name, off = VARIANTS[variant]
    config = trime.TrimeConfig(memory=name, own_memory_off=off)
    ids = trime.token_ids(batch)
    sums = trime.MEMORIES[name](keys, ids, jax.random.key(0), config, None)
    return losses.joint_nll(scores[0], scores[1], sums)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_loop(batch, arrays, variant):
    """Where the target counts: a padded query's own loss is nobody's."""
    got = np.asarray(per_token(*arrays, batch, variant))
    real = batch["mask"] > 0
    wanted = expected(variant, batch, *arrays)
    np.testing.assert_allclose(got[real], wanted[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_exactly_the_memory(batch, arrays, variant):
    keys, scores = arrays
    jacobian = jax.jacrev(per_token)(keys, scores, batch, variant)
    felt = np.abs(jacobian).max(axis=-1) > 0  # [query b, t, key b, t]
    for query in np.ndindex(ROWS, LENGTH):
        memory = [s for s in np.ndindex(ROWS, LENGTH) if sees(variant, batch, query, s)]
        for slot in np.ndindex(ROWS, LENGTH):
            # The query's own key is felt wherever there is a memory to ask.
            wanted = slot in memory or (slot == query and bool(memory))
            assert felt[query][slot] == wanted, (query, slot)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_invisible(batch, arrays, variant):
    keys, scores = arrays
    pad = batch["mask"] == 0
    other = batch | {"targets": np.where(pad, 1 - batch["targets"], batch["targets"])}
    moved = np.where(pad[..., None], keys + 3, keys).astype(np.float32)
    got = per_token(moved, scores, other, variant)
    wanted = per_token(keys, scores, batch, variant)
    np.testing.assert_array_equal(np.asarray(got)[~pad], np.asarray(wanted)[~pad])


def test_own_memory_is_off_as_often_as_asked(batch, arrays):
    keys, scores = arrays

    @jax.jit
    def all_positive(key):
        config = trime.TrimeConfig(memory="external", own_memory_off=0.7)
        ids = trime.token_ids(batch)
        return trime.external(keys, ids, key, config, None).all

    seen = jax.vmap(all_positive)(jax.random.split(jax.random.key(0), 200))
    off = np.isclose(seen, seen.min(axis=0), rtol=1e-6).all(axis=(1, 2))
    assert 0.6 < off.mean() < 0.8  # all of a step's segments at once


def per_token_of(function, monkeypatch):
    """The method's sums as arrays [B, T] of each token."""
    monkeypatch.setattr(losses, "weighted", lambda values, mask: (values, mask))

    @jax.jit
    def run(params, batch):
        nll, mask = function(params, batch, jax.random.key(0))["loss"]
        return jnp.where(mask > 0, nll, 0.0)

    return run


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("trime_local", "loss"),
        ("trime_long", "loss"),
        ("trime_local", "evaluate"),
        ("trime_long", "evaluate"),
        ("trime_external", "evaluate"),
    ],
)
def test_no_loss_knows_a_later_token(name, phase, monkeypatch):
    """Whatever comes after a target, in its row, later rows and other groups."""
    method = systems.method(name)
    params = jax.tree.map(lambda x: 8 * x, jax.jit(method.init)(jax.random.key(0)))
    batch = systems.batch()
    batch["mask"][:] = 1
    run = per_token_of(getattr(method, phase), monkeypatch)
    whole = np.asarray(run(params, batch))
    random = np.random.default_rng(0)
    for row, position in ((1, 3), (0, 0), (2, 4)):
        moved = {k: x.copy() for k, x in batch.items()}
        later = np.zeros(batch["targets"].shape, bool)
        later[row, position + 1 :] = later[row + 1 :] = True
        noise = random.integers(0, systems.VOCAB, later.shape)
        moved["targets"] = np.where(later, noise, batch["targets"]).astype(np.int32)
        shifted = np.roll(later, 1, axis=1) & later  # the input that is such a target
        moved["tokens"] = np.where(shifted, noise, batch["tokens"]).astype(np.int32)
        got = np.asarray(run(params, moved))
        np.testing.assert_allclose(got[~later], whole[~later], rtol=2e-5, atol=1e-6)
        assert np.abs(got - whole)[later].max() > 1e-3


def test_an_unknown_memory_is_refused():
    with pytest.raises(UserError, match="memory is 'short'; choose one of local, long"):
        memory: Any = "short"
        trime.trime(trime.TrimeConfig(memory=memory))


def test_neighbours_of_a_search_against_a_loop():
    """M(t) out of a datastore: absent neighbours count for nothing."""
    random = np.random.default_rng(0)
    similarities = random.normal(size=(5, 4)).astype(np.float32)
    similarities[1, 2:] = similarities[2] = -np.inf
    values = random.integers(0, 2, (5, 4)).astype(np.int32)
    values[np.isneginf(similarities)] = -1
    targets = random.integers(0, 2, 5).astype(np.int32)
    temperature = 0.7
    got = trime.neighbour_log_sums(similarities, values, targets, temperature)
    for n in range(5):
        terms = np.exp(similarities[n].astype(np.float64) / temperature)
        hits = terms[values[n] == targets[n]]
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(got.all[n], np.log(terms.sum()), rtol=1e-5)
            np.testing.assert_allclose(got.positive[n], np.log(hits.sum()), rtol=1e-5)
