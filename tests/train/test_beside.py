"""Files that a checkpoint was made with: one that is gone is not begun anew."""

import pytest

from rlm_jax.errors import UserError
from rlm_jax.recipes import runs, stale_decisions
from rlm_jax.storage import checked_files
from rlm_jax.train import beside, checkpoint, checkpoint_files


def save(workdir, step, older=False):
    """A folder of a step, with a manifest and no arrays."""
    folder = workdir / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    told = {} if older else beside.fields(folder.parent, {"lines": 3, "crc32": 7})
    (folder / "file").write_bytes(b"some")
    checkpoint_files.list_files(folder, told)
    return folder


def test_the_names_are_those_of_the_recipes():
    assert {runs.CONFIG, runs.PART, stale_decisions.FILE} <= set(beside.NAMES)


@pytest.mark.parametrize("name", beside.NAMES)
def test_a_file_that_is_gone_is_not_one_still_to_be_written(tmp_path, name):
    """Each counted as not yet written, and the run began another one unseen."""
    save(tmp_path, 2)
    (tmp_path / name).write_text("{}")
    beside.require(tmp_path)
    save(tmp_path, 10)
    beside.require(tmp_path)
    (tmp_path / name).unlink()
    for refused in (beside.require, runs.stored):
        with pytest.raises(UserError, match=rf"{name} is missing.*step 10.*restore it"):
            refused(tmp_path)
    with pytest.raises(UserError, match=f"{name} is missing"):
        runs.claim_part(tmp_path, {"seed": 0})
    assert not (tmp_path / runs.PART).exists()


def test_what_an_older_version_saved_asks_for_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    folder = save(tmp_path, 2, older=True)
    (tmp_path / "config.json").unlink()
    assert runs.stored(tmp_path) == {} and beside.logged_by(folder) == {}
    (folder / checked_files.MANIFEST).unlink()
    beside.require(tmp_path)
    assert beside.logged_by(folder) == {}


def test_a_copied_step_asks_for_nothing_of_the_run_it_was_copied_from(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "refreshes.json").write_text("{}")
    assert beside.logged_by(save(tmp_path / "from", 4)) == {"lines": 3, "crc32": 7}
    there = tmp_path / "to" / "checkpoints"
    copied = checkpoint.copy_latest(tmp_path / "from", there)
    assert copied == there / "4" and beside.logged_by(copied) == {}
    beside.require(tmp_path / "to")
    checkpoint_files.verify(copied)
