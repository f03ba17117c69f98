"""A language model that is taken as it is: ours, a published one, or any function."""

import dataclasses
import functools
import importlib
import pathlib
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import pretrained, processes, terminal
from rlm_jax.data import tokenizers
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate.in_context import LogProbs
from rlm_jax.method import Params
from rlm_jax.methods import lm
from rlm_jax.models import scoring
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.recipes import language_model, runs
from rlm_jax.recipes.language_model import DataConfig, Text
from rlm_jax.recipes.runs import Run
from rlm_jax.retrieval import encode_stream
from rlm_jax.side_files import folders as side_files
from rlm_jax.side_files import hub
from rlm_jax.storage import atomic, gguf_files
from rlm_jax.train import checkpoint

CALL = "call:"
DECODER = "decoder"
"""Folder of a run's decoder in Hugging Face's layout."""

WITH_MEMORY = ("continuous_cache", "knn_lm", "trime")
"""Systems whose run is more than its decoder: `memory_generation` continues texts."""


class Decoding(NamedTuple):
    """A decoder that can be run in every way, not only asked."""

    config: DecoderConfig
    params: Params


class BaseLM(NamedTuple):
    """A language model with its tokenizer."""

    log_probs: LogProbs
    tokenizer: Tokenizer
    fingerprint: str
    decoding: Decoding | None  # of a function nothing more is known
    length: int = 0  # tokens of the rows it was trained on; 0: not known


def load(
    name: str, data: DataConfig, *, dtype: str = "float32", with_memory: bool = False
) -> BaseLM:
    """The model of that name.

    Args:
      name: the workdir of a run whose decoder was trained; a folder in Hugging Face's
        layout with a tokenizer.json, or its name on their hub; a GGUF file; or
        call:MODULE:FUNCTION, a `LogProbs`.
      data: its tokenizer is a function's; the others bring theirs.
      with_memory: whether the caller takes the memory of a run too.

    Raises:
      UserError: there is nothing of that name, or nothing that fits.
    """
    if name.startswith(CALL):
        return _function(name, data)
    if gguf_files.is_gguf(name):
        file = gguf_files.read(name)
        return _published(file, tokenizers.read_gguf(file), name, dtype)
    folder = hub.folder_of(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"There is no language model in {name}; name the workdir of a run, a "
            "folder with config.json and model.safetensors, a .gguf file, or "
            "call:MODULE:FUNCTION."
        )
    if (folder / runs.CONFIG).is_file() and "system" in runs.stored(folder):
        return _trained(folder, dtype, with_memory)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"The folder {folder} has neither checkpoints of a run nor a "
            "model.safetensors; name one that a decoder was trained or published in."
        )
    tokenizer = tokenizers.read_hugging_face(folder / "tokenizer.json")
    tokenizer = tokenizer.ending_with(_end_ids(folder, tokenizer))
    return _published(folder, tokenizer, name, dtype)


def _published(source: Any, tokenizer: Tokenizer, name: str, dtype: str) -> BaseLM:
    config, params = pretrained.load_decoder(source, dtype=dtype)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer in {name} has {tokenizer.vocab_size} ids and the model "
            f"{config.vocab_size}; put the model's own tokenizer.json there."
        )
    return of_decoder(config, params, tokenizer, length=config.max_length)


def _end_ids(folder: pathlib.Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a text: by the model's files, else by its tokenizer's."""
    ids = side_files.end_ids(folder)
    if ids:
        return ids
    name = side_files.mark_names(folder).get("eos")
    id_ = None if name is None else tokenizers.id_of(tokenizer, name)
    return () if id_ is None else (id_,)


def to_start_from(name: str, data: DataConfig, decoder: DecoderConfig) -> BaseLM:
    """A decoder whose training goes on; dropout, dtype and remat are ``decoder``'s.

    Raises:
      UserError: as `load`, or it is a function, which has no parameters.
    """
    given = to_take(name, data, decoder.dtype)
    assert given.decoding is not None
    config, params = given.decoding
    config = dataclasses.replace(config, dropout=decoder.dropout, remat=decoder.remat)
    return given._replace(decoding=Decoding(config, params))


def to_take(name: str, data: DataConfig, dtype: str) -> BaseLM:
    """A language model whose decoder is run as it is.

    Raises:
      UserError: as `load`, or it is a function, which has no parameters.
    """
    given = load(name, data, dtype=dtype)
    if given.decoding is None:
        raise UserError(
            f"{name} is a function, which has no decoder to begin with; name a run's "
            "workdir or a Hugging Face folder."
        )
    return given


def of_decoder(
    config: DecoderConfig, params: Params, tokenizer: Tokenizer, *, length: int = 0
) -> BaseLM:
    """A decoder on all local devices, rows spread over them; length as of `BaseLM`.

    What rows begin with in common, as a document, is computed once.
    """
    run, run_shared = scoring.last_log_probs(config), scoring.shared_log_probs(config)
    # Who generates has the parameters on the device already.
    held = functools.cache(lambda: processes.replicated(params))

    def log_probs(tokens: np.ndarray, lengths: np.ndarray, last: int) -> np.ndarray:
        more = processes.whole_rows(len(tokens)) - len(tokens)
        tokens, lengths = (
            np.concatenate([x, np.repeat(x[:1], more, 0)]) for x in (tokens, lengths)
        )
        shared = scoring.shared_prefixes(tokens, lengths, last)
        if shared is None:
            rows = run(held(), *processes.spread((tokens, lengths)), last)
        else:
            prefixes, *rest = shared
            rest = processes.spread(tuple(rest))
            rows = run_shared(held(), processes.replicated(prefixes), *rest, last)
        return np.asarray(rows)[: len(rows) - more]

    print_ = encode_stream.fingerprint(params)
    return BaseLM(log_probs, tokenizer, print_, Decoding(config, params), length)


def _trained(workdir: pathlib.Path, dtype: str, with_memory: bool) -> BaseLM:
    try:
        stored = runs.stored(workdir)
        data = DataConfig(**stored["data"])
    except (OSError, KeyError, TypeError) as error:
        raise UserError(
            f"The config.json in {workdir} is not that of a language model's run "
            f"({error}); name a run of experiments.lm, .knn_lm or .trime."
        ) from error
    system = stored.get("system")
    if system in ("retro", "rpt"):
        raise UserError(
            f"The run in {workdir} is one of {system.upper()}, which does not read "
            "documents as text; name one of a plain decoder, or continue a text with "
            f"experiments.{system} --config.prompt."
        )
    if system in WITH_MEMORY and not with_memory:
        terminal.say(
            f"note: of the run of {system} in {workdir} the decoder is taken, without "
            "its memory (experiments.generate --preset memory continues texts with it)"
        )
    taken = stored.get("params_from") or ""
    of_another = taken and pathlib.Path(taken).resolve() != workdir.resolve()
    if of_another and checkpoint.latest_step(workdir / "checkpoints") == 0:
        return _taken(workdir, taken, stored, dtype)
    own = workdir / runs.TOKENIZER
    if own.exists():
        tokenizer = tokenizers.load(own)
    else:  # of a version that did not keep it
        text = language_model.load_text(data)
        runs.configuration_of(workdir, text.fingerprint)
        tokenizer = text.tokenizer
    runs.require(workdir, stored, {"method": {"decoder": {"vocab_size": int}}})
    size = stored["method"]["decoder"]["vocab_size"] or tokenizer.vocab_size
    config = dataclasses.replace(
        runs.group(workdir, stored["method"], "decoder", DecoderConfig),
        **{"vocab_size": size, "dtype": dtype, "dropout": 0.0},
    )
    params = checkpoint.load_params(workdir)
    return of_decoder(config, params, tokenizer, length=data.length)


def _taken(
    workdir: pathlib.Path, name: str, stored: dict[str, Any], dtype: str
) -> BaseLM:
    """The decoder of a run that trained none, but took that of another."""
    given = load(name, DataConfig(), dtype=dtype)
    if given.fingerprint != stored.get(runs.IDENTITY, {}).get("model"):
        raise UserError(
            f"The decoder in {name} is not the one that the run in {workdir} took; put "
            "it back, or run that again."
        )
    return given


def _function(name: str, data: DataConfig) -> BaseLM:
    module, _, function = name.removeprefix(CALL).partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"{name} names no function ({type(error).__name__}: {error}); give "
            "call:MODULE:FUNCTION, with the module on PYTHONPATH."
        ) from error
    if not callable(found):
        raise UserError(f"{name} is no function; give one.")
    tokenizer = language_model.load_text(data).tokenizer
    return BaseLM(found, tokenizer, name, None)


class Start(NamedTuple):
    """What a run of a language model begins with."""

    config: Any  # with the corpus that is read, and the given model's decoder
    text: Text
    given: BaseLM | None  # the model that the run takes or starts from

    def claim(
        self, run: Run, *, same: tuple[str, ...], unused: tuple[str, ...] = ()
    ) -> Any:
        """Makes the workdir this run's, with its tokenizer; see `runs.claim`.

        Returns:
          the configuration with the tokenizer's name and the size of the vocabulary.
        """
        tokenizer = self.text.tokenizer
        identity = {"tokenizer": tokenizer.fingerprint}
        if self.given is not None:
            identity["model"] = self.given.fingerprint
        runs.claim(
            run,
            self.config,
            self.text.fingerprint,
            same=same,
            unused=unused,
            identity=identity,
        )
        language_model.keep_tokenizer(run, tokenizer)
        config = self.config
        if self.given is not None:
            data = dataclasses.replace(
                config.data, tokenizer=tokenizer.kind, vocab_size=tokenizer.vocab_size
            )
            config = dataclasses.replace(config, data=data)
        if config.method.decoder.vocab_size:
            return config
        return language_model.with_vocabulary(config, self.text)


def start(config: Any, run: Run, given: BaseLM | None, source: str) -> Start:
    """The text of a run, in the tokens of the model it is given or in its own.

    Args:
      config: of a run, with ``data`` and ``method.decoder``.
      given: the language model that the run takes or starts from; None: it trains one
        from nothing, or from the checkpoint of ``source``.
      source: workdir or folder that the run starts from, whose text is the run's where
        ``config.data`` names none; may be empty.
    """
    data = language_model.inherited(config.data, source)
    config = dataclasses.replace(config, data=data)
    if given is None:
        text = language_model.load_text(data, run.workdir)
        language_model.check_split(text, "test", data.corpus)
        return Start(config, text, None)
    if given.decoding is not None:
        decoder = given.decoding.config
        if decoder.vocab_size == given.tokenizer.vocab_size:
            decoder = dataclasses.replace(decoder, vocab_size=0)  # the tokenizer's
        method = dataclasses.replace(config.method, decoder=decoder)
        config = dataclasses.replace(config, method=method)
    text = language_model.in_tokens_of(given.tokenizer, data)
    language_model.check_split(text, "test", data.corpus)
    return Start(config, text, given)


def start_plain(config: Any, run: Run) -> Start:
    """`start` of a run that takes the decoder of ``params_from``, or trains its own."""
    given = None
    if config.params_from:
        given = to_take(config.params_from, config.data, config.method.decoder.dtype)
    return start(config, run, given, config.params_from or config.continue_from)


def trained_or_given(start: Start, config: Any, run: Run) -> Params:
    """The parameters of a plain decoder: those given, or trained here and published.

    Of several processes the first alone returns.
    """
    if start.given is not None and start.given.decoding is not None:
        runs.leave_to_first()
        return start.given.decoding.params
    decoder = config.method.decoder
    params = language_model.train(
        lm.lm(lm.LMConfig(decoder)), config, start.text, run, steps=config.train.steps
    )
    runs.leave_to_first()
    publish(run, decoder, params, start.text.tokenizer)
    return params


def publish(
    run: Run, config: DecoderConfig, params: Params, tokenizer: Tokenizer
) -> None:
    """Leaves a trained decoder in ``decoder/``, which transformers loads.

    Neither an adaptive vocabulary nor sinusoidal positions nor a vocabulary of words
    has a place in that layout; such a model is loaded from its checkpoint.
    """
    content = tokenizers.hugging_face_content(tokenizer)
    if content is None or not pretrained.has_layout(config):
        terminal.say(
            f"note: {run.workdir / DECODER} is not written, as Hugging Face's layout "
            "has no place for this decoder or its tokenizer"
        )
        return
    folder = run.workdir / DECODER
    pretrained.save_decoder(folder, config, params, end_ids=tokenizer.end_ids)
    atomic.write_json(folder / "tokenizer.json", content, indent=None)
