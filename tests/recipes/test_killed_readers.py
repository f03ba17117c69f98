"""A reader's run that is killed again and again ends in the same bits."""

import json
import pathlib
import random
from typing import NamedTuple

import pytest

from tests.recipes import killing
from tests.recipes.test_reader_launchers import corpus  # noqa: F401, a fixture

pytestmark = [pytest.mark.multi, pytest.mark.slow]


class System(NamedTuple):
    """A launcher's run in small, what it leaves, and when it is killed."""

    program: str
    left: tuple[str, ...]
    # What has just appeared when the run is killed, and how much later, in seconds.
    moments: tuple[tuple[str, float], ...]
    kills: int  # at least


FID = System(
    """
import sys
from experiments import fid
from rlm_jax.data.question_answering import AnsweringConfig
from tests.recipes.test_reader_launchers import small
config = small(AnsweringConfig(*sys.argv[2:]))
config.distil.rounds = 1
for part in (config, config.distil):
    part.train.steps, part.train.checkpoint_every = 6, 2
fid.run(config, sys.argv[1])
""",
    (
        "reader/model.safetensors",
        "retriever_1/encoder/model.safetensors",
        "answers.jsonl",
    ),
    (
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
    ),
    8,
)

# A worker takes seconds to start and the run waits for it, so that a kill soon after an
# index was begun is inside the refresh.
_DRAW = random.Random(0)
ATLAS = System(
    """
import sys
from experiments import atlas
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.train.rounds import RefreshConfig
from tests.recipes.test_atlas_launcher import small
config = small(AnsweringConfig(*sys.argv[2:]))
config.refresh = RefreshConfig("overlapped", (4,), lag=2)
config.train.steps, config.train.checkpoint_every = 14, 2
config.train.eval_every, config.retriever_optim.learning_rate = 4, 0.03
atlas.run(config, sys.argv[1])
""",
    (
        "reader/model.safetensors",
        "retriever/encoder/model.safetensors",
        "joint/refreshes.json",
        "answers.jsonl",
    ),
    (
        ("joint/indexes/step_0*", _DRAW.random()),
        ("joint/indexes/step_0", _DRAW.random()),
        ("joint/rounds/0", _DRAW.random()),
        # An index is begun at 4, 8 and 12, and taken up two steps later.
        *((f"joint/checkpoints/{n}", _DRAW.random() / 20) for n in range(2, 15, 2)),
        *((f"closed_book/checkpoints/{n}", _DRAW.random() / 20) for n in (2, 6, 10)),
    ),
    10,
)


def start(system: System, workdir: pathlib.Path, data):
    return killing.start(system.program, workdir, data.passages, data.questions)


def ended(system: System, workdir: pathlib.Path) -> list:
    """The bytes of what was trained and answered, and the figures."""
    report = json.loads((workdir / "report.json").read_text())
    return [
        *((workdir / file).read_bytes() for file in system.left),
        {name: report[name] for name in ("metrics", "controls")},
    ]


@pytest.mark.parametrize("system", [FID, ATLAS], ids=["fid", "atlas"])
def test_a_killed_run_ends_in_the_same_bits(corpus, tmp_path, system):  # noqa: F811
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    assert start(system, straight, corpus).wait(timeout=600) == 0
    kills = killing.kill_at(
        lambda: start(system, folder, corpus), folder, system.moments
    )
    assert kills >= system.kills
    assert start(system, folder, corpus).wait(timeout=600) == 0
    assert ended(system, folder) == ended(system, straight)
