"""A GGUF file of Llama or Qwen2 as if it were a folder in Hugging Face's layout."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.models.layers import rotary_rates
from rlm_jax.storage.gguf_files import GGUF

ARCHITECTURES = ("llama", "qwen2")
"""``general.architecture`` of the files that can be read."""

_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BIASES = {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
_OUTPUT, _EMBEDDING, _ROPE = "output.weight", "token_embd.weight", "rope_freqs.weight"
_LLAMA_3 = (1.0, 4.0, 8192.0)  # low, high, length: all of its versions have the same


def published(file: GGUF) -> dict[str, Any]:
    """The config.json of the model, from the file's metadata.

    Raises:
      UserError: another architecture, a variant that the decoder does not have, or
        metadata that lack something.
    """
    kind = file.fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"The model in {file.path} is a {kind!r}; GGUF files can be of "
            f"{' or '.join(ARCHITECTURES)}."
        )

    def number(name: str, default: float | None = None) -> float:
        value = file.fields.get(f"{kind}.{name}", default)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(
                f"{file.path} says {kind}.{name}={value!r} where a number above 0 is "
                "needed; download it again, or take another file of the model."
            )
        # Of float32: 1e-5 and not 9.99999974e-06.
        return value if isinstance(value, int) else float(str(np.float32(value)))

    heads = int(number("attention.head_count"))
    width = int(number("embedding_length"))
    head_width = int(number("attention.key_length", width // heads or None))
    _require(file, kind, "expert_count", 0)
    _require(file, kind, "attention.value_length", head_width)
    _require(file, kind, "rope.dimension_count", head_width)
    _require(file, kind, "rope.scaling.type", "none")
    _require(file, kind, "rope.scale_linear", 1)
    if _EMBEDDING not in file.arrays:
        raise _missing(file, _EMBEDDING)
    base = float(number("rope.freq_base", 10000.0))
    rope = _rope_scaling(file, head_width, base)
    return {
        "model_type": kind,
        "vocab_size": file.arrays.shape(_EMBEDDING)[0],
        "num_hidden_layers": int(number("block_count")),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": int(number("attention.head_count_kv", heads)),
        "head_dim": head_width,
        "intermediate_size": int(number("feed_forward_length")),
        "max_position_embeddings": int(number("context_length")),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "rope_scaling": rope,
        "tie_word_embeddings": _OUTPUT not in file.arrays,
    }


def _require(file: GGUF, kind: str, name: str, supported: Any) -> None:
    value = file.fields.get(f"{kind}.{name}", supported)
    if value != supported:
        raise UserError(
            f"The model in {file.path} has {kind}.{name}={value!r}; only models with "
            f"{supported!r} can be read."
        )


def _rope_scaling(file: GGUF, head_width: int, base: float) -> dict[str, Any] | None:
    """Llama 3's scaling, which a file holds as the factor of each rotary pair."""
    if _ROPE not in file.arrays:
        return None
    factors = file.arrays[_ROPE]
    factor = float(factors.max(initial=1.0))
    half = head_width // 2
    slowed = rotary_rates(half, base, (factor, *_LLAMA_3))
    expected = rotary_rates(half, base) / slowed
    if factors.shape != (half,) or not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(
            f"The model in {file.path} scales its rotary positions in another way than "
            "Llama 3; only those without scaling, or with that, can be read."
        )
    low, high, length = _LLAMA_3
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


class Arrays(Mapping[str, np.ndarray]):
    """The file's arrays by their published names, read when they are asked for.

    llama.cpp turns neighbouring pairs of a Llama's heads where Hugging Face turns
    halves, so a file holds the rows of its queries and keys in another order, which is
    undone here; Qwen2's are as published.
    """

    def __init__(self, file: GGUF, config: Mapping[str, Any]):
        """``config`` as `published` gives it.

        Raises:
          UserError: an array is missing, is unknown, or has another shape.
        """
        self._file, self._heads = file, _heads(config)
        expected = _expected(config)
        for name, (_, shape) in expected.items():
            if name not in file.arrays:
                raise _missing(file, name)
            if file.arrays.shape(name) != shape:
                raise UserError(
                    f"{name} in {file.path} has the shape "
                    f"{list(file.arrays.shape(name))} where its metadata say "
                    f"{list(shape)}; the file is damaged or of another model."
                )
        unknown = sorted(file.arrays.keys() - expected.keys() - {_ROPE})
        if unknown:
            raise UserError(
                f"{file.path} holds {unknown[0]}, which a "
                f"{config['model_type']!r} does not have; take another file."
            )
        self._names = {theirs: name for name, (theirs, _) in expected.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        x = self._file.arrays[self._names[name]]
        heads = self._heads.get(name.split(".")[-2] if "." in name else name)
        if heads:
            x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    """The projections whose rows are in llama.cpp's order, with their heads."""
    if config["model_type"] != "llama":
        return {}
    return {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file's name -> (published name, shape) of every array."""
    c, width = config, config["hidden_size"]
    inner, words = c["intermediate_size"], c["vocab_size"]
    rows = {
        "attn_q": c["num_attention_heads"] * c["head_dim"],
        "attn_k": c["num_key_value_heads"] * c["head_dim"],
        "attn_v": c["num_key_value_heads"] * c["head_dim"],
        "ffn_gate": inner,
        "ffn_up": inner,
    }
    columns = {"attn_output": rows["attn_q"], "ffn_down": inner}

    def shape(name: str) -> tuple[int, ...]:
        part, _, last = name.partition(".")
        if last == "bias" or part.endswith("norm"):
            return (rows.get(part, width),)
        return rows.get(part, width), columns.get(part, width)

    layer = _LAYER | (_BIASES if c["model_type"] == "qwen2" else {})
    expected = {
        _EMBEDDING: ("embed_tokens.weight", (words, width)),
        "output_norm.weight": ("norm.weight", (width,)),
    }
    if not c["tie_word_embeddings"]:
        expected[_OUTPUT] = ("lm_head.weight", (words, width))
    for i in range(c["num_hidden_layers"]):
        for name, theirs in layer.items():
            expected[f"blk.{i}.{name}"] = (f"layers.{i}.{theirs}", shape(name))
    return expected


def _missing(file: GGUF, name: str) -> UserError:
    return UserError(
        f"{file.path} lacks {name}; download it again, or take another file of the "
        "model."
    )
