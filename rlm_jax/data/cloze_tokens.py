"""Texts with blanks, and passages and phrases, in the tokens of a masked encoder."""

import functools
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import characters
from rlm_jax.data.passage_files import Passage
from rlm_jax.data.question_files import BLANK
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError

_LONG = 1 << 13  # tokens of a question, before it is cut around its blanks

STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been before being but by can could "
    "did do does for from had has have he her him his how i if in into is it its may "
    "me more most my no nor not of on one only or other our out over she so some such "
    "than that the their them then there these they this those to under up was we were "
    "what when where which who whom why will with would you your".split()
)


def _of_words(character: str) -> bool:
    """Whether words have it: a letter, a digit, a mark, or a part of a character."""
    kind = unicodedata.category(character)
    return character.isalnum() or kind[0] == "M" or kind == "Cs"


@functools.cache
def _byte_of() -> dict[str, int]:
    """Character -> the byte that it stands for in byte-level BPE (GPT-2's alphabet)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _of_bytes(piece: str) -> str:
    table = _byte_of()
    if not all(character in table for character in piece):
        return piece  # an added token
    return bytes(table[c] for c in piece).decode("utf-8", "surrogateescape")


class Cloze(NamedTuple):
    """A question in tokens: marks, masks and all, and where each blank's masks are."""

    ids: np.ndarray  # int32 [n]
    at: np.ndarray  # int32 [blanks, masks of a blank]


@dataclass(frozen=True)
class ClozeTokenizer:
    """A tokenizer that knows its masks, where words begin, and what it cannot write."""

    text: TextTokenizer

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def fingerprint(self) -> str:
        return self.text.fingerprint

    @functools.cached_property
    def _vocabulary(self) -> list[str]:
        """The token of each id."""
        content = json.loads(self.text.content)
        entries = content["model"]["vocab"]
        pieces = [""] * self.text.vocab_size
        if isinstance(entries, dict):
            for piece, number in entries.items():
                pieces[number] = piece
        else:  # of a unigram model: pieces with their scores
            for number, (piece, _) in enumerate(entries):
                pieces[number] = piece
        for added in content.get("added_tokens", []):
            pieces[added["id"]] = added["content"]
        return pieces

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        return json.loads(self.text.content)["model"]

    @functools.cached_property
    def special(self) -> np.ndarray:
        """bool [V]: marks, which are no text."""
        added = json.loads(self.text.content).get("added_tokens", [])
        found = np.zeros(self.vocab_size, bool)
        found[[token["id"] for token in added if token.get("special")]] = True
        return found

    @functools.cached_property
    def inside(self) -> np.ndarray:
        """bool [V]: tokens that go on a word rather than begin one.

        In a script without blanks each character begins one.
        """
        if self._model.get("type") == "WordPiece":
            prefix = self._model.get("continuing_subword_prefix", "##")
            found = [piece.startswith(prefix) for piece in self._vocabulary]
        else:
            # A space before a word is part of its token; punctuation needs none.
            unspaced = re.compile(f"[{characters.unspaced()}]")
            found = [
                bool(text) and all(map(_of_words, text)) and not unspaced.match(text)
                for text in self._texts
            ]
        return np.array(found) & ~self.special

    @functools.cached_property
    def punctuation(self) -> np.ndarray:
        """bool [V]: tokens without a letter, digit or mark."""
        return np.array([not any(map(_of_words, text)) for text in self._texts])

    @functools.cached_property
    def _texts(self) -> list[str]:
        """What each token writes; a part of a character as half characters."""
        content = json.loads(self.text.content)
        parts = [content.get(name) for name in ("pre_tokenizer", "decoder")]
        if '"ByteLevel"' in json.dumps(parts):
            return [_of_bytes(piece) for piece in self._vocabulary]
        return [piece.lstrip("#").replace("\u2581", " ") for piece in self._vocabulary]

    @property
    def mask(self) -> str:
        """The mask token as text."""
        return self._vocabulary[self.text.mask_id]

    def passages(
        self, passages: Sequence[Passage], *, max_length: int
    ) -> list[np.ndarray]:
        """The text of each passage without marks, int32 [n], n <= max_length."""
        texts = [passage.text for passage in passages]
        rows = self.text.encode(texts, max_length=max_length + 2)
        return [row[~self.special[row] | (row == self._unknown)] for row in rows]

    @functools.cached_property
    def _unknown(self) -> int:
        unknown = self._model.get("unk_token")
        known = unknown in self._vocabulary
        return self._vocabulary.index(unknown) if known else -1

    def cloze(self, text: str, *, masks: int, max_length: int) -> Cloze:
        """A question whose every "[MASK]" becomes so many mask tokens.

        A longer question is cut on both sides of its blanks.

        Raises:
          UserError: there is no blank, or blanks are further apart than the length.
        """
        if BLANK not in text:
            raise UserError(
                f'The question "{text[:60]}" has no blank; write {BLANK} where the '
                "answer shall stand."
            )
        filled = text.replace(BLANK, self.mask * masks)
        ids = self.text.encode([filled], max_length=_LONG)[0]
        inner, room = ids[1:-1], max_length - 2
        places = np.flatnonzero(inner == self.text.mask_id)
        if len(places) != masks * text.count(BLANK):
            raise UserError(
                f'The question "{text[:60]}" has a blank too far from its start; '
                "shorten it."
            )
        first, last = int(places[0]), int(places[-1])
        if last - first >= room:
            raise UserError(
                f'The blanks of the question "{text[:60]}" are {last - first + 1} '
                f"tokens apart, and {room} are read; shorten it."
            )
        if len(inner) > room:
            middle = (first + last) // 2 - room // 2
            start = max(last + 1 - room, min(middle, first, len(inner) - room), 0)
            inner, places = inner[start : start + room], places - start
        ids = np.concatenate([ids[:1], inner, ids[-1:]]).astype(np.int32)
        return Cloze(ids, (places + 1).reshape(-1, masks).astype(np.int32))

    def phrase(self, text: str) -> np.ndarray:
        """The tokens of an answer as they stand behind another word, int32 [n].

        Raises:
          UserError: the answer is empty, or it has a character that no token writes.
        """
        ids = self.text.encode([f"{self.mask} {text.strip()}"], max_length=512)[0]
        ids = ids[1 + int(np.flatnonzero(ids == self.text.mask_id)[0]) : -1]
        if not len(ids) or (ids == self._unknown).any():
            raise UserError(
                f"The answer {text!r} cannot be written in the encoder's tokens; leave "
                "it out or take another tokenizer."
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens."""
        return self.text.decode(ids).strip()
