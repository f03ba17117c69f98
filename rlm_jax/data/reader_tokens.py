"""How a reader's input looks: a question beside a passage, in tokens.

Two layouts. ``t5`` is FiD's, ``question: Q title: T context: C </s>``; ``pair`` is
BERT's, ``[CLS] Q [SEP] T. C [SEP]``. Questions, passages and answers are tokenized
apart, so that each passage is tokenized once, and joined by `ReaderTokenizer.row`.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tokenizers as hugging_face

from rlm_jax import characters
from rlm_jax.data import text_encoding, token_cuts
from rlm_jax.data.passages import Passage
from rlm_jax.data.text_encoding import FILE, TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

Layout = Literal["t5", "pair"]
_SENTINEL = "<extra_id_{}>"
_INSIDE = re.compile(r"(?<=\w) ?([-_'’]) ?(?=\w)")


@dataclass(frozen=True)
class ReaderTokenizer:
    """A tokenizer with the marks that a reader's encoder and decoder need.

    Attributes:
      layout: of rows, t5 or pair.
      vocab_size: number of ids; every id is below it.
      start_id: what the decoder starts with: <pad> or [CLS].
      end_id: what ends a text: </s> or [SEP].
      pad_id: <pad> or [PAD].
      passage_end: whether </s> ends a question with its passage. The first FiD readers
        were trained with transformers 3.0.2, which put none there: False for those.
      sentinels: ids of <extra_id_0> and so on; none but T5's tokenizers have them.
      content: the tokenizer.json.
    """

    layout: Layout
    vocab_size: int
    start_id: int
    end_id: int
    pad_id: int
    passage_end: bool
    sentinels: tuple[int, ...]
    content: str = field(repr=False)
    _tokenizer: Any = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary, rules and layout."""
        return cache.fingerprint(self.content, self.layout, self.passage_end)

    def encode(
        self, texts: Sequence[str], *, max_length: int | None = None
    ) -> list[np.ndarray]:
        """Token ids of each text without marks, int32 [n], n <= max_length."""

        def rows(some: Sequence[str]) -> list[Any]:
            return self._tokenizer.encode_batch_fast(
                list(some), add_special_tokens=False
            )

        if max_length is None:
            made = rows(texts)
        else:
            made = token_cuts.encoded(
                rows, texts, max_length, enough=lambda row: len(row.ids) > max_length
            )
        return [np.asarray(row.ids[:max_length], np.int32) for row in made]

    def questions(self, texts: Sequence[str], *, max_length: int) -> list[np.ndarray]:
        """The start of each question's rows, int32 [n], n <= max_length.

        In the layout ``pair`` [CLS] and [SEP] stand around it.
        """
        if self.layout == "t5":
            told = [f"question: {text}" for text in texts]
            return self.encode(told, max_length=max_length)
        around = lambda ids: np.concatenate([[self.start_id], ids, [self.end_id]])
        rows = self.encode(texts, max_length=max_length - 2)
        return [around(ids).astype(np.int32) for ids in rows]

    def passages(
        self, passages: Sequence[Passage], *, max_length: int
    ) -> list[np.ndarray]:
        """Title and text of each passage as they follow a question, without marks."""
        return self.encode(list(map(self._told, passages)), max_length=max_length)

    def answers(self, texts: Sequence[str], *, max_length: int) -> list[np.ndarray]:
        """What the decoder is to say for each answer, `end_id` last.

        Longer answers have max_length + 1 tokens, by which they can be told.
        """
        rows = self.encode(texts, max_length=max_length)
        return [np.append(ids, self.end_id).astype(np.int32) for ids in rows]

    def row(
        self, question: np.ndarray, passage: np.ndarray | None, length: int
    ) -> np.ndarray:
        """A question beside a passage, or alone, int32 [n], n <= length.

        Args:
          question: one of `questions`.
          passage: one of `passages`, which loses its end where both are too long; None:
            the question is read without a passage.
          length: T, tokens of a row.
        """
        ends = self.layout == "pair" or self.passage_end
        parts = [question] if passage is None else [question, passage]
        if passage is None and self.layout == "pair":
            parts = [question[:-1]]  # it ends with [SEP] already
        ids = np.concatenate(parts)[: length - ends]
        return np.append(ids, self.end_id).astype(np.int32) if ends else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids up to the first `end_id`, without marks.

        WordPiece does not say whether a blank stood beside a mark; of those inside
        words it is assumed that none did.
        """
        text = self._tokenizer.decode(self._before_end(ids)).strip()
        return _INSIDE.sub(r"\1", text) if self.layout == "pair" else text

    def as_written(self, ids: Iterable[int], passages: Iterable[Passage]) -> str:
        """The text of some ids as the first passage that holds them has it.

        So an answer that was copied has the passage's capitals, accents and blanks,
        which WordPiece drops; without such a passage it is as `decode` says.
        """
        kept = self._before_end(ids)
        if self.layout == "pair" and kept:
            for passage in passages:
                text = self._told(passage)
                whole = self._tokenizer.encode(text, add_special_tokens=False)
                at = _place(kept, whole.ids)
                if at >= 0:
                    first, last = whole.offsets[at], whole.offsets[at + len(kept) - 1]
                    return text[first[0] : last[1]]
        return self.decode(kept)

    def _before_end(self, ids: Iterable[int]) -> list[int]:
        kept = [int(i) for i in ids]
        return kept[: kept.index(self.end_id)] if self.end_id in kept else kept

    def _told(self, passage: Passage) -> str:
        if self.layout == "t5":
            return f"title: {passage.title} context: {passage.text}"
        title = f"{passage.title}. " if passage.title else ""
        return f"{title}{passage.text}"

    def hidden_marks(self, number: int) -> np.ndarray:
        """int32 [number], what stands for each hidden span of a text.

        T5's sentinels, or BERT's [unused0] and so on. A vocabulary with too few of them
        (a WordPiece that was trained here has none) has [MASK] for every span, which
        then are told apart by their order alone.

        Raises:
          UserError: there is nothing to hide spans with.
        """
        if number <= len(self.sentinels):
            return np.asarray(self.sentinels[:number], np.int32)
        names = [f"[unused{i}]" for i in range(number)]
        ids = [self._tokenizer.token_to_id(name) for name in names]
        if None in ids:
            mask = self._tokenizer.token_to_id("[MASK]")
            if mask is None:
                raise UserError(
                    f"The reader's vocabulary has {len(self.sentinels)} sentinels and "
                    f"no [MASK] to hide {number} spans with: hide fewer, in shorter "
                    "texts."
                )
            ids = [mask] * number
        return np.asarray(ids, np.int32)

    def token(self, id_: int) -> str:
        """One token as it is written in the vocabulary."""
        return self._tokenizer.id_to_token(id_) or ""

    @property
    def marks(self) -> frozenset[str]:
        """What is no text: the tokens that start, end and fill up rows."""
        return frozenset(map(self.token, (self.start_id, self.end_id, self.pad_id)))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json into a folder, for `load` and for others."""
        characters.write(pathlib.Path(folder, FILE), self.content)


def _place(ids: Sequence[int], whole: Sequence[int]) -> int:
    """Where the ids stand one after another in others; -1: nowhere."""
    count = len(ids)
    starts = (i for i, x in enumerate(whole) if x == ids[0])
    return next((i for i in starts if whole[i : i + count] == ids), -1)


def load(
    folder: str | os.PathLike,
    layout: Layout | None = None,
    *,
    passage_end: bool = True,
) -> ReaderTokenizer:
    """The tokenizer of a model's folder: T5's tokenizer.json, or BERT's files.

    Args:
      folder: a T5's, an encoder's, or where `ReaderTokenizer.save` wrote.
      layout: of rows; None: t5 for a tokenizer that has <extra_id_0>, else pair.
      passage_end: as in `ReaderTokenizer`.

    Raises:
      UserError: there is none, it cannot be read, or it lacks a mark of the layout.
    """
    path = pathlib.Path(folder, FILE)
    if not path.exists():
        if layout == "t5":
            raise UserError(
                f"There is no {FILE} in {folder}; convert the T5's spiece.model with "
                "transformers (AutoTokenizer, save_pretrained), and put it there."
            )
        return of(text_encoding.load(folder))
    try:
        library = hugging_face.Tokenizer.from_str(characters.read(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({error}); copy or download it "
            "again."
        ) from error
    if layout is None:
        has_sentinel = library.token_to_id(_SENTINEL.format(0)) is not None
        layout = "t5" if has_sentinel else "pair"
    if layout == "pair":
        return of(text_encoding.load(folder))
    pad_id, end_id = map(library.token_to_id, ("<pad>", "</s>"))
    if pad_id is None or end_id is None:
        raise UserError(
            f"The tokenizer of {folder} has no <pad> or no </s>, which the layout t5 "
            "needs; use T5's own, or the layout pair."
        )
    return _wrap(library, layout, pad_id, end_id, pad_id, passage_end)


def of(tokenizer: TextTokenizer) -> ReaderTokenizer:
    """An encoder's tokenizer for a reader, in the layout ``pair``."""
    # Of its own: how long rows may be is a setting of the other.
    library = hugging_face.Tokenizer.from_str(tokenizer.content)
    marks = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    return _wrap(library, "pair", *marks, True)


def _wrap(
    library: Any, layout: Layout, start: int, end: int, pad: int, passage_end: bool
) -> ReaderTokenizer:
    library.no_padding()
    library.no_truncation()
    sentinels = []
    while (found := library.token_to_id(_SENTINEL.format(len(sentinels)))) is not None:
        sentinels.append(found)
    return ReaderTokenizer(
        layout=layout,
        vocab_size=library.get_vocab_size(with_added_tokens=True),
        start_id=start,
        end_id=end,
        pad_id=pad,
        passage_end=passage_end,
        sentinels=tuple(sentinels),
        content=library.to_str(),
        _tokenizer=library,
    )
