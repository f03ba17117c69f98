"""A launcher in two processes: they train together, and the first one reports."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.recipes import shrunken

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def test_two_processes_train_one_run(tmp_path):
    corpus = shrunken.write_corpus(tmp_path / "corpus")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        "RLM_CACHE": str(tmp_path / "cache"),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    workdir = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "experiments.trime",
                    f"--workdir={workdir}",
                ),
                *("--config.warmup_steps=1", "--config.memory.tune_tokens=257"),
                *shrunken.flags(corpus),
            ],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(number)},
        )
        for number in range(2)
    ]
    try:
        assert [process.wait(timeout=500) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    made = json.loads((workdir / "report.json").read_text())
    assert made["metrics"]["perplexity"] > 1
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines if '"train"' in x]
    assert steps == [1, 2]
