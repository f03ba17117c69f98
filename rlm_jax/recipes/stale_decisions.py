"""Which index serves from a step of the schedule on, where the run itself tells.

    <folder>/decisions.json   {"decisions": [{"step", "keys_step", ...}, ...]}

Under ``external`` it is the newest that another process has published by then; with a
bound on staleness (``refresh.min_recall``) the index in use, until it finds less than
that share of what a fresh one would. What is decided is part of the run's state: a run
that goes on from an earlier checkpoint does what it did before.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlm_jax import processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.retrievers.stale_index import StaleIndex
from rlm_jax.storage import sealed
from rlm_jax.train.rounds import RefreshConfig

FILE = "decisions.json"
_KINDS = {"decisions": list[dict[str, float]], "begin": list[int]}
_DECISION = {"step": int, "keys_step": int}


class Judged(NamedTuple):
    """Questions by which an index is held to another."""

    sample: Callable[[], Sequence[str]]
    k: int
    keep: str  # which tokens of a question that is too long are read


class Decisions:
    """What a run has decided of its indexes, kept in its folder."""

    def __init__(
        self,
        config: RefreshConfig,
        stale: StaleIndex,
        folder: pathlib.Path,
        judged: Judged,
    ):
        """Nothing is decided yet, or what the folder says.

        Args:
          judged: by what an index is held to a fresh one.

        Raises:
          UserError: a bound on staleness, and no questions to judge by.
        """
        self._config, self._stale, self._path = config, stale, folder / FILE
        self._judged = judged
        if config.min_recall and not judged.sample():
            raise UserError(
                "Without held-out questions the recall of an index cannot be told: set "
                "refresh.min_recall to 0, or validation_batches to 1 or more."
            )

    def read(self) -> dict[int, int]:
        """Step of the schedule -> the step whose keys serve from there on."""
        return {x["step"]: x["keys_step"] for x in self._records()}

    def decide(self, step: int, passages: Params, queries: Params) -> None:
        """As `rounds.Refresher` wants it; all processes of a run call it."""

        def choose() -> None:
            records = self._records()
            if step not in {x["step"] for x in records}:
                records.append(self._choice(step, passages, queries))
            # Written down for the other processes, since the disk may change meanwhile.
            begin = self._to_begin(step, {x["keys_step"] for x in records})
            records.sort(key=lambda x: x["step"])
            sealed.write(self._path, {"decisions": records, "begin": begin})

        processes.by_first(choose, "choose an index")
        processes.wait("index chosen")
        for begun in self._read()["begin"]:
            now = (passages, queries) if begun == step else (None, None)
            self._stale.start(begun, *now)

    def kept(self, steps: set[int]) -> set[int]:
        """These and those that another process makes, or has made since."""
        if self._config.policy != "external":
            return steps
        newer = {x for x in self._stale.steps() if x > max(steps)}
        return steps | newer | set(self._stale.pending())

    def _choice(self, step: int, passages: Params, queries: Params) -> dict[str, Any]:
        told = [x for x in self._records() if x["step"] < step]
        before = told[-1]["keys_step"] if told else 0
        if not step:
            return {"step": 0, "keys_step": 0}
        if self._config.policy != "external":
            return self._fresh_enough(step, before, passages, queries)
        newest = max([before, *(x for x in self._stale.steps() if x <= step)])
        if newest != before:
            terminal.say(f"step {step}: the index of step {newest} is taken up")
        return {"step": step, "keys_step": newest}

    def _to_begin(self, step: int, decided: set[int]) -> list[int]:
        """Indexes that are left to the other process, which makes one at a time.

        Among them are those whose job a killed run may not have written.
        """
        if self._config.policy != "external":
            return []
        pending = self._stale.pending()
        wanted = {*decided, *pending, *self._stale.steps()}
        now = [step] if step in wanted or not pending else []
        return [x for x in pending if x < step] + now

    def _fresh_enough(
        self, step: int, before: int, passages: Params, queries: Params
    ) -> dict[str, Any]:
        recall = self._stale.recall(
            *(before, passages, queries, self._judged.sample()),
            *(self._judged.k, self._config.sample),
            keep=self._judged.keep,
        )
        again = recall < self._config.min_recall
        terminal.say(
            f"step {step}: the index of step {before} finds {recall:.1%} of what a "
            f"fresh one would, and {'another is made' if again else 'serves on'}"
        )
        keys_step = step if again else before
        return {"step": step, "keys_step": keys_step, "recall": round(recall, 6)}

    def _records(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return self._read()["decisions"]

    def _read(self) -> dict[str, Any]:
        remedy = "restore it, or start the run again in another workdir"
        told = sealed.read(self._path, _KINDS, remedy=remedy, older=True)
        for record in told["decisions"]:
            sealed.require(record, _DECISION, self._path, remedy, "a decision")
        return told
