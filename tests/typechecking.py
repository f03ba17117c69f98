"""The check of shapes and types in the signatures of ops, models and methods.

tests/conftest.py hands it to jaxtyping's import hook, which decorates every function of
these rooms before they are imported. Under `jax.jit` it runs at trace time only.
"""

from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

ROOMS = ("rlm_jax.ops", "rlm_jax.models", "rlm_jax.methods")

check = beartype.beartype(
    # As everywhere in Python's typing, an int will do where a float is wanted.
    conf=beartype.BeartypeConf(is_pep484_tower=True)
)

_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """jaxtyping's decorator, for signatures that say something.

    To decorate takes a millisecond, and most functions within others, which are made at
    every call of those, have no annotations. Nor are the fields of dataclasses checked:
    a configuration that is wrong is the user's, and raises UserError where it is used.
    """
    decorate = _jaxtyped(typechecker=typechecker)

    def decorated(function):
        hints = getattr(function, "__annotations__", {}).values()
        says_nothing = all(hint is Any for hint in hints)
        skipped = says_nothing or isinstance(function, type)
        return function if skipped else decorate(function)

    return decorated


def install() -> None:
    jaxtyping.jaxtyped = jaxtyped  # by this name the hook's code asks for it
    jaxtyping.install_import_hook(ROOMS, "tests.typechecking.check")
