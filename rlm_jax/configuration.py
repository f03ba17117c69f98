"""What holds of every configuration, and is checked before any work is done.

A field has values of its type. One of a few words has one of them: it is annotated with
them, as ``positions: Literal["rotary", "learned"]``. A number is finite, also as
float32, and not below 0; `POSITIVE` ones are above it, `SHARES` at most 1 and
`BELOW_ONE` less, and whole ones at most what `LIMITS` says, or `MOST`. A class says by
``ANY_NUMBER``, ``MAY_BE_ZERO``, ``POSITIVE`` or ``SHARES`` where its fields differ, and
by a method ``check`` what holds of several together.
"""

import dataclasses
import functools
import numbers
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlm_jax.errors import UserError, told

POSITIVE = frozenset(
    "batch_size window stride query_length length num num_beams lines max_new_tokens "
    "num_samples k ks temperature temperatures knn_temperatures gold_temperature "
    "vocabulary_temperature reader_temperature sentence_length text_length masks "
    "question_length passage_length batch_tokens segment segments_per_group keep "
    "accumulate longest new_tokens depth max_depth depths validation_batches reuse "
    "rank_tokens queue_size gamma beta sequences_per_run restart_multiplier eps "
    "learning_rate num_layers num_decoder_layers num_heads width feed_forward_width "
    "max_length num_types adaptive_factor rotary_base num_buckets max_distance "
    "chunk_length cca_every cross_attention_every target_length prompt_length every "
    "shard_size sample seconds".split()
)
"""Names of numbers that are above 0 wherever they stand."""

SHARES = frozenset(
    "momentum top_p target_recall min_recall deletion label_smoothing share stop "
    "smallest largest weights knn_weights duplicates b own_memory_off punctuation keep "
    "min_probability max_probability".split()
)
"""Names of numbers, whole ones excepted, that are at most 1."""

BELOW_ONE = frozenset("dropout b1 b2".split())
"""Names of numbers that are less than 1."""

MOST = 2**31 - 1
"""The largest whole number: sizes, steps, seeds and ids are int32."""

ROW = 1 << 20
"""The most tokens of a row: a window, a passage, a prompt."""

VOCABULARY = 1 << 24
"""The most ids of a vocabulary; a model has a row of numbers for each."""

LIMITS: Mapping[str, int] = {
    **dict.fromkeys(
        "window stride query_length length sentence_length text_length prompt_length "
        "question_length passage_length target_length segment new_tokens width "
        "max_new_tokens chunk_length attention_window feed_forward_width head_width "
        "context projection num_heads num_kv_heads decoder_kv_heads reader_heads "
        "num_types num_buckets adaptive_factor".split(),
        ROW,
    ),
    **dict.fromkeys(["vocab_size", "max_length", "size"], VOCABULARY),
    **dict.fromkeys("num_layers num_decoder_layers lower_layers rounds".split(), 1000),
}
"""Names of whole numbers -> the largest, where `MOST` would fill any memory."""

NOT_EMPTY = frozenset("temperatures knn_temperatures weights knn_weights".split())
"""Names of grids, which have a value or more."""

TEXTS = frozenset("prompt question question_prompt passage_prompt environment".split())
"""Names of fields that hold a text; any other word may be a path, or part of one."""

_FLOAT32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the smallest and the largest
_LONGEST, _LONGEST_PATH = 255, 3800  # bytes of a file's name, and of a path to a run
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def check(config: Any, name: str = "") -> None:
    """All that can be known of a configuration alone.

    Args:
      config: a dataclass.
      name: what its fields are called by.

    Raises:
      UserError: it names the first field that does not fit, and what does.
    """
    check_fields(config, name)
    _check_own(config)


def check_fields(config: Any, name: str = "") -> None:
    """Each field of a dataclass, and of those in it, has a value of its type and range.

    Args:
      config: a dataclass.
      name: what its fields are called by, as ``config`` in ``config.positions``.

    Raises:
      UserError: it names the first that has not, and what fits.
    """
    for field, hint in _hints(type(config)).items():
        value, full = getattr(config, field), f"{name}.{field}" if name else field
        if dataclasses.is_dataclass(value):
            check_fields(value, full)
        elif typing.get_origin(hint) is Literal:
            _check_choice(full, value, typing.get_args(hint))
        else:
            _check_value(type(config), field, full, value, hint)


def _check_choice(full: str, value: Any, choices: Sequence[Any]) -> None:
    if not isinstance(value, str | int) or value not in choices:
        raise UserError(
            f"{full} is {told(value)}; choose one of {', '.join(map(str, choices))}."
        )


def _check_value(owner: type, field: str, full: str, value: Any, hint: Any) -> None:
    several = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if several else hint
    if kind not in _KINDS:
        return
    if several and not isinstance(value, list | tuple):
        raise UserError(
            f"{full} is {told(value)}, which does not fit; give {_KINDS[kind]} for "
            "each element, as (1,2)."
        )
    if several and not value and field in NOT_EMPTY:
        raise UserError(f"{full} is empty; give at least one value.")
    for x in value if several else [value]:
        verb = "holds" if several else "is"
        if not _fits(x, kind):
            each = " for each element, as (1,2)" if several else ""
            raise UserError(
                f"{full} {verb} {told(x)}, which does not fit; give {_KINDS[kind]}"
                f"{each}."
            )
        wrong = ""
        if kind is str:
            wrong = _wrong_text(field, str(x))
        elif kind is not bool:
            wrong = _wrong_number(owner, field, x, kind)
        if wrong:
            shown = x if isinstance(x, float) else told(x)
            raise UserError(f"{full} {verb} {shown}; {wrong}.")


def _fits(value: Any, kind: type) -> bool:
    if kind in (bool, str):
        return isinstance(value, kind)
    wanted = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, wanted) and not isinstance(value, bool)


def _wrong_number(owner: type, field: str, x: Any, kind: type) -> str:
    """What is to be done about a number that is out of range; empty: it is not."""
    smallest, largest = _FLOAT32
    if kind is float and not abs(x) <= largest:  # nor NaN
        return "give a finite number"
    if field in _own(owner, "ANY_NUMBER"):
        return "" if abs(x) <= largest else "give a smaller number"
    positive = field in POSITIVE or field in _own(owner, "POSITIVE")
    zero = not positive or field in _own(owner, "MAY_BE_ZERO")
    if x < 0 or (x == 0 and not zero):
        if zero:
            return "choose 0 or more"
        return "choose 1 or more" if kind is int else "choose a number above 0"
    if kind is float:
        if positive and 0 < x < smallest:
            return f"choose {smallest:.2g} or more, for in float32 it is 0"
        if x >= 1 and field in BELOW_ONE:
            return "choose a number from 0 to below 1"
        if x > 1 and (field in SHARES or field in _own(owner, "SHARES")):
            return "choose a number from 0 to 1"
        return ""
    most = LIMITS.get(field, MOST)
    return f"choose at most {most:,}" if x > most else ""


def _own(owner: type, which: str) -> Sequence[str]:
    return getattr(owner, which, ())


def _wrong_text(field: str, text: str) -> str:
    """What is to be done about a word that can name no file; empty: nothing."""
    if "\0" in text:
        return "remove the character NUL from it"
    if field in TEXTS or len(text) < _LONGEST // 4:
        return ""
    parts = [part.encode(errors="replace") for part in re.split(r"[/:+#]", text)]
    if max(map(len, parts)) > _LONGEST or sum(map(len, parts)) > _LONGEST_PATH:
        return (
            f"no file has a name of more than {_LONGEST} bytes, or a path of more than "
            f"{_LONGEST_PATH:,}, so choose a shorter one"
        )
    return ""


def _check_own(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_own(value)
    own = getattr(config, "check", None)
    if callable(own):
        own()


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Field -> its type."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
