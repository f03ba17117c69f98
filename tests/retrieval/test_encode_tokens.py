"""Token datastores: every token once, and a killed build's bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, encode_tokens


def states(params, batch):
    """A vector that says the token, its place, and its row's length."""
    ids, mask = batch["ids"], batch["mask"]
    place = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    length = jnp.broadcast_to(mask.sum(1, keepdims=True), ids.shape)
    return params * jnp.stack([ids, place, length], -1).astype(jnp.float32)


def example():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 15, 60)
    texts = [np.r_[1, rng.integers(5, 90, n), 2].astype(np.int32) for n in lengths]
    encoder = encode_tokens.StatesEncoder(
        states, jnp.float32(1), max_length=16, batch_tokens=64, pad_id=0
    )
    return encoder, texts, lengths


def build(folder, **options):
    encoder, texts, lengths = example()
    options = {"identity": {"encoder": "toy"}, "shard_size": 37} | options
    return encode_tokens.build(encoder, texts, lengths, folder, **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encode_tokens, "CHUNK", 8)


def test_every_token_is_an_entry(tmp_path):
    store = build(tmp_path / "keys")
    _, texts, lengths = example()
    wanted = [
        (token, place, len(text))
        for text in texts
        for place, token in enumerate(text)
        if 0 < place < len(text) - 1
    ]
    assert store.num_entries == lengths.sum() == len(wanted)
    np.testing.assert_array_equal(store.keys(0, len(wanted)), np.array(wanted))
    values = store.values(0, len(wanted))
    np.testing.assert_array_equal(values, [token for token, _, _ in wanted])


def test_a_killed_build_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = build(tmp_path / "whole")
    append = datastore.Writer.append

    def killed(self, keys, values):
        if self.num_written >= 111:
            raise KeyboardInterrupt
        append(self, keys, values)

    with monkeypatch.context() as patch:
        patch.setattr(datastore.Writer, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "again")
    again = build(tmp_path / "again")
    assert again.checksum == whole.checksum
    for path in whole.directory.iterdir():
        assert path.read_bytes() == (again.directory / path.name).read_bytes()


def test_places_of_rows(tmp_path):
    encoder, texts, _ = example()
    places = np.array([[len(text) - 1, 0] for text in texts], np.int32)
    found = encoder.at(texts, places)
    ids = [[text[-1], text[0]] for text in texts]
    np.testing.assert_array_equal(found[..., 0], ids)
    np.testing.assert_array_equal(found[..., 1], places)


def test_bad_input(tmp_path):
    build(tmp_path / "keys")
    with pytest.raises(UserError, match="encoder"):
        build(tmp_path / "keys", identity={"encoder": "another"})
    encoder, texts, lengths = example()
    with pytest.raises(UserError, match="no token"):
        encode_tokens.build(encoder, [], lengths[:0], tmp_path / "none", identity={})
