"""Rounds, the index of each on the disk, and how old it is."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import datastore, exact, refresh
from rlm_jax.retrieval.refresh import Round

IDENTITY = {"passages": "abc", "max_length": 32}


def keys_of(params):
    return np.arange(12, dtype=np.float32).reshape(6, 2) * params["scale"]


class Corpus:
    """Builds and opens datastores, and counts how often."""

    def __init__(self):
        self.builds, self.killed = 0, False

    def build(self, params, folder):
        self.builds += 1
        assert folder.is_dir()
        if self.killed:
            (folder / "half").write_text("made so far")
            raise KeyboardInterrupt
        writer = datastore.create(
            folder / "store", dim=2, dtype="float32", num_entries=6, identity={}
        )
        writer.append(keys_of(params), np.arange(6))
        writer.publish()

    def open(self, folder):
        return exact.build(datastore.open(folder / "store"), metric="ip")

    def at(self, folder, step, params=None, **identity):
        return refresh.open_or_build(
            folder, step, IDENTITY | identity,
            params=params, build=self.build, open=self.open,
        )  # fmt: skip


def params(scale=1.0):
    return {"scale": np.float32(scale)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "rounds"),
    [
        pytest.param((0, 10, 4), [(0, 4, 0), (4, 8, 4), (8, 10, 8)], id="whole"),
        pytest.param((5, 10, 4), [(5, 8, 4), (8, 10, 8)], id="goes_on_inside"),
        pytest.param((8, 10, 4), [(8, 10, 8)], id="goes_on_at_a_refresh"),
        pytest.param((10, 10, 4), [], id="done"),
        pytest.param((3, 10, 0), [(3, 10, 0)], id="never_refreshed"),
        pytest.param((0, 3, 100), [(0, 3, 0)], id="shorter_than_a_round"),
    ],
)
def test_rounds(arguments, rounds):
    assert refresh.synchronous(*arguments) == [Round(*some) for some in rounds]


def test_rounds_want_no_negative_number():
    with pytest.raises(UserError, match="every -1 of 4 steps"):
        refresh.synchronous(0, 4, -1)


@pytest.mark.parametrize("some", [Round(4, 8, 4), Round(5, 8, 4), Round(8, 9, 4)])
def test_age_is_counted_from_the_encoder(some):
    ages = [step - some.index_step for step in range(some.start, some.stop)]
    assert some.age() == {"mean_age": np.mean(ages), "max_age": max(ages)}


def test_built_once_and_opened_after(tmp_path):
    corpus = Corpus()
    queries = np.ones((1, 2), np.float32)
    built = corpus.at(tmp_path, 4, params(2.0)).search(queries, 3)
    opened = corpus.at(tmp_path, 4).search(queries, 3)  # the run is past step 4
    again = corpus.at(tmp_path, 4, params(2.0)).search(queries, 3)  # or stands there
    for found in (opened, again):
        np.testing.assert_array_equal(found.ids, built.ids)
        np.testing.assert_array_equal(found.scores, built.scores)
    np.testing.assert_array_equal(built.ids, [[5, 4, 3]])
    assert built.scores[0, 0] == 2 * (10 + 11)
    assert corpus.builds == 1 and names(tmp_path) == ["step_4"]


def test_others_go_when_told(tmp_path):
    corpus = Corpus()
    for step in (0, 4):
        corpus.at(tmp_path, step, params(step))
    (tmp_path / "step_8.partial").mkdir()
    (tmp_path / "notes.txt").write_text("not an index")
    assert names(tmp_path) == ["notes.txt", "step_0", "step_4", "step_8.partial"]
    refresh.remove_others(tmp_path, 4)
    assert names(tmp_path) == ["notes.txt", "step_4"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"passages": "other"}, "passages", id="passages"),
        pytest.param({"params": params(3.0)}, "encoder", id="encoder"),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path, changes, named):
    corpus = Corpus()
    corpus.at(tmp_path, 4, params(2.0))
    with pytest.raises(UserError, match=named):
        corpus.at(tmp_path, 4, **changes)


def test_an_index_cannot_be_made_of_parameters_that_are_gone(tmp_path):
    with pytest.raises(UserError, match="beyond step 4"):
        Corpus().at(tmp_path, 4)


def test_a_copied_index_is_not_that_of_another_step(tmp_path):
    corpus = Corpus()
    corpus.at(tmp_path, 4, params())
    (tmp_path / "step_4").rename(tmp_path / "step_8")
    with pytest.raises(UserError, match="step = 4"):
        corpus.at(tmp_path, 8)


def test_damage_is_named(tmp_path):
    corpus = Corpus()
    corpus.at(tmp_path, 4, params())
    (tmp_path / "step_4" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        corpus.at(tmp_path, 4)


@pytest.mark.parametrize("same", [True, False])
def test_a_killed_build_goes_on_with_the_same_parameters_only(tmp_path, same):
    corpus = Corpus()
    corpus.killed = True
    with pytest.raises(KeyboardInterrupt):
        corpus.at(tmp_path, 4, params(2.0))
    assert names(tmp_path) == ["step_4.partial"]
    corpus.killed = False
    corpus.at(tmp_path, 4, params(2.0 if same else 3.0))
    assert names(tmp_path) == ["step_4"]
    assert (tmp_path / "step_4" / "index" / "half").exists() == same


def test_a_run_ends_the_same_however_often_it_is_killed(tmp_path):
    """Each step moves by what the stale index finds: a toy run over rounds."""

    def run(folder, *stops):
        corpus, scale, done = Corpus(), 1.0, 0
        for stop in (*stops, 10):
            for turn in refresh.synchronous(done, 10, 4):
                current = params(scale) if done == turn.index_step else None
                index = corpus.at(folder, turn.index_step, current)
                refresh.remove_others(folder, turn.index_step)
                for _ in range(turn.start, min(turn.stop, stop)):
                    found = index.search(np.full((1, 2), scale, np.float32), 1)
                    scale += 0.001 * float(found.scores[0, 0])
                    done += 1
                if done == stop:
                    break
        return scale, corpus.builds

    whole = run(tmp_path / "a")
    assert run(tmp_path / "b", 3, 4, 6) == whole
    assert whole[1] == 3
    assert names(tmp_path / "a") == names(tmp_path / "b") == ["step_8"]


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
