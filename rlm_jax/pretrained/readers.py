"""Readers of ours in a folder: config.json and model.safetensors, as others are.

For readers that no published layout has a place for: an encoder under a small decoder,
or a T5 that copies. Arrays have the names of our parameters.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.pretrained import folder as folders

Params = Any

KIND = "rlm_jax_reader"
"""The ``model_type``."""


def save_reader(
    folder: str | os.PathLike, config: Mapping[str, Any], params: Params
) -> None:
    """Writes a reader; ``config``, plain JSON, comes back from `load_reader`.

    Raises:
      UserError: the folder cannot be written.
    """
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    folders.write(folder, {"model_type": KIND, "reader": dict(config)}, arrays)


def load_reader(folder: str | os.PathLike) -> tuple[dict[str, Any], Params]:
    """(configuration, parameters as nested dicts of float32) of `save_reader`.

    Raises:
      UserError: there is no reader of ours, or a file is damaged.
    """
    published = folders.read_config(folder)
    if published.get("model_type") != KIND or not isinstance(
        published.get("reader"), dict
    ):
        raise UserError(
            f"The model in {folder} is a {published.get('model_type')!r}; only readers "
            "that were trained here can be loaded as one."
        )
    params: dict[str, Any] = {}
    for name, x in folders.read_arrays(folder).items():
        if not np.isfinite(x).all():
            raise UserError(
                f"{name} in {folder} holds NaN or infinity; copy the reader again."
            )
        *parents, last = name.split("/")
        holder = params
        for parent in parents:
            holder = holder.setdefault(parent, {})
            if not isinstance(holder, dict):
                raise UserError(
                    f"The weights in {folder} hold {name!r} inside another array; copy "
                    "the reader again."
                )
        holder[last] = x
    return published["reader"], params
