"""A reader's run that is killed again and again ends in the same bits."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from tests.recipes.test_reader_launchers import corpus  # noqa: F401, a fixture

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = """
import sys
from experiments import fid
from rlm_jax.data.question_answering import AnsweringConfig
from tests.recipes.test_reader_launchers import small
config = small(AnsweringConfig(*sys.argv[2:]))
config.distil.rounds = 1
for part in (config, config.distil):
    part.train.steps, part.train.checkpoint_every = 6, 2
fid.run(config, sys.argv[1])
"""

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def start(workdir: pathlib.Path, data) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(workdir), data.passages, data.questions],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        stderr=subprocess.DEVNULL,
    )


def ended(workdir: pathlib.Path) -> list:
    """The bytes of reader, retriever and answers, and the figures."""
    report = json.loads((workdir / "report.json").read_text())
    files = ("reader", "retriever_1/encoder")
    return [
        *((workdir / file / "model.safetensors").read_bytes() for file in files),
        (workdir / "answers.jsonl").read_bytes(),
        {name: report[name] for name in ("metrics", "controls")},
    ]


def test_a_killed_run_ends_in_the_same_bits(corpus, tmp_path):  # noqa: F811
    began = time.monotonic()
    assert start(tmp_path / "straight", corpus).wait(timeout=600) == 0
    whole = time.monotonic() - began
    draw, kills = random.Random(0), 0
    while True:
        run = start(tmp_path / "killed", corpus)
        try:
            limit = draw.uniform(0.15, 0.9) * whole if kills < 10 else 600
            assert run.wait(timeout=limit) == 0
            break
        except subprocess.TimeoutExpired:
            assert kills < 10
            run.kill()
            run.wait()
            kills += 1
    assert kills >= 3
    assert ended(tmp_path / "killed") == ended(tmp_path / "straight")
