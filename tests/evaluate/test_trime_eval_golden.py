"""TRIME's evaluation memories against arrays computed by the released code."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.evaluate import knn, token_memory
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.method import Neighbours
from rlm_jax.ops import vocabulary


@pytest.fixture
def z(golden):
    return golden("trime_eval")


@pytest.fixture
def stream(z):
    flat = {n: z[n].reshape(-1, z[n].shape[-1]) for n in ("x", "reps")}
    targets = z["targets"].reshape(-1).astype(np.int32)
    score, normaliser = vocabulary.softmax_scores(
        jnp.asarray(flat["x"], jnp.float32), jnp.asarray(z["E"], jnp.float32), targets
    )
    return StreamScores(
        np.asarray(score),
        np.asarray(normaliser),
        flat["reps"].astype(np.float32),
        targets,
    )


def past(z, stream, size):
    return token_memory.stream_log_sums(
        stream,
        token_memory.TokenMemory(size, z["targets"].shape[1], float(z["softmax_temp"])),
    )


def external(z, stream):
    keys = z["ds_keys"].astype(np.float32)

    def search(queries, k):
        scores = queries @ keys.T
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbours(np.take_along_axis(scores, ids, 1), ids.astype(np.int32))

    width = keys.shape[1]
    found = knn.look_up(
        search,
        stream.keys / width**0.5,
        int(z["k"]),
        values=z["ds_vals"].astype(np.int32),
    )
    return token_memory.external_log_sums(
        found, stream.targets, temperature=float(z["softmax_temp"])
    )


def test_local(z, stream):
    assert_equal(z["local_logp"], stream, past(z, stream, 0))


def test_long(z, stream):
    assert_equal(z["long_logp"], stream, past(z, stream, int(z["mem_size"])))


def test_external_only(z, stream):
    assert_equal(z["ext_only_logp"], stream, external(z, stream))


def test_all(z, stream):
    memories = past(z, stream, int(z["mem_size"])), external(z, stream)
    assert_equal(z["all_logp"], stream, *memories)


def assert_equal(theirs, stream, *memories):
    ours = token_memory.joint_log_probs(stream, *memories)
    np.testing.assert_allclose(ours, theirs.reshape(-1), rtol=1e-5, atol=1e-5)
