"""GPT-2 and the Llama family, from and to Hugging Face's layout, and from GGUF files.

Of the Llama family: Llama (1 to 3), those that differ from it by name, as Mistral
without its sliding window, and Qwen 2, which has biases of queries, keys and values.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Decoder, DecoderConfig, check, gpt2, modern
from rlm_jax.pretrained import folder as folders
from rlm_jax.pretrained import gguf_layout
from rlm_jax.pretrained.folder import (
    Entry,
    concatenated,
    same,
    side_by_side,
    transposed,
)
from rlm_jax.side_files import keys
from rlm_jax.storage import gguf_files
from rlm_jax.storage.gguf_files import GGUF

Params = Any

_LLAMAS = ("llama", "mistral", "qwen2")
KINDS = ("gpt2", *_LLAMAS)
"""The ``model_type`` of the decoders that can be loaded."""

_LLAMA3 = (  # the names of `layers.rotary_rates`' scaling
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def load_decoder(
    folder: str | os.PathLike | GGUF, **changes: Any
) -> tuple[DecoderConfig, Params]:
    """A causal language model.

    Args:
      folder: config.json and model.safetensors (or its shards) of GPT-2 or of a model
        of the Llama family; or a GGUF file of Llama or Qwen 2, named or open.
      **changes: fields of the configuration that shall differ, as ``dtype="bfloat16"``.

    Returns:
      (configuration, parameters as nested dicts of float32).

    Raises:
      UserError: no such folder, another architecture or a variant of it that the
        decoder does not have, or weights that do not fit.
    """
    file = None
    if isinstance(folder, GGUF):
        file, folder = folder, folder.path
    elif gguf_files.is_gguf(folder):
        file = gguf_files.read(folder)
    published = gguf_layout.published(file) if file else folders.read_config(folder)
    kind = published.get("model_type")
    if kind not in KINDS:
        raise UserError(
            f"The model in {folder} is a {kind!r}; decoders can be "
            f"{', '.join(KINDS[:-1])} or {KINDS[-1]}."
        )
    family = "gpt2" if kind == "gpt2" else "llama"
    if file is None:
        keys.check(published, f"config.json of {family}", Path(folder, "config.json"))
    try:
        read = _gpt2_config if kind == "gpt2" else _llama_config
        config = replace(read(published, folder), **changes)
    except KeyError as error:
        raise UserError(
            f"The config.json in {folder} lacks {error}; copy or download it again."
        ) from error
    folders.check_config(check, config, folder)
    arrays: Mapping[str, np.ndarray]
    if file:
        arrays = gguf_layout.Arrays(file, published)
    else:
        # A base model's names have no prefix; a tied head may be stored all the same.
        prefix = "transformer." if kind == "gpt2" else "model."
        stored = folders.read_arrays(folder)
        arrays = {name.removeprefix(prefix): x for name, x in stored.items()}
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda key: Decoder(config).init(key, tokens, tokens, method="score"),
        jax.random.key(0),
    )
    params = folders.to_params(
        arrays,
        _entries(config),
        shapes["params"],
        ignored=_is_buffer,
        where=folder,
    )
    return config, params


def has_layout(config: DecoderConfig) -> bool:
    """Whether `save_decoder` can write such a decoder."""
    return _is_gpt2(config) or _is_llama(config)


def save_decoder(
    folder: str | os.PathLike,
    config: DecoderConfig,
    params: Params,
    *,
    end_ids: Sequence[int] = (),
) -> None:
    """Writes a decoder as Hugging Face's GPT2LMHeadModel or LlamaForCausalLM.

    ``end_ids`` are those that end a text; None of them: transformers is told so.

    Raises:
      UserError: it is neither of the two (`decoder.gpt2`, `decoder.modern`), or the
        folder cannot be written.
    """
    check(config)
    if _is_gpt2(config):
        published, prefix = _published_gpt2(config), "transformer."
    elif _is_llama(config):
        published, prefix = _published_llama(config), "model."
    else:
        raise UserError(
            "Only a decoder like GPT-2 or Llama with a full vocabulary has a place in "
            "Hugging Face's layout; build it by decoder.gpt2 or decoder.modern, "
            "without cutoffs."
        )
    arrays = folders.from_params(params, _entries(config))
    named = {k if k == _HEAD else f"{prefix}{k}": x for k, x in arrays.items()}
    ends = list(end_ids)
    published["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    published["bos_token_id"] = None
    folders.write(folder, published, named)


_HEAD = "lm_head.weight"


def _gpt2_config(published: dict[str, Any], folder: str | os.PathLike) -> DecoderConfig:
    activation = published.get("activation_function", "gelu_new")
    _require(
        published,
        folder,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    if activation not in ("gelu_new", "gelu_pytorch_tanh", "relu"):
        raise UserError(
            f"The decoder in {folder} has the activation {activation!r}; only "
            "'gelu_new' and 'relu' can be loaded."
        )
    width = published["n_embd"]
    return gpt2(
        vocab_size=published["vocab_size"],
        num_layers=published["n_layer"],
        width=width,
        num_heads=published["n_head"],
        feed_forward_width=published.get("n_inner") or 4 * width,
        max_length=published["n_positions"],
        activation="relu" if activation == "relu" else "gelu",
        norm_epsilon=published.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def _llama_config(
    published: dict[str, Any], folder: str | os.PathLike
) -> DecoderConfig:
    _require(
        published,
        folder,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        partial_rotary_factor=1.0,
    )
    qwen = published["model_type"] == "qwen2"
    # Qwen 2 names a window that it does not use.
    window = {"use_sliding_window": False} if qwen else {"sliding_window": None}
    _require(published, folder, **window)
    # Older files have rope_theta and rope_scaling, newer ones both in rope_parameters;
    # of a file with both transformers, too, takes the former's scaling.
    rope = published.get("rope_parameters") or {}
    base = rope.get("rope_theta") or published.get("rope_theta") or 10000.0
    keys.check_kind("rope_theta", base, Path(folder, "config.json"))
    rope = published.get("rope_scaling") or rope
    num_heads, width = published["num_attention_heads"], published["hidden_size"]
    head_width = published.get("head_dim") or width // num_heads
    num_kv_heads = published.get("num_key_value_heads") or num_heads
    return modern(
        vocab_size=published["vocab_size"],
        num_layers=published["num_hidden_layers"],
        width=width,
        num_heads=num_heads,
        num_kv_heads=0 if num_kv_heads == num_heads else num_kv_heads,
        head_width=0 if head_width * num_heads == width else head_width,
        feed_forward_width=published["intermediate_size"],
        max_length=published.get("max_position_embeddings", 2048),
        rotary_base=base,
        rotary_scaling=_rotary_scaling(rope, folder),
        norm_epsilon=published.get("rms_norm_eps", 1e-6),
        tie_embeddings=published.get("tie_word_embeddings", False),
        qkv_bias=qwen,
    )


def _rotary_scaling(
    rope: Mapping[str, Any], folder: str | os.PathLike
) -> tuple[float, ...]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind != "llama3":
        raise UserError(
            f"The decoder in {folder} scales its rotary positions ({kind!r}); only "
            "those without scaling, or with that of Llama 3, can be loaded."
        )
    try:
        return tuple(float(rope[name]) for name in _LLAMA3)
    except KeyError as error:
        raise UserError(
            f"The config.json in {folder} lacks {error} of its rotary scaling; copy "
            "or download it again."
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The config.json in {folder} has no numbers for its rotary scaling "
            f"({error}); copy or download it again."
        ) from error


def _require(
    published: dict[str, Any], folder: str | os.PathLike, **supported: Any
) -> None:
    for name, value in supported.items():
        if published.get(name, value) != value:
            raise UserError(
                f"The decoder in {folder} has {name}={published[name]!r}; only models "
                f"with {name}={value!r} can be loaded."
            )


def _is_gpt2(config: DecoderConfig) -> bool:
    c = config
    return (
        (c.positions, c.norm, c.bias, tuple(c.cutoffs))
        == ("learned", "layer", True, ())
        and c.activation in ("gelu", "relu")
        and c.num_kv_heads in (0, c.num_heads)
        and c.head_width in (0, c.width // c.num_heads)
        and not c.attention_window
    )


def _is_llama(config: DecoderConfig) -> bool:
    c = config
    return (c.positions, c.norm, c.activation, c.bias, tuple(c.cutoffs)) == (
        "rotary", "rms", "swiglu", False, (),
    ) and not c.attention_window  # fmt: skip


def _published_gpt2(config: DecoderConfig) -> dict[str, Any]:
    c = config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_layer": c.num_layers,
        "n_embd": c.width,
        "n_head": c.num_heads,
        "n_inner": c.feed_forward_width,
        "n_positions": c.max_length,
        "activation_function": {"gelu": "gelu_new", "relu": "relu"}[c.activation],
        "layer_norm_epsilon": c.norm_epsilon or 1e-5,
        "tie_word_embeddings": c.tie_embeddings,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": 0.0,
    }


def _published_llama(config: DecoderConfig) -> dict[str, Any]:
    c = config
    rope: dict[str, Any] = {"rope_type": "default"}
    if c.rotary_scaling:
        values = dict(zip(_LLAMA3, c.rotary_scaling, strict=True))
        values[_LLAMA3[-1]] = int(values[_LLAMA3[-1]])
        rope = {"rope_type": "llama3", **values}
    return {
        "architectures": ["Qwen2ForCausalLM" if c.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if c.qkv_bias else "llama",
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.width,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads or c.num_heads,
        "head_dim": c.head_width or c.width // c.num_heads,
        "intermediate_size": c.feed_forward_width,
        "max_position_embeddings": c.max_length,
        # The older field and the newer one.
        "rope_theta": c.rotary_base,
        "rope_scaling": rope if c.rotary_scaling else None,
        "rope_parameters": {**rope, "rope_theta": c.rotary_base},
        "rms_norm_eps": c.norm_epsilon or 1e-6,
        "hidden_act": "silu",
        **({} if c.qkv_bias else {"attention_bias": False, "mlp_bias": False}),
        "tie_word_embeddings": c.tie_embeddings,
    }


def _is_buffer(name: str) -> bool:
    """Causal masks and rotary rates, which are computed, and a tied head's copy."""
    buffers = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
    return name.endswith(buffers) or name == _HEAD


def _entries(config: DecoderConfig) -> list[Entry]:
    gpt = config.positions == "learned"
    layer = _gpt2_layer if gpt else _llama_layer
    entries = [entry for i in range(config.num_layers) for entry in layer(config, i)]
    embedding = "vocabulary/embedding_0"
    if gpt:
        entries += [
            same(embedding, "wte.weight"),
            same("positions", "wpe.weight"),
            *_both("final_norm", "ln_f", scale="weight", bias="bias"),
        ]
    else:
        entries += [
            same(embedding, "embed_tokens.weight"),
            same("final_norm/scale", "norm.weight"),
        ]
    if not config.tie_embeddings:
        entries.append(same("vocabulary/output_0", _HEAD))
    return entries


def _gpt2_layer(config: DecoderConfig, i: int) -> list[Entry]:
    """GPT-2's linear maps are stored [in, out], as ours, queries to values joined."""
    ours, theirs = f"block_{i}", f"h.{i}"
    linear = {"kernel": "weight", "bias": "bias"}
    return [
        *_both(f"{ours}/attention_norm", f"{theirs}.ln_1", scale="weight", bias="bias"),
        *_both(f"{ours}/attention/qkv", f"{theirs}.attn.c_attn", **linear),
        *_both(f"{ours}/attention/out", f"{theirs}.attn.c_proj", **linear),
        *_both(
            f"{ours}/feed_forward_norm", f"{theirs}.ln_2", scale="weight", bias="bias"
        ),
        *_both(f"{ours}/feed_forward/in", f"{theirs}.mlp.c_fc", **linear),
        *_both(f"{ours}/feed_forward/out", f"{theirs}.mlp.c_proj", **linear),
    ]


def _both(path: str, name: str, **names: str) -> list[Entry]:
    return [same(f"{path}/{a}", f"{name}.{b}") for a, b in names.items()]


def _llama_layer(config: DecoderConfig, i: int) -> list[Entry]:
    """Each head's rotary pairs are (j, j + d / 2) on both sides, so rows stay put."""
    ours, theirs = f"block_{i}", f"layers.{i}"
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
    head_width = config.head_width or config.width // config.num_heads
    num_kv_heads = config.num_kv_heads or config.num_heads
    widths = [n * head_width for n in (config.num_heads, num_kv_heads, num_kv_heads)]
    qkv = f"{ours}/attention/qkv"
    weights, biases = (
        [f"{attention}.{name}_proj.{part}" for name in "qkv"]
        for part in ("weight", "bias")
    )
    return [
        same(f"{ours}/attention_norm/scale", f"{theirs}.input_layernorm.weight"),
        side_by_side(f"{qkv}/kernel", weights, widths),
        *([concatenated(f"{qkv}/bias", *biases, widths=widths)] * config.qkv_bias),
        transposed(f"{ours}/attention/out/kernel", f"{attention}.o_proj.weight"),
        same(
            f"{ours}/feed_forward_norm/scale",
            f"{theirs}.post_attention_layernorm.weight",
        ),
        transposed(
            f"{ours}/feed_forward/in/kernel",
            f"{mlp}.gate_proj.weight",
            f"{mlp}.up_proj.weight",
        ),
        transposed(f"{ours}/feed_forward/out/kernel", f"{mlp}.down_proj.weight"),
    ]
