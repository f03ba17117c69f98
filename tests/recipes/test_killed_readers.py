"""A reader's run that is killed again and again ends in the same bits."""

import json
import pathlib

import pytest

from tests.recipes import killing
from tests.recipes.test_reader_launchers import corpus  # noqa: F401, a fixture

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


def start(workdir: pathlib.Path, data):
    return killing.start(RUN, workdir, data.passages, data.questions)


def ended(workdir: pathlib.Path) -> list:
    """The bytes of reader, retriever and answers, and the figures."""
    report = json.loads((workdir / "report.json").read_text())
    files = ("reader", "retriever_1/encoder")
    return [
        *((workdir / file / "model.safetensors").read_bytes() for file in files),
        (workdir / "answers.jsonl").read_bytes(),
        {name: report[name] for name in ("metrics", "controls")},
    ]


# What has just appeared when the run is killed, and how much later, in seconds.
MOMENTS = (
    ("retrieval", 0.2),
    ("reader_0/checkpoints/2", 0.0),
    ("reader_0/checkpoints/4", 0.1),
    ("retriever_1/identity.json", 0.3),
    ("retriever_1/train.npy", 0.0),
    ("retriever_1/checkpoints/2", 0.05),
    ("retriever_1/encoder", 0.0),
    ("reader_1/checkpoints/4", 0.0),
    ("closed_book/checkpoints/2", 0.1),
    ("reader/config.json", 0.0),
)


def test_a_killed_run_ends_in_the_same_bits(corpus, tmp_path):  # noqa: F811
    assert start(tmp_path / "straight", corpus).wait(timeout=600) == 0
    folder = tmp_path / "killed"
    assert killing.kill_at(lambda: start(folder, corpus), folder, MOMENTS) >= 8
    assert start(folder, corpus).wait(timeout=600) == 0
    assert ended(folder) == ended(tmp_path / "straight")
