"""A memory of tokens: searched, added to, and taken from without a rebuild."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError
from rlm_jax.retrieval import auto_index, encode_tokens
from rlm_jax.retrievers import memory_parts, token_memory
from tests.retrievers.token_toy import MEMORY, NAMES, PASSAGES, tower

ADDED = [
    Passage("gustav", "", "gustav eats plums ."),
    Passage("h", "", "bread and figs"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Compiled once for all memories of this file."""
    folder = tmp_path_factory.mktemp("first") / "memory"
    return token_memory.build(folder, PASSAGES, tower(), MEMORY).encoder


@pytest.fixture
def memory(tmp_path, encoder):
    return token_memory.build(tmp_path / "memory", PASSAGES, tower(), MEMORY, encoder)


def reopened(memory):
    return token_memory.open_memory(memory.folder, tower(), MEMORY, memory.encoder)


def passages_found(memory, k):
    """The ids of the passages of the k nearest to each token of the memory."""
    queries = memory.keys(np.arange(memory.num_tokens))
    found = memory.search(queries, k)
    return found, {
        memory.passage(int(p)).id for p in memory.passage_of(found.ids[found.ids >= 0])
    }


def test_every_token_of_every_passage(memory):
    rows = memory.tokenizer.passages(PASSAGES, max_length=99)
    np.testing.assert_array_equal(memory.tokens, np.concatenate(rows))
    np.testing.assert_array_equal(np.diff(memory.bounds), list(map(len, rows)))
    assert memory.passage_of(memory.bounds[:-1]).tolist() == list(range(6))
    found, ids = passages_found(memory, 3)
    products = memory.keys(np.arange(memory.num_tokens))
    products = products @ products.T
    np.testing.assert_allclose(
        found.scores, -np.sort(-products, axis=1)[:, :3], rtol=1e-5
    )


def test_removed_documents_are_never_retrieved_again(memory, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("nothing may be built")

    every, ids = passages_found(memory, memory.num_tokens)
    assert ids == set(NAMES)
    monkeypatch.setattr(encode_tokens, "build", refuse)
    memory.remove(["anna", "dora"])
    for opened in (memory, reopened(memory)):
        for k in (2, memory.num_tokens):
            found, ids = passages_found(opened, k)
            assert ids <= set(NAMES) - {"anna", "dora"}
            assert k == 2 or len(ids) == 4
            left = np.diff(memory.bounds)[[1, 2, 4, 5]].sum()
            assert ((found.ids >= 0).sum(1) == min(k, left)).all()  # and none is lost
        within = opened.search_within(every.scores[:, :16] * 0, np.arange(6), 999)
        assert set(opened.passage_of(within.ids[within.ids >= 0])) == {1, 2, 4, 5}
        assert set(opened.by_words(["anna dora likes"], 6)[0]) == {1, 2, 4, 5, -1}
    with pytest.raises(UserError, match="no passage 'otto'"):
        memory.remove(["otto"])
    # Without the list all came back, and nothing was said.
    (removed,) = memory.folder.rglob(memory_parts.REMOVED)
    removed.unlink()
    with pytest.raises(UserError, match=r"removed.json is damaged .*build .* again"):
        reopened(memory)


def test_added_documents_are_found_and_can_be_removed(memory):
    before = {p: p.read_bytes() for p in memory.folder.rglob("*") if p.is_file()}
    memory.add(ADDED)
    assert all(path.read_bytes() == old for path, old in before.items())
    for opened in (memory, reopened(memory)):
        _, ids = passages_found(opened, opened.num_tokens)
        assert ids == {*NAMES, "gustav", "h"}
        assert opened.by_words(["gustav"], 1).tolist() == [[6]]
        assert opened.tokenizer.decode(opened.tokens[opened.bounds[6] :][:3]) == (
            "gustav eats plums"
        )
    with pytest.raises(UserError, match="'h' is in the memory"):
        memory.add(ADDED[1:])
    memory.remove(["h", "bert"])
    assert passages_found(memory, 99)[1] == {*NAMES, "gustav"} - {"bert"}
    memory.add([ADDED[1]])  # once more, after it was removed
    opened = reopened(memory)
    assert passages_found(opened, 99)[1] == {*NAMES, "gustav", "h"} - {"bert"}
    left = [p for p in [*PASSAGES, *ADDED] if p.id != "bert"]
    folder = memory.folder.with_name("together")
    together = token_memory.build(folder, left, tower(), MEMORY, memory.encoder)
    queries = together.keys(np.arange(9))
    np.testing.assert_allclose(
        opened.search(queries, 5).scores, together.search(queries, 5).scores, rtol=1e-5
    )


def test_long_passages_are_cut_and_no_token_is_lost(tmp_path, encoder):
    long = Passage("long", "", " ".join(p.text for p in PASSAGES * 2))
    both = [long, PASSAGES[0]]
    memory = token_memory.build(tmp_path / "m", both, tower(), MEMORY, encoder)
    rows = memory.tokenizer.passages(both, max_length=999)
    assert len(rows[0]) > 2 * MEMORY.length
    np.testing.assert_array_equal(memory.tokens, np.concatenate(rows))


def test_shuffled_tokens_are_the_same_ones(memory):
    other = memory.shuffled()
    assert (other.tokens != memory.tokens).any()
    np.testing.assert_array_equal(np.sort(other.tokens), np.sort(memory.tokens))
    queries = memory.keys(np.arange(4))
    np.testing.assert_array_equal(
        other.search(queries, 3).ids, memory.search(queries, 3).ids
    )


def test_an_overlay_leaves_the_memory_as_it_is(memory, tmp_path):
    before = {p: p.read_bytes() for p in memory.folder.rglob("*") if p.is_file()}
    for _ in range(2):  # the second takes the place of the first
        other = memory.overlay(tmp_path / "overlay")
        other.add(ADDED)
        other.remove(["anna", "h"])
        assert passages_found(other, 99)[1] == {*NAMES, "gustav"} - {"anna"}
        assert passages_found(memory, 99)[1] == set(NAMES)
    assert passages_found(reopened(memory), 99)[1] == set(NAMES)
    now = {p: p.read_bytes() for p in memory.folder.rglob("*") if p.is_file()}
    assert now == before


def test_scann_is_tuned_on_blanks(memory, tmp_path, monkeypatch):
    pytest.importorskip("scann")
    tuned_on = []
    choose = auto_index.choose

    def noted(*args, queries=None, **options):
        tuned_on.append(queries)
        return choose(*args, queries=queries, **options)

    monkeypatch.setattr(memory_parts.auto_index, "choose", noted)
    config = dataclasses.replace(MEMORY, index="scann")
    folder, encoder = tmp_path / "scann", memory.encoder
    own = token_memory.build(folder, PASSAGES, tower(), config, encoder)
    again = token_memory.open_memory(folder, tower(), config, encoder)
    assert tuned_on[0].shape == (2 * len(PASSAGES), encoder.dim)
    assert tuned_on[1] is None  # the index is there already
    queries = memory.keys(np.arange(5))
    for one in (own, again):
        np.testing.assert_array_equal(
            one.search(queries, 3).ids, memory.search(queries, 3).ids
        )
    told = memory_parts.searches(own.parts[0])
    assert told["index"] == "scann" and min(told["recall"].values()) == 1
    assert memory_parts.searches(memory.parts[0])["index"] == "exact"


def test_blanks_hide_tokens_behind_two_masks():
    class Noted:
        def at(self, rows, places):
            self.rows, self.places = rows, places
            return np.zeros((*places.shape, 4), np.float32)

    noted: Any = Noted()
    mask = tower().tokenizer.mask_id
    rows = [np.r_[1, np.arange(5, 5 + n), 2].astype(np.int32) for n in range(9)]
    vectors = memory_parts.masked_vectors(rows, np.arange(9), noted, tower(), 99)
    assert vectors.shape == (2 * 7, 4)  # of rows with two tokens or more
    for row, at in zip(noted.rows, noted.places, strict=True):
        assert np.flatnonzero(row == mask).tolist() == list(at) and at[1] == at[0] + 1
        left = set(row[1:-1].tolist()) - {mask}
        assert (row[0], row[-1]) == (1, 2) and len(left) == len(row) - 4


def test_bad_input(memory, tmp_path):
    with pytest.raises(UserError, match="encoder"):
        token_memory.open_memory(memory.folder, tower(1), MEMORY)
    with pytest.raises(UserError, match="of other passages"):
        token_memory.build(memory.folder, ADDED, tower(), MEMORY, memory.encoder)
    half = dataclasses.replace(MEMORY, dtype="float16")
    with pytest.raises(UserError, match="dtype"):
        token_memory.open_memory(memory.folder, tower(), half)
    with pytest.raises(UserError, match="build it first"):
        token_memory.open_memory(tmp_path / "none", tower(), MEMORY)
    with pytest.raises(UserError, match="no passages to add"):
        memory.add([])
    long = memory_parts.MemoryConfig(length=17)
    with pytest.raises(UserError, match="16 positions"):
        token_memory.build(tmp_path / "long", PASSAGES, tower(), long)
    with pytest.raises(UserError, match="memory.dtype is 'int4'"):
        memory_parts.check(memory_parts.MemoryConfig(16, "int4"), tower().config)
