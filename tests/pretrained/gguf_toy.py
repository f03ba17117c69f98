"""Tiny GGUF files, written by the package itself from a folder of ours."""

import json

import gguf
import jax
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlm_jax import pretrained
from rlm_jax.models.decoder import Decoder, modern

SPECIAL, END = ("<|endoftext|>", "<|im_end|>"), "<|im_end|>"
TEXT = (
    "Don't they've 12345 things, I'LL say; a  b   c\n\n\tnaïve Straße 漢字 🙂 x=3.14!? "
    "The quick brown fox jumped over 7 lazy dogs... (it's 2,024)\r\n"
)
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def decoder(**changes):
    sizes = dict(
        vocab_size=0, num_layers=2, width=32, num_heads=4, num_kv_heads=2,
        feed_forward_width=64, max_length=64, rotary_base=500.0, norm_epsilon=1e-5,
    )  # fmt: skip
    return modern(**sizes | changes)


def random_params(config):
    tokens = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(
        lambda: Decoder(config).init(jax.random.key(0), tokens, tokens, method="score")
    )["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes
    )


def vocabulary(size=300):
    """(tokens, merges) of byte-level BPE, trained on the text."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    model.decoder = decoders.ByteLevel()  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator([TEXT] * 3 + ["12345"] * 20 + ["123"] * 20, trainer)
    made = json.loads(model.to_str())["model"]
    tokens = sorted(made["vocab"], key=made["vocab"].get)
    return tokens, [" ".join(pair) for pair in made["merges"]]


def permuted(x, heads):
    """Rows of queries or keys in llama.cpp's order, as its converter makes it."""
    half = len(x) // heads // 2
    return x.reshape(heads, 2, half, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def arrays_of(folder, config):
    """The file's name -> array of a folder that `save_decoder` wrote."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    found = {}
    for name, x in load_file(folder / "model.safetensors").items():
        *where, module, part = name.removeprefix("model.").split(".")
        name = NAMES[module]
        if not config.qkv_bias and name in heads:
            x = permuted(x, heads[name])
        layer = f"blk.{where[1]}." if where else ""
        found[f"{layer}{name}.{part}"] = x
    return found


def write(path, config, arrays, *, kind=Kind.F32, pre="gpt-2", **fields):
    """A file of a decoder; ``fields`` replace metadata, None takes one away.

    Matrices are stored as ``kind``, or as they are where they are bytes already.
    """
    arch = "qwen2" if config.qkv_bias else "llama"
    tokens, merges = vocabulary(config.vocab_size)
    given = {
        "context_length": config.max_length,
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.feed_forward_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "rope.dimension_count": config.width // config.num_heads,
    }
    numbers = {f"{arch}.{name}": value for name, value in given.items()}
    floats = {
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        f"{arch}.rope.freq_base": config.rotary_base,
    }
    words = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    fields = {name.replace("__", "."): x for name, x in fields.items()}
    arch = fields.pop("architecture", arch)
    writer = gguf.GGUFWriter(path, arch)
    for name, value in (numbers | floats | words | fields).items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    types = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([types[token not in SPECIAL] for token in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokens.index(END))
    for name, x in arrays.items():
        if x.dtype == np.uint8:
            writer.add_tensor(name, x, raw_dtype=kind)
        elif x.ndim == 2 and kind != Kind.F32:
            writer.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def saved(folder, config, params):
    """The file's arrays of some parameters, by way of Hugging Face's layout."""
    pretrained.save_decoder(folder, config, params)
    return arrays_of(folder, config)


def random_blocks(kind, rows, columns, seed=0):
    """Bytes of a K quantisation, uint8 [rows, bytes], with scales that are small."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, columns // size, num_bytes), np.uint8)
    scales = random.uniform(1e-4, 2e-3, (*blocks.shape[:2], 2)).astype(np.float16)
    if kind == Kind.Q6_K:
        blocks[..., -2:] = scales[..., :1].view(np.uint8)
    else:
        blocks[..., :4] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)
