"""Rounds of a stale index: which step's parameters made the keys and the queries.

A retriever that is trained together with the index it searches cannot have fresh keys
at every step. Training is divided into rounds; all questions of a round are searched at
its start, in an index of some earlier step. A policy is a pure function that lays out
all rounds of a run, so a run that was killed goes on in the very same ones:

* ``synchronous``: training stops while the collection is encoded;
* ``overlapped(lag)``: at step s a worker begins to encode a snapshot of the parameters;
  its index serves from step s + lag on, and training waits there only if the worker has
  not finished;
* ``external``: another process encodes snapshots when it can, and training takes up at
  the steps of the schedule what is whole.

What only the run itself can tell, whose keys serve from a step of the schedule on, is
decided there and written down (`decide`): under ``external``, and where an index is
made anew only once the recall of the one in use falls below a bound.

`boundaries` puts rounds into `loop.train`. A recipe gives it what happens on the host
as a `Refresher`, and the method says what encodes what by its `Retrieval`.

REALM (Guu et al. 2020, section 3.3) refreshes beside the training and encodes queries
with the parameters of the keys. Atlas (Izacard et al. 2022, section 2.4) stops, and
encodes queries with current parameters.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Params, Retrieval
from rlm_jax.train import checkpoint
from rlm_jax.train.loop import BatchAt, Enter

KeysEvery = int | Sequence[tuple[int, int]]
"""Steps between two indexes; or pairs (until_step, every), each counted from the end of
the one before. After the last pair no index is made any more, and none after an
``every`` of 0 until its pair ends: the index there is serves on."""


class Round(NamedTuple):
    """Steps start..stop-1, and whose parameters their candidates come from."""

    start: int
    stop: int
    keys_step: int  # the keys are of the parameters after so many steps
    queries_step: int  # and so are the queries

    def age(self) -> dict[str, float]:
        """How old the keys are over the round, in steps: their mean and maximum age."""
        first, last = self.start - self.keys_step, self.stop - 1 - self.keys_step
        return {"mean_age": (first + last) / 2, "max_age": float(last)}


@dataclasses.dataclass
class RefreshConfig:
    """When keys and queries are encoded anew; steps count updates.

    ``policy`` is synchronous, external or overlapped, which alone has a ``lag``.
    ``keys_every`` is one number, or until, every, until, every, ... (Atlas:
    1000,500,10000,2000). With ``min_recall`` an index is made at these steps only if
    the one in use finds less than this share of what a fresh one would, among
    ``sample`` passages; every evaluation tells it too.
    """

    policy: Literal["synchronous", "overlapped", "external"] = "synchronous"
    keys_every: tuple[int, ...] = (3000,)
    queries_every: int = 0  # 0: with the keys, by the same parameters
    lag: int = 0
    min_recall: float = 0.0  # 0: an index is made at every step of the schedule
    sample: int = 256  # passages that are encoded anew to estimate that recall

    @property
    def decides(self) -> bool:
        """Whether the run itself tells which index serves."""
        return self.policy == "external" or self.min_recall > 0


def lay_out(
    config: RefreshConfig, steps: int, decided: Mapping[int, int] = {}
) -> list[Round]:
    """All rounds of a run, as its configuration wants them.

    Args:
      decided: step of the schedule -> the step whose keys serve from there on, itself
        or an earlier one. Where nothing is decided an index is made, but under
        ``external``, where the keys stay.

    Raises:
      UserError: an unknown policy, a lag without one, a bound that is no share, a
        negative number, a schedule without an index, a ``queries_every`` that does not
        divide it, or a lag that is longer than a period: one index is encoded at a
        time.
    """
    c, every = config, _keys_every(config)
    if c.policy not in ("synchronous", "overlapped", "external"):
        raise UserError(
            f"policy is {c.policy!r}; choose synchronous, overlapped or external."
        )
    if c.policy != "overlapped" and c.lag:
        raise UserError(
            f"With policy={c.policy} an index has no lag, but lag is {c.lag}; "
            "choose policy=overlapped or lag=0."
        )
    if not 0 <= c.min_recall <= 1 or c.sample < 1:
        raise UserError(
            f"refresh.min_recall is {c.min_recall} among {c.sample} passages; choose a "
            "share from 0 to 1, and 1 passage or more."
        )
    if c.policy == "external":
        if c.min_recall:
            raise UserError(
                "With policy=external another process encodes whenever it can; set "
                "refresh.min_recall to 0, or choose another policy."
            )
        made = due(c, steps)
        if steps and len(made) == 1 and steps > 1:
            raise UserError(
                "The schedule refresh.keys_every never looks for an index that another "
                f"process publishes; choose fewer than {steps} steps."
            )
        decided = {step: 0 for step in made} | _kept_on(made, decided)
    return _rounds(steps, every, c.queries_every, lag=c.lag, decided=decided)


def due(config: RefreshConfig, steps: int) -> list[int]:
    """The steps at which the schedule would make an index, or look for one."""
    return _made(_pieces(_keys_every(config), steps), steps)


def _keys_every(config: RefreshConfig) -> KeysEvery:
    numbers = tuple(config.keys_every)
    if len(numbers) != 1 and len(numbers) % 2:
        raise UserError(
            f"keys_every is {numbers}; give one number, or pairs: until a step, every "
            "so many."
        )
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    return numbers[0] if len(numbers) == 1 else pairs


def _kept_on(made: Iterable[int], decided: Mapping[int, int]) -> dict[int, int]:
    """What is decided, and from there on the last of it."""
    kept, last = {}, 0
    for step in made:
        last = kept[step] = decided.get(step, last)
    return kept


def split(rounds: Iterable[Round], searched: Mapping[int, int]) -> list[Round]:
    """The rounds, cut where a search began or ended inside one.

    So it is after a run that was shorter before: what it has searched stays, and the
    rest of the round is searched with the parameters of the step where that ends (or of
    the keys, if the whole round was).

    Args:
      searched: start of a round -> the step up to which its questions were searched.
    """
    cuts = sorted({*searched, *searched.values()})
    parts = []
    for turn in rounds:
        inside = [turn.start, *(x for x in cuts if turn.start < x < turn.stop)]
        own = turn.queries_step == turn.start
        parts += [
            Round(start, stop, turn.keys_step, start if own else turn.queries_step)
            for start, stop in itertools.pairwise([*inside, turn.stop])
        ]
    return parts


class Refresher(NamedTuple):
    """What a recipe does for its rounds on the host; `boundaries` says when.

    ``start(step, passage_params, query_params)`` begins the index of a step, or makes
    it. The parameters are host arrays, or None where the run is past that step: what a
    killed run has begun is then continued, and what is whole left alone.

    ``finish(step)`` returns when that index is whole.

    ``search(turn, query_params)`` finds the candidates of all questions of a round, at
    once, and writes them down: whatever depends on more than the step. The parameters
    are those of ``turn.start``; where ``turn.queries_step`` is another step, the recipe
    takes those that it has kept with the index.

    ``batch_at(turn)`` gives the pure function of the step, made of what ``search`` has
    written.

    ``keep(steps, saved)`` removes the indexes of all steps but these, and candidates
    that end before the first of the checkpoints ``saved``.

    ``decide(step, passage_params, query_params)`` is called first, at each step that is
    ``due``, and writes down whose keys serve from there on; see `lay_out`.
    """

    start: Callable[[int, Params | None, Params | None], None]
    finish: Callable[[int], None]
    search: Callable[[Round, Params], None]
    batch_at: Callable[[Round], BatchAt]
    keep: Callable[[set[int], list[int]], None]
    decide: Callable[[int, Params, Params], None] | None = None


def boundaries(
    laid_out: Callable[[], Sequence[Round]],
    retrieval: Retrieval,
    refresher: Refresher,
    workdir: Path,
    *,
    due: Collection[int] = (),
) -> dict[int, Enter]:
    """What `loop.train` does at the start of each round and index: step -> enter.

    Args:
      laid_out: the rounds of the whole run, by what is decided so far; whatever is
        decided, they begin at the same steps.
      retrieval: the method's.
      refresher: the recipe's.
      workdir: that of `loop.train`, whose checkpoints say what a killed run will need.
      due: steps at which ``refresher.decide`` is called.
    """

    def enter(at: int, params: Params, done: int) -> BatchAt:
        passages = queries = None
        if done == at:
            passages = _on_host(retrieval.passage_params(params))
            queries = _on_host(retrieval.query_params(params))
            if refresher.decide is not None and at in due:
                refresher.decide(at, passages, queries)
        rounds = laid_out()
        turn = [turn for turn in rounds if turn.start <= at][-1]
        for step, first in _serves(rounds).items():
            if step == at == done:
                refresher.start(step, passages, queries)
            elif step <= at < first:
                refresher.start(step, None, None)
        if queries is not None and turn.start == at:
            refresher.finish(turn.keys_step)
            refresher.search(turn, queries)
            saved = checkpoint.steps(workdir / "checkpoints")
            refresher.keep(_needed(rounds, at, saved), saved)
        return refresher.batch_at(turn)

    rounds = laid_out()
    starts = {turn.start for turn in rounds}
    return {
        at: functools.partial(enter, at)
        for at in sorted(starts | _serves(rounds).keys() | set(due))
    }


def _serves(rounds: Iterable[Round]) -> dict[int, int]:
    """Step of an index -> the first step that it serves."""
    first: dict[int, int] = {}
    for turn in rounds:
        first.setdefault(turn.keys_step, turn.start)
    return first


def _on_host(params: Params) -> Params:
    """Copies: the next step donates the buffers that a view would look at."""
    return jax.tree.map(lambda x: np.array(x), params)


def _needed(rounds: Sequence[Round], at: int, saved: Iterable[int]) -> set[int]:
    """The steps of indexes that are in use or in the making, now or on resuming.

    A run that resumes at or before the step of an index makes it again.
    """
    return {
        turn.keys_step
        for turn in rounds
        if turn.keys_step <= at < turn.stop
        or any(turn.keys_step < step < turn.stop for step in saved)
    }


def _rounds(
    steps: int,
    keys_every: KeysEvery,
    queries_every: int = 0,
    *,
    lag: int,
    decided: Mapping[int, int] = {},
) -> list[Round]:
    pieces = _pieces(keys_every, steps)
    _check(steps, pieces, queries_every, lag)
    made = _made(pieces, steps)
    for one, another in zip(made[1:], made[2:], strict=False):
        if one + lag > another:
            raise _too_late(lag, another - one)
    serves = [step + lag if step else 0 for step in made] + [steps]
    rounds = []
    for step, first, last in zip(made, serves[:-1], serves[1:], strict=True):
        last, keys = min(last, steps), decided.get(step, step)
        # Keys that stay are searched with current queries.
        current = bool(queries_every) or keys != step
        for start in range(first, last, queries_every or max(last - first, 1)):
            stop = min(start + queries_every, last) if queries_every else last
            rounds.append(Round(start, stop, keys, start if current else step))
    return rounds


def _made(pieces: Iterable[tuple[int, int]], steps: int) -> list[int]:
    """The steps at which a schedule makes an index."""
    made: list[int] = []
    start = 0
    for until, every in pieces:
        made += range(start, min(until, steps), every or max(until - start, 1))
        start = until
    return made


def _pieces(keys_every: KeysEvery, steps: int) -> list[tuple[int, int]]:
    if isinstance(keys_every, int):
        return [(max(steps, 1), keys_every)]
    return [(int(until), int(every)) for until, every in keys_every]


def _check(
    steps: int, pieces: list[tuple[int, int]], queries_every: int, lag: int
) -> None:
    periods = [every for _, every in pieces]
    if min(steps, queries_every, lag, *periods, 0) < 0:
        raise UserError(
            f"An index cannot be refreshed every {', '.join(map(str, periods))} of "
            f"{steps} steps with queries_every={queries_every} and lag={lag}; choose 0 "
            "or more."
        )
    ends = [until for until, _ in pieces]
    if not pieces or any(a >= b for a, b in zip([0, *ends], ends, strict=False)):
        raise UserError(
            f"keys_every has pieces until the steps {ends}, which make no index or one "
            "out of order; give pairs (until_step, every) whose steps rise from 1 or "
            "more."
        )
    for every in periods:
        if queries_every and every % queries_every:
            raise UserError(
                f"queries_every={queries_every} does not divide the {every} steps "
                "between two indexes; choose one that does, or 0."
            )
        if every and lag > every:
            raise _too_late(lag, every)


def _too_late(lag: int, period: int) -> UserError:
    return UserError(
        f"With lag={lag} an index would still be in the making when the next one "
        f"begins, {period} steps after it; choose a lag of {period} at most."
    )
