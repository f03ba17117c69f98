"""Policies against a simulation of every step, and what happens at each boundary."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jax.errors import UserError
from rlm_jax.method import Retrieval
from rlm_jax.train import rounds
from rlm_jax.train.rounds import RefreshConfig, Refresher, Round
from tests.train import toy


def synchronous(steps, keys_every, queries_every=0):
    """The rounds by configuration; ``keys_every`` a number, or pairs (until, every)."""
    return laid_out("synchronous", steps, keys_every, queries_every, 0)


def overlapped(lag):
    return lambda steps, keys_every, queries_every=0: laid_out(
        "overlapped", steps, keys_every, queries_every, lag
    )


def laid_out(policy, steps, keys_every, queries_every, lag):
    if isinstance(keys_every, int):
        keys_every = [(keys_every,)]
    numbers = tuple(itertools.chain(*keys_every))
    return rounds.lay_out(RefreshConfig(policy, numbers, queries_every, lag), steps)


def enumerated(steps, pieces, queries_every, lag):
    """(keys_step, queries_step) of every step, by going through them one by one."""
    found, keys, queries, began = [], 0, 0, 0
    waiting, wanted, since, piece = [], 0, 0, 0
    for step in range(steps):
        while piece < len(pieces) and step == pieces[piece][0]:
            since, piece = step, piece + 1
        if piece < len(pieces):
            every = pieces[piece][1]
            if step == since or (every and (step - since) % every == 0):
                waiting.append((step, step + lag if step else 0))
        if waiting and waiting[0][1] == step:
            keys, _ = waiting.pop(0)
            began, queries = step, step if queries_every else keys
        elif queries_every and (step - began) % queries_every == 0:
            queries = step
        found.append((keys, queries))
        wanted = max(wanted, len(waiting))
    return found, wanted


SCHEDULES = st.one_of(
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(1, 15), st.integers(0, 8)), min_size=1, max_size=3)
    .map(lambda x: [(sum(a for a, _ in x[: i + 1]), b) for i, (_, b) in enumerate(x)]),
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    steps=st.integers(0, 50),
    keys_every=SCHEDULES,
    queries_every=st.integers(0, 6),
    lag=st.integers(0, 8),
)
def test_policies_are_what_a_walk_over_the_steps_finds(
    steps, keys_every, queries_every, lag
):
    pieces = [(steps, keys_every)] if isinstance(keys_every, int) else keys_every
    found, waiting = enumerated(steps, pieces, queries_every, lag)
    divides = all(queries_every == 0 or x % queries_every == 0 for _, x in pieces)
    late = any(0 < x < lag for _, x in pieces)
    try:
        made = overlapped(lag)(steps, keys_every, queries_every)
    except UserError:
        # More than one index in the making: of the steps that there are, or of a piece
        # that they do not reach.
        assert waiting > 1 or late or not divides
        return
    assert divides and not late and waiting <= 1
    assert [(x.keys_step, x.queries_step) for x in made for _ in range(*x[:2])] == found
    assert [step for x in made for step in range(x.start, x.stop)] == list(range(steps))
    pairs = itertools.pairwise(made)
    assert all(a.keys_step < b.keys_step or queries_every for a, b in pairs)
    if lag == 0:
        assert synchronous(steps, keys_every, queries_every) == made


def test_rounds_by_hand():
    assert synchronous(10, 4) == [
        Round(0, 4, 0, 0), Round(4, 8, 4, 4), Round(8, 10, 8, 8),
    ]  # fmt: skip
    assert synchronous(5, 4, 2) == [
        Round(0, 2, 0, 0), Round(2, 4, 0, 2), Round(4, 5, 4, 4),
    ]  # fmt: skip
    assert overlapped(1)(10, 4) == [
        Round(0, 5, 0, 0), Round(5, 9, 4, 4), Round(9, 10, 8, 8),
    ]  # fmt: skip
    assert overlapped(2)(9, 4, 4) == [
        Round(0, 4, 0, 0), Round(4, 6, 0, 4), Round(6, 9, 4, 6),
    ]  # fmt: skip
    # Atlas: every 500 steps up to 1,000, then every 2,000.
    atlas = synchronous(10_000, [(1000, 500), (10_000, 2000)])
    assert [x.keys_step for x in atlas] == [0, 500, 1000, 3000, 5000, 7000, 9000]
    # After the last pair the index stays.
    assert synchronous(50, [(6, 3)])[-1] == Round(3, 50, 3, 3)
    assert synchronous(7, 0, 3)[-1] == Round(6, 7, 0, 6)
    assert synchronous(0, 4) == []


@pytest.mark.parametrize(
    ("arguments", "lag", "message"),
    [
        ((4, -1), 0, "every -1 of 4 steps"),
        ((-4, 1), 0, "of -4 steps"),
        ((4, 1, -1), 0, "queries_every=-1"),
        ((4, 1), -1, "lag=-1"),
        ((9, [(4, -2)]), 0, "every -2"),
        ((9, []), 0, "which make no index"),
        ((9, [(0, 4)]), 0, "which make no index"),
        ((9, [(4, 2), (4, 1)]), 0, r"until the steps \[4, 4\]"),
        ((9, 5, 2), 0, "queries_every=2 does not divide the 5 steps"),
        ((9, [(4, 4), (8, 6)], 4), 0, "does not divide the 6"),
        ((20, 4), 5, "a lag of 4 at most"),
        ((2, 4), 5, "a lag of 4 at most"),
        ((20, [(8, 5), (20, 5)]), 4, "begins, 3 steps after it"),
    ],
)  # fmt: skip
def test_impossible_schedules(arguments, lag, message):
    with pytest.raises(UserError, match=message):
        overlapped(lag)(*arguments)


def test_a_configuration_lays_rounds_out():
    plain = RefreshConfig(keys_every=(4,), queries_every=2)
    assert rounds.lay_out(plain, 9) == synchronous(9, 4, 2)
    pieces = RefreshConfig("overlapped", (4, 2, 12, 4), 0, 1)
    wanted = overlapped(1)(20, [(4, 2), (12, 4)])
    assert rounds.lay_out(pieces, 20) == wanted
    for config, message in (
        (RefreshConfig("sometimes"), "synchronous, overlapped or external"),  # type: ignore
        (RefreshConfig(lag=3), "policy=overlapped or lag=0"),
        (RefreshConfig(keys_every=(1, 2, 3)), "one number, or pairs"),
        (RefreshConfig(keys_every=()), "which make no index"),
        (RefreshConfig(min_recall=1.5), "choose a share from 0 to 1"),
        (RefreshConfig(sample=0), "1 passage or more"),
        (RefreshConfig("external", (0,)), "never looks for an index"),
        (RefreshConfig("external", (2,), min_recall=0.5), "min_recall to 0"),
        (RefreshConfig("external", (2,), lag=1), "policy=overlapped or lag=0"),
    ):
        with pytest.raises(UserError, match=message):
            rounds.lay_out(config, 9)


def test_a_run_that_decides():
    """Whatever is decided, rounds begin at the same steps; keys that stay are searched
    with current queries."""
    bounded = RefreshConfig("overlapped", (4,), lag=1, min_recall=0.9)
    assert bounded.decides and rounds.due(bounded, 12) == [0, 4, 8]
    assert rounds.lay_out(bounded, 12) == overlapped(1)(12, 4)
    assert rounds.lay_out(bounded, 12, {0: 0, 4: 0, 8: 8}) == [
        Round(0, 5, 0, 0), Round(5, 9, 0, 5), Round(9, 12, 8, 8),
    ]  # fmt: skip
    external = RefreshConfig("external", (3,))
    assert external.decides and not RefreshConfig().decides
    assert rounds.lay_out(external, 8) == [
        Round(0, 3, 0, 0), Round(3, 6, 0, 3), Round(6, 8, 0, 6),
    ]  # fmt: skip
    taken = rounds.lay_out(external, 8, {0: 0, 3: 0, 6: 3})
    assert taken[-1] == Round(6, 8, 3, 6) and taken[1] == Round(3, 6, 0, 3)
    # Until it is decided otherwise the last keys stay.
    assert rounds.lay_out(external, 12, {0: 0, 3: 3})[-1] == Round(9, 12, 3, 9)
    assert rounds.lay_out(external, 1) == [Round(0, 1, 0, 0)]


@pytest.mark.parametrize("lag", [0, 1])
def test_decisions_are_asked_for_when_they_are_due(tmp_path, lag):
    """An index that is not to be made is not begun."""
    config = RefreshConfig(
        "overlapped" if lag else "synchronous", (3,), lag=lag, min_recall=0.5
    )
    decided, events = {}, []

    def decide(step, passages, queries):
        assert passages is not None and queries is not None
        decided[step] = step if step in (0, 6) else max(decided.values())

    at = rounds.boundaries(
        lambda: rounds.lay_out(config, 9, decided),
        RETRIEVAL,
        recorded(events)._replace(decide=decide),
        tmp_path,
        due=rounds.due(config, 9),
    )
    assert sorted(at) == ([0, 3, 6] if not lag else [0, 3, 4, 6, 7])
    toy.run(tmp_path, 9, None, boundaries=at)
    assert decided == {0: 0, 3: 0, 6: 6}
    begun = [name for name in names(events) if name[0] in ("start", "finish")]
    assert begun == [
        *(("start", 0), ("finish", 0), ("finish", 0), ("start", 6), ("finish", 6)),
    ]


@given(start=st.integers(0, 9), length=st.integers(1, 9), age=st.integers(0, 9))
def test_age_is_counted_from_the_encoder(start, length, age):
    turn = Round(start + age, start + age + length, start, 0)
    ages = [step - start for step in range(turn.start, turn.stop)]
    assert turn.age() == {"mean_age": np.mean(ages), "max_age": max(ages)}


def test_a_run_that_was_shorter_before():
    turns = synchronous(12, 8, 4)
    assert rounds.split(turns, {0: 4, 4: 8, 8: 12}) == turns
    # It was of 6 steps, and went on at once; then it was of 7.
    assert rounds.split(turns, {0: 4, 4: 6, 6: 7, 7: 8}) == [
        turns[0], Round(4, 6, 0, 4), Round(6, 7, 0, 6), Round(7, 8, 0, 7), turns[2],
    ]  # fmt: skip
    # What lies before the checkpoints is gone; where it ended is still known.
    assert rounds.split(turns, {6: 7})[1:4] == [
        Round(4, 6, 0, 4), Round(6, 7, 0, 6), Round(7, 8, 0, 7),
    ]  # fmt: skip
    # Queries that the keys' encoder makes are made by it to the end of the round.
    assert rounds.split(overlapped(1)(9, 4), {5: 6}) == [
        Round(0, 5, 0, 0), Round(5, 6, 4, 4), Round(6, 9, 4, 4),
    ]  # fmt: skip


RETRIEVAL = Retrieval(
    1,
    query_params=lambda params: params["out"]["bias"],
    passage_params=lambda params: params["embed"],
    encode_queries=lambda params, batch: params,
    encode_keys=lambda params, batch: params,
)


def recorded(events, kept=None):
    """A refresher that writes down what it is asked for."""

    def total(params):
        return None if params is None else float(params.sum())

    def start(step, passages, queries):
        events.append(("start", step, total(passages), total(queries)))

    def search(turn, queries):
        assert isinstance(queries, np.ndarray)
        events.append(("search", turn, total(queries)))

    def batch_at(turn):
        events.append(("batches", turn))
        return toy.batch_at

    def keep(steps, saved):
        if kept is not None:
            kept.append((steps, saved))

    return Refresher(
        start,
        finish=lambda step: events.append(("finish", step)),
        search=search,
        batch_at=batch_at,
        keep=keep,
    )


def names(events):
    return [(event[0], getattr(event[1], "start", event[1])) for event in events]


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(synchronous, id="synchronous"),
        pytest.param(overlapped(2), id="overlapped"),
    ],
)
def test_what_happens_when(tmp_path, policy):
    turns, events = policy(10, 4), []

    def run(workdir, steps):
        at = rounds.boundaries(lambda: turns, RETRIEVAL, recorded(events), workdir)
        toy.run(workdir, steps, None, boundaries=at, every={"checkpoint_every": 3})

    run(tmp_path / "whole", 10)
    straight = list(events)
    if policy is synchronous:
        assert names(straight) == [
            *(("start", 0), ("finish", 0), ("search", 0), ("batches", 0)),
            *(("start", 4), ("finish", 4), ("search", 4), ("batches", 4)),
            *(("start", 8), ("finish", 8), ("search", 8), ("batches", 8)),
        ]
    else:
        assert names(straight) == [
            *(("start", 0), ("finish", 0), ("search", 0), ("batches", 0)),
            *(("start", 4), ("batches", 0)),
            *(("finish", 4), ("search", 6), ("batches", 6)),
        ]
    for stop in (4, 5, 6, 7):
        events.clear()
        run(tmp_path / str(stop), stop)
        first = list(events)
        events.clear()
        run(tmp_path / str(stop), 10)
        # What has its parameters has the same; what has none any more says so.
        numbers = {event[:2]: event[2:] for event in straight}
        for event in first + events:
            if event[2:] not in ((), (None, None)):
                assert event[2:] == numbers[event[:2]]
        if policy is synchronous:
            wanted = [x for x in names(straight) if x[1] >= stop]
            wanted = wanted if stop == 4 else [("batches", 4), *wanted]
        else:
            begun = [("start", 4), ("batches", 0)]
            entered = [("finish", 4), ("search", 6), ("batches", 6)]
            wanted = {4: begun + entered, 5: begun + entered, 6: entered}.get(
                stop, entered[-1:]
            )
        assert names(events) == wanted
        passed = [event for event in events if event[0] == "start" and stop > event[1]]
        assert all(event[2:] == (None, None) for event in passed)


def test_what_a_killed_run_needs_is_kept(tmp_path):
    """Every index in use, in the making, or of a round that a checkpoint is inside."""
    kept = []
    for policy, every in itertools.product((synchronous, overlapped(2)), (1, 3, 5)):
        turns = policy(14, 4, 2)
        saved = [step for step in range(14) if step and step % every == 0][-2:]
        for at in range(14):
            needed = rounds._needed(turns, at, [x for x in saved if x <= at])
            here = [x for x in turns if x.start <= at < x.stop][0]
            assert here.keys_step in needed
            assert all(x.keys_step in needed or x.keys_step > at or x.stop <= at
                       for x in turns)  # fmt: skip
            for step in (x for x in saved if x <= at):
                inside = [x for x in turns if x.start < step < x.stop][:1]
                assert all(x.keys_step in needed for x in inside)
    turns = synchronous(10, 3)
    at = rounds.boundaries(lambda: turns, RETRIEVAL, recorded([], kept), tmp_path)
    toy.run(tmp_path, 10, None, boundaries=at, every={"checkpoint_every": 1, "keep": 3})
    assert [max(steps) for steps, _ in kept] == [0, 3, 6, 9]
    assert all(len(steps) <= 2 for steps, _ in kept)


def test_parameters_are_copied(tmp_path):
    """The next step overwrites the buffers that a view would look at."""
    seen = []
    refresher = recorded([])._replace(
        start=lambda step, passages, queries: seen.append((passages, passages.copy()))
    )
    turns = synchronous(6, 2)
    at = rounds.boundaries(lambda: turns, RETRIEVAL, refresher, tmp_path)
    toy.run(tmp_path, 6, None, boundaries=at)
    assert len(seen) == 3
    for now, then in seen:
        np.testing.assert_array_equal(now, then)
    assert not np.array_equal(seen[0][1], seen[1][1])
