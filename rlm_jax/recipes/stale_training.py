"""Training a retriever over a stale index: what recipes of such systems share.

A system says what it asks at each step and how candidates become a batch (`Task`). The
rounds, the indexes, the worker, the candidates on the disk and what each refresh found
are the same for all of them.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data.passages import Passages
from rlm_jax.method import Batch, Method, Params
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes.stale_decisions import Decisions, Judged
from rlm_jax.retrieval import encode_passages, encode_stream, refresh
from rlm_jax.retrievers.background import Elsewhere, Worker
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.retrievers.stale_index import StaleIndex
from rlm_jax.storage import atomic, sealed
from rlm_jax.train import fit, loop, parallel, rounds
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import Refresher, Round

_REMEDY = "restore it, or start the run again in another workdir"


class Judge(NamedTuple):
    """What is found in the index that serves, judged at each ``train.eval_every``."""

    questions: Sequence[str]
    figures: Callable[[Params, np.ndarray], Mapping[str, float]]
    """(parameters, int32 [N, K] that the questions found) -> what is told of them."""


class Task(NamedTuple):
    """What a system asks and learns from; pure functions of the step.

    ``questions(step)`` are those of the whole batch, over all processes.
    ``batch(step, rows, candidates)`` is this process's part of it: ``rows``, int [b],
    are its places in the whole batch, and ``candidates``, int32 [b, K], the passages
    that an index found for them, best first, -1 = absent.
    """

    questions: Callable[[int], Sequence[str]]
    batch: Callable[[int, np.ndarray, np.ndarray], Batch]
    k: int  # candidates of a question
    keep: str = "first"  # which tokens of a question that is too long are read, or last
    # Questions by which an index is held to the one that replaces it.
    sample: Callable[[], Sequence[str]] = tuple
    sample_k: int = 10
    judge: Judge | None = None


def train(
    method: Method,
    task: Task,
    config: Any,
    folder: pathlib.Path,
    *,
    passages: Passages,
    tower: Tower,
    text: TextConfig,
    search: SearchConfig,
    initial_params: Params | None = None,
    trainable: Callable[..., Any] | None = None,
    parts: Mapping[str, OptimConfig] = {},
    shard_size: int = encode_passages.SHARD_SIZE,
) -> tuple[Params, list[dict[str, float]]]:
    """Trains, or goes on in ``folder``; the parameters, and what each refresh found.

    A refresh is told by its step, the age of the index before it, and how much of the
    new one's candidates that one found (`refresh.staleness`).

    Args:
      method: with ``retrieval``.
      config: has ``refresh`` (`rounds.RefreshConfig`), ``worker``
        (`background.WorkerConfig`), ``train``, ``optim`` and ``batch_size``.
      passages: the collection.
      tower: the passages' encoder as it starts, and the tokenizer.
      text: how passages and questions become tokens.
      search: how they are encoded and searched.
      initial_params: of the method, to start from.
      trainable, parts: as for `optim.optimizer`.
      shard_size: as for `StaleIndex`.

    Raises:
      UserError: an impossible schedule, a worker that fails, an index or candidates
        that are gone, or as `loop.train` does.
    """
    retrieval = method.retrieval
    assert retrieval is not None
    found, steps = folder / "rounds", config.train.steps
    if processes.is_first() and not (folder / "indexes").exists():
        describe_index(len(passages), tower.config, search)
    rounds.lay_out(config.refresh, steps)  # before anything is written
    worker = _worker(config)
    stale = StaleIndex(
        folder / "indexes",
        passages,
        tower,
        retrieval.encode_queries,
        text,
        search,
        worker=worker,
        shard_size=shard_size,
    )
    decisions = Decisions(
        config.refresh, stale, folder, Judged(task.sample, task.sample_k, task.keep)
    )
    searched = refresh.searched(found)

    def laid_out() -> list[Round]:
        decided = decisions.read()
        return rounds.split(rounds.lay_out(config.refresh, steps, decided), searched)

    log = _Staleness(task, stale, laid_out, folder / "refreshes.json")
    mine = parallel.local_rows(config.batch_size, accumulate=config.train.accumulate)

    def find(turn: Round, queries: Params) -> None:
        work = functools.partial(_find, task, stale, turn, queries, found)
        processes.by_first(work, f"search for the steps from {turn.start} on")
        processes.by_first(
            lambda: log.add(turn, queries), "compare an index with the one before it"
        )

    def batches(turn: Round) -> loop.BatchAt:
        ids = refresh.candidates(found, turn.start)
        return lambda step: task.batch(step, mine, ids[step - turn.start][mine])

    def keep(steps: set[int], saved: list[int]) -> None:
        stale.keep(decisions.kept(steps))
        if processes.is_first() and saved:
            refresh.remove_candidates(found, saved[0])

    def validation(params: Params, step: int) -> Mapping[str, float]:
        judge = task.judge
        assert judge is not None
        turn = [turn for turn in laid_out() if turn.start < step][-1]
        there = folder / "judged.npy"

        def search() -> None:
            queries = jax.device_get(retrieval.query_params(params))
            found = stale.find(
                turn.keys_step, queries, judge.questions, task.k, keep=task.keep
            )
            with atomic.replacing(there) as partial, partial.open("wb") as file:
                np.save(file, found.ids, allow_pickle=False)
            passages = jax.device_get(retrieval.passage_params(params))
            recall = stale.recall(
                *(turn.keys_step, passages, queries, judge.questions),
                *(task.sample_k, config.refresh.sample),
                keep=task.keep,
            )
            sealed.write(folder / "judged.json", {"index_recall": recall})

        processes.by_first(search, "search for the questions that are judged")
        processes.wait("searched")
        ids = np.load(there, allow_pickle=False)
        figures = {
            "index_age": float(step - turn.keys_step),
            **sealed.read(
                folder / "judged.json", {"index_recall": float}, remedy=_REMEDY
            ),
            **refresh.spread(ids),
        }
        warn_of_collapse(ids, len(passages), step)
        return figures | dict(judge.figures(params, ids))

    refresher = Refresher(
        stale.start, stale.finish, find, batches, keep, decisions.decide
    )
    due = rounds.due(config.refresh, steps) if config.refresh.decides else ()
    with contextlib.closing(worker) if worker else contextlib.nullcontext():
        params = fit.train(
            method,
            None,
            config.optim,
            config.train,
            folder,
            initial_params=initial_params,
            validation=validation if task.judge else None,
            trainable=trainable,
            parts=parts,
            boundaries=rounds.boundaries(
                laid_out, retrieval, refresher, folder, due=due
            ),
        )
    for last in laid_out()[-1:]:
        stale.keep({last.keys_step})
        if processes.is_first():
            refresh.remove_candidates(found, last.start)
    return params, log.refreshes


def describe_index(number: int, encoder: EncoderConfig, search: SearchConfig) -> None:
    """Says how large an index will be, before the first one is made."""
    width = encoder.projection or encoder.width
    size = np.dtype(search.dtype).itemsize
    terminal.say(
        f"an index of {number:,} vectors of width {width}: "
        f"{number * width * size / 2**20:,.1f} MiB in memory, and twice that on the "
        "disk while the next one is made"
    )


def _worker(config: Any) -> Worker | Elsewhere | None:
    """Who encodes beside the training, if anybody."""
    policy = config.refresh.policy
    if policy == "external":
        return Elsewhere(config.worker)
    return Worker(config.worker) if policy == "overlapped" else None


def warn_of_collapse(ids: np.ndarray, number: int, step: int) -> None:
    """Says so where most questions find one and the same of ``number`` passages."""
    if refresh.has_collapsed(ids, number):
        share = refresh.spread(ids)["commonest_share"]
        terminal.say(
            f"warning: at step {step} {share:.0%} of the questions find the same "
            "passage; retrieval collapses, so lower the retriever's learning rate or "
            "raise its temperature"
        )


def _find(
    task: Task, stale: StaleIndex, turn: Round, queries: Params, folder: pathlib.Path
) -> None:
    """Searches all questions of a round at once, and writes what was found."""
    if turn.queries_step != turn.start:
        queries = stale.query_params(turn.queries_step)

    def ids() -> np.ndarray:
        steps = range(turn.start, turn.stop)
        questions = [question for step in steps for question in task.questions(step)]
        ids = stale.find(turn.keys_step, queries, questions, task.k, keep=task.keep).ids
        return ids.reshape(len(steps), -1, task.k)

    identity = {
        "keys_step": turn.keys_step,
        "queries": encode_stream.fingerprint(queries),
    }
    refresh.write_candidates(folder, turn.start, identity, ids)


class _Staleness:
    """What each refresh found of the index before it, kept in a file."""

    def __init__(
        self,
        task: Task,
        stale: StaleIndex,
        laid_out: Callable[[], Sequence[Round]],
        path: pathlib.Path,
    ):
        self._task, self._stale, self._path = task, stale, path
        self._laid_out = laid_out
        self.refreshes: list[dict[str, float]] = []
        if path.exists():
            kinds = {"refreshes": list[dict[str, float]]}
            told = sealed.read(path, kinds, remedy=_REMEDY, older=True)["refreshes"]
            for record in told:
                sealed.require(record, {"step": int}, path, _REMEDY, "a refresh")
            self.refreshes = told

    def add(self, turn: Round, queries: Params) -> None:
        """Candidates of today's encoder in a round's index and in the one before it."""
        before = [x for x in self._laid_out() if x.keys_step < turn.keys_step]
        told = max((x["step"] for x in self.refreshes), default=0)
        if not before or before[-1].stop != turn.start or turn.start <= told:
            return
        old, questions = before[-1].keys_step, self._task.sample()
        # Training can go on without the index before, if it is no more.
        if not questions or not self._stale.exists(old):
            return
        served = [x for x in before if x.keys_step == old]
        age = served[0]._replace(stop=turn.start).age()
        staleness = refresh.staleness(
            *(
                self._stale.find(
                    step, queries, questions, self._task.sample_k, keep=self._task.keep
                )
                for step in (old, turn.keys_step)
            )
        )
        self.refreshes.append({"step": turn.start, **age, **staleness})
        sealed.write(self._path, {"refreshes": self.refreshes})
        terminal.say(
            f"step {turn.start}: the index before, {turn.start - old} steps old, finds "
            f"{staleness['stale_recall']:.1%} of what the new one does"
        )
