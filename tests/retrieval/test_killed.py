"""Encoding that is killed, or shared by processes, ends with the same bytes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
import jax.numpy as jnp, numpy as np
from rlm_jax import processes
from rlm_jax.retrieval import encode_passages

processes.initialise()
random = np.random.default_rng(0)
rows = [random.integers(1, 99, n).astype(np.int32) for n in random.integers(1, 30, 64)]

def embed(params, batch):
    return jnp.stack([batch["ids"].sum(1), batch["mask"].sum(1)], 1) * params

def tokenise(some):
    time.sleep(float(sys.argv[2]))
    return list(some)

encoder = encode_passages.TextEncoder(
    embed, np.float32(0.5), max_length=32, batch_tokens=64, pad_id=0
)
encode_passages.build(
    encoder, rows, tokenise, sys.argv[1], identity={"name": "toy"}, shard_size=8
)
"""


def start(directory: pathlib.Path, delay: float, **environment) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(directory), str(delay)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "whole"
    assert start(directory, 0).wait(60) == 0
    return files(directory)


@pytest.mark.multi
def test_a_killed_encoding_goes_on(whole, tmp_path):
    process = start(tmp_path / "store", 0.3)
    manifest = tmp_path / "store.partial" / "manifest.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if manifest.exists() and len(json.loads(manifest.read_text())["shards"]) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    finished = len(json.loads(manifest.read_text())["shards"])
    assert 2 <= finished < 8
    assert not (tmp_path / "store").exists()
    assert start(tmp_path / "store", 0).wait(60) == 0
    assert files(tmp_path / "store") == whole


@pytest.mark.multi
def test_two_processes_share_the_shards(whole, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = [
        start(
            tmp_path / "store", 0, JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i), JAX_PLATFORMS="cpu",
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert files(tmp_path / "store") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
