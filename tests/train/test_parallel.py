"""Devices: sharding, copies, one compile, and what does not divide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax import peers, processes
from rlm_jax.errors import UserError
from rlm_jax.train import parallel
from rlm_jax.train import step as step_lib
from tests.train import toy


def test_three_steps_trace_once_and_move_no_state():
    traces = []
    method, optimizer = toy.method(traces), optax.adam(1e-2)
    state = step_lib.init(method.init(jax.random.key(0)), optimizer)
    state = parallel.replicate(state)
    run = parallel.parallelise(
        functools.partial(
            step_lib.train_step, method=method, optimizer=optimizer, seed=0
        )
    )
    for step in range(3):
        given = state
        state, sums = run(given, toy.batch_at(step))
        assert all(x.is_deleted() for x in jax.tree.leaves(given))
        assert state.params["embed"].sharding == given.params["embed"].sharding
        jax.block_until_ready(sums)
    # On one device the step knows of no axis, so that no reduction is left in it.
    assert traces == ["batch" if jax.device_count() > 1 else None]
    assert state.step == 3


def test_replicate_copies():
    given = {"numpy": np.ones(3, np.float32), "jax": jnp.ones(3)}
    copy = parallel.replicate(given)
    donate = parallel.parallelise(lambda state, batch, *, axis: state)
    donate(copy, {"x": np.zeros((jax.device_count(), 1))})
    assert copy["jax"].is_deleted() and copy["numpy"].is_deleted()
    assert given["jax"].sum() == given["numpy"].sum() == 3


def test_evaluation_leaves_the_parameters_alone():
    method = toy.method()
    params = parallel.replicate(method.init(jax.random.key(0)))
    evaluate = functools.partial(step_lib.eval_step, method=method)
    sums = parallel.parallelise(evaluate, donate=False)(params, toy.batch_at(0))
    expected = method.evaluate(params, toy.batch_at(0), jax.random.key(0))
    assert sums["loss"][0] == pytest.approx(float(expected["loss"][0]), rel=1e-6)


def test_rows_that_do_not_divide(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert list(parallel.local_rows(8)) == [4, 5, 6, 7]
    with pytest.raises(UserError, match="6 rows.*4 devices"):
        parallel.local_rows(6)
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    step = parallel.parallelise(lambda state, batch, *, axis: state)
    with pytest.raises(UserError, match="8 rows of 'tokens'.*3 devices"):
        step({}, toy.batch_at(0))


def test_a_micro_batch_is_a_run_of_the_global_batch(monkeypatch):
    """Whatever splits first: rows of one group must meet in one in-batch memory."""
    accumulate, devices, processes, size = 3, 2, 2, 24
    monkeypatch.setattr(jax, "device_count", lambda: devices * processes)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows = parallel.local_rows(size, accumulate=accumulate)
        per_device = parallel._split({"row": rows}, devices, accumulate)["row"]
        seen.append(per_device.reshape(devices, accumulate, -1))
    micro_batches = np.concatenate(seen).swapaxes(0, 1).reshape(accumulate, -1)
    np.testing.assert_array_equal(micro_batches.reshape(-1), np.arange(size))


def test_what_the_first_process_cannot_do_is_told():
    def fails():
        raise UserError("the disk is full")

    assert processes.by_first(lambda: 3, "count") == 3
    with pytest.raises(UserError, match="the disk is full"):
        processes.by_first(fails, "write")


def test_who_has_left_the_others_waits_for_none(monkeypatch):
    """What Atlas reads after training waited for a process that had ended."""
    ours = peers.Peers()
    monkeypatch.setattr(peers, "peers", lambda: ours)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert processes.several()
    ours.part()
    assert not processes.several()
    processes.wait("for nobody")
    assert processes.by_first(lambda: 3, "count") == 3


def test_initialise_wants_all_or_nothing(monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    processes.initialise()
    with pytest.raises(UserError, match="all three or none"):
        processes.initialise("localhost:1234", 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match="JAX_PROCESS_ID"):
        processes.initialise()
