"""Text to int32 ids and back: bytes, BPE, words, WordPiece, tokenizer.json, GGUF."""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hugging_face

from rlm_jax import characters
from rlm_jax.data import gguf_vocabulary, text_encoding
from rlm_jax.data.corpora import Corpus
from rlm_jax.errors import UserError
from rlm_jax.storage import cache, sealed
from rlm_jax.storage.gguf_files import GGUF

_FORMAT = 1
_END_OF_DOCUMENT = "<|endoftext|>"
# Whose work a vocabulary is: another trainer may make another one of the same text.
_TRAINERS = {
    "bpe": f"tokenizers {hugging_face.__version__}",
    "word": "",
    "wordpiece": text_encoding.TRAINER,
}
_RECORD = {
    **{"format": int, "kind": str, "content": Any},
    "ends": sealed.Maybe(list[int]),
}
_REMEDY = "delete it and build it again"
_KNOWN_ENDS = (_END_OF_DOCUMENT, "</s>", "<eos>", "[SEP]", "<|end_of_text|>")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as a value: two pure functions over one vocabulary.

    Attributes:
      kind: "bytes", "bpe", "word", "wordpiece" or "hf".
      vocab_size: number of ids; every id is below it.
      encode: text -> int32 [n].
      decode: ids [n] -> text; the end of a document decodes to nothing.
      end_of_document: id that the token store puts after each document, or None.
      content: what `save` writes; JSON-able, and all that `load` needs.
      ends: ids that end a text, as the model says it was taught; `end_of_document` is
        the first of them. Empty: it alone, which is known by its name.
    """

    kind: str
    vocab_size: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Any], str]
    end_of_document: int | None
    content: Any
    ends: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the kind and the vocabulary."""
        own = [list(self.ends)] if self.ends else []
        return cache.fingerprint(_FORMAT, self.kind, self.content, *own)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file."""
        record = {"format": _FORMAT, "kind": self.kind, "content": self.content}
        if self.ends:
            record["ends"] = list(self.ends)
        sealed.write(path, record, indent=None)

    def ending_with(self, ids: Sequence[int]) -> "Tokenizer":
        """The same for a model that says by which ids its texts end.

        Raises:
          UserError: an id is none of the vocabulary.
        """
        if not ids or tuple(ids) == (self.end_of_document,):
            return self
        if max(ids) >= self.vocab_size:
            raise UserError(
                f"The model says that a text ends with the id {max(ids)}, and its "
                f"tokenizer has {self.vocab_size} ids; put the model's own tokenizer "
                "beside it."
            )
        return dataclasses.replace(self, end_of_document=ids[0], ends=tuple(ids))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end a text."""
        own = () if self.end_of_document is None else (self.end_of_document,)
        return self.ends or own


def piece(tokenizer: Tokenizer, token: int) -> str:
    """One token as text; a word gets its space back."""
    space = " " if tokenizer.kind == "word" else ""
    return tokenizer.decode([token]) + space


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
      UserError: the file is missing, truncated or not a tokenizer of this format.
    """
    try:
        record = sealed.read(path, _RECORD, remedy=_REMEDY, older=True)
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']}")
        made = _from_content(record["kind"], record["content"])
        return made.ending_with(record.get("ends", []))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no tokenizer at {path}: check the path.") from error
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"The tokenizer {path} cannot be read ({error}): {_REMEDY}."
        ) from error


def build(
    kind: str,
    corpus: Corpus,
    *,
    vocab_size: int,
    cache_dir: str | os.PathLike | None = None,
) -> Tokenizer:
    """Builds a tokenizer for a corpus, or loads the one built before.

    Arguments:
      kind: "bytes" (256 values and the end of a document; `vocab_size` is ignored);
        "bpe" (byte-level, trained on the train split, at most `vocab_size` ids);
        "word" (whitespace words of every split and ``<eos>`` at each line's end, most
        frequent in train first; the first `vocab_size` of them, or all if it is 0);
        "wordpiece" (uncased, trained on the train split; for encoders);
        "hf:PATH" (a Hugging Face ``tokenizer.json``, `vocab_size` ignored).

    Raises:
      UserError: an unknown kind, a vocabulary too small, or an unreadable file.
    """
    if kind == "bytes":
        return _bytes()
    if kind.startswith("hf:"):
        return read_hugging_face(Path(kind.removeprefix("hf:")))
    trainers = {
        "bpe": _train_bpe,
        "word": _count_words,
        "wordpiece": _train_word_piece,
    }
    if kind not in trainers:
        raise UserError(
            f"Unknown tokenizer '{kind}': choose bytes, bpe, word, wordpiece or "
            "hf:PATH/tokenizer.json."
        )
    if kind == "bpe" and vocab_size < 257:
        raise UserError(
            f"A byte-level BPE vocabulary of {vocab_size} is too small: 256 bytes and "
            "the end of a document need at least 257."
        )
    if kind == "word" and (vocab_size < 0 or 0 < vocab_size < 3):
        raise UserError(
            f"A word vocabulary of {vocab_size} is too small: use at least 3, or 0 "
            "for every word."
        )
    trainer = _TRAINERS[kind]
    key = cache.fingerprint(_FORMAT, corpus.fingerprint, kind, vocab_size, trainer)
    directory = cache.folder("tokenizers", key, cache_dir)

    def train(path: Path) -> None:
        content = trainers[kind](corpus, vocab_size)
        _from_content(kind, content).save(path / "tokenizer.json")

    return load(cache.once(directory, train) / "tokenizer.json")


def _from_content(kind: str, content: Any) -> Tokenizer:
    if kind == "bytes":
        return _bytes()
    if kind == "word":
        return _word(content)
    if kind in ("bpe", "wordpiece", "hf"):
        return _hugging_face(kind, content)
    raise ValueError(f"unknown kind '{kind}'")


def _bytes() -> Tokenizer:
    def encode(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(ids: Any) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    return Tokenizer("bytes", 257, encode, decode, 256, None)


def _word(words: list[str]) -> Tokenizer:
    ids = {word: id for id, word in enumerate(words)}
    if len(ids) != len(words):
        raise ValueError("a word occurs twice")
    unknown, end_of_line = ids["<unk>"], ids["<eos>"]

    def encode(text: str) -> np.ndarray:
        out: list[int] = []
        for line in _lines(text):
            out.extend(ids.get(word, unknown) for word in line.split())
            out.append(end_of_line)
        return np.array(out, np.int32)

    def decode(tokens: Any) -> str:
        text = " ".join(words[token] for token in np.asarray(tokens).tolist())
        return text.replace(" <eos>", "\n").replace("<eos>", "\n").replace("\n ", "\n")

    return Tokenizer("word", len(words), encode, decode, None, words)


def _lines(text: str) -> list[str]:
    # The carriage return before a line's end is white space, which parts words anyway.
    return characters.lines(text)


def _count_words(corpus: Corpus, vocab_size: int) -> list[str]:
    frequency: collections.Counter[str] = collections.Counter()
    for split in corpus.splits:
        for text in _texts(corpus, split):
            lines = _lines(text)
            words = collections.Counter(text.split())
            words["<eos>"] += len(lines)
            if split != "train":  # known, but not evidence of how frequent it is
                words = dict.fromkeys(words, 0)
            frequency.update(words)
    frequency.update({"<unk>": 0, "<eos>": 0})
    ordered = sorted(frequency, key=lambda word: (-frequency[word], word))
    if not vocab_size or len(ordered) <= vocab_size:
        return ordered
    kept = ordered[:vocab_size]
    # Every word that is cut becomes <unk>, which therefore must be among the kept.
    return kept if "<unk>" in kept else [*kept[:-1], "<unk>"]


def _train_bpe(corpus: Corpus, vocab_size: int) -> dict:
    alphabet = hugging_face.pre_tokenizers.ByteLevel.alphabet()
    model = hugging_face.Tokenizer(hugging_face.models.BPE())
    # The attributes below are written in Rust, and typed as read-only in its stubs.
    model.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(  # type: ignore
        add_prefix_space=False
    )
    model.decoder = hugging_face.decoders.ByteLevel()  # type: ignore
    trainer = hugging_face.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_DOCUMENT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    model.train_from_iterator(_texts(corpus, "train"), trainer)
    return json.loads(model.to_str())


def _train_word_piece(corpus: Corpus, vocab_size: int) -> dict:
    tokenizer = text_encoding.train(_texts(corpus, "train"), vocab_size=vocab_size)
    return json.loads(tokenizer.content)


def _hugging_face(kind: str, content: dict) -> Tokenizer:
    model = hugging_face.Tokenizer.from_str(json.dumps(content))
    model.no_truncation()  # which files of encoders often ask for,
    model.no_padding()  # and a stream of tokens has no use for
    model.encode_special_tokens = True  # text is text, even where it reads "</s>"
    model.encode("\u2603", add_special_tokens=False)  # what it does not know it can say
    vocabulary = model.get_vocab(with_added_tokens=True)
    end = next((vocabulary[t] for t in _KNOWN_ENDS if t in vocabulary), None)

    def encode(text: str) -> np.ndarray:
        return np.array(model.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(ids: Any) -> str:
        return model.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    # Ids may have gaps, and a model's tables are as long as the largest one.
    size = text_encoding.size_of(vocabulary)
    return Tokenizer(kind, size, encode, decode, end, content)


def read_hugging_face(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face ``tokenizer.json``.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    try:
        return _hugging_face("hf", characters.from_json(characters.read(path)))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no tokenizer file at {path}: give hf:PATH/tokenizer.json."
        ) from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"{path} is not a readable Hugging Face tokenizer.json ({error}): save it "
            "again with the tokenizers library."
        ) from error


def read_gguf(file: GGUF) -> Tokenizer:
    """The tokenizer of a GGUF file, which also says what ends a text.

    Raises:
      UserError: as `gguf_vocabulary.read`, or the vocabulary cannot be read.
    """
    content, end = gguf_vocabulary.read(file)
    try:
        made = _hugging_face("hf", content)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"The tokenizer in {file.path} cannot be read ({error}); download the file "
            "again."
        ) from error
    return made.ending_with(() if end is None else (end,))


def id_of(tokenizer: Tokenizer, token: str) -> int | None:
    """The id of a token by its text, of a tokenizer of the tokenizers library."""
    content = tokenizer.content
    if not isinstance(content, dict):
        return None
    added = {x["content"]: x["id"] for x in content.get("added_tokens") or []}
    vocabulary = content["model"].get("vocab") or {}
    known = vocabulary if isinstance(vocabulary, dict) else {}
    return added.get(token, known.get(token))


def hugging_face_content(tokenizer: Tokenizer) -> dict | None:
    """The content of a ``tokenizer.json`` that gives the same ids; None for words."""
    if tokenizer.kind == "word":
        return None
    if tokenizer.kind == "bytes":
        return _bytes_content()
    return tokenizer.content


def _bytes_content() -> dict:
    """Byte-level BPE without merges, whose ids are the bytes and the document's end."""
    letters = hugging_face.pre_tokenizers.ByteLevel.alphabet()
    # GPT-2's letters of the bytes: those that print are themselves, in order.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    vocabulary = {chr(byte): byte for byte in printing}
    vocabulary |= {chr(256 + i): byte for i, byte in enumerate(others)}
    assert vocabulary.keys() == set(letters)
    model = hugging_face.Tokenizer(hugging_face.models.BPE(vocabulary, []))
    model.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(  # type: ignore
        add_prefix_space=False, use_regex=False
    )
    model.decoder = hugging_face.decoders.ByteLevel()  # type: ignore
    model.add_special_tokens([_END_OF_DOCUMENT])
    return json.loads(model.to_str())


def _texts(corpus: Corpus, split: str) -> Iterator[str]:
    for document in corpus.documents(split):
        yield document.text
