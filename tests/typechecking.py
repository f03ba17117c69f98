"""The check of shapes and types in the signatures of ops, models and methods.

tests/conftest.py hands it to jaxtyping's import hook, which decorates every function of
these rooms before they are imported. Under `jax.jit` it runs at trace time only.
"""

from typing import Any

import beartype
from jaxtyping import install_import_hook

ROOMS = ("rlm_jax.ops", "rlm_jax.models", "rlm_jax.methods")

_check = beartype.beartype(
    # As everywhere in Python's typing, an int will do where a float is wanted.
    conf=beartype.BeartypeConf(is_pep484_tower=True)
)


def check(function):
    """The function, whose arguments and result are held to their annotations.

    The fields of dataclasses are not: a configuration that is wrong is the user's, and
    raises UserError where it is used.
    """
    hints = getattr(function, "__annotations__", {}).values()
    says_nothing = all(hint is Any for hint in hints)  # as most inner functions
    skipped = says_nothing or function.__name__ == "__init__"
    return function if skipped else _check(function)


def install() -> None:
    install_import_hook(ROOMS, "tests.typechecking.check")
