"""What holds of every configuration: a field of a few words has one of them.

Such a field is annotated with them, as ``positions: Literal["rotary", "learned"]``.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rlm_jax.errors import UserError


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
