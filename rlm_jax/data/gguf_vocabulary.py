"""The tokenizer of a GGUF file from its metadata: byte-level BPE."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlm_jax.errors import UserError
from rlm_jax.storage.gguf_files import GGUF

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # of token_type
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The names that llama.cpp gives to the ways a text is cut before its pairs are merged.
_GPT_2 = ("gpt-2",)
_DIGITS = ("smollm", "starcoder", "refact", "command-r")
_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN_2 = ("qwen2", "deepseek-r1-qwen")
PRE_TOKENIZERS = (*_GPT_2, *_DIGITS, *_LLAMA_3, *_QWEN_2)
"""``tokenizer.ggml.pre`` of the files that can be read."""


class Vocabulary(NamedTuple):
    """A tokenizer.json, and the token that the file says ends a text."""

    content: dict[str, Any]
    end: int | None


def read(file: GGUF) -> Vocabulary:
    """The tokenizer that a file describes.

    Raises:
      UserError: it is of another kind than byte-level BPE, its way to cut a text is not
        known, or something is missing.
    """
    kind, pre = (file.fields.get(_KEY + name) for name in ("model", "pre"))
    if kind != "gpt2":
        raise UserError(
            f"The tokenizer in {file.path} is of the kind {kind!r}; only byte-level "
            "BPE ('gpt2') can be read, as Llama 3, Qwen 2 and SmolLM have."
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"The tokenizer in {file.path} cuts text in the way {pre!r}, which is not "
            f"known here; it can be {', '.join(PRE_TOKENIZERS)}."
        )
    tokens = _strings(file, "tokens")
    types = file.fields.get(_KEY + "token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(
            f"{file.path} has {len(tokens):,} tokens and another number of their "
            "kinds; download it again."
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(
            f"A token occurs twice in the vocabulary of {file.path}; take another file."
        )
    end = file.fields.get(_KEY + "eos_token_id")
    if end is not None and not (isinstance(end, int) and 0 <= end < len(tokens)):
        raise UserError(
            f"{file.path} says that token {end!r} ends a text, of {len(tokens):,}; "
            "download it again."
        )
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, token, special=types[i] == _CONTROL)
            for i, token in enumerate(tokens)
            if types[i] in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 takes a word that is a token whole, whatever its merges say.
            "ignore_merges": pre in _LLAMA_3,
            "vocab": vocabulary,
            "merges": _merges(file, vocabulary),
        },
    }
    return Vocabulary(content, end)


def _strings(file: GGUF, name: str) -> list[str]:
    value = file.fields.get(_KEY + name)
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise UserError(
            f"The tokenizer in {file.path} has no {name}; take another file of the "
            "model."
        )
    return value


def _merges(file: GGUF, vocabulary: Mapping[str, int]) -> list[list[str]]:
    pairs = [merge.split(" ") for merge in _strings(file, "merges")]
    for pair in pairs:
        if len(pair) != 2 or "".join(pair) not in vocabulary:
            raise UserError(
                f"The tokenizer in {file.path} merges {' '.join(pair)!r}, which is no "
                "pair of its tokens; download it again."
            )
    return pairs


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}


def _pre_tokenizer(pre: str) -> dict[str, Any]:
    if pre in _GPT_2:
        return _byte_level(use_regex=True)
    if pre in _DIGITS:
        cut = {"type": "Digits", "individual_digits": True}
        return _sequence(cut, _byte_level(use_regex=True))
    numbers = r"\p{N}{1,3}" if pre in _LLAMA_3 else r"\p{N}"
    cut = {
        "type": "Split",
        "pattern": {"Regex": _WORDS % numbers},
        "behavior": "Isolated",
        "invert": False,
    }
    return _sequence(cut, _byte_level(use_regex=False))


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }
