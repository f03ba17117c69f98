"""What the side files of a folder say, each in one function: marks, ends, prompts."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax import characters, errors
from rlm_jax.errors import UserError
from rlm_jax.side_files.keys import check, read, read_json


class Prompts(NamedTuple):
    """What a folder puts before texts."""

    question: str = ""
    passage: str = ""
    other: str = ""  # before a text that is neither


class Limits(NamedTuple):
    """Tokens that a folder reads of a text, marks among them; 0: it does not say."""

    question: int = 0
    passage: int = 0


def end_ids(folder: str | os.PathLike) -> tuple[int, ...]:
    """The ids that end a text, by generation_config.json and config.json.

    As transformers does, the former decides what ends a continuation; the first id of
    the latter, where it is among them, comes first: it parts documents.

    Raises:
      UserError: a file is no JSON object, or an id is no number.
    """
    folder = Path(folder)
    generation = read(folder / "generation_config.json", "generation_config.json")
    try:
        config = characters.read_json(folder / "config.json")
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    own = _ids(config.get("eos_token_id"), folder / "config.json")
    told = _ids(generation.get("eos_token_id"), folder / "generation_config.json")
    ids = told or own
    first = [i for i in own[:1] if i in ids]
    return tuple(dict.fromkeys([*first, *ids]))


def _ids(value: Any, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise UserError(
            f"{path} says eos_token_id={errors.told(value)}, which is no id; correct "
            "it."
        )
    return ids


def tokenizer_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """What tokenizer_config.json says of how text is normalised.

    Raises:
      UserError: a value that is neither true nor false.
    """
    path = Path(folder, "tokenizer_config.json")
    told, found = read(path, "tokenizer_config.json"), {}
    for name in (
        *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        "add_prefix_space",
    ):
        value = told.get(name)
        if value is not None:
            found[name] = value
    return found


def lowers_texts(folder: str | os.PathLike) -> bool:
    """Whether sentence-transformers lowers texts before they are tokenized."""
    return bool(_sentence_config(Path(folder)).get("do_lower_case"))


def _sentence_config(folder: Path) -> dict[str, Any]:
    """The first that there is, as sentence-transformers looks for them."""
    kinds = "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
    paths = [folder / f"sentence_{kind}_config.json" for kind in kinds]
    path = next((path for path in paths if path.exists()), paths[0])
    return read(path, "sentence_bert_config.json")


def mark_names(folder: str | os.PathLike) -> dict[str, str]:
    """Mark ("pad", "cls", ...) -> its text, as far as the folder's files say it."""
    told = {
        **read(Path(folder, "special_tokens_map.json"), "special_tokens_map.json"),
        **read(Path(folder, "tokenizer_config.json"), "tokenizer_config.json"),
    }
    names = {}
    for mark in ("unk", "sep", "pad", "cls", "mask", "eos"):
        value = told.get(f"{mark}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[mark] = value
    return names


def modules(folder: str | os.PathLike) -> dict[str, str] | None:
    """Kind of module -> its folder, by modules.json; None where there is none.

    Raises:
      UserError: other modules than Transformer, Pooling and Normalize, in this order.
    """
    path = Path(folder, "modules.json")
    listed = read_json(path)
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise UserError(f"{path} is no JSON list; copy or download it again.")
    found = [check(module, "module", path) for module in listed]
    try:
        kinds = [module["type"].split(".")[-1] for module in found]
        paths = [str(module["path"]) for module in found]
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"{path} lacks the type or the path of a module; copy or download it again."
        ) from error
    if kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
    ):
        raise UserError(
            f"The vectors of {folder} are made by {', '.join(kinds)}; only Transformer "
            "and Pooling, with or without Normalize, can be loaded."
        )
    return dict(zip(kinds, paths, strict=True))


def transformer(folder: str | os.PathLike) -> Path:
    """Where an encoder's own files are: the folder, or the module Transformer's."""
    return Path(folder) / (modules(folder) or {}).get("Transformer", "")


def pooling(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Fields ``pooling`` and ``normalise`` of sentence-transformers' files, or None.

    Raises:
      UserError: a pooling that we do not have.
    """
    kinds = modules(folder)
    if kinds is None:
        return None
    folder = Path(folder)
    told = read(folder / kinds["Pooling"] / "config.json", "pooling")
    if "pooling_mode" in told:  # since sentence-transformers 5.4
        modes = told["pooling_mode"]
        modes = modes if isinstance(modes, list) else [modes]
    else:
        modes = [
            name.removeprefix("pooling_mode_")
            .removesuffix("_token")
            .removesuffix("_tokens")
            for name, on in told.items()
            if on is True
        ] or ["mean"]
    if len(modes) != 1 or modes[0] not in ("mean", "cls"):
        raise UserError(
            f"The vectors of {folder} are made by {' and '.join(map(str, modes))}; "
            "only the mean or the [CLS] vector, normalised or not, can be loaded."
        )
    if "Normalize" in kinds:
        read(folder / kinds["Normalize"] / "config.json", "normalise")
    return {"pooling": modes[0], "normalise": "Normalize" in kinds}


def prompts(folder: str | os.PathLike) -> Prompts:
    """What sentence-transformers puts before questions, passages and other texts.

    Raises:
      UserError: prompts that are no texts, or a default that is none of them.
    """
    path = Path(folder, "config_sentence_transformers.json")
    told = read(path, "config_sentence_transformers.json")
    named, default = told.get("prompts") or {}, told.get("default_prompt_name")
    if not isinstance(named, dict) or not all(
        isinstance(x, str) for x in named.values()
    ):
        raise UserError(f"{path} has prompts that are no texts; correct it.")
    if default is not None and default not in named:
        raise UserError(
            f"{path} has no prompt {default!r}, which it names as its default; correct "
            "it."
        )
    other = named.get(default, "") if default is not None else ""
    passage = next(
        (named[name] for name in ("document", "passage", "corpus") if name in named),
        other,
    )
    return Prompts(named.get("query", other), passage, other)


def compares_by(folder: str | os.PathLike) -> str | None:
    """How the folder says its vectors are compared, or None."""
    path = Path(folder, "config_sentence_transformers.json")
    told = read(path, "config_sentence_transformers.json")
    return told.get("similarity_fn_name")


def limits(folder: str | os.PathLike) -> Limits:
    """Tokens of a text that the folder's files allow.

    ``max_seq_length`` of sentence-transformers goes before the tokenizer's own
    ``model_max_length``.

    Raises:
      UserError: a length that is no number.
    """
    there = transformer(folder)
    told = _sentence_config(there)
    own = read(there / "tokenizer_config.json", "tokenizer_config.json")
    either = told.get("max_seq_length") or own.get("model_max_length") or 0
    lengths = told.get("query_length") or either, told.get("document_length") or either
    if not all(isinstance(x, int | float) and x >= 0 for x in lengths):
        raise UserError(
            f"{there} says that texts have {either!r} tokens, which is no number; "
            "correct max_seq_length or model_max_length."
        )
    # transformers writes 10 ** 30 where a tokenizer knows no limit.
    return Limits(*(int(x) if x < 1 << 20 else 0 for x in lengths))


def added_tokens(folder: str | os.PathLike) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, token, its properties) that are added to a vocabulary, ids ascending.

    Of added_tokens.json, and of ``added_tokens_decoder`` in tokenizer_config.json.

    Raises:
      UserError: one of the files is no JSON object, or has no numbers.
    """
    folder = Path(folder)
    told = read(folder / "tokenizer_config.json", "tokenizer_config.json")
    map_ = read(folder / "special_tokens_map.json", "special_tokens_map.json")
    marks = set(mark_names(folder).values())
    simple = read_json(folder / "added_tokens.json") or {}
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    try:
        for value in (told, map_):
            extra = value.get("additional_special_tokens") or []
            extra = [*extra, *(value.get("extra_special_tokens") or [])]
            marks |= {x["content"] if isinstance(x, dict) else str(x) for x in extra}
        for token, id_ in simple.items():
            special = token in marks
            found[int(id_)] = token, {"special": special, "normalized": not special}
        for id_, fields in (told.get("added_tokens_decoder") or {}).items():
            names = ("special", "normalized", "lstrip", "rstrip", "single_word")
            properties = {name: fields[name] for name in names if name in fields}
            found[int(id_)] = fields["content"], properties
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The added tokens of {folder} cannot be read ({error}); copy or download "
            "its files again."
        ) from error
    return [(id_, *found[id_]) for id_ in sorted(found)]


def write_told(folder: str | os.PathLike, prompts: Prompts, limits: Limits) -> None:
    """Writes prompts and limits where there are any, for `prompts` and `limits`."""
    if any(prompts):
        named = {"query": prompts.question, "document": prompts.passage}
        default = None
        if prompts.other:
            default = next((k for k, x in named.items() if x == prompts.other), "text")
            named[default] = prompts.other
        content = {"prompts": named, "default_prompt_name": default}
        path = Path(folder, "config_sentence_transformers.json")
        characters.write_json(path, content)
    if any(limits):
        content = {"max_seq_length": max(limits), "do_lower_case": False}
        if limits.question != limits.passage:
            content |= {"query_length": limits.question or None}
            content |= {"document_length": limits.passage or None}
        characters.write_json(Path(folder, "sentence_bert_config.json"), content)
