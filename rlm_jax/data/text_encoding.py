"""Texts to rows of token ids for an encoder: WordPiece, or any tokenizer.json.

Rows look like BERT's, ``[CLS] text [SEP]`` or ``[CLS] text [SEP] second [SEP]``, or as
the tokenizer.json itself says (RoBERTa has its own marks).
"""

import collections
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hugging_face

from rlm_jax.errors import UserError
from rlm_jax.storage import cache

FILE = "tokenizer.json"
# What decides a trained vocabulary beside its texts and its size: for keys of caches.
TRAINER = f"wordpiece 2, tokenizers {hugging_face.__version__}"
_PREFIX = "##"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with the marks that an encoder needs.

    Attributes:
      vocab_size: number of ids; every id is below it.
      pad_id, cls_id, sep_id, mask_id: of the marks.
      content: the tokenizer.json, which is all that there is to save.
    """

    vocab_size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    content: str
    _tokenizer: Any
    # How long rows may be is a setting of the tokenizer, which threads share.
    _lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and its rules."""
        return cache.fingerprint(json.loads(self.content))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int,
        keep: str = "first",
    ) -> list[np.ndarray]:
        """Token ids of each text, marks among them, int32 [n], n <= max_length.

        Args:
          texts: the texts, or the first ones of pairs.
          pairs: the second ones, which are cut first where a pair is too long, as DPR
            does with title and text.
          max_length: in tokens; 3 or more.
          keep: of a text that is longer its "first" tokens or its "last", as of a text
            that is to be continued; of pairs the first always.

        Raises:
          UserError: max_length leaves no room for text.
        """
        if max_length < (3 if pairs is None else 5):
            raise UserError(
                f"Rows of {max_length} tokens leave no room beside the marks; choose "
                "a longer length."
            )
        # Cut before tokenizing, far beyond what the tokens need: a megabyte of text
        # should not cost a megabyte's work.
        limit = 64 * max_length

        def short(text: str) -> str:
            last = keep == "last" and pairs is None
            return text[-limit:] if last else text.lstrip()[:limit]

        firsts = [short(text) for text in texts]
        with self._lock:
            if pairs is not None:
                seconds = [short(text) for text in pairs]
                both = list(zip(firsts, seconds, strict=True))
                return self._encode_pairs(both, max_length)
            side = "left" if keep == "last" else "right"
            self._tokenizer.enable_truncation(max_length, direction=side)
            rows = self._tokenizer.encode_batch_fast(firsts)
        return [np.asarray(row.ids, np.int32) for row in rows]

    def _encode_pairs(self, pairs, max_length: int) -> list[np.ndarray]:
        tokenizer = self._tokenizer
        tokenizer.no_truncation()
        firsts = tokenizer.encode_batch_fast(
            [a for a, _ in pairs], add_special_tokens=False
        )
        marks = tokenizer.num_special_tokens_to_add(is_pair=True)
        # "Only the second" fails where the first alone is too long; it then loses its
        # end, and the second text gets one token.
        room = max_length - marks - 1
        tokenizer.enable_truncation(max_length, strategy="only_second")
        cut = [
            (tokenizer.decode(f.ids[:room]) if len(f.ids) > room else a, b)
            for f, (a, b) in zip(firsts, pairs, strict=True)
        ]
        rows = tokenizer.encode_batch_fast(cut)
        return [np.asarray(row.ids[:max_length], np.int32) for row in rows]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without marks."""
        return self._tokenizer.decode([int(i) for i in ids])

    @property
    def mask_token(self) -> str:
        """What stands in a text for one hidden token."""
        return self._tokenizer.id_to_token(self.mask_id)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json into a folder, for `load` and for others."""
        Path(folder, FILE).write_text(self.content, encoding="utf-8")


def load(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer of a model's folder: tokenizer.json, else BERT's vocab.txt.

    A vocab.txt is read as BERT's uncased WordPiece, unless tokenizer_config.json says
    ``"do_lower_case": false``.

    Raises:
      UserError: neither is there, it cannot be read, or it lacks a mark.
    """
    folder = Path(folder)
    try:
        if (folder / FILE).exists():
            library = hugging_face.Tokenizer.from_file(str(folder / FILE))
        elif (folder / "vocab.txt").exists():
            words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
            settings = folder / "tokenizer_config.json"
            told = json.loads(settings.read_text()) if settings.exists() else {}
            library = _word_piece(
                {word: i for i, word in enumerate(words)},
                lowercase=told.get("do_lower_case", True),
            )
        else:
            raise UserError(
                f"There is no tokenizer in {folder}; it needs {FILE} or vocab.txt."
            )
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({error}); copy or download it "
            "again."
        ) from error
    return _wrap(library, folder)


def parse(content: Any) -> TextTokenizer:
    """A tokenizer of what its tokenizer.json holds, such as `Tokenizer.content`.

    Raises:
      UserError: it lacks a mark that an encoder needs.
    """
    return _wrap(hugging_face.Tokenizer.from_str(json.dumps(content)), "this run")


def train(texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
    """An uncased WordPiece vocabulary of a text, with BERT's marks.

    Equal texts in any order give equal vocabularies, byte for byte, in every process.

    Args:
      texts: any number of texts, read once; their distinct words are kept in memory.
      vocab_size: at most so many ids.

    Raises:
      UserError: the vocabulary has no room, or there is no text.
    """
    if vocab_size < 100:
        raise UserError(
            f"A WordPiece vocabulary of {vocab_size} is too small; choose 100 or more."
        )
    normaliser = hugging_face.normalizers.BertNormalizer(lowercase=True)
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(normaliser.normalize_str(text).split())
    if not counts:
        raise UserError("There is no text to train a tokenizer on; check the corpus.")
    library = _word_piece(_vocabulary(counts, vocab_size), lowercase=True)
    return _wrap(library, "the trained tokenizer")


def _vocabulary(counts: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """WordPiece of words and their counts: marks, letters, then merges in order.

    Of equally frequent pairs the library merges that of the lowest ids first, and left
    to itself it gives ids to letters inside words ("##e") in the order of a hash map,
    which also decides between equally rare letters. So it is told the letters, with
    their ids.
    """
    words = sorted(counts)
    letters: collections.Counter[str] = collections.Counter()
    for word in words:
        for letter in word:
            letters[letter] += counts[word]
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))
    # Letters beyond the thousand most frequent are unknown words.
    kept = sorted(ranked[: min(1000, vocab_size // 4)])

    def learn(texts: Iterable[str], size: int, first: Sequence[str]) -> dict[str, int]:
        model = hugging_face.Tokenizer(hugging_face.models.WordPiece())
        # Written in Rust, and typed as read-only in its stubs.
        model.pre_tokenizer = hugging_face.pre_tokenizers.BertPreTokenizer()  # type: ignore
        trainer = hugging_face.trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=list(first),
            initial_alphabet=kept,
            limit_alphabet=len(kept),
            continuing_subword_prefix=_PREFIX,
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return model.get_vocab(with_added_tokens=False)

    # With no room for merges it finds the letters alone, those inside words among them.
    unmerged = learn(words, 0, _SPECIAL)
    inside = sorted(token for token in unmerged if token.startswith(_PREFIX))
    return learn(_repeated(words, counts), vocab_size, [*_SPECIAL, *kept, *inside])


def _repeated(words: Iterable[str], counts: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it occurs, a thousand at most in a text."""
    for word in words:
        for start in range(0, counts[word], 1000):
            yield " ".join([word] * min(1000, counts[word] - start))


def _word_piece(vocabulary: dict[str, int], *, lowercase: bool):
    tokenizer = hugging_face.Tokenizer(
        hugging_face.models.WordPiece(
            vocabulary, unk_token="[UNK]", max_input_chars_per_word=100
        )
    )
    tokenizer.normalizer = hugging_face.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = hugging_face.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hugging_face.decoders.WordPiece(prefix=_PREFIX)
    missing = [word for word in _SPECIAL if word not in vocabulary]
    if missing:
        raise UserError(
            f"The vocabulary lacks {', '.join(missing)}; it is not BERT's WordPiece."
        )
    tokenizer.add_special_tokens(list(_SPECIAL))
    cls, sep = "[CLS]", "[SEP]"
    tokenizer.post_processor = hugging_face.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return tokenizer


def _wrap(library: Any, where: Any) -> TextTokenizer:
    library.no_padding()
    library.no_truncation()
    marks = {}
    for mark, names in _NAMES.items():
        ids = [i for i in map(library.token_to_id, names) if i is not None]
        if not ids:
            raise UserError(
                f"The tokenizer of {where} has no {' or '.join(names)}, which an "
                "encoder needs; use the encoder's own."
            )
        marks[f"{mark}_id"] = ids[0]
    return TextTokenizer(
        vocab_size=library.get_vocab_size(with_added_tokens=True),
        content=library.to_str(),
        _tokenizer=library,
        **marks,
    )
