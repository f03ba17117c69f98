"""The indexes of a run on the disk, and the candidates that were found in them."""

import os
import shutil

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import datastore, exact, refresh

IDENTITY = {"passages": "abc", "max_length": 32}


def keys_of(params):
    return np.arange(12, dtype=np.float32).reshape(6, 2) * params["scale"]


class Corpus:
    """Makes and opens datastores, and counts how often."""

    def __init__(self):
        self.builds, self.killed = 0, False

    def make(self, folder, step, params=None, **identity):
        """As the trainer does: begins, encodes what the snapshot says, publishes."""

        def snapshot(there):
            assert params is not None
            np.save(there / "scale.npy", params["scale"])

        partial = refresh.begin(folder, step, IDENTITY | identity, params, snapshot)
        if partial is None:
            return
        files = partial / refresh.INDEX
        self.builds += 1
        if self.killed:
            (files / "half").write_text("made so far")
            raise KeyboardInterrupt
        scale = np.load(partial / "snapshot/scale.npy", allow_pickle=False)
        writer = datastore.create(
            files / "store", dim=2, dtype="float32", num_entries=6, identity={}
        )
        writer.append(keys_of({"scale": scale}), np.arange(6))
        writer.publish()
        refresh.publish(folder, step)

    def search(self, folder, step, k=3):
        store = datastore.open(refresh.whole(folder, step, IDENTITY) / "index/store")
        return exact.build(store, metric="ip").search(np.ones((1, 2), np.float32), k)


def params(scale=1.0):
    return {"scale": np.float32(scale)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_made_once_and_opened_after(tmp_path):
    corpus = Corpus()
    corpus.make(tmp_path, 4, params(2.0))
    made = corpus.search(tmp_path, 4)
    corpus.make(tmp_path, 4)  # the run is past step 4
    corpus.make(tmp_path, 4, params(2.0))  # or stands there
    np.testing.assert_array_equal(made.ids, [[5, 4, 3]])
    assert made.scores[0, 0] == 2 * (10 + 11)
    assert corpus.builds == 1 and names(tmp_path) == ["step_4"]
    assert refresh.exists(tmp_path, 4) and not refresh.exists(tmp_path, 8)


def test_others_go_when_told(tmp_path):
    corpus = Corpus()
    for step in (0, 4, 8):
        corpus.make(tmp_path, step, params(step))
    (tmp_path / "step_12.partial").mkdir()
    (tmp_path / "step_16.partial").mkdir()
    (tmp_path / "notes.txt").write_text("not an index")
    assert refresh.steps(tmp_path) == [0, 4, 8]
    refresh.remove_others(tmp_path, {4, 8, 16})
    assert names(tmp_path) == ["notes.txt", "step_16.partial", "step_4", "step_8"]


def test_an_index_of_another_run_is_refused(tmp_path):
    corpus = Corpus()
    corpus.make(tmp_path, 4, params(2.0))
    with pytest.raises(UserError, match="passages"):
        corpus.make(tmp_path, 4, params(2.0), passages="other")
    with pytest.raises(UserError, match="passages"):
        refresh.whole(tmp_path, 4, {"passages": "other"})


def test_a_run_that_comes_by_again_with_other_parameters_makes_it_again(tmp_path):
    corpus = Corpus()
    corpus.make(tmp_path, 4, params(2.0))
    corpus.make(tmp_path, 4, params(3.0))
    assert corpus.builds == 2
    assert corpus.search(tmp_path, 4).scores[0, 0] == 3 * (10 + 11)


def test_equal_parameters_share_one_encoding(tmp_path):
    """Training queries alone never encodes the passages again."""
    corpus = Corpus()
    for step in (0, 4, 8):
        corpus.make(tmp_path, step, params(2.0))
    assert corpus.builds == 1 and names(tmp_path) == ["step_0", "step_4", "step_8"]
    one, another = (tmp_path / f"step_{i}/index/store/00000.keys" for i in (0, 8))
    assert os.path.samefile(one, another)
    # Each has a snapshot of its own, which may hold more than passages want.
    one, another = (tmp_path / f"step_{i}/snapshot/scale.npy" for i in (0, 8))
    assert not os.path.samefile(one, another)
    refresh.remove_others(tmp_path, {8})
    assert corpus.search(tmp_path, 8).scores[0, 0] == 2 * (10 + 11)
    corpus.make(tmp_path, 12, params(3.0))
    assert corpus.builds == 2


def test_an_index_cannot_be_made_of_parameters_that_are_gone(tmp_path):
    with pytest.raises(UserError, match="beyond step 4"):
        Corpus().make(tmp_path, 4)
    with pytest.raises(UserError, match="no index at"):
        refresh.whole(tmp_path, 4, IDENTITY)


def test_a_copied_index_is_not_that_of_another_step(tmp_path):
    corpus = Corpus()
    corpus.make(tmp_path, 4, params())
    (tmp_path / "step_4").rename(tmp_path / "step_8")
    with pytest.raises(UserError, match="step = 4"):
        corpus.make(tmp_path, 8)


def test_damage_is_named(tmp_path):
    corpus = Corpus()
    corpus.make(tmp_path, 4, params())
    (tmp_path / "step_4" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        corpus.make(tmp_path, 4)


@pytest.mark.parametrize("again", [None, 2.0, 3.0])
def test_a_killed_build_goes_on_with_the_same_parameters_only(tmp_path, again):
    """Also where they are gone: the snapshot has them."""
    corpus = Corpus()
    corpus.killed = True
    with pytest.raises(KeyboardInterrupt):
        corpus.make(tmp_path, 4, params(2.0))
    assert names(tmp_path) == ["step_4.partial"]
    corpus.killed = False
    corpus.make(tmp_path, 4, None if again is None else params(again))
    assert names(tmp_path) == ["step_4"]
    assert (tmp_path / "step_4" / "index" / "half").exists() == (again != 3.0)
    assert corpus.search(tmp_path, 4).scores[0, 0] == (again or 2.0) * (10 + 11)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_snapshot_is_read_as_it_was_written(tmp_path, damage):
    """One with a flipped bit gave other vectors, and one that lacked a file others."""
    there = refresh.begin(tmp_path, 4, IDENTITY, params(), written)
    assert there is not None
    assert refresh.snapshot_of(there) == there / refresh.SNAPSHOT
    path = there / refresh.SNAPSHOT / "inside" / "weights"
    path.write_bytes(b"\x01other") if damage == "flipped" else path.unlink()
    with pytest.raises(UserError, match=r"inside/weights is damaged .*restore it, or"):
        refresh.snapshot_of(there)


def written(files):
    (files / "inside").mkdir()
    (files / "inside" / "weights").write_bytes(b"\x00other")


def test_a_snapshot_that_was_killed_is_none(tmp_path):
    def killed(files):
        (files / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh.begin(tmp_path, 4, IDENTITY, params(), killed)
    with pytest.raises(UserError, match="no index at"):
        Corpus().make(tmp_path, 4)
    Corpus().make(tmp_path, 4, params())
    assert not (tmp_path / "step_4/snapshot/half").exists()
    assert names(tmp_path) == ["step_4"]


def find(calls, ids):
    def search():
        calls.append(ids)
        return np.array(ids)

    return search


def test_candidates_are_found_once(tmp_path):
    folder, calls = tmp_path / "rounds", []
    ids = np.arange(12).reshape(3, 2, 2) - 1
    for _ in range(2):
        refresh.write_candidates(folder, 4, {"queries": "a"}, find(calls, ids))
    read = refresh.candidates(folder, 4)
    assert read.dtype == np.int32 and len(calls) == 1
    np.testing.assert_array_equal(read, ids)
    # Of other queries they are others.
    refresh.write_candidates(folder, 4, {"queries": "b"}, find(calls, ids + 1))
    np.testing.assert_array_equal(refresh.candidates(folder, 4), ids + 1)
    refresh.write_candidates(folder, 7, {"queries": "c"}, find(calls, ids[:1]))
    assert refresh.searched(folder) == {4: 7, 7: 8}
    refresh.remove_candidates(folder, 6)
    assert refresh.searched(folder) == {4: 7, 7: 8}
    refresh.remove_candidates(folder, 7)
    assert refresh.searched(folder) == {7: 8}
    assert refresh.searched(tmp_path / "none") == {}


@pytest.fixture
def killed_in_a_removal(monkeypatch):
    """The process ends when the first file of a folder is gone, its manifest."""

    def first_file(path, **_):
        if path.exists():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", first_file)
        yield patch


def test_candidates_that_were_being_removed_are_gone(tmp_path, killed_in_a_removal):
    for start, queries in ((4, "a"), (7, "b")):
        refresh.write_candidates(
            tmp_path, start, {"queries": queries}, find([], [[[1]]])
        )
    with pytest.raises(KeyboardInterrupt):
        refresh.remove_candidates(tmp_path, 6)
    with pytest.raises(KeyboardInterrupt):  # Of other queries they are found anew.
        refresh.write_candidates(tmp_path, 7, {"queries": "c"}, find([], [[[2]]]))
    killed_in_a_removal.undo()
    assert refresh.searched(tmp_path) == {}
    refresh.write_candidates(tmp_path, 7, {"queries": "c"}, find([], [[[2]]]))
    refresh.remove_candidates(tmp_path, 6)
    assert names(tmp_path) == ["7"]


def test_an_index_that_was_being_removed_is_gone(tmp_path, killed_in_a_removal):
    corpus = Corpus()
    for step in (0, 4):
        corpus.make(tmp_path, step, params(step))
    with pytest.raises(KeyboardInterrupt):
        refresh.remove_others(tmp_path, {4})
    with pytest.raises(KeyboardInterrupt):  # Of other parameters it is made anew.
        corpus.make(tmp_path, 4, params(3.0))
    killed_in_a_removal.undo()
    assert refresh.steps(tmp_path) == []
    corpus.make(tmp_path, 4, params(3.0))
    refresh.remove_others(tmp_path, {4})
    assert names(tmp_path) == ["step_4"]


def test_candidates_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match="no candidates at .*beyond step 4"):
        refresh.candidates(tmp_path, 4)
    refresh.write_candidates(tmp_path, 4, {}, find([], [[[1, 2]]]))
    path = tmp_path / "4" / "ids"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match="not those it was saved with"):
        refresh.candidates(tmp_path, 4)


def test_candidates_that_were_killed_are_found_again(tmp_path):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh.write_candidates(tmp_path, 4, {}, killed)
    (tmp_path / "4.partial").mkdir(exist_ok=True)
    assert refresh.searched(tmp_path) == {}
    refresh.write_candidates(tmp_path, 4, {}, find([], [[[1, 2]]]))
    assert refresh.searched(tmp_path) == {4: 5}


def test_staleness():
    def neighbours(ids):
        ids = np.array(ids, np.int32)
        return Neighbours(np.zeros(ids.shape, np.float32), ids)

    fresh = neighbours([[3, 1, 2], [4, 5, -1], [-1, -1, -1]])
    stale = neighbours([[1, 3, 7], [4, 8, 9], [0, 1, 2]])
    assert refresh.staleness(stale, fresh) == {
        "stale_recall": pytest.approx(3 / 5),
        "stale_first": pytest.approx(1 / 2),
    }
    assert refresh.staleness(fresh, fresh)["stale_recall"] == 1


def test_how_many_passages_are_found_and_when_that_is_a_collapse():
    few = np.stack([np.full(20, 7), np.arange(20) + 10, np.full(20, -1)], axis=1)
    told = refresh.spread(few)
    assert told == {"distinct_passages": 21.0, "commonest_share": 1.0}
    assert refresh.has_collapsed(few, 1000)
    assert not refresh.has_collapsed(few, 5)  # of five passages three are found
    assert not refresh.has_collapsed(few[:15], 1000)
    wide = np.arange(60).reshape(20, 3)
    assert refresh.spread(wide)["commonest_share"] == 1 / 20
    assert not refresh.has_collapsed(wide, 1000)
    nothing = np.full((20, 3), -1)
    assert refresh.spread(nothing) == {"distinct_passages": 0.0, "commonest_share": 0.0}
