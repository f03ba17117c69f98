"""A collection that is encoded again and again while its encoder is trained.

`StaleIndex` keeps one index for each step that `rlm_jax.train.rounds` names: it encodes
the passages with the parameters of that step, here or by a worker beside the training,
and searches with those of any other step.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.data.passages import Passages
from rlm_jax.method import Batch, Neighbours, Params
from rlm_jax.retrieval import (
    datastore,
    encode_passages,
    encode_stream,
    index,
    refresh,
)
from rlm_jax.retrievers import dense, encode_snapshot, encoder_towers
from rlm_jax.retrievers.background import Elsewhere, Worker
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encode_snapshot import ENCODER, VECTORS, Job
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower

QUESTIONS = "question_encoder"


class StaleIndex:
    """The indexes of a run, one for each step whose parameters encoded the passages.

    `start`, `finish` and `keep` are what `rounds.Refresher` wants. All processes of a
    run call them, and one of them calls `find`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        passages: Passages,
        tower: Tower,
        encode_queries: Callable[[Params, Batch], jax.Array],
        text: TextConfig,
        search: SearchConfig,
        *,
        worker: Worker | Elsewhere | None = None,
        shard_size: int = encode_passages.SHARD_SIZE,
    ):
        """Nothing is encoded yet.

        Args:
          folder: of all indexes; see `refresh`.
          passages: the collection.
          tower: the passages' encoder as training starts, and the tokenizer of both.
          encode_queries: of the method's `Retrieval`.
          text: how passages and questions become tokens.
          search: how they are encoded and searched.
          worker: encodes beside the training; without one `start` encodes.
          shard_size: passages a shard, from whose last whole one a killed run goes on.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._passages, self._tower, self._worker = passages, tower, worker
        self._encode_queries = encode_queries
        self._text = encoder_towers.cut(text, tower.config)
        self._search = search
        self._job = Job(
            passages.name,
            passages.fingerprint,
            tower.config,
            text,
            search,
            worker.config.cores if worker else (),
            shard_size,
        )
        self._identity = {
            "passages": passages.fingerprint,
            "tokenizer": tower.tokenizer.fingerprint,
            "text": dataclasses.asdict(text),
        }
        self._open: dict[int, index.Index] = {}

    def start(
        self, step: int, passage_params: Params | None, query_params: Params | None
    ) -> None:
        """Begins the index of a step, or makes it where there is no worker."""

        def snapshot(folder: pathlib.Path) -> None:
            passages = self._tower._replace(params=passage_params)
            questions = self._tower._replace(params=query_params)
            encoder_towers.save(folder / ENCODER, passages)
            towers = passages, questions
            prints = [encode_stream.fingerprint(tower.params) for tower in towers]
            if prints[0] != prints[1]:
                encoder_towers.save(folder / QUESTIONS, questions)

        partial = refresh.begin(
            self.folder, step, self._identity, passage_params, snapshot
        )
        if partial is None:
            return
        if self._worker is None:
            encode_snapshot.encode(partial, self._job, self._passages, alone=False)
            refresh.publish(self.folder, step)
        elif processes.is_first():
            encode_snapshot.write(partial, self._job)
            self._worker.start(partial)

    def finish(self, step: int) -> None:
        """Returns when the index of a step is whole.

        Raises:
          UserError: the worker failed, or the index is missing or damaged.
        """
        if self._worker is not None and not self.exists(step):
            self.start(step, None, None)
            processes.by_first(self._worker.wait, "encode the passages")
        refresh.whole(self.folder, step, self._identity)

    def query_params(self, step: int) -> Params:
        """What encoded queries at the step of an index."""
        there = refresh.snapshot_of(refresh.whole(self.folder, step, self._identity))
        name = QUESTIONS if (there / QUESTIONS).exists() else ENCODER
        return encoder_towers.load(there / name, self._tower.config).params

    def find(
        self,
        step: int,
        query_params: Params,
        questions: Sequence[str],
        k: int,
        *,
        keep: str = "first",
    ) -> Neighbours:
        """The passages of many questions, in the index of a step.

        Args:
          query_params: what encodes the questions.
          k: passages a question.
          keep: the tokens of a question that is too long which are read: first or last.
        """
        vectors = self._vectors(query_params, questions, keep)
        return self._index(step).search(vectors, k)

    def _vectors(
        self, query_params: Params, questions: Sequence[str], keep: str
    ) -> np.ndarray:
        length, tokenizer = self._text.question_length, self._tower.tokenizer
        encoder = encode_passages.TextEncoder(
            self._encode_queries,
            query_params,
            max_length=length,
            batch_tokens=self._search.batch_tokens,
            pad_id=tokenizer.pad_id,
        )
        rows = encoder_towers.question_rows(
            tokenizer, questions, length, self._text, keep=keep
        )
        return encoder(rows)

    def recall(
        self,
        step: int,
        passage_params: Params,
        query_params: Params,
        questions: Sequence[str],
        k: int,
        sample: int,
        *,
        keep: str = "first",
    ) -> float:
        """What the index of a step finds of a fresh one's, among some passages.

        The sample is encoded anew. The nearest of few are farther apart than those of
        all: in the whole index somewhat less is found.

        Args:
          passage_params, query_params: what would encode now.
          k: passages of a question that count.
          sample: passages, drawn once for all; as many as there are, if fewer.
          keep: as for `find`.
        """
        number = len(self._passages)
        drawn = np.random.default_rng(0).permutation(number)[:sample]
        rows = np.sort(drawn)
        there = refresh.whole(self.folder, step, self._identity)
        old = datastore.open(there / refresh.INDEX / VECTORS).gather_keys(rows)
        tower = self._tower._replace(params=passage_params)
        encoder = dense.encoder_of(tower, self._search, self._text.passage_length)
        to_rows = encoder_towers.passage_rows(tower.tokenizer, self._text)
        new = encoder(to_rows([self._passages[row] for row in rows.tolist()]))
        asked = self._vectors(query_params, questions, keep)
        return index.recall(_nearest(asked, old, k), _nearest(asked, new, k))

    def steps(self) -> list[int]:
        """The steps whose indexes are there, whole, in order."""
        return refresh.steps(self.folder)

    def pending(self) -> list[int]:
        """The steps whose indexes are begun and not whole, in order."""
        return refresh.pending(self.folder)

    def exists(self, step: int) -> bool:
        """Whether the index of a step is there, whole."""
        return refresh.exists(self.folder, step)

    def keep(self, steps: set[int]) -> None:
        """Removes the indexes of all other steps."""
        self._open = {step: x for step, x in self._open.items() if step in steps}
        refresh.remove_others(self.folder, steps)

    def _index(self, step: int) -> index.Index:
        if step not in self._open:
            there = refresh.whole(self.folder, step, self._identity)
            store = datastore.open(there / refresh.INDEX / VECTORS)
            self._open[step] = dense.open_index(store, self._search)
        return self._open[step]


def _nearest(queries: np.ndarray, keys: np.ndarray, k: int) -> Neighbours:
    """The k keys of the largest inner products, of few keys."""
    scores = queries @ keys.T
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Neighbours(np.take_along_axis(scores, ids, 1), ids.astype(np.int32))
