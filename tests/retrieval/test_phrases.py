"""Phrases put together of tokens, against loops."""

import numpy as np
import pytest

from rlm_jax.retrieval import phrases
from rlm_jax.retrieval.phrases import Found

INSIDE = np.array([False] * 6 + [True] * 2)  # of 8 tokens, 6 and 7 go on a word


def example(seed=0, k=12):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 8, 60).astype(np.int32)
    bounds = np.array([0, 20, 20, 31, 60])
    found = [
        Found(rng.permutation(60)[:k].astype(np.int64), rng.random(k).astype("f"))
        for _ in range(2)
    ]
    return found, tokens, bounds


def by_loops(start, end, tokens, bounds, longest, power):
    """Phrase -> score, and phrase -> its best place, of equal ones the first."""
    p_start = dict(zip(start.ids.tolist(), start.p.tolist(), strict=True))
    p_end = dict(zip(end.ids.tolist(), end.p.tolist(), strict=True))
    scores: dict[tuple, float] = {}
    places: dict[tuple, list] = {}
    for low, high in zip(bounds, bounds[1:], strict=False):
        for i in range(low, high):
            for n in range(1, longest + 1):
                j = i + n - 1
                if j >= high or (i not in p_start and j not in p_end):
                    continue
                if INSIDE[tokens[i]] and i > low:
                    continue
                if j + 1 < high and INSIDE[tokens[j + 1]]:
                    continue
                phrase = tuple(tokens[i : j + 1].tolist())
                score = p_start.get(i, 0.0) + p_end.get(j, 0.0)
                scores[phrase] = scores.get(phrase, 0.0) + score
                places.setdefault(phrase, []).append((-score, i))
    scores = {phrase: s * len(phrase) ** power for phrase, s in scores.items()}
    return scores, {phrase: min(found)[1] for phrase, found in places.items()}


@pytest.mark.parametrize(("longest", "power"), [(1, 0.0), (4, 0.0), (3, 0.7)])
def test_phrases_by_loops(longest, power):
    (start, end), tokens, bounds = example()
    found = phrases.assemble(
        start, end, tokens, bounds, INSIDE, longest=longest, length_power=power
    )
    wanted, places = by_loops(start, end, tokens, bounds, longest, power)
    assert places == {
        tuple(tokens[e : e + n].tolist()): e
        for e, n in zip(found.entry, found.size, strict=True)
    }
    got = {
        tuple(tokens[e : e + n].tolist()): s
        for e, n, s in zip(found.entry, found.size, found.score, strict=True)
    }
    assert got.keys() == wanted.keys()
    for phrase, score in wanted.items():
        assert got[phrase] == pytest.approx(score, rel=1e-6)
    assert (np.diff(found.score) <= 0).all()
    if longest > 1:
        assert max(found.size) > 1
    asked = phrases.keys_of_phrases([np.array(x) for x in [*wanted, (9, 9)]])
    np.testing.assert_allclose(
        phrases.scores_of(found, asked), [*wanted.values(), 0.0], rtol=1e-6
    )


def test_single_tokens_need_no_end():
    (start, _), tokens, bounds = example()
    found = phrases.assemble(start, None, tokens, bounds, INSIDE, longest=5)
    nothing = Found(start.ids[:0], start.p[:0])
    wanted, _ = by_loops(start, nothing, tokens, bounds, 1, 0.0)
    assert len(found.score) == len(wanted)
    assert found.score.sum() == pytest.approx(sum(wanted.values()))


def test_nothing_found():
    (start, _), tokens, bounds = example(k=0)
    found = phrases.assemble(start, start, tokens, bounds, INSIDE, longest=3)
    assert len(found.score) == 0
    assert phrases.scores_of(found, np.array([1], np.uint64)).tolist() == [0.0]


def test_softmax_leaves_out_what_is_absent():
    found = phrases.softmax(
        np.array([1.0, 3.0, -np.inf], "f"), np.array([7, 4, -1]), 2.0
    )
    p = np.exp([0.5, 1.5]) / np.exp([0.5, 1.5]).sum()
    assert found.ids.tolist() == [7, 4]
    np.testing.assert_allclose(found.p, p, rtol=1e-6)
    assert not len(phrases.softmax(np.zeros(1, "f"), np.array([-1]), 1.0).ids)
