"""BERT, RoBERTa and DPR's encoders, from and to Hugging Face's layout.

A folder of sentence-transformers also says how its vectors are pooled and whether they
are normalised; what is saved here says it again, so that sentence-transformers can load
it. DPR's encoders are BERT with the vector of [CLS] and no pooler.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig, MaskedLM, check, embedder
from rlm_jax.pretrained import folder as folders
from rlm_jax.pretrained.folder import Entry, concatenated, same, transposed
from rlm_jax.side_files import folders as side_files
from rlm_jax.side_files import keys

Params = Any

_PREFIXES = (
    "",
    "bert.",
    "roberta.",
    "question_encoder.bert_model.",
    "ctx_encoder.bert_model.",
)


class _Tokenizer(Protocol):
    def save(self, folder: Any, /) -> None: ...


def load_encoder(
    folder: str | os.PathLike, *, otherwise: Mapping[str, Any] = {}, **changes: Any
) -> tuple[EncoderConfig, Params]:
    """An encoder that makes one vector a text.

    Args:
      folder: config.json and model.safetensors (or its shards) of a BERT, RoBERTa or
        DPR encoder; modules.json and 1_Pooling of sentence-transformers where there
        are.
      otherwise: pooling and normalise for a folder that does not say: a plain BERT or
        RoBERTa; by default the mean, not normalised.
      **changes: fields of the configuration that shall differ, as ``pooling="cls"``.

    Returns:
      (configuration, parameters as nested dicts of float32).

    Raises:
      UserError: no such folder, another architecture, or weights that do not fit.
    """
    whole, folder = folder, side_files.transformer(folder)
    published = folders.read_config(folder)
    told = _pooling(whole, published)
    told = (told or dict(otherwise)) | changes
    config = dataclasses.replace(_config(published, folder), **told)
    folders.check_config(check, config, folder)
    arrays = _read_arrays(folder)
    prefix = _prefix(arrays, folder)
    entries = _encoder_entries(config, prefix)
    if config.projection:
        entries += _projection_entries(prefix)
    shapes = jax.eval_shape(embedder(config).init, jax.random.key(0))
    params = folders.to_params(arrays, entries, shapes, ignored=_is_head, where=folder)
    return config, params


def save_encoder(
    folder: str | os.PathLike,
    config: EncoderConfig,
    params: Params,
    tokenizer: _Tokenizer | None = None,
) -> None:
    """Writes an encoder as Hugging Face's BertModel or RobertaModel, with what
    sentence-transformers wants to know.

    Raises:
      UserError: it has a projection, for which that layout has no place, or the folder
        cannot be written.
    """
    check_layout(config)
    folder = Path(folder)
    arrays = folders.from_params(params, _encoder_entries(config, ""))
    folders.write(folder, _published(config), arrays)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] * config.normalise
    folders.write_json(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (path, kind) in enumerate(modules)
        ],
    )
    folders.write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.width,
            "pooling_mode_cls_token": config.pooling == "cls",
            "pooling_mode_mean_tokens": config.pooling == "mean",
        },
    )
    if config.normalise:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)


def check_layout(config: EncoderConfig) -> None:
    """Raises UserError for an encoder that `save_encoder` has no place for."""
    check(config)
    if config.projection:
        raise UserError(
            "An encoder with a projection has no place in Hugging Face's BERT layout; "
            "train it with projection=0 to save it there."
        )


def load_masked_lm(
    folder: str | os.PathLike, *, new_head: int | None = None
) -> tuple[EncoderConfig, Params]:
    """A masked language model (RoBERTa's or BERT's head), for `models.MaskedLM`.

    Args:
      folder: in Hugging Face's layout.
      new_head: a seed; where the folder holds an encoder alone, as a sentence
        encoder's does, its head is drawn from it. None: there has to be one.

    Raises:
      UserError: as `load_encoder`, or there is no such head.
    """
    config = _config(folders.read_config(folder), folder)
    folders.check_config(check, config, folder)
    arrays = _read_arrays(folder)
    prefix = _prefix(arrays, folder)
    entries = [
        entry._replace(path=f"encoder/{entry.path}")
        for entry in _encoder_entries(config, prefix)
    ]
    if prefix == "roberta.":
        dense, norm, bias = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    else:
        transform = "cls.predictions.transform"
        dense, norm = f"{transform}.dense", f"{transform}.LayerNorm"
        bias = "cls.predictions.bias"
    head = [
        transposed("dense/kernel", f"{dense}.weight"),
        same("dense/bias", f"{dense}.bias"),
        *_norm_entries("norm", norm),
        same("bias", bias),
    ]
    module, one = MaskedLM(config), jnp.ones((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), one, one)["params"]
    drawn = {}
    # Where some of a head is there, the folder is damaged.
    if new_head is not None and not any(set(e.names) & set(arrays) for e in head):
        drawn = jax.jit(module.init)(jax.random.key(new_head), one, one)["params"]
        head, shapes = [], {"encoder": shapes["encoder"]}
    params = folders.to_params(
        arrays, entries + head, shapes, ignored=_is_head, where=folder
    )
    return config, {**jax.device_get(drawn), **params}


def _config(published: dict[str, Any], folder: str | os.PathLike) -> EncoderConfig:
    kind = published.get("model_type")
    if kind not in ("bert", "roberta", "xlm-roberta", "dpr"):
        raise UserError(
            f"The model in {folder} is a {kind!r}; encoders can be bert, roberta, "
            "xlm-roberta or dpr."
        )
    keys.check(published, "config.json of bert", Path(folder, "config.json"))
    if published.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"The encoder in {folder} has the activation {published['hidden_act']!r}; "
            "only 'gelu' can be loaded."
        )
    if published.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"The encoder in {folder} has {published['position_embedding_type']!r} "
            "positions; only absolute ones can be loaded."
        )
    pad_id = published.get("pad_token_id", 0)
    first = pad_id + 1 if "roberta" in kind else 0
    try:
        return EncoderConfig(
            vocab_size=published["vocab_size"],
            num_layers=published["num_hidden_layers"],
            width=published["hidden_size"],
            num_heads=published["num_attention_heads"],
            feed_forward_width=published["intermediate_size"],
            max_length=published["max_position_embeddings"] - first,
            num_types=published.get("type_vocab_size", 2),
            first_position=first,
            pad_id=pad_id,
            norm_epsilon=published.get("layer_norm_eps", 1e-12),
            projection=published.get("projection_dim", 0) if kind == "dpr" else 0,
            dropout=published.get("hidden_dropout_prob", 0.1),
        )
    except KeyError as error:
        raise UserError(
            f"The config.json in {folder} lacks {error}; copy or download it again."
        ) from error


def _published(config: EncoderConfig) -> dict[str, Any]:
    roberta = config.first_position > 0
    return {
        "architectures": ["RobertaModel" if roberta else "BertModel"],
        "model_type": "roberta" if roberta else "bert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length + config.first_position,
        "type_vocab_size": config.num_types,
        "pad_token_id": config.pad_id,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _read_arrays(folder: str | os.PathLike) -> folders.Arrays:
    """The folder's arrays; early checkpoints have TensorFlow's names for norms."""
    arrays = {}
    for name, x in folders.read_arrays(folder).items():
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(f"LayerNorm{old}"):
                name = name.removesuffix(old) + new
        arrays[name] = x
    return arrays


def _pooling(folder: str | os.PathLike, published: Mapping[str, Any]) -> dict[str, Any]:
    """How vectors are made of hidden states; nothing where no file says it."""
    told = side_files.pooling(folder)
    if told is not None:
        return told
    return {"pooling": "cls"} if published.get("model_type") == "dpr" else {}


def _prefix(arrays: folders.Arrays, folder: str | os.PathLike) -> str:
    for prefix in _PREFIXES:
        if f"{prefix}embeddings.word_embeddings.weight" in arrays:
            return prefix
    raise UserError(
        f"The weights in {folder} hold no 'embeddings.word_embeddings.weight'; they "
        "are not of a BERT, RoBERTa or DPR encoder."
    )


def _is_head(name: str) -> bool:
    """Poolers, heads and buffers, which an encoder has no use for."""
    heads = ("pooler.", "cls.", "lm_head.", "classifier.")
    inner = name
    for prefix in _PREFIXES[1:]:
        inner = inner.removeprefix(prefix)
    return inner.startswith(heads) or inner.endswith("position_ids")


def _encoder_entries(config: EncoderConfig, prefix: str) -> list[Entry]:
    embeddings = f"{prefix}embeddings."
    entries = [
        same("tokens", f"{embeddings}word_embeddings.weight"),
        same("positions", f"{embeddings}position_embeddings.weight"),
        same("types", f"{embeddings}token_type_embeddings.weight"),
        *_norm_entries("norm", f"{embeddings}LayerNorm"),
    ]
    for i in range(config.num_layers):
        ours, theirs = f"block_{i}", f"{prefix}encoder.layer.{i}"
        attention = f"{theirs}.attention.self"
        qkv = [f"{attention}.{name}" for name in ("query", "key", "value")]
        entries += [
            transposed(f"{ours}/attention/qkv/kernel", *(f"{n}.weight" for n in qkv)),
            concatenated(f"{ours}/attention/qkv/bias", *(f"{n}.bias" for n in qkv)),
        ]
        for path, name in (
            ("attention/out", "attention.output.dense"),
            ("feed_forward/in", "intermediate.dense"),
            ("feed_forward/out", "output.dense"),
        ):
            entries += [
                transposed(f"{ours}/{path}/kernel", f"{theirs}.{name}.weight"),
                same(f"{ours}/{path}/bias", f"{theirs}.{name}.bias"),
            ]
        entries += _norm_entries(
            f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm"
        )
        entries += _norm_entries(
            f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm"
        )
    return entries


def _projection_entries(prefix: str) -> list[Entry]:
    name = f"{prefix.removesuffix('bert_model.')}encode_proj"
    return [
        transposed("projection/kernel", f"{name}.weight"),
        same("projection/bias", f"{name}.bias"),
    ]


def _norm_entries(path: str, name: str) -> list[Entry]:
    return [
        same(f"{path}/scale", f"{name}.weight"),
        same(f"{path}/bias", f"{name}.bias"),
    ]
