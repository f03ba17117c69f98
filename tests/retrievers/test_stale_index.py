"""An index that is encoded anew while its encoder is trained, killed at any moment."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models.encoder import embedder
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import background, encode_snapshot
from rlm_jax.retrievers.background import Worker, WorkerConfig
from rlm_jax.retrievers.stale_index import StaleIndex
from rlm_jax.train import checkpoint, metrics
from rlm_jax.train.rounds import RefreshConfig
from tests.retrievers import stale_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of runs and of their collection, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stale")
        patch.setenv("RLM_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def straight(shared):
    """Policy -> the folder of a run that nobody killed; made when it is asked for."""
    made = {}

    def of(policy):
        if policy not in made:
            made[policy] = shared / f"straight_{policy}"
            stale_run.run(made[policy], stale_run.CONFIGS[policy], shared)
        return made[policy]

    return of


def contents(folder):
    """Everything that a run leaves and that no clock has written."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in (
            *("indexes", "rounds", "generations.json"),
            *("refreshes.json", "decisions.json"),
        )
        for path in [folder / name, *(folder / name).rglob("*")]
        if path.is_file() and path.name not in ("worker.log", ".worker")
    }
    rows = metrics.read(folder)
    for row in rows:
        del row["targets_per_second"]
    return files, rows


def assert_same(folder, whole):
    states = [checkpoint.load_params(x) for x in (folder, whole)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    ours, theirs = contents(folder), contents(whole)
    assert ours[0].keys() == theirs[0].keys()
    assert ours == theirs


@pytest.mark.parametrize(
    "policy", ["synchronous", pytest.param("overlapped", marks=pytest.mark.slow)]
)
def test_generations_follow_training(straight, policy):
    folder = straight(policy)
    files, rows = contents(folder)
    assert [row["step"] for row in rows] == list(range(1, stale_run.STEPS + 1))
    generations = json.loads((folder / "generations.json").read_text())
    assert list(generations) == ["step_0", "step_4", "step_8"]
    assert len(set(generations.values())) == 3
    assert [x.name for x in (folder / "indexes").glob("step_*")] == ["step_8"]
    assert "rounds/10/ids" in files and "rounds/0/ids" not in files
    refreshes = json.loads((folder / "refreshes.json").read_text())["refreshes"]
    first, ages = (4, (1.5, 3)) if policy == "synchronous" else (6, (2.5, 5))
    assert [x["step"] for x in refreshes] == [first, first + 4]
    assert (refreshes[0]["mean_age"], refreshes[0]["max_age"]) == ages
    assert all(0 < x["stale_recall"] <= 1 for x in refreshes)


def with_refresh(*refresh, steps=stale_run.STEPS, **train):
    base = stale_run.CONFIGS["synchronous"]
    trained = dataclasses.replace(base.train, steps=steps, **train)
    return dataclasses.replace(base, refresh=RefreshConfig(*refresh), train=trained)


def test_candidates_follow_training_while_keys_stay(shared, tmp_path):
    traces = []

    def counted(method):
        def loss(*arguments, **options):
            traces.append(1)
            return method.loss(*arguments, **options)

        return method._replace(loss=loss)

    config = with_refresh("synchronous", (0,), 4, checkpoint_every=4)
    stale_run.run(tmp_path, config, shared, wrap=counted)
    path = tmp_path / "rounds/8/manifest.json"
    identity = json.loads(path.read_text())["identity"]
    assert identity == {
        "keys_step": 0,
        "queries": encode_stream.fingerprint(checkpoint.load_params(tmp_path, 8)),
    }
    # Three searches in one index, and the step was compiled once.
    generations = json.loads((tmp_path / "generations.json").read_text())
    assert list(generations) == ["step_0"] and len(traces) == 1


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["synchronous", "overlapped"])
def test_two_processes_share_what_the_first_finds(shared, straight, policy):
    theirs = metrics.read(straight(policy))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    folder = shared / f"two_{policy}"
    processes = [
        start(
            folder, policy, 0.0, JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=500)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ours = metrics.read(folder / "run")
    for name in ("loss", "agreement"):  # of the same questions and candidates
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=1e-4)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    generations = json.loads((folder / "run/generations.json").read_text())
    assert list(generations) == ["step_0", "step_4", "step_8"]


@pytest.mark.slow
def test_a_run_that_is_made_longer_inside_a_round(shared, tmp_path):
    for steps in (6, 7, 12):
        config = with_refresh("synchronous", (8,), 4, steps=steps)
        stale_run.run(tmp_path, config, shared)
        assert checkpoint.latest_step(tmp_path / "checkpoints") == steps
    generations = json.loads((tmp_path / "generations.json").read_text())
    assert list(generations) == ["step_0", "step_8"]


def start(folder, policy, delay, **environment):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.retrievers.stale_run", folder),
            *(policy, str(delay)),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stderr=subprocess.PIPE,
    )


def workers(folder):
    """The processes that encode a snapshot of this folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rlm_jax.retrievers.encode_snapshot" in words and any(
            word.startswith(bytes(folder)) for word in words
        ):
            found.append(int(path.name))
    return found


def encoding(run):
    """Whether shards of some index are being written."""
    return list(run.glob("indexes/step_*.partial/index/vectors.partial/*.keys"))


def reaches(run, step):
    return any(row["step"] >= step for row in metrics.read(run))


def kill(folder, policy, moment, delay=0.1):
    """Starts a run in a process of its own and kills it at some moment.

    The moment is (what to wait for, seconds to wait then, whom to kill).
    """
    what, wait, whom = moment
    trainer, run = start(folder, policy, delay), folder / "run"
    try:
        while trainer.poll() is None and not what(run):
            time.sleep(0.005)
        time.sleep(wait)
        if whom in ("worker", "both"):
            for worker in workers(run):
                os.kill(worker, signal.SIGKILL)
        if whom != "worker":
            trainer.kill()
        said = trainer.communicate(timeout=120)[1].decode()
    finally:
        trainer.kill()
        trainer.wait()
    # Nothing is left behind that still writes.
    deadline = time.monotonic() + 30
    while workers(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers(run)
    return trainer.returncode, said


def go_on(folder, policy, shared, whole):
    stale_run.run(folder / "run", stale_run.CONFIGS[policy], shared)
    assert_same(folder / "run", whole)


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("policy", ["synchronous", "overlapped"])
def test_killed_and_resumed_equals_straight(shared, straight, policy):
    # The overlapped run is killed while the worker encodes the index of step 4.
    folder = shared / f"killed_{policy}"
    what = lambda run: reaches(run, 4) and (encoding(run) or policy == "synchronous")
    status, _ = kill(folder, policy, (what, 0.0, "trainer"))
    assert status == -signal.SIGKILL
    go_on(folder, policy, shared, straight(policy))


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("policy", ["synchronous", "overlapped", "bounded"])
def test_killed_at_any_moment(shared, straight, policy, number):
    draw = random.Random(f"{policy} {number}")
    step = draw.randint(0, stale_run.STEPS - 1)
    if number % 2:
        what = lambda run: (step == 0 or reaches(run, step)) and encoding(run)
    else:
        what = lambda run: reaches(run, step) if step else (run / "indexes").exists()
    whom = "trainer"
    if policy != "synchronous":
        whom = draw.choice(["trainer", "worker", "both"])
    folder = shared / f"{policy}_{number}"
    kill(folder, policy, (what, draw.random() * 0.5, whom))
    if number == 9:  # and again
        kill(folder, policy, (lambda run: reaches(run, 8), 0.1, "trainer"))
    go_on(folder, policy, shared, straight(policy))


def failing(shared, tmp_path, monkeypatch, **changes):
    """What a trainer is told whose worker does a job with these fields changed."""
    write = encode_snapshot.write

    def changed(partial, job):
        write(partial, dataclasses.replace(job, **changes))

    monkeypatch.setattr(encode_snapshot, "write", changed)
    with pytest.raises(UserError, match="The worker failed to encode step_0") as told:
        stale_run.run(tmp_path / "run", stale_run.CONFIGS["overlapped"], shared)
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


@pytest.mark.multi
def test_a_worker_that_fails_is_one_sentence(shared, tmp_path, monkeypatch):
    said = failing(shared, tmp_path, monkeypatch, fingerprint="another")
    assert "have changed since the run began" in said and "worker.log" in said


@pytest.mark.multi
def test_a_worker_has_cores_and_variables_of_its_own(tmp_path, monkeypatch):
    """It ends when it is told to, or when the trainer's end of its pipe is closed."""
    program = (
        "import os, sys, time; from rlm_jax.retrievers import encode_snapshot as e;"
        "e._end_with_trainer(); print(os.environ['COLOUR'], 'JAX_PROCESS_ID' in"
        " os.environ, flush=True); time.sleep(600)"
    )
    popen = subprocess.Popen

    def instead(command, **options):
        assert command[1:3] == ["-m", "rlm_jax.retrievers.encode_snapshot"]
        return popen([command[0], "-c", program], **options)

    monkeypatch.setattr(background.subprocess, "Popen", instead)
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    partial = tmp_path / "step_4.partial"
    worker = Worker(WorkerConfig(environment=("COLOUR=a=b",)))
    worker.start(partial)
    process: Any = worker._process
    worker.start(partial)
    assert process is worker._process
    log = tmp_path / "worker.log"
    deadline = time.monotonic() + 60
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "a=b False\n"
    process.stdin.close()
    assert process.wait(30) == 1
    worker.close()
    worker.start(partial)
    process: Any = worker._process
    worker.close()
    assert process.returncode == -signal.SIGKILL


def test_a_variable_without_a_value_is_refused():
    with pytest.raises(UserError, match="has 'GPU'; give NAME=VALUE"):
        Worker(WorkerConfig(environment=("GPU",)))


def test_the_worker_pins_itself(shared, straight, tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, x: pinned.append((pid, x)))
    source, partial = (
        straight("synchronous") / "indexes/step_8",
        tmp_path / "step_8.partial",
    )
    shutil.copytree(source, partial, ignore=lambda *_: ["index"])
    passages = stale_run.collection(shared)
    job = encode_snapshot.Job(
        passages.name, passages.fingerprint, stale_run.tower(passages).config,
        stale_run.TEXT, stale_run.SEARCH, (1,), 16,
    )  # fmt: skip
    encode_snapshot.write(partial, job)
    assert encode_snapshot.read(partial) == job
    encode_snapshot.run(partial)
    assert pinned == [(0, (1,))]
    ours, theirs = (
        {x.name: x.read_bytes() for x in (folder / "vectors").iterdir()}
        for folder in (tmp_path / "step_8/index", source / "index")
    )
    assert ours == theirs
    # It is whole: another worker that comes late has nothing to do.
    encode_snapshot.run(partial)
    (tmp_path / "step_8/snapshot/job.json").write_text("[]")
    with pytest.raises(UserError, match="job.json is damaged"):
        encode_snapshot.read(tmp_path / "step_8")
    assert encode_snapshot.main([]) == 2


def test_queries_alone_never_encode_passages_again(shared, tmp_path, monkeypatch):
    """The passages' encoder stays, the queries' moves: one encoding serves all."""
    calls, encode = [], encode_snapshot.encode
    monkeypatch.setattr(
        encode_snapshot, "encode", lambda *x, **y: (calls.append(x), encode(*x, **y))
    )
    passages = stale_run.collection(shared)
    tower = stale_run.tower(passages)
    stale = StaleIndex(
        tmp_path / "indexes", passages, tower, embedder(tower.config).embed,
        stale_run.TEXT, stale_run.SEARCH,
    )  # fmt: skip
    moved = jax.tree.map(lambda x: x + 0.1, tower.params)
    for step, queries in ((0, tower.params), (4, moved), (8, moved)):
        stale.start(step, tower.params, queries)
    assert len(calls) == 1
    questions = [passages[row].text for row in range(5)]
    for step in (0, 4, 8):
        stale.finish(step)
        ids = stale.find(step, tower.params, questions, 1).ids
        np.testing.assert_array_equal(ids[:, 0], np.arange(5))
    # What the index was begun with goes with its files.
    jax.tree.map(np.testing.assert_array_equal, stale.query_params(0), tower.params)
    jax.tree.map(np.testing.assert_array_equal, stale.query_params(8), moved)
    stale.start(12, moved, moved)
    assert len(calls) == 2
    jax.tree.map(np.testing.assert_array_equal, stale.query_params(12), moved)
    stale.start(16, jax.tree.map(lambda x: x * 2, moved), tower.params)
    jax.tree.map(np.testing.assert_array_equal, stale.query_params(16), tower.params)
