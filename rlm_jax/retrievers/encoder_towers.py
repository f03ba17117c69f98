"""Encoders with their tokenizers, from and to folders."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from rlm_jax import pretrained, processes, terminal
from rlm_jax.configuration import check_fields
from rlm_jax.data import text_encoding
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrieval import encode_passages, encode_stream
from rlm_jax.side_files import folders as side_files
from rlm_jax.side_files import hub
from rlm_jax.side_files.folders import Prompts
from rlm_jax.storage import cache

OWN = "own"


@dataclasses.dataclass
class TextConfig:
    """How questions and passages become tokens."""

    titles: Literal["join", "pair", "none"] = (
        "join"  # join (title, space, text), pair (two segments) or none
    )
    question_length: int = 64  # tokens, the marks among them
    passage_length: int = 256  # tokens, likewise
    # before each question: what the encoder's folder says (own), another text, or none
    question_prompt: str = OWN
    passage_prompt: str = OWN  # likewise, before each passage


class Tower(NamedTuple):
    """An encoder with all that it needs to read text."""

    config: EncoderConfig
    params: Params
    tokenizer: TextTokenizer

    def encode(
        self, texts: Sequence[str], *, max_length: int = 256, batch_tokens: int = 8192
    ) -> np.ndarray:
        """A vector a text, float32 [N, D]; longer texts are cut at ``max_length``.

        As sentence-transformers does, it puts the folder's default prompt before them,
        and reads no more tokens than the folder allows.
        """
        tokenizer, lengths = self.tokenizer, (max_length, self.config.max_length)
        length = min(lengths)
        if tokenizer.limits.passage:
            length = min(length, tokenizer.limits.passage)
        texts = [tokenizer.prompts.other + text for text in texts]
        encoder = encode_passages.TextEncoder(
            embedder(self.config).embed,
            self.params,
            max_length=length,
            batch_tokens=batch_tokens,
            pad_id=self.tokenizer.pad_id,
        )
        return encoder(tokenizer.encode(texts, max_length=length))


class Towers(NamedTuple):
    """The two encoders of a dense retriever, which may be one."""

    question: Tower
    passage: Tower


def load(folder: str | pathlib.Path, wanted: EncoderConfig | None = None) -> Tower:
    """An encoder in Hugging Face's layout: a published one, or that of a run's workdir.

    Args:
      folder: the encoder's, the run's, or a model's name on the Hugging Face hub.
      wanted: gives what no folder says (dropout, dtype, remat), and pooling and
        normalisation where the folder does not say them.

    Raises:
      UserError: no encoder is there, or the run has two.
    """
    folder = hub.folder_of(folder)
    own = folder / "encoder"
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
    tokenizer = text_encoding.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} ids and the model "
            f"{config.vocab_size}; put the model's own tokenizer there."
        )
    if side_files.compares_by(folder) not in (None, "dot", "dot_score") and not (
        config.normalise
    ):
        terminal.say(
            f"note: {folder} compares vectors by {side_files.compares_by(folder)}; "
            "here they are compared by their inner product, as they are"
        )
    return Tower(config, params, tokenizer)


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
    folder = cache.folder("tokenizers", key)

    def build(there: pathlib.Path) -> None:
        texts = (passage.joined for passage in passages)
        text_encoding.train(texts, vocab_size=vocab_size).save(there)
        cache.write_manifest(there)

    cache.read_manifest(cache.once(folder, build), "tokenizer of these passages")
    return text_encoding.load(folder)


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
    check_fields(text, "text")
    length = text.passage_length
    if tokenizer.limits.passage:
        length = min(length, tokenizer.limits.passage)
    encode_texts = functools.partial(tokenizer.encode, max_length=length)
    before = prompts(tokenizer, text).passage

    def rows(passages: Sequence[Passage]) -> list[np.ndarray]:
        join = text.titles == "join"
        texts = [before + (p.joined if join else p.text) for p in passages]
        if text.titles != "pair":
            return encode_texts(texts)
        # DPR's own code reads a passage without a title as one segment.
        titled = [i for i, p in enumerate(passages) if p.title.strip()]
        others = [i for i, p in enumerate(passages) if not p.title.strip()]
        made = encode_texts([texts[i] for i in others])
        made += encode_texts(
            [passages[i].title for i in titled], [texts[i] for i in titled]
        )
        order = np.argsort([*others, *titled], kind="stable").tolist()
        return [made[place] for place in order]

    return rows


def question_rows(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    length: int,
    text: TextConfig,
    *,
    keep: str = "first",
) -> list[np.ndarray]:
    """Questions -> the tokens of each, int32 [n], cut at ``length``."""
    if tokenizer.limits.question:
        length = min(length, tokenizer.limits.question)
    before = prompts(tokenizer, text).question
    return tokenizer.encode([before + x for x in texts], max_length=length, keep=keep)


def prompts(tokenizer: TextTokenizer, text: TextConfig) -> Prompts:
    """What is put before questions and passages: the folder's own, or as configured."""
    own = tokenizer.prompts
    question, passage = text.question_prompt, text.passage_prompt
    return Prompts(
        own.question if question == OWN else question,
        own.passage if passage == OWN else passage,
        own.other,
    )


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
