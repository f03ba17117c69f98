"""Ask a reader: its answer, the passages that it read, and where in them it looked.

The workdir is that of a run that trained a reader, or NPM, which fills blanks.
Questions come from the configuration, from a pipe, one a line, or from a prompt.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np

from rlm_jax import terminal
from rlm_jax.data import passage_tokens, question_answering, reader_batches
from rlm_jax.data.collections import Collection
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.data.question_files import Question
from rlm_jax.errors import UserError
from rlm_jax.method import Batch
from rlm_jax.methods import fid
from rlm_jax.models.reader import looked_at
from rlm_jax.readers import reader
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import runs
from rlm_jax.recipes.phrases import asking as phrase_asking
from rlm_jax.recipes.readers import answers_report
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.report import fusion
from rlm_jax.retrieval import index
from rlm_jax.retrievers import passage_list, passage_sources
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig


@dataclasses.dataclass
class Config:
    """What is asked, and how much is shown."""

    MAY_BE_ZERO: ClassVar = ("num",)

    question: str = ""  # empty: questions are asked for
    # empty: the run's own; see `reading.ReadingConfig`; of NPM: bm25, or all passages
    retriever: str = ""
    num: int = 0  # passages that are read; 0: as many as in training
    num_beams: int = 1  # 1: greedy
    lines: int = 2  # of a passage that is shown
    words: int = 3  # of each passage at which the reader looked most; of NPM: phrases
    json: bool = False  # a line of JSON for each question
    plot: str = ""  # file for a picture of where it looked, or found; empty: none


@recipe("ask")
def run(config: Config, here: Run) -> None:
    """Answer until there are no more questions."""
    asking = _asking(config, here.workdir)
    if not config.json:
        terminal.say(asking.describe())
    if here.dry_run:
        return
    if not config.question and not config.json:
        terminal.say("a question a line; an empty line ends")
    questions = terminal.asked()
    if config.question:
        questions = iter([terminal.given(config.question, "the question")])
    for question in questions:
        told = asking.answer(question)
        if config.json:
            terminal.write_json(told.record())
        else:
            terminal.write(told.text(config.lines))
        if config.plot:
            told.draw(config.plot)


def _asking(config: Config, workdir: pathlib.Path) -> "Asking | phrase_asking.Asking":
    if runs.stored(workdir).get("system") != "npm":
        return Asking(config, workdir)
    if config.retriever not in ("", passage_sources.BM25):
        raise UserError(
            "A memory of phrases is searched whole, or in what BM25 finds: leave "
            f"retriever empty or choose bm25, not {config.retriever}."
        )
    return phrase_asking.Asking(
        workdir,
        passages=config.num,
        count=config.words,
        restricted=config.retriever == passage_sources.BM25,
    )


@dataclasses.dataclass(frozen=True)
class Told:
    """An answer, and what it was made from."""

    question: str
    answer: str
    collection: Collection
    ids: np.ndarray  # int32 [K]; -1 = absent
    scores: np.ndarray  # float32 [K]
    share: np.ndarray  # float32 [K, T], of each token in what the answer was made from
    words: list[list[str]]  # of each passage those that were looked at most
    tokens: list[list[str]]  # of each row

    @property
    def places(self) -> list[int]:
        return [place for place, row in enumerate(self.ids.tolist()) if row >= 0]

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        passages = self.collection.passages
        return {
            "question": self.question,
            "answer": self.answer,
            "passages": [
                {
                    **passages[int(self.ids[place])]._asdict(),
                    "score": round(float(self.scores[place]), 4),
                    "looked_at": round(float(self.share[place].sum()), 4),
                    "words": self.words[place],
                }
                for place in self.places
            ],
        }

    def text(self, lines: int) -> str:
        """For the terminal."""
        notes = []
        for place in self.places:
            share = f"{self.share[place].sum():.0%} of what the answer was made from"
            notes.append(": ".join([share, ", ".join(self.words[place])]))
        shown = passage_list.listed(
            self.collection.passages, self.scores, self.ids, lines, notes
        )
        return f"\n{self.answer or '(nothing)'}\n{shown}"

    def draw(self, path: str) -> None:
        """A picture of the fusion step."""
        kept = self.places
        fusion.draw(
            path,
            question=self.question,
            answer=self.answer,
            tokens=[self.tokens[place] for place in kept],
            share=[self.share[place] for place in kept],
        )


class Asking:
    """A run's reader with its passages; what it runs is compiled once."""

    def __init__(self, config: Config, workdir: pathlib.Path):
        stored = runs.stored(workdir)
        if "passage_length" not in stored or "data" not in stored:
            raise UserError(
                f"There is no reader to ask in {workdir}; name the workdir of a run of "
                "experiments.fid or experiments.atlas."
            )
        runs.require(workdir, stored, answers_report.READING)
        self.model: ReaderModel = reader.load(workdir)
        data = runs.group(workdir, stored, "data", AnsweringConfig)
        self.collection = question_answering.load(data, stored["split"])
        trained_on = reader.reads(workdir)
        name = config.retriever or trained_on["retriever"]
        self._source = passage_sources.choose(
            name,
            self.collection,
            workdir / "retrieval",
            runs.group(workdir, stored, "search", SearchConfig),
            runs.group(workdir, stored, "text", TextConfig),
            stored["split"],
        )
        if self._source.fingerprint != trained_on["source"]:
            terminal.say(f"note: the reader was not trained on the passages of {name}")
        self._num = config.num or trained_on["num"]
        self._words = config.words
        self._lengths = stored["passage_length"], stored["target_length"]
        functions = fid.reader_of(self.model.config)
        self._answer = fid.answerer(
            functions, length=self._lengths[1], num_beams=config.num_beams
        )

        @jax.jit
        def look(params, batch: Batch):
            memory = fid.read(functions, params, batch)
            seen = functions.attention(params, memory, batch["targets"])
            share = looked_at(seen, memory.mask)
            kept = batch["target_mask"][..., None]
            mean = (share * kept).sum(1) / kept.sum(1)
            return mean.reshape(*batch["passage_ids"].shape[:2], -1)

        self._look = look
        self._params = jax.device_put(self.model.params)
        self._tokens = passage_tokens.build(
            self.collection.passages, self.model.tokenizer, max_length=self._lengths[0]
        )

    def describe(self) -> str:
        size = sum(x.size for x in jax.tree.leaves(self.model.params))
        passages = self.collection.passages
        return (
            f"{size:,} parameters read {self._num} of {len(passages):,} passages of "
            f"{passages.name or 'the questions'}"
        )

    def answer(self, question: str) -> Told:
        """The answer to one question."""
        asked = Question("asked", question)
        found, _ = self._source.find([asked], self._num)
        scores, ids = index.first_kept(found, lambda ids: ids >= 0, self._num)
        rows = reader_batches.rows(
            self.model.tokenizer,
            [asked],
            ids,
            self._tokens,
            passage_length=self._lengths[0],
            target_length=self._lengths[1],
        )
        batch = dict(rows.batch(np.zeros(1, np.int64), [np.zeros(0, np.int32)]))
        said = np.asarray(self._answer(self._params, batch))[0]
        end = np.flatnonzero(said == self.model.tokenizer.end_id)
        length = int(end[0]) + 1 if len(end) else len(said)
        batch["targets"] = np.where(np.arange(len(said)) < length, said, 0)[None]
        batch["target_mask"] = (np.arange(len(said)) < length)[None].astype(np.int32)
        share = np.asarray(self._look(self._params, batch))[0]
        lengths = batch["passage_mask"][0].sum(-1)
        tokens = [
            [self.model.tokenizer.token(int(i)) for i in row[:length]]
            for row, length in zip(batch["passage_ids"][0], lengths, strict=True)
        ]
        return Told(
            question,
            self.model.tokenizer.as_written(
                said, [self.collection.passages[i] for i in ids[0].tolist() if i >= 0]
            ),
            self.collection,
            ids[0],
            scores[0],
            share,
            [self._most(*row) for row in zip(tokens, share, strict=True)],
            tokens,
        )

    def _most(self, tokens: list[str], share: np.ndarray) -> list[str]:
        """The tokens of a row that were looked at most, marks left out."""
        order = np.argsort(-share[: len(tokens)], kind="stable")
        marks = self.model.tokenizer.marks
        named = [tokens[i] for i in order if tokens[i] not in marks]
        return list(dict.fromkeys(named))[: self._words]
