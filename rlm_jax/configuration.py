"""What holds of every configuration, and is checked before any work is done.

A field of a few words has one of them: it is annotated with them, as ``positions:
Literal["rotary", "learned"]``. A number is finite and not below 0, `POSITIVE` ones are
above it, and `SHARES` at most 1. A class says by ``ANY_NUMBER`` or ``MAY_BE_ZERO``
where its fields differ, and by a method ``check`` what holds of several together.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rlm_jax.errors import UserError

POSITIVE = frozenset(
    "batch_size window stride query_length length num num_beams lines max_new_tokens "
    "num_samples k ks temperatures knn_temperatures gold_temperature target_length "
    "vocabulary_temperature reader_temperature sentence_length text_length masks "
    "question_length passage_length batch_tokens segment segments_per_group keep "
    "accumulate longest new_tokens depth max_depth depths validation_batches reuse "
    "rank_tokens queue_size gamma beta sequences_per_run restart_multiplier eps "
    "learning_rate".split()
)
"""Names of numbers that are above 0 wherever they stand."""

SHARES = frozenset(
    "dropout b1 b2 top_p target_recall deletion label_smoothing share stop punctuation "
    "smallest largest weights knn_weights duplicates b own_memory_off".split()
)
"""Names of numbers that are at most 1."""


NOT_EMPTY = frozenset("temperatures knn_temperatures weights knn_weights".split())
"""Names of grids, which have a value or more."""


def check(config: Any, name: str = "") -> None:
    """All that can be known of a configuration alone.

    Args:
      config: a dataclass.
      name: what its fields are called by.

    Raises:
      UserError: it names the first field that does not fit, and what does.
    """
    check_choices(config, name)
    check_numbers(config, name)
    _check_own(config)


def check_choices(config: Any, name: str = "") -> None:
    """Each `Literal` field of a dataclass, and of those in it, has one of its words.

    Args:
      config: a dataclass.
      name: what its fields are called by, as ``config`` in ``config.positions``.

    Raises:
      UserError: it names the first field that does not, and its choices.
    """
    for field, choices in _choices(type(config)).items():
        value, full = getattr(config, field), f"{name}.{field}" if name else field
        if dataclasses.is_dataclass(value):
            check_choices(value, full)
        elif choices and value not in choices:
            raise UserError(
                f"{full} is {value!r}; choose one of {', '.join(map(str, choices))}."
            )


def check_numbers(config: Any, name: str = "") -> None:
    """Each number of a dataclass, and of those in it, is in its range.

    Raises:
      UserError: it names the first that is not, and the range.
    """
    free = getattr(type(config), "ANY_NUMBER", ())
    zero = getattr(type(config), "MAY_BE_ZERO", ())
    for field in dataclasses.fields(config):
        value, full = getattr(config, field.name), field.name
        full = f"{name}.{full}" if name else full
        if dataclasses.is_dataclass(value):
            check_numbers(value, full)
            continue
        if field.name in free:
            continue
        positive = field.name in POSITIVE and field.name not in zero
        if field.name in NOT_EMPTY and isinstance(value, list | tuple) and not value:
            raise UserError(f"{full} is empty; give at least one value.")
        for x in value if isinstance(value, list | tuple) else [value]:
            if isinstance(x, bool) or not isinstance(x, int | float):
                continue
            if not math.isfinite(x):
                raise UserError(f"{full} is {x}; give a finite number.")
            if x < 0 or (positive and x == 0):
                least = (
                    "0 or more" if not positive else "1 or more"
                    if isinstance(x, int) else "a number above 0"
                )  # fmt: skip
                verb = "is" if value is x else "holds"
                raise UserError(f"{full} {verb} {x}; choose {least}.")
            if field.name in SHARES and x > 1:
                raise UserError(f"{full} is {x}; choose a number from 0 to 1.")


def _check_own(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_own(value)
    own = getattr(config, "check", None)
    if callable(own):
        own()


@functools.cache
def _choices(kind: type) -> Mapping[str, tuple[Any, ...]]:
    """Field -> the words that it may have; nothing for a field of any other type."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: typing.get_args(hints[field.name])
        if typing.get_origin(hints[field.name]) is Literal
        else ()
        for field in dataclasses.fields(kind)
    }
