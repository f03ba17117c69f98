"""A collection that is encoded again and again while its encoder is trained.

`StaleIndex` keeps one index for each step that `rlm_jax.train.rounds` names: it encodes
the passages with the parameters of that step, and searches with those of any other.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rlm_jax.data.passages import Passages
from rlm_jax.method import Batch, Neighbours, Params
from rlm_jax.retrieval import datastore, encode_passages, encode_stream, index, refresh
from rlm_jax.retrievers import dense, encoder_towers
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower

ENCODER, QUESTIONS = "encoder", "question_encoder"
VECTORS = "vectors"


class StaleIndex:
    """The indexes of a run, one for each step whose parameters encoded the passages."""

    def __init__(
        self,
        folder: pathlib.Path,
        passages: Passages,
        tower: Tower,
        encode_queries: Callable[[Params, Batch], jax.Array],
        text: TextConfig,
        search: SearchConfig,
    ):
        """Nothing is encoded yet.

        Args:
          folder: of all indexes; see `refresh`.
          passages: the collection.
          tower: the passages' encoder as training starts, and the tokenizer of both.
          encode_queries: of the method's `Retrieval`.
          text: how passages and questions become tokens.
          search: how they are encoded and searched.
        """
        self.folder, self.passages, self.tower = folder, passages, tower
        self.text = encoder_towers.cut(text, tower.config)
        self.search = search
        self._encode_queries = encode_queries
        self._open: dict[int, index.Index] = {}
        self._identity = {
            "passages": passages.fingerprint,
            "tokenizer": tower.tokenizer.fingerprint,
            "text": dataclasses.asdict(text),
        }

    def start(
        self, step: int, passage_params: Params | None, query_params: Params | None
    ) -> None:
        """Makes the index of a step, as `rounds.Refresher` wants it."""

        def snapshot(files: pathlib.Path) -> None:
            tower = self.tower._replace(params=passage_params)
            encoder_towers.save(files / ENCODER, tower)
            if not _equal(passage_params, query_params):
                tower = self.tower._replace(params=query_params)
                encoder_towers.save(files / QUESTIONS, tower)

        files = refresh.begin(
            self.folder, step, self._identity, passage_params, snapshot
        )
        if files is None:
            return
        tower = encoder_towers.load(files / ENCODER, self.tower.config)
        dense.encode_collection(
            tower,
            self.passages,
            self.passages.fingerprint,
            self.text,
            self.search,
            files / VECTORS,
            alone=False,
        )
        refresh.publish(self.folder, step)

    def finish(self, step: int) -> None:
        """Returns when the index of a step is whole."""
        refresh.files(self.folder, step, self._identity)

    def query_params(self, step: int) -> Params:
        """What encoded queries at the step of an index."""
        files = refresh.files(self.folder, step, self._identity)
        name = QUESTIONS if (files / QUESTIONS).exists() else ENCODER
        return encoder_towers.load(files / name, self.tower.config).params

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
        length = self.text.question_length
        encoder = encode_passages.TextEncoder(
            self._encode_queries,
            query_params,
            max_length=length,
            batch_tokens=self.search.batch_tokens,
            pad_id=self.tower.tokenizer.pad_id,
        )
        rows = self.tower.tokenizer.encode(
            list(questions), max_length=length, keep=keep
        )
        return self._index(step).search(encoder(rows), k)

    def exists(self, step: int) -> bool:
        """Whether the index of a step is there, whole."""
        return refresh.exists(self.folder, step)

    def keep(self, steps: set[int]) -> None:
        """Removes the indexes of all other steps."""
        self._open = {step: x for step, x in self._open.items() if step in steps}
        refresh.remove_others(self.folder, steps)

    def _index(self, step: int) -> index.Index:
        if step not in self._open:
            files = refresh.files(self.folder, step, self._identity)
            store = datastore.open(files / VECTORS)
            self._open[step] = dense.open_index(store, self.search)
        return self._open[step]


def _equal(one: Any, another: Any) -> bool:
    prints = [encode_stream.fingerprint(params) for params in (one, another)]
    return prints[0] == prints[1]
