"""Retrieval-based language models in JAX and Flax.

A system from corpus to report is a function, `rlm_jax.recipes`; `load` opens what a run
has left, or a published model. docs/library.md has programs that use them.
"""

import os
from typing import TYPE_CHECKING

from rlm_jax.version import __version__

if TYPE_CHECKING:
    from rlm_jax.recipes.load import Loaded

__all__ = ["__version__", "load"]


def load(name: str | os.PathLike, *, dtype: str = "float32") -> "Loaded":
    """Opens a run or a Hugging Face folder as what it is; see `rlm_jax.recipes.load`.

    Args:
      name: the workdir of a run, or a folder with config.json and model.safetensors.
      dtype: of a language model's computation.

    Returns:
      a language model (`base_lm.BaseLM`), an encoder (`encoder_towers.Tower`), or a
      retriever with its collection (`published_index.Retriever`).

    Raises:
      UserError: there is nothing of the kind, or it is damaged.
    """
    from rlm_jax.recipes.load import load as load_any  # so that the import is quick

    return load_any(name, dtype=dtype)
