"""NPM killed in training and while its memory is built ends in the same bits."""

import json
import pathlib

import pytest

from tests.recipes import killing
from tests.recipes.test_npm_launcher import facts  # noqa: F401, a fixture

RUN = """
import pathlib, sys
from experiments import npm
from rlm_jax.retrieval import encode_tokens
from tests.recipes.test_npm_launcher import small
build = encode_tokens.build
encode_tokens.CHUNK = 8
encode_tokens.build = lambda *a, **o: build(*a, **o, shard_size=64)
config = small(pathlib.Path(sys.argv[2]))
config.train.steps, config.train.checkpoint_every = 6, 2
npm.run(config, sys.argv[1])
"""

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def start(workdir: pathlib.Path, facts: pathlib.Path):  # noqa: F811
    return killing.start(RUN, workdir, facts)


def ended(workdir: pathlib.Path) -> dict[str, bytes]:
    """The bytes of the encoder, the memory and the answers, and the figures."""
    report = json.loads((workdir / "report.json").read_text())
    files = [
        workdir / "encoder/model.safetensors",
        workdir / "answers.jsonl",
        *sorted(workdir.glob("memory/*/part-0000/keys/*")),
    ]
    figures = json.dumps({name: report[name] for name in ("metrics", "controls")})
    return {
        **{str(path.relative_to(workdir)): path.read_bytes() for path in files},
        "figures": figures.encode(),
    }


# What has just appeared when the run is killed, and how much later, in seconds.
PARTIAL = "memory/real-*/part-0000/keys.partial/"
MOMENTS = (
    ("npm/checkpoints/2", 0.0),
    ("npm/checkpoints/4", 0.1),
    ("masked_lm/checkpoints/2", 0.05),
    ("masked_lm/checkpoints/6", 0.0),
    ("memory/real-*/part-0000/texts", 0.0),
    (f"{PARTIAL}00003.keys", 0.0),
    ("memory/real-*/part-0000/keys", 0.0),
    ("memory/init-*/part-0000/keys", 0.0),
)


def test_a_killed_run_ends_in_the_same_bits(facts, tmp_path):  # noqa: F811
    assert start(tmp_path / "straight", facts).wait(timeout=600) == 0
    folder = tmp_path / "killed"
    assert killing.kill_at(lambda: start(folder, facts), folder, MOMENTS) >= 6
    assert start(folder, facts).wait(timeout=600) == 0
    first, again = ended(tmp_path / "straight"), ended(folder)
    assert first.keys() == again.keys() and len(first) > 6
    assert [name for name in first if first[name] != again[name]] == []
