"""Encoders with their tokenizers, from and to folders."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from rlm_jax import pretrained, processes
from rlm_jax.configuration import check_choices
from rlm_jax.data import text_encoding
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrieval import encode_passages, encode_stream
from rlm_jax.storage import cache


@dataclasses.dataclass
class TextConfig:
    """How questions and passages become tokens."""

    titles: Literal["join", "pair", "none"] = (
        "join"  # join (title, space, text), pair (two segments) or none
    )
    question_length: int = 64  # tokens, the marks among them
    passage_length: int = 256


class Tower(NamedTuple):
    """An encoder with all that it needs to read text."""

    config: EncoderConfig
    params: Params
    tokenizer: TextTokenizer

    def encode(
        self, texts: Sequence[str], *, max_length: int = 256, batch_tokens: int = 8192
    ) -> np.ndarray:
        """A vector a text, float32 [N, D]; longer texts are cut at ``max_length``."""
        length = min(max_length, self.config.max_length)
        encoder = encode_passages.TextEncoder(
            embedder(self.config).embed,
            self.params,
            max_length=length,
            batch_tokens=batch_tokens,
            pad_id=self.tokenizer.pad_id,
        )
        return encoder(self.tokenizer.encode(list(texts), max_length=length))


class Towers(NamedTuple):
    """The two encoders of a dense retriever, which may be one."""

    question: Tower
    passage: Tower


def load(folder: str | pathlib.Path, wanted: EncoderConfig | None = None) -> Tower:
    """An encoder in Hugging Face's layout: a published one, or that of a run's workdir.

    Args:
      folder: the encoder's, or the run's.
      wanted: gives what no folder says (dropout, dtype, remat), and pooling and
        normalisation where the folder does not say them.

    Raises:
      UserError: no encoder is there, or the run has two.
    """
    folder, own = pathlib.Path(folder), pathlib.Path(folder) / "encoder"
    if (own / "config.json").is_file():
        if (folder / "question_encoder").is_dir():
            raise UserError(
                f"The run in {folder} has two encoders; name {own}, which reads "
                f"passages, or {folder / 'question_encoder'}."
            )
        folder = own
    otherwise, changes = {}, {}
    if wanted is not None:
        otherwise = {"pooling": wanted.pooling, "normalise": wanted.normalise}
        changes = {n: getattr(wanted, n) for n in ("dropout", "dtype", "remat")}
    config, params = pretrained.load_encoder(folder, otherwise=otherwise, **changes)
    return Tower(config, params, text_encoding.load(folder))


def save(folder: pathlib.Path, tower: Tower) -> None:
    """Writes an encoder for `load`, Transformers and sentence-transformers."""
    pretrained.save_encoder(folder, tower.config, tower.params, tower.tokenizer)


class Saves(Protocol):
    """A tokenizer that writes its tokenizer.json into a folder."""

    def save(self, folder: pathlib.Path, /) -> None: ...


def keep_tokenizer(folder: pathlib.Path, tokenizer: Saves) -> None:
    """Leaves a copy of a run's tokenizer in its folder, with which a rerun goes on."""
    if processes.is_first() and not (folder / text_encoding.FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)


def train_tokenizer(
    passages: Passages, vocab_size: int, own: pathlib.Path | None = None
) -> TextTokenizer:
    """An uncased WordPiece vocabulary of a collection, made once and cached.

    A run that goes on takes the copy that it keeps in the folder ``own``.
    """
    if own is not None and (own / text_encoding.FILE).is_file():
        return text_encoding.load(own)
    key = cache.fingerprint(text_encoding.TRAINER, passages.fingerprint, vocab_size)
    folder = cache.root() / "tokenizers" / key[:32]

    def build(there: pathlib.Path) -> None:
        texts = (passage.joined for passage in passages)
        text_encoding.train(texts, vocab_size=vocab_size).save(there)

    return text_encoding.load(cache.once(folder, build))


def fitted_to(
    config: EncoderConfig, tokenizer: TextTokenizer, **changes: Any
) -> EncoderConfig:
    """The sizes of an encoder from scratch, with a tokenizer's vocabulary."""
    return dataclasses.replace(
        config, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, **changes
    )


def passage_rows(
    tokenizer: TextTokenizer, text: TextConfig
) -> Callable[[Sequence[Passage]], list[np.ndarray]]:
    """Passages -> the tokens of each, int32 [n], cut at ``passage_length``."""
    check_choices(text, "text")
    encode_texts = functools.partial(tokenizer.encode, max_length=text.passage_length)

    def rows(passages: Sequence[Passage]) -> list[np.ndarray]:
        if text.titles == "pair":
            return encode_texts([p.title for p in passages], [p.text for p in passages])
        join = text.titles == "join"
        return encode_texts([p.joined if join else p.text for p in passages])

    return rows


def fingerprints(tower: Tower) -> dict[str, Any]:
    """All that the vectors of a tower depend on, as plain JSON."""
    config = dataclasses.asdict(tower.config)
    for name in ("dropout", "remat", "dtype"):  # they change at most the rounding
        del config[name]
    if not config["projection_norm"]:  # so older runs, which know of none, are the same
        del config["projection_norm"]
    return {
        "encoder": encode_stream.fingerprint(tower.params),
        "encoder_config": config,
        "tokenizer": tower.tokenizer.fingerprint,
    }


def identity(tokenizer: TextTokenizer, initial: Params | None) -> dict[str, str]:
    """What the training of an encoder depends on: what it reads with and starts from.

    ``initial`` are the parameters that are given; None: it starts from nothing.
    """
    prints = {"tokenizer": tokenizer.fingerprint}
    if initial is not None:
        prints["encoder"] = encode_stream.fingerprint(initial)
    return prints


def cut(text: TextConfig, encoder: EncoderConfig) -> TextConfig:
    """The lengths, no longer than the encoder has positions."""
    return dataclasses.replace(
        text,
        passage_length=min(text.passage_length, encoder.max_length),
        question_length=min(text.question_length, encoder.max_length),
    )
