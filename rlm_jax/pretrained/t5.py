"""T5 (v1.0, v1.1, LM-adapted, Flan), from and to Hugging Face's layout.

What tells v1.1 from v1.0 are the weights' names: published configurations name the
wrong activation now and then.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.models.seq2seq import seq2seq
from rlm_jax.models.t5 import T5Config, check
from rlm_jax.pretrained import folder as folders
from rlm_jax.pretrained.folder import Entry, same, side_by_side, transposed
from rlm_jax.side_files import keys

Params = Any

_OURS = "rlm_jax_t5"
"""The ``model_type`` of a T5 that transformers does not have; it refuses the name,
where it would otherwise fill in new weights."""

_OWN = ("cross_attention_every", "decoder_kv_heads", "legacy_cross_bias")
"""The fields that make it one, in config.json by their own names."""

_SHARED, _HEAD = "shared.weight", "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_GATED = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"

_ACTIVATIONS = ("relu", "gated-gelu", "gelu_new", "gated-gelu_new")


def load_t5(folder: str | os.PathLike, **changes: Any) -> tuple[T5Config, Params]:
    """An encoder and decoder for conditional generation.

    Args:
      folder: config.json and model.safetensors (or its shards) of a T5.
      **changes: fields of the configuration that shall differ, as ``dtype="bfloat16"``.
        ``legacy_cross_bias=True`` reads the relative bias of cross-attention that
        checkpoints of transformers 3.0.2 hold; otherwise it is left out, as in every
        later version.

    Returns:
      (configuration, parameters as nested dicts of float32).

    Raises:
      UserError: no such folder, another architecture or a variant of it that T5Config
        does not have, or weights that do not fit.
    """
    published = folders.read_config(folder)
    kind = published.get("model_type")
    if kind not in ("t5", _OURS):
        raise UserError(
            f"The model in {folder} is a {kind!r}; only t5 (v1.0, v1.1, LM-adapted, "
            "Flan) can be loaded as one."
        )
    keys.check(published, "config.json of t5", Path(folder, "config.json"))
    arrays = folders.read_arrays(folder)
    config = _config(published, folder, gated=_GATED in arrays)
    try:
        config = dataclasses.replace(config, **changes)
    except TypeError as error:
        raise UserError(f"T5Config has no such field: {error}.") from error
    folders.check_config(check, config, folder)
    arrays = _joined_copies(arrays, config, folder)
    shapes = jax.eval_shape(seq2seq(config).init, jax.random.key(0))
    params = folders.to_params(
        arrays, _entries(config), shapes, ignored=_is_copy, where=folder
    )
    return config, params


def save_t5(folder: str | os.PathLike, config: T5Config, params: Params) -> None:
    """Writes a T5 as Hugging Face's T5ForConditionalGeneration.

    One with ``cross_attention_every``, ``decoder_kv_heads`` or ``legacy_cross_bias``
    has no place there: it is written under a ``model_type`` of ours, which `load_t5`
    alone reads.

    Raises:
      UserError: the folder cannot be written.
    """
    check(config)
    arrays = folders.from_params(params, _entries(config))
    folders.write(folder, _published(config), arrays)


def _config(
    published: Mapping[str, Any], folder: str | os.PathLike, gated: bool
) -> T5Config:
    activation = published.get("feed_forward_proj", "relu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"The T5 in {folder} has the activation {activation!r}; only 'relu' and "
            "'gated-gelu' can be loaded."
        )
    own = {name: published[name] for name in _OWN if name in published}
    plain = published["model_type"] == "t5"
    try:
        return T5Config(
            vocab_size=published["vocab_size"],
            width=published["d_model"],
            num_layers=published["num_layers"],
            num_decoder_layers=published.get("num_decoder_layers")
            or published["num_layers"],
            num_heads=published["num_heads"],
            head_width=published["d_kv"],
            feed_forward_width=published["d_ff"],
            activation="gated_gelu" if gated else "relu",
            tied=_tied(published),
            num_buckets=published.get("relative_attention_num_buckets", 32),
            max_distance=published.get("relative_attention_max_distance", 128),
            norm_epsilon=published.get("layer_norm_epsilon", 1e-6),
            dropout=published.get("dropout_rate", 0.1),
            pad_id=published.get("pad_token_id", 0),
            end_id=published.get("eos_token_id", 1),
            start_id=published.get("decoder_start_token_id", 0),
            **({} if plain else own),
        )
    except KeyError as error:
        raise UserError(
            f"The config.json in {folder} lacks {error}; copy or download it again."
        ) from error


def _tied(published: Mapping[str, Any]) -> bool:
    """Whether this is v1.0's head. Transformers 5 calls every head tied when it writes
    a folder, and says by another field that one is v1.1's."""
    tied = published.get("tie_word_embeddings", True)
    return bool(published.get("scale_decoder_outputs", tied))


def _published(config: T5Config) -> dict[str, Any]:
    c = config
    own = {name: getattr(c, name) for name in _OWN}
    plain = all(
        own[f.name] == f.default for f in dataclasses.fields(c) if f.name in own
    )
    gated = c.activation == "gated_gelu"
    return {
        "architectures": ["T5ForConditionalGeneration"] if plain else [],
        "model_type": "t5" if plain else _OURS,
        "is_encoder_decoder": True,
        "vocab_size": c.vocab_size,
        "d_model": c.width,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.num_decoder_layers,
        "num_heads": c.num_heads,
        "d_kv": c.head_width,
        "d_ff": c.feed_forward_width,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": c.tied,
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        "dropout_rate": c.dropout,
        "pad_token_id": c.pad_id,
        "eos_token_id": c.end_id,
        "decoder_start_token_id": c.start_id,
        **({} if plain else own),
    }


def _joined_copies(
    arrays: folders.Arrays, config: T5Config, folder: str | os.PathLike
) -> folders.Arrays:
    """The arrays with one embedding, and a head where the configuration has one.

    The embedding may be stored three times over, or under any of its names; a head that
    is not tied may be left out where it equals the embedding.
    """
    arrays = dict(arrays)
    copies = (*_COPIES, _HEAD) if config.tied else _COPIES
    stored = [name for name in (_SHARED, *copies) if name in arrays]
    for name in stored[1:]:
        if not np.array_equal(arrays[name], arrays[stored[0]]):
            raise UserError(
                f"{name} and {stored[0]} in {folder} differ, where its config.json "
                "says that they are one embedding; say there tie_word_embeddings=false "
                "if it is a T5 v1.1, whose head is not tied."
            )
    if stored:
        arrays[_SHARED] = arrays[stored[0]]
        if not config.tied:
            arrays.setdefault(_HEAD, arrays[_SHARED])
    return arrays


def _is_copy(name: str) -> bool:
    """The embedding's copies, and a bias that transformers dropped after 3.0.2."""
    return name in (*_COPIES, _HEAD, _CROSS_BIAS)


def _entries(config: T5Config) -> list[Entry]:
    c = config
    entries = [
        same("embedding", _SHARED),
        *_stack("encoder", c, c.num_layers, c.num_heads),
        *_stack("decoder", c, c.num_decoder_layers, c.decoder_kv_heads or c.num_heads),
    ]
    if c.legacy_cross_bias:
        entries.append(same("decoder/cross_bias", _CROSS_BIAS))
    if not c.tied:
        entries.append(transposed("head", _HEAD))
    return entries


def _stack(
    stack: str, config: T5Config, num_layers: int, num_kv_heads: int
) -> list[Entry]:
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    entries = [
        same(f"{stack}/relative_bias", bias),
        same(f"{stack}/norm/scale", f"{stack}.final_layer_norm.weight"),
    ]
    wi = ("wi_0", "wi_1") if config.activation == "gated_gelu" else ("wi",)
    heads = (config.num_heads, num_kv_heads, num_kv_heads)
    widths = [n * config.head_width for n in heads]
    every = config.cross_attention_every
    for i in range(num_layers):
        ours, theirs = f"{stack}/block_{i}", f"{stack}.block.{i}.layer"
        q, k, v, o = (f"{theirs}.0.SelfAttention.{name}.weight" for name in "qkvo")
        entries += [
            same(f"{ours}/attention_norm/scale", f"{theirs}.0.layer_norm.weight"),
            side_by_side(f"{ours}/attention/qkv/kernel", (q, k, v), widths),
            transposed(f"{ours}/attention/out/kernel", o),
        ]
        if stack == "decoder" and (i + 1) % every == 0:
            cross = f"{theirs}.1.EncDecAttention"
            q, k, v, o = (f"{cross}.{name}.weight" for name in "qkvo")
            entries += [
                same(f"{ours}/cross_norm/scale", f"{theirs}.1.layer_norm.weight"),
                transposed(f"{ours}/cross/q/kernel", q),
                transposed(f"{ours}/cross/kv/kernel", k, v),
                transposed(f"{ours}/cross/out/kernel", o),
            ]
        last = f"{theirs}.{1 if stack == 'encoder' else 2}"
        dense = f"{last}.DenseReluDense"
        entries += [
            same(f"{ours}/feed_forward_norm/scale", f"{last}.layer_norm.weight"),
            transposed(
                f"{ours}/feed_forward/into/kernel", *(f"{dense}.{n}.weight" for n in wi)
            ),
            transposed(f"{ours}/feed_forward/out/kernel", f"{dense}.wo.weight"),
        ]
    return entries
