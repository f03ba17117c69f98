"""Passages as text: ranks, scores, ids, titles, and no more lines than asked for."""

import numpy as np

from rlm_jax.data.passages import Passage
from rlm_jax.retrievers import passage_list

PASSAGES = [
    Passage("a", "", "short"),
    Passage("b", "Title", "many words " * 40),
]


def test_passages_stand_best_first_and_absent_ones_are_left_out(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    scores, ids = np.array([2.5, 2.0, -np.inf]), np.array([1, 0, -1])
    text = passage_list.listed(PASSAGES, scores, ids, 2)
    lines = text.strip("\n").splitlines()
    assert lines[0] == " 1. 2.500  b  ·  Title" and lines[3] == " 2. 2.000  a"
    assert lines[2].endswith(" …") and lines[4] == "    short" and len(lines) == 5
    assert max(map(len, lines)) <= 40


def test_nothing_found_is_said():
    none = passage_list.listed(PASSAGES, np.array([-np.inf]), np.array([-1]), 2)
    assert "nothing was found" in none
