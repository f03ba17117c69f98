"""Blanks filled with phrases that are retrieved: what NPM answers (Min et al. 2023).

Every blank of a question is a start and an end mask. Their vectors find tokens in a
`TokenMemory`, in all of it or in the passages that BM25 finds for the question, and
`retrieval.phrases` puts phrases together of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax import characters
from rlm_jax.data.cloze_tokens import STOP_WORDS, ClozeTokenizer
from rlm_jax.data.question_files import BLANK
from rlm_jax.errors import UserError
from rlm_jax.retrieval import phrases
from rlm_jax.retrievers.token_memory import TokenMemory

Labels = Mapping[str, Sequence[str]]
"""Label -> the words that stand for it (a fuzzy verbaliser)."""


@dataclasses.dataclass
class FillConfig:
    """How blanks are filled."""

    k: int = 1024  # tokens that each mask finds; the paper's closed sets: 4096
    temperature: float = 1.0  # of the scores q.c / sqrt(D); the paper's closed sets: 5
    longest: int = 10  # tokens of a phrase
    length_power: float = 0.0  # a phrase of n tokens counts n^a times
    passages: int = 3  # that BM25 finds, where the search is restricted to them
    stop_words: bool = False  # an answer may have none but stop words, or no word
    length: int = 128  # tokens of a question, marks among them


def check(config: FillConfig) -> None:
    """Raises UserError where a number is out of range."""
    c = config
    if (
        min(c.k, c.longest, c.passages) < 1
        or c.temperature <= 0
        or not (c.longest <= 64 and c.length >= 4)
    ):
        raise UserError(
            f"Blanks cannot be filled with {c}: choose k, longest and passages of 1 or "
            "more, longest up to 64, a length of 4 or more, and a temperature above 0."
        )


class Answer(NamedTuple):
    """A phrase that fills a blank, with its score and where its best place is."""

    text: str
    score: float
    passage: int  # its number in the memory; -1: there is no answer
    entry: int
    size: int


NOTHING = Answer("", 0.0, -1, -1, 0)


class PhraseFiller:
    """Fills the blanks of questions from a memory."""

    def __init__(
        self,
        memory: TokenMemory,
        config: FillConfig,
        *,
        masks: int = 2,
        scale: float = 0.0,
    ):
        """What fills blanks from a memory.

        Args:
          memory: whose encoder reads the questions too.
          config: how.
          masks: of a blank; 2: a phrase's start and end, 1: NPM-single's one token.
          scale: of inner products, 0: 1 / sqrt(D), as the encoder was trained.

        Raises:
          UserError: a number out of range.
        """
        check(config)
        self.memory, self.config, self.masks = memory, config, masks
        self.tokenizer: ClozeTokenizer = memory.tokenizer
        self.scale = scale or memory.encoder.dim**-0.5
        self.length = min(config.length, memory.config.length)

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The scaled vectors of each question's blanks, float32 [blanks, masks, D].

        Raises:
          UserError: a question has no blank, or blanks too far apart.
        """
        read = [
            self.tokenizer.cloze(text, masks=self.masks, max_length=self.length)
            for text in texts
        ]
        most = max((cloze.at.size for cloze in read), default=1)
        places = np.zeros((len(read), most), np.int32)
        for row, cloze in enumerate(read):
            places[row, : cloze.at.size] = cloze.at.reshape(-1)
        states = self.memory.encoder.at([cloze.ids for cloze in read], places)
        states *= np.float32(self.scale)
        return [
            own[: cloze.at.size].reshape(*cloze.at.shape, -1)
            for own, cloze in zip(states, read, strict=True)
        ]

    def retrieve(
        self, texts: Sequence[str], *, restricted: bool = False
    ) -> list[list[phrases.Phrases]]:
        """All phrases for each blank of each question.

        Args:
          texts: with blanks.
          restricted: only the passages that BM25 finds for the question are searched.
        """
        passages = None
        if restricted:
            asked = [text.replace(BLANK, " ") for text in texts]
            passages = self.memory.by_words(asked, self.config.passages)
        return self.retrieve_by(self.vectors(texts), passages)

    def retrieve_by(
        self, vectors: Sequence[np.ndarray], passages: np.ndarray | None = None
    ) -> list[list[phrases.Phrases]]:
        """`retrieve` by vectors that are there already.

        Args:
          vectors: of each question, as `vectors` gives them.
          passages: int [N, P], the passages each question is restricted to; None: all.
        """
        k = self.config.k
        flat = [x.reshape(-1, x.shape[-1]) for x in vectors]
        if passages is None:
            found = self.memory.search(np.concatenate(flat), k)
            cuts = np.cumsum([len(x) for x in flat])[:-1]
            pairs = list(
                zip(
                    *(np.split(x, cuts) for x in (found.scores, found.ids)), strict=True
                )
            )
        else:
            pairs = [
                self.memory.search_within(x, own, k)
                for x, own in zip(flat, passages, strict=True)
            ]
        return [
            [
                self._assemble(scores[i : i + self.masks], ids[i : i + self.masks])
                for i in range(0, len(ids), self.masks)
            ]
            for scores, ids in pairs
        ]

    def _assemble(self, scores: np.ndarray, ids: np.ndarray) -> phrases.Phrases:
        found = [
            phrases.softmax(s, i, self.config.temperature)
            for s, i in zip(scores, ids, strict=True)
        ]
        return phrases.assemble(
            found[0], found[1] if self.masks > 1 else None,
            self.memory.tokens, self.memory.bounds, self.tokenizer.inside,
            longest=self.config.longest, length_power=self.config.length_power,
        )  # fmt: skip

    def best(self, found: phrases.Phrases, count: int = 1) -> list[Answer]:
        """The best phrases as text, at most ``count``."""
        answers: list[Answer] = []
        for place, entry in enumerate(found.entry.tolist()):
            size = int(found.size[place])
            ids = self.memory.tokens[entry : entry + size]
            if self.tokenizer.special[ids].any():  # [UNK] is no answer
                continue
            text = self.tokenizer.decode(ids)
            words = characters.words(text, underscore=True)
            if not self.config.stop_words and STOP_WORDS.issuperset(words):
                continue
            passage = int(self.memory.passage_of(np.array(entry)))
            answers.append(
                Answer(text, float(found.score[place]), passage, entry, size)
            )
            if len(answers) == count:
                break
        return answers

    def __call__(
        self, texts: Sequence[str], *, restricted: bool = False, count: int = 1
    ) -> list[list[list[Answer]]]:
        """The best phrases for every blank of every question.

        Raises:
          UserError: a question has no blank, or blanks too far apart.
        """
        return [
            [self.best(blank, count) for blank in blanks]
            for blanks in self.retrieve(texts, restricted=restricted)
        ]

    def label_scores(
        self, texts: Sequence[str], labels: Labels, *, restricted: bool = False
    ) -> np.ndarray:
        """The score of each label for the first blank of each question, float64 [N, Y].

        A label's score is the sum over its words; 0 where none of them was found.

        Raises:
          UserError: no labels, a label without words, a word that cannot be written.
        """
        words = verbalisers(labels, self.tokenizer)
        flat = phrases.keys_of_phrases([ids for of_label in words for ids in of_label])
        first = np.cumsum([0, *map(len, words)])[:-1]
        scores = [
            np.add.reduceat(phrases.scores_of(blanks[0], flat), first)
            for blanks in self.retrieve(texts, restricted=restricted)
        ]
        return np.array(scores)


def verbalisers(labels: Labels, tokenizer: ClozeTokenizer) -> list[list[np.ndarray]]:
    """The tokens of each label's words, once each.

    Raises:
      UserError: no labels, a label without words, a word that cannot be written.
    """
    empty = [label for label, words in labels.items() if not words]
    if not labels or empty:
        raise UserError(
            f"The label {empty[0]!r} has no words that stand for it; give it some."
            if empty
            else "The closed set is empty; give labels with words that stand for them."
        )
    return [
        list({tuple(x): x for x in map(tokenizer.phrase, words)}.values())
        for words in labels.values()
    ]


def writable(labels: Labels, tokenizer: ClozeTokenizer) -> dict[str, list[str]]:
    """The labels with the words that the tokenizer can write alone."""

    def can_write(word: str) -> bool:
        try:
            return len(tokenizer.phrase(word)) > 0
        except UserError:
            return False

    return {label: list(filter(can_write, words)) for label, words in labels.items()}
