"""A reader with its tokenizer: how it starts, where it is kept, how it is opened."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import pretrained
from rlm_jax.data import names, reader_tokens
from rlm_jax.data.passages import Passages
from rlm_jax.data.reader_tokens import ReaderTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.methods import fid
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.models.reader import LONGEST_MATCH
from rlm_jax.models.t5 import T5Config
from rlm_jax.pretrained import folder as folders
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import encoder_towers
from rlm_jax.side_files import hub
from rlm_jax.storage import sealed

FOLDER = "reader"
"""Folder of a run's reader; transformers loads a T5 that does not copy."""

READS = "reads.json"
"""Beside it: which retriever's passages it was trained on, and how many."""

_READS = {
    **{"retriever": str, "num": int, "source": str},
    "passage_end": sealed.Maybe(bool),
}

T5_KINDS = ("t5", "rlm_jax_t5")
KINDS = (*T5_KINDS, pretrained.READER)
"""The ``model_type`` of what can read."""

_KEPT = ("dropout", "dtype", "remat")  # of the configuration, whatever a folder says


class ReaderModel(NamedTuple):
    """A reader that can be asked or trained."""

    config: FiDConfig
    params: Params
    tokenizer: ReaderTokenizer
    given: str  # fingerprint of what it starts from; empty: nothing

    @property
    def identity(self) -> dict[str, str]:
        """What its training depends on, for `runs.claim`."""
        prints = {"tokenizer": self.tokenizer.fingerprint}
        return prints | ({"reader": self.given} if self.given else {})


def start(
    config: FiDConfig,
    init_from: str,
    passages: Passages,
    *,
    vocab_size: int,
    seed: int,
    workdir: pathlib.Path,
    passage_end: bool = True,
) -> ReaderModel:
    """A reader as its training begins.

    Args:
      config: sizes, where there is nothing to start from.
      init_from: the folder of a T5, of an encoder, which gets a small decoder, or the
        workdir of a run that trained a reader; empty: from scratch, with a WordPiece
        vocabulary of the passages.
      vocab_size: of that vocabulary.
      seed: of what is not given.
      workdir: keeps the tokenizer.
      passage_end: of a T5; see `reader_tokens.ReaderTokenizer`.

    Raises:
      UserError: nothing that can read is in the folder, or it does not fit.
    """
    if init_from:
        return _given(config, hub.folder_of(init_from), seed, passage_end)
    made_here = encoder_towers.train_tokenizer(passages, vocab_size, workdir)
    tokenizer = reader_tokens.of(made_here)
    config = _fitted(config, tokenizer)
    return ReaderModel(config, _drawn(config, seed), tokenizer, "")


def _given(
    config: FiDConfig, folder: pathlib.Path, seed: int, passage_end: bool
) -> ReaderModel:
    if (folder / FOLDER / "config.json").is_file():
        folder = folder / FOLDER
    kind = folders.read_config(folder).get("model_type")
    if kind == pretrained.READER:
        theirs = load(folder, config)
        # What a question reads is the new run's to say.
        own = {name: getattr(config, name) for name in ("k", "vectors")}
        return theirs._replace(config=dataclasses.replace(theirs.config, **own))
    if kind in T5_KINDS:
        return _of_t5(config, folder, seed, passage_end)
    return _of_encoder(config, folder, seed)


def _of_t5(
    config: FiDConfig, folder: pathlib.Path, seed: int, passage_end: bool
) -> ReaderModel:
    legacy = {"legacy_cross_bias": True} if config.t5.legacy_cross_bias else {}
    t5, given = pretrained.load_t5(folder, **_changes(config.t5), **legacy)
    for name in ("cross_attention_every", "decoder_kv_heads"):
        wanted, theirs = getattr(config.t5, name), getattr(t5, name)
        if wanted not in (getattr(T5Config, name), theirs):
            raise UserError(
                f"The T5 in {folder} has {name}={theirs}, not {wanted}; leave "
                "method.t5 as it is, or train a reader from scratch."
            )
    config = dataclasses.replace(config, architecture="t5", t5=t5)
    params = {**_drawn(config, seed), "model": given} if config.copy else given
    tokenizer = reader_tokens.load(folder, passage_end=passage_end)
    return ReaderModel(config, params, tokenizer, encode_stream.fingerprint(given))


def _of_encoder(config: FiDConfig, folder: pathlib.Path, seed: int) -> ReaderModel:
    """An encoder under a decoder from nothing."""
    wanted = config.encoder_decoder
    tower = encoder_towers.load(folder, wanted.encoder)
    tokenizer = reader_tokens.of(tower.tokenizer)
    # What makes one vector of a text has no part in reading.
    encoder = dataclasses.replace(
        tower.config, pooling="mean", projection=0, normalise=False
    )
    small = dataclasses.replace(wanted, encoder=encoder)
    config = dataclasses.replace(
        config, architecture="encoder_decoder", encoder_decoder=small
    )
    config = _fitted(config, tokenizer)
    given = {k: x for k, x in tower.params.items() if k != "projection"}
    params = _drawn(config, seed)
    if config.copy:
        params = {**params, "model": {**params["model"], "encoder": given}}
    else:
        params = {**params, "encoder": given}
    return ReaderModel(config, params, tokenizer, encode_stream.fingerprint(given))


def _changes(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _KEPT}


def _fitted(config: FiDConfig, tokenizer: ReaderTokenizer) -> FiDConfig:
    """The sizes with the tokenizer's vocabulary and marks."""
    marks = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id}
    ids = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
    small, t5 = config.encoder_decoder, config.t5
    if small.encoder.vocab_size:
        ids = {"vocab_size": small.encoder.vocab_size, "pad_id": tokenizer.pad_id}
    return dataclasses.replace(
        config,
        t5=dataclasses.replace(t5, **ids, **marks),
        encoder_decoder=dataclasses.replace(
            small, encoder=dataclasses.replace(small.encoder, **ids), **marks
        ),
    )


def _drawn(config: FiDConfig, seed: int) -> Params:
    """Parameters from nothing, on the host."""
    init = jax.jit(fid.reader_of(config).init)
    return jax.device_get(init(jax.random.key(seed)))


def check_lengths(config: FiDConfig, passage_length: int) -> None:
    """Raises UserError where rows are longer than the encoder has positions."""
    most = config.encoder_decoder.encoder.max_length
    if config.architecture == "encoder_decoder" and passage_length > most:
        raise UserError(
            f"passage_length is {passage_length} and the encoder has {most} positions; "
            "choose at most so many."
        )


def save(workdir: pathlib.Path, model: ReaderModel, reads: Mapping[str, Any]) -> None:
    """Leaves a trained reader in the workdir's `FOLDER`, for `load`.

    Args:
      reads: "retriever", "num" and "source", the fingerprint, of what it was trained
        on: a reader loses on another's passages.
    """
    folder, config = workdir / FOLDER, model.config
    if config.architecture == "t5" and not config.copy:
        pretrained.save_t5(folder, config.t5, model.params)
    else:
        fields = dataclasses.asdict(config)
        pretrained.save_reader(folder, fields, model.params)
    model.tokenizer.save(folder)
    ends = {"passage_end": model.tokenizer.passage_end}
    sealed.write(folder / READS, {**names.resolved_fields(dict(reads)), **ends})


def reads(workdir: pathlib.Path) -> dict[str, Any]:
    """ "retriever", "num" and "source" of what a run's reader was trained on.

    Raises:
      UserError: the run has left no reader.
    """
    try:
        return _reads(workdir / FOLDER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"There is no reader in {workdir}; name the workdir of a run that trained "
            "one to its end."
        ) from error


def _reads(folder: pathlib.Path) -> dict[str, Any]:
    remedy = "run again what trained the reader, in the same workdir"
    return sealed.read(folder / READS, _READS, remedy=remedy, older=True)


def load(folder: pathlib.Path, wanted: FiDConfig | None = None) -> ReaderModel:
    """A reader that `save` left, or that was published: a T5 folder.

    Args:
      folder: of the reader, or the workdir of a run that trained one.
      wanted: gives what no folder says: dropout, dtype, remat, chunk.

    Raises:
      UserError: there is no reader.
    """
    if (folder / FOLDER / "config.json").is_file():
        folder = folder / FOLDER
    wanted = wanted or FiDConfig(
        t5=T5Config(dropout=0.0),
        encoder_decoder=EncoderDecoderConfig(EncoderConfig(dropout=0.0)),
    )
    kind = folders.read_config(folder).get("model_type")
    if kind in T5_KINDS:
        t5, params = pretrained.load_t5(folder, **_changes(wanted.t5))
        config = dataclasses.replace(wanted, architecture="t5", t5=t5, copy=False)
    elif kind == pretrained.READER:
        fields, params = pretrained.load_reader(folder)
        config = _rebuilt(fields, wanted)
    else:
        raise UserError(
            f"There is no reader in {folder}, but a {kind!r}; name the workdir of a "
            "run that trained one, or the folder of a T5."
        )
    reads = _reads(folder) if (folder / READS).exists() else {}
    tokenizer = reader_tokens.load(folder, passage_end=reads.get("passage_end", True))
    given = encode_stream.fingerprint(params)
    if config.copy:  # readers of before knew no matches
        none = np.zeros(LONGEST_MATCH + 1, np.float32)
        params = {"matches": none, **params}
    return ReaderModel(config, params, tokenizer, given)


def _rebuilt(fields: dict[str, Any], wanted: FiDConfig) -> FiDConfig:
    small = dict(fields["encoder_decoder"])
    ours = wanted.encoder_decoder.encoder
    encoder = EncoderConfig(**{**small.pop("encoder"), **_changes(ours)})
    return FiDConfig(
        **{
            **fields,
            "chunk": wanted.chunk,
            "t5": T5Config(**{**fields["t5"], **_changes(wanted.t5)}),
            "encoder_decoder": EncoderDecoderConfig(encoder=encoder, **small),
        }
    )
