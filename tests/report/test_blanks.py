"""The picture of filled blanks is drawn, also where nothing was found."""

import pytest

from rlm_jax.errors import UserError
from rlm_jax.report import blanks
from rlm_jax.report.blanks import Candidate

FOUND = [
    Candidate("Poseidonis", 0.4, "the capital is *Poseidonis* $1", "p1"),
    Candidate("\x1b[2J\u202ea", 0.2, "it is \x1b[2J\u202ea", "p\x9b"),
    Candidate("a city of a very long name indeed", 0.1, "word " * 60, "p2"),
]


def test_a_picture(tmp_path):
    path = tmp_path / "blanks.svg"
    blanks.draw(path, question="The capital is [MASK] in [MASK].", blanks=[FOUND, []])
    assert path.stat().st_size > 2000
    drawn = path.read_text(encoding="utf-8")
    assert not {c for c in drawn if not c.isprintable()} - {"\n"}
    empty = tmp_path / "empty.svg"
    blanks.draw(empty, question="[MASK]", blanks=[[]])
    assert empty.stat().st_size < path.stat().st_size


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="Cannot write"):
        blanks.draw(tmp_path / "none" / "x.png", question="", blanks=[FOUND])
