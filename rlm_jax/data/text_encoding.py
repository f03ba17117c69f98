"""Texts to rows of token ids for an encoder: WordPiece, or any tokenizer.json.

Rows look like BERT's, ``[CLS] text [SEP]`` or ``[CLS] text [SEP] second [SEP]``, or as
the tokenizer.json itself says (RoBERTa has its own marks).
"""

import collections
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hugging_face

from rlm_jax import characters
from rlm_jax.configuration import VOCABULARY
from rlm_jax.data import token_cuts
from rlm_jax.errors import UserError
from rlm_jax.side_files import folders
from rlm_jax.side_files.folders import Limits, Prompts
from rlm_jax.storage import cache

FILE = "tokenizer.json"
# What decides a trained vocabulary beside its texts and its size: for keys of caches.
TRAINER = f"wordpiece 2, tokenizers {hugging_face.__version__}"
_PREFIX = "##"
_MARKS = ("pad", "unk", "cls", "sep", "mask")
_SPECIAL = tuple(f"[{mark.upper()}]" for mark in _MARKS)
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
      content: the tokenizer.json.
      prompts: what the folder that it comes from puts before texts.
      limits: tokens that this folder reads of them.
    """

    vocab_size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    content: str
    _tokenizer: Any
    prompts: Prompts = Prompts()
    limits: Limits = Limits()
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
        with self._lock:
            if pairs is not None:
                both = list(zip(texts, pairs, strict=True))
                return self._encode_pairs(both, max_length)
            side = "left" if keep == "last" else "right"
            self._tokenizer.enable_truncation(max_length, direction=side)
            rows = token_cuts.encoded(
                self._tokenizer.encode_batch_fast,
                texts,
                max_length,
                enough=lambda row: bool(row.overflowing),
                last=keep == "last",
            )
        return [np.asarray(row.ids, np.int32) for row in rows]

    def _encode_pairs(self, pairs, max_length: int) -> list[np.ndarray]:
        tokenizer = self._tokenizer
        tokenizer.no_truncation()
        firsts = token_cuts.encoded(
            lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
            [a for a, _ in pairs],
            max_length,
            enough=lambda row: len(row.ids) > max_length,
        )
        marks = tokenizer.num_special_tokens_to_add(is_pair=True)
        # "Only the second" fails where the first alone is too long; it then loses its
        # end, and the second text gets one token.
        room = max_length - marks - 1
        tokenizer.enable_truncation(max_length, strategy="only_second")
        cut = [
            tokenizer.decode(f.ids[:room]) if len(f.ids) > room else a
            for f, (a, _) in zip(firsts, pairs, strict=True)
        ]

        def both(seconds: Sequence[tuple[int, str]]) -> list[Any]:
            return tokenizer.encode_batch_fast([(cut[i], b) for i, b in seconds])

        rows = token_cuts.encoded(
            both,
            [b for _, b in pairs],
            max_length,
            enough=lambda row: bool(row.overflowing),
            numbered=True,
        )
        return [np.asarray(row.ids[:max_length], np.int32) for row in rows]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without marks."""
        return self._tokenizer.decode([int(i) for i in ids])

    @property
    def mask_token(self) -> str:
        """What stands in a text for one hidden token."""
        return self._tokenizer.id_to_token(self.mask_id)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json into a folder, for `load` and for others.

        Prompts and limits are written as sentence-transformers does.
        """
        characters.write(Path(folder, FILE), self.content)
        folders.write_told(folder, self.prompts, self.limits)


def load(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer of a model's folder: tokenizer.json, else BERT's vocab.txt.

    A vocab.txt is read as BERT's uncased WordPiece, unless tokenizer_config.json says
    otherwise. That file's ``do_lower_case``, ``strip_accents`` and
    ``tokenize_chinese_chars`` go before those of a tokenizer.json, and tokens are added
    to either (`side_files.folders.added_tokens`).

    Raises:
      UserError: neither is there, it cannot be read, it lacks a mark, or a side file
        says what we do not compute.
    """
    whole, folder = Path(folder), folders.transformer(folder)
    settings = folders.tokenizer_settings(folder)
    names = folders.mark_names(folder)
    try:
        if (folder / FILE).exists():
            content = characters.from_json(characters.read(folder / FILE))
            library = hugging_face.Tokenizer.from_str(json.dumps(content))
            told = _with_settings(content, settings)
            if told != content:
                library = hugging_face.Tokenizer.from_str(json.dumps(told))
        elif (folder / "vocab.txt").exists():
            words = characters.lines(characters.read(folder / "vocab.txt"))
            library = _word_piece(
                {word: i for i, word in enumerate(words)},
                names=names,
                lowercase=settings.get("do_lower_case", True),
                strip_accents=settings.get("strip_accents"),
                chinese=settings.get("tokenize_chinese_chars", True),
            )
        else:
            raise UserError(
                f"There is no tokenizer in {folder}; it needs {FILE} or vocab.txt."
            )
        _add_tokens(library, folder)
        if folders.lowers_texts(folder):
            normaliser = library.normalizer
            first = hugging_face.normalizers.Lowercase()
            parts = [first] if normaliser is None else [first, normaliser]
            library.normalizer = hugging_face.normalizers.Sequence(parts)
        library.encode("\u2603")  # what it does not know it can say
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"The tokenizer in {folder} cannot be read ({error}); copy or download it "
            "again."
        ) from error
    told = {"prompts": folders.prompts(whole), "limits": folders.limits(whole)}
    return dataclasses.replace(_wrap(library, folder, names), **told)


def _with_settings(content: Any, settings: Mapping[str, Any]) -> Any:
    """A tokenizer.json as tokenizer_config.json wants it, which transformers reads."""
    theirs = {
        "lowercase": settings.get("do_lower_case"),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars"),
    }
    theirs = {name: value for name, value in theirs.items() if value is not None}

    def changed(part: Any) -> Any:
        if isinstance(part, list):
            return [changed(x) for x in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "BertNormalizer":
            return part | theirs
        if part.get("type") == "ByteLevel" and "add_prefix_space" in settings:
            return part | {"add_prefix_space": settings["add_prefix_space"]}
        return {name: changed(value) for name, value in part.items()}

    parts = ("normalizer", "pre_tokenizer")
    return content | {name: changed(content.get(name)) for name in parts}


def _add_tokens(library: Any, folder: Path) -> None:
    for id_, token, properties in folders.added_tokens(folder):
        if library.token_to_id(token) is None:
            added = hugging_face.AddedToken(token, **properties)
            special = properties.get("special", False)
            (library.add_special_tokens if special else library.add_tokens)([added])
        if library.token_to_id(token) != id_:
            raise UserError(
                f"The token {token!r} is added as {id_} in {folder} and has the id "
                f"{library.token_to_id(token)} in its vocabulary; copy or download its "
                "files again."
            )


def parse(content: Any) -> TextTokenizer:
    """A tokenizer of what its tokenizer.json holds, such as `Tokenizer.content`.

    Raises:
      UserError: it lacks a mark that an encoder needs.
    """
    return _wrap(hugging_face.Tokenizer.from_str(json.dumps(content)), "this run", {})


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
    return _wrap(library, "the trained tokenizer", {})


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


def _word_piece(
    vocabulary: dict[str, int],
    *,
    lowercase: bool,
    names: Mapping[str, str] = {},
    strip_accents: bool | None = None,
    chinese: bool = True,
):
    marks = {mark: names.get(mark, f"[{mark.upper()}]") for mark in _MARKS}
    tokenizer = hugging_face.Tokenizer(
        hugging_face.models.WordPiece(
            vocabulary, unk_token=marks["unk"], max_input_chars_per_word=100
        )
    )
    tokenizer.normalizer = hugging_face.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    tokenizer.pre_tokenizer = hugging_face.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hugging_face.decoders.WordPiece(prefix=_PREFIX)
    missing = [word for word in marks.values() if word not in vocabulary]
    if missing:
        raise UserError(
            f"The vocabulary lacks {', '.join(missing)}; it is not BERT's WordPiece."
        )
    tokenizer.add_special_tokens(list(marks.values()))
    cls, sep = marks["cls"], marks["sep"]
    tokenizer.post_processor = hugging_face.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return tokenizer


def size_of(vocabulary: Mapping[str, int]) -> int:
    """One more than the largest id, of which a model's tables have a row each.

    Raises:
      UserError: there is no id, or one that no model has room for.
    """
    largest = max(vocabulary.values(), default=-1)
    if not 0 <= largest < VOCABULARY:
        raise UserError(
            f"A vocabulary has {len(vocabulary):,} tokens and the largest id "
            f"{largest:,}; give one with ids from 0 to {VOCABULARY - 1:,}."
        )
    return largest + 1


def _wrap(library: Any, where: Any, names: Mapping[str, str]) -> TextTokenizer:
    library.no_padding()
    library.no_truncation()
    marks = {}
    for mark, guesses in _NAMES.items():
        known = (names[mark],) if mark in names else guesses
        ids = [i for i in map(library.token_to_id, known) if i is not None]
        if not ids:
            raise UserError(
                f"The tokenizer of {where} has no {' or '.join(known)}, which an "
                "encoder needs; use the encoder's own."
            )
        marks[f"{mark}_id"] = ids[0]
    return TextTokenizer(
        vocab_size=size_of(library.get_vocab(with_added_tokens=True)),
        content=library.to_str(),
        _tokenizer=library,
        **marks,
    )
