"""Passages into a datastore: plans, order, resumption, parts, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, encode_passages, merge_datastores

SIZES = {"max_length": 64, "batch_tokens": 256}
RANDOM = np.random.default_rng(0)
PASSAGES = [
    RANDOM.integers(1, 100, RANDOM.integers(1, 60)).astype(np.int32) for _ in range(50)
]


def embed(params, batch):
    """A toy encoder: number, sum and last of a text's tokens, moved by the params."""
    ids, mask = batch["ids"], batch["mask"]
    last = jnp.take_along_axis(ids, jnp.maximum(mask.sum(1) - 1, 0)[:, None], axis=1)
    columns = mask.sum(1), (ids * mask).sum(1), last[:, 0]
    return (jnp.stack(columns, axis=1) + params).astype(jnp.float32)


def expected(rows, params=0):
    return np.array([[len(r), r.sum(), r[-1]] for r in rows], np.float32) + params


def encoder(params: float = 0, **changes):
    return encode_passages.TextEncoder(embed, params, pad_id=0, **(SIZES | changes))


def build(directory, *, rows=PASSAGES, made=None, identity=None, **options):
    return encode_passages.build(
        made or encoder(), rows, list, directory, identity=identity or {"name": "toy"},
        shard_size=options.pop("shard_size", 16), **options,
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 50, 700])
def test_a_plan_holds_every_text_once(n):
    lengths = np.random.default_rng(n).integers(1, 65, n)
    batches = encode_passages.plan(lengths, **SIZES)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([b.rows for b in batches])), np.arange(n)
    )
    for batch in batches:
        assert lengths[batch.rows].max() <= batch.width <= 64
        assert len(batch.rows) <= batch.num_rows
        assert batch.num_rows * batch.width <= 256


def test_padding_is_less_than_a_fifth_and_programs_are_few():
    """Lengths as those of passages of about a hundred words."""
    lengths = np.random.default_rng(1).gamma(6, 25, 20_000).astype(int).clip(3, 512)
    batches = encode_passages.plan(lengths, max_length=512, batch_tokens=8192)
    slots = sum(b.num_rows * b.width for b in batches)
    assert 1 - lengths.sum() / slots < 0.1
    assert len({(b.num_rows, b.width) for b in batches}) <= 24


def test_batches_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="do not hold a text of 64"):
        encode_passages.plan(np.array([3]), max_length=64, batch_tokens=63)


def test_padding_fills_up():
    rows = [np.array([4, 5, 6], np.int32), np.array([7], np.int32)]
    batch = encode_passages.pad(rows, pad_id=9)
    assert batch["ids"].tolist() == [[4, 5, 6], [7, 9, 9]]
    assert batch["mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["ids"].dtype == batch["mask"].dtype == np.int32
    wide = encode_passages.pad(rows, pad_id=9, num_rows=3, width=5)
    assert wide["ids"].shape == (3, 5) and wide["mask"].sum() == 4


def test_vectors_come_in_the_order_of_the_texts():
    made, seen = encoder(), []
    np.testing.assert_array_equal(
        made(PASSAGES, advance=seen.append), expected(PASSAGES)
    )
    assert sum(seen) == len(PASSAGES)
    assert 0 < made.padding < 0.5
    with pytest.raises(UserError, match="no text to encode"):
        made([])


def test_entries_are_the_passages_and_values_their_numbers(tmp_path):
    seen = []
    store = build(tmp_path / "store", advance=seen.append)
    np.testing.assert_array_equal(store.keys(0, 50), expected(PASSAGES))
    np.testing.assert_array_equal(store.values(0, 50), np.arange(50))
    assert sum(seen) == 50
    assert len(store.shards) == 4


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_killed_build_goes_on_and_is_the_same(tmp_path, calls):
    """It dies at each shard but the first; the rerun encodes only what is missing."""
    whole = files(build(tmp_path / "whole").directory)
    made, encoded = encoder(), []

    class Killed(Exception):
        pass

    def fragile(rows, advance=None):
        if len(encoded) == calls:
            raise Killed
        encoded.append(len(rows))
        return made(rows)

    stand_in = type("Fragile", (), {"dim": made.dim, "__call__": staticmethod(fragile)})
    with pytest.raises(Killed):
        build(tmp_path / "store", made=stand_in())
    assert not (tmp_path / "store").exists()
    seen = []
    again = build(tmp_path / "store", advance=seen.append)
    assert files(again.directory) == whole
    assert seen[0] == 16 * calls and sum(seen) == 50


def test_what_is_there_is_opened_if_it_is_the_same(tmp_path):
    build(tmp_path / "store")

    def never(rows, advance=None):
        raise AssertionError("encoded again")

    build(tmp_path / "store", made=never)
    with pytest.raises(UserError, match="holds name = 'toy' where 'other' is wanted"):
        build(tmp_path / "store", identity={"name": "other"})


def test_no_passages_and_bad_vectors_are_refused(tmp_path):
    with pytest.raises(UserError, match="no passages to encode"):
        build(tmp_path / "store", rows=[])
    with pytest.raises(UserError, match="NaN or infinity"):
        build(tmp_path / "store", made=encoder(float("nan")))


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_are_whole_shards_and_join_to_the_same(tmp_path, num_parts):
    """As several processes would build them; with 7 some have nothing to do."""
    whole = files(build(tmp_path / "whole").directory)
    ends = encode_passages._ends(50, 16, num_parts)
    made = []
    for i, (start, stop) in enumerate(ends):
        assert start % 16 == 0
        if start == stop:
            continue
        share = encode_passages._Share(tmp_path / f"part{i}", start, stop)
        identity = {"name": "toy", "entries": 50, "dtype": "float32"}
        encode_passages._encode_share(
            encoder(), PASSAGES, list, share, dtype="float32", identity=identity,
            shard_size=16, advance=lambda n: None,
        )  # fmt: skip
        made.append(share.directory)
    (tmp_path / "store.partial").mkdir()  # a join that was killed
    merge_datastores.join(made, tmp_path / "store")
    assert files(tmp_path / "store") == whole
    assert not any(part.exists() for part in made)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    build(tmp_path / "a", rows=PASSAGES[:20])
    build(tmp_path / "b", rows=PASSAGES[20:])
    with pytest.raises(UserError, match="b holds identity"):
        merge_datastores.join([tmp_path / "a", tmp_path / "b"], tmp_path / "store")
    for name, some in (("c", PASSAGES[:20]), ("d", PASSAGES[20:40])):
        build(tmp_path / name, rows=some)
    with pytest.raises(UserError, match="do not hold whole shards of 16"):
        merge_datastores.join([tmp_path / "c", tmp_path / "d"], tmp_path / "store")
    assert datastore.open(tmp_path / "c").num_entries == 20
