"""Hard negatives: which passages are taken, and that they come back as written."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import mining


def search(queries, k):
    """Passages query, query + 1, ... of 50, nearest first; ends where they do."""
    ids = np.asarray(queries)[:, None] + np.arange(k)
    return Neighbours(-ids.astype(np.float32), np.where(ids < 50, ids, -1))


QUERIES = np.array([0, 10, 47])
POSITIVES = [np.array([0, 2]), np.array([30]), np.array([47])]


def test_best_passages_without_the_answers():
    found = mining.mine(search, QUERIES, POSITIVES, num=4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(
        found, [[1, 3, 4, 5], [10, 11, 12, 13], [48, 49, -1, -1]]
    )


def test_passages_with_the_answer_are_left_out():
    asked = []

    def excluded(question, passage):
        asked.append((question, passage))
        return passage % 2 == 1

    found = mining.mine(search, QUERIES, POSITIVES, num=2, depth=5, excluded=excluded)
    np.testing.assert_array_equal(found, [[4, -1], [10, 12], [48, -1]])
    assert (0, 0) not in asked and (1, 13) not in asked  # no more than is needed


def test_depth_has_room_for_every_positive():
    depths = []

    def recorded(queries, k):
        depths.append(k)
        return search(queries, k)

    many = [np.arange(120), np.array([30]), np.array([47])]
    mining.mine(recorded, QUERIES, many, num=4)
    mining.mine(recorded, QUERIES, POSITIVES, num=4)
    assert depths == [124, 100]


def test_more_questions_than_are_searched_at_once():
    queries = [i % 40 for i in range(1500)]
    positives = [np.array([q]) for q in queries]
    found = mining.mine(search, queries, positives, num=1, depth=2)
    np.testing.assert_array_equal(found[:, 0], np.array(queries) + 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num": 0}, "0 negatives"),
        ({"num": 3, "depth": 2}, "depth 2"),
        ({"positives": POSITIVES[:1]}, "positives of 1"),
    ],
    ids=["none", "shallow", "uneven"],
)
def test_bad_input(change, says):
    options = {"positives": POSITIVES, "num": 1} | change
    with pytest.raises(UserError, match=says):
        mining.mine(search, QUERIES, **options)


def test_saved_and_loaded(tmp_path):
    identity = {"questions": "a", "passages": "b", "index": "bm25"}
    found = mining.mine(search, QUERIES, POSITIVES, num=4)
    mining.save(tmp_path / "negatives", found, identity)
    loaded = mining.load(tmp_path / "negatives", identity)
    np.testing.assert_array_equal(loaded, found)
    assert loaded.dtype == np.int32
    with pytest.raises(UserError, match="something at"):
        mining.save(tmp_path / "negatives", found, identity)
    with pytest.raises(UserError, match="index = 'bm25'"):
        mining.load(tmp_path / "negatives", identity | {"index": "dpr"})


@pytest.mark.parametrize("damage", ["flipped", "short", "absent"])
def test_damage_is_found(tmp_path, damage):
    folder = tmp_path / "negatives"
    mining.save(folder, np.arange(6, dtype=np.int32).reshape(2, 3), {})
    path = next(path for path in folder.iterdir() if path.suffix != ".json")
    data = bytearray(path.read_bytes())
    if damage == "absent":
        path.unlink()
    else:
        data[3] ^= 1
        path.write_bytes(data[:-1] if damage == "short" else data)
    with pytest.raises(UserError, match="not those it was saved with"):
        mining.load(folder, {})
