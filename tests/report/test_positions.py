"""What the inspector shows of a prediction: the memory's entries, or documents."""

import numpy as np

from rlm_jax.report import positions
from rlm_jax.report.positions import NEIGHBOURS, Documents, Entries, Reading

TOKENS = np.arange(100, 140)
READING = Reading(lambda tokens: " ".join(map(str, tokens)), lambda token: f"[{token}]")
GAINS = np.random.default_rng(0).normal(size=39)
LOG_PROBS = {"real": GAINS - 3, "off": np.full(39, -3.0)}


def test_the_most_helped_and_the_most_hurt_are_chosen():
    chosen = positions.choose(LOG_PROBS, best=4, random=0)
    order = np.argsort(GAINS)
    assert chosen.tolist() == sorted([*order[-4:], *order[:2]])
    assert len(positions.choose(LOG_PROBS, best=2, random=30)) > 15


def test_entries_stand_with_their_context_value_and_weight():
    predictions = np.array([0, 30])
    memory = np.arange(200, 260)
    entries = Entries(
        np.array([[5, 40], [2, -1]]),
        np.array([[-1.0, -2.0], [-0.5, -np.inf]]),
        np.array([[0.75, 0.25], [1.0, 0.0]]),
        np.array([0.1, 0.9]),
    )
    first, second = positions.of_entries(
        READING,
        TOKENS,
        LOG_PROBS,
        predictions,
        entries,
        memory,
        lambda position: f"train, document {position // 3}",
    )
    assert (first.context, first.target) == ("100", "[101]")
    assert second.context == " ".join(map(str, range(107, 131)))  # 24 tokens
    assert second.target == "[131]" and second.source == "token 31"
    np.testing.assert_allclose(
        [second.p_lm, second.p], np.exp([-3, GAINS[30] - 3]), rtol=1e-12
    )
    assert (first.p_knn, second.p_knn) == (0.1, 0.9)
    assert [x.value for x in first.neighbours] == ["[206]", "[241]"]
    assert [x.weight for x in first.neighbours] == [0.75, 0.25]
    (alone,) = second.neighbours  # of two places one is empty
    assert alone.context == "200 201 202" and alone.score == -0.5
    assert alone.source == "train, document 1, token 3"


def test_the_heaviest_documents_stand_first():
    """The seventh document was chosen: it is shown, first, and the others weigh 0."""
    ids = np.tile(np.arange(10, 18), (3, 1))
    ids[0] = -1
    ids[2, 1] = -1
    weights = np.zeros((3, 8))
    weights[:, 6] = 1
    documents = Documents(
        ids,
        np.linspace(8, 1, 8) * np.ones((3, 1)),
        weights,
        lambda row: np.array([row]),
        str,
    )
    shown = positions.of_documents(
        READING, TOKENS, LOG_PROBS, np.array([3, 20, 38]), np.arange(3), documents
    )
    sources = [[x.source for x in position.neighbours] for position in shown]
    assert sources == [
        [],
        ["16", "10", "11", "12", "13", "14"],
        ["16", "10", "12", "13", "14", "15"],
    ]
    assert all(len(x) <= NEIGHBOURS for x in sources)
    heaviest = shown[1].neighbours[0]
    assert (heaviest.context, heaviest.value, heaviest.weight) == ("16", None, 1.0)
    assert heaviest.score == 2.0 and shown[1].p_knn is None
