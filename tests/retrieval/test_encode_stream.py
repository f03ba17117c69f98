"""Streams through an encoder, window by window, and datastores made of them."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, encode_stream
from tests.methods import systems


def context(params, batch):
    """A toy encoder: inputs read so far, the last, their sum, and the target."""
    tokens = batch["tokens"] + params
    seen = jnp.broadcast_to(jnp.arange(1, tokens.shape[1] + 1), tokens.shape)
    columns = seen, tokens, jnp.cumsum(tokens, axis=1), batch["targets"]
    return jnp.stack(columns, axis=-1).astype(jnp.float32)


def stream(n):
    return np.random.default_rng(n).integers(0, 1000, n).astype(np.int32)


def encoded(tokens, window, stride, batch_size=3, **options):
    parts = encode_stream.encode_stream(
        context, 0, tokens, window=window, stride=stride, batch_size=batch_size,
        **options,
    )  # fmt: skip
    return list(parts)


@pytest.mark.parametrize("n", [2, 3, 6, 7, 8, 29, 31])
@pytest.mark.parametrize(("window", "stride"), [(6, 6), (6, 2), (6, 1), (7, 3)])
def test_windows_tile_the_stream(n, window, stride):
    """Each prediction once, in order, with the context that was promised."""
    spec = encode_stream.windows(n, window=window, stride=stride)
    made = []
    for start, offset in zip(spec.start, spec.offset, strict=True):
        assert start >= 0 and 0 <= offset <= window - stride
        made += [int(start + offset) + i for i in range(stride)]
        # Left context as soon as the stream has it.
        assert offset == min(start + offset, window - stride)
    # Only the last window reaches past the end, and it has something fresh.
    assert made == list(range(len(made)))
    assert len(made) - stride < n - 1 <= len(made)


@pytest.mark.parametrize(
    ("n", "window", "stride"), [(2, 6, 2), (5, 6, 2), (30, 6, 6), (31, 7, 3)]
)
def test_each_prediction_reads_its_window(n, window, stride):
    tokens = stream(n)
    rows = np.concatenate(encoded(tokens, window, stride))
    assert len(rows) == n - 1
    for i, (seen, last, total, target) in enumerate(rows):
        assert (last, target) == (tokens[i], tokens[i + 1])
        first_fresh = i // stride * stride
        start = max(0, first_fresh + stride - window)
        assert seen == i - start + 1 >= min(i, window - stride) + 1
        assert total == tokens[start : i + 1].sum()


def test_a_stream_may_be_entered_at_any_stride():
    tokens = stream(31)
    whole = np.concatenate(encoded(tokens, 6, 2))
    for first in (0, 2, 14, 28):
        rest = np.concatenate(encoded(tokens, 6, 2, first=first))
        np.testing.assert_array_equal(rest, whole[first:])
    with pytest.raises(ValueError, match="first=3 is not a multiple"):
        encoded(tokens, 6, 2, first=3)


def test_beyond_the_stream_the_mask_is_zero():
    spec = encode_stream.windows(5, window=6, stride=6)
    batch = encode_stream.window_batch(stream(5), spec, np.array([0, 0]))
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(batch["targets"][0, :4], stream(5)[1:])
    np.testing.assert_array_equal(batch["segment"], [0, 1])
    assert {x.dtype for x in batch.values()} == {np.dtype("i4"), np.dtype("f4")}


def test_batches_are_consumed_one_behind():
    """No more than two batches are alive: the next begins when one is taken."""
    begun = []

    def wrap(batches):
        for i in batches:
            begun.append(i)
            yield i

    parts = encode_stream.encode_stream(
        context, 0, stream(31), window=6, stride=2, batch_size=3, wrap=wrap
    )
    assert isinstance(parts, types.GeneratorType)
    for taken, _ in enumerate(parts):
        assert len(begun) <= taken + 2
    assert len(begun) == 5


@pytest.mark.parametrize(
    ("n", "window", "stride", "message"),
    [
        (0, 4, 2, "has 0 tokens"),
        (1, 4, 2, "has 1 tokens"),
        (9, 4, 0, "stride 0 and window 4"),
        (9, 4, 5, "stride 5 and window 4"),
    ],
)
def test_what_cannot_be_windowed_is_refused(n, window, stride, message):
    with pytest.raises(UserError, match=message):
        encode_stream.windows(n, window=window, stride=stride)


def build(directory, tokens, encoder=context, params=0, **options):
    settings: dict[str, Any] = dict(
        window=6, stride=2, batch_size=3, dtype="float32", shard_size=9
    )
    return encode_stream.build_datastore(
        encoder, params, tokens, directory, identity={"step": 7}, **settings | options
    )


def test_a_datastore_holds_every_prediction(tmp_path):
    tokens = stream(31)
    store = build(tmp_path / "store", tokens)
    np.testing.assert_array_equal(
        store.keys(0, 30), np.concatenate(encoded(tokens, 6, 2))
    )
    np.testing.assert_array_equal(store.values(0, 30), tokens[1:])
    assert store.manifest["shard_size"] % 2 == 0  # whole strides
    identity = {"step": 7, "window": 6, "stride": 2, "entries": 30, "dtype": "float32"}
    assert store.manifest["identity"] == identity


def test_a_datastore_of_less_text_is_another(tmp_path):
    build(tmp_path / "store", stream(31))
    with pytest.raises(UserError, match="entries"):
        build(tmp_path / "store", stream(33))


def test_the_keys_of_a_model_are_its_scores(tmp_path):
    """With a window longer than the stream: one direct pass over all of it."""
    method = systems.method("knn_lm")
    score = method.score
    assert score is not None
    params = jax.jit(method.init)(jax.random.key(0))
    tokens = stream(12) % systems.VOCAB
    store = build(
        tmp_path / "store", tokens, lambda *x: score(*x).keys, params,
        window=16, stride=16,
    )  # fmt: skip
    batch = {"tokens": tokens[None, :-1], "targets": tokens[None, 1:]}
    wanted = jax.jit(score)(params, batch).keys[0]
    np.testing.assert_allclose(store.keys(0, 11), wanted, rtol=1e-5, atol=1e-5)


def files(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_build_ends_in_the_same_bytes(tmp_path, killed_after):
    tokens = stream(31)
    build(tmp_path / "straight", tokens)

    def kill(batches):
        for number, i in enumerate(batches):
            if number == killed_after:
                raise KeyboardInterrupt
            yield i

    begun = []

    def count(batches):
        for i in batches:
            begun.append(i)
            yield i

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", tokens, wrap=kill)
    with pytest.raises(UserError, match="no finished datastore"):
        datastore.open(tmp_path / "killed")
    build(tmp_path / "killed", tokens, wrap=count)
    assert files(tmp_path / "killed") == files(tmp_path / "straight")
    assert len(begun) == (5 if killed_after == 1 else 4)  # the first shard was kept


def test_what_is_there_is_opened_not_built(tmp_path):
    tokens = stream(31)
    first = build(tmp_path / "store", tokens)

    def never(params, batch):
        raise AssertionError

    again = build(tmp_path / "store", tokens, never)
    assert again.checksum == first.checksum
    with pytest.raises(UserError, match="window"):
        build(tmp_path / "store", tokens, window=8)


def test_fingerprint_tells_models_apart():
    params = {"a": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    same = {"b": np.zeros(2, np.float32), "a": jnp.ones((2, 2))}
    assert encode_stream.fingerprint(params) == encode_stream.fingerprint(same)
    moved = params | {"a": np.array([[1, 1], [1, np.nextafter(1, 2, dtype="f")]], "f")}
    renamed = {"a": params["a"], "c": params["b"]}
    prints = {encode_stream.fingerprint(p) for p in (params, moved, renamed)}
    assert len(prints) == 3
