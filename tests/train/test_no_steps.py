"""A run of no steps leaves its state, from which others go on."""

import os

import chex
import jax
import numpy as np
import pytest

from tests.train import toy


def checkpoints_of(workdir):
    return os.listdir(workdir / "checkpoints")


@pytest.mark.parametrize("kind", toy.METHODS)
def test_a_run_of_no_steps_leaves_a_checkpoint_to_go_on_from(tmp_path, kind):
    def run(name, steps):
        return toy.run(tmp_path / name, steps, method=toy.METHODS[kind](dropout=0.2))

    initial = run("run", 0)
    assert checkpoints_of(tmp_path / "run") == ["0"]
    chex.assert_trees_all_equal(run("run", 0), initial)
    straight = run("straight", 10)
    assert "0" not in checkpoints_of(tmp_path / "straight")
    chex.assert_trees_all_equal(run("run", 10), straight)


def test_given_parameters_are_what_a_run_of_no_steps_saves(tmp_path):
    given = jax.tree.map(
        lambda x: np.asarray(x) + 1, toy.method().init(jax.random.key(0))
    )
    toy.run(tmp_path, 0, initial_params=given)
    assert checkpoints_of(tmp_path) == ["0"]
    found = toy.run(tmp_path, 0)  # read from the disk, not begun anew
    chex.assert_trees_all_equal(jax.device_get(found.params), given)
