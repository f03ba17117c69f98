"""A folder in Hugging Face's layout: config.json and safetensors, whole or in shards.

A model's file (`encoders`) says which of its arrays are which of ours by a list of
`Entry`, and `to_params` and `from_params` are one reading of that list each way.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.side_files.keys import read_json
from rlm_jax.storage import atomic

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

Arrays = dict[str, np.ndarray]
"""Published name -> array."""


class Entry(NamedTuple):
    """One of our arrays and the published arrays that it is made of."""

    path: str  # ours, "block_0/attention/qkv/kernel"
    names: tuple[str, ...]  # theirs
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]


def same(path: str, name: str) -> Entry:
    """An array that is the same in both layouts."""
    return Entry(path, (name,), lambda arrays: arrays[0], lambda x: [x])


def transposed(path: str, *names: str) -> Entry:
    """Linear maps [out, in] side by side in one of ours, [in, out * number]."""
    return Entry(
        path,
        names,
        lambda arrays: np.concatenate([a.T for a in arrays], axis=1),
        lambda x: [part.T for part in np.split(x, len(names), axis=1)],
    )


def side_by_side(path: str, names: Sequence[str], widths: Sequence[int]) -> Entry:
    """The same of linear maps of different widths."""
    ends = np.cumsum(widths)[:-1]
    return transposed(path, *names)._replace(
        split=lambda x: [part.T for part in np.split(x, ends, axis=1)]
    )


def concatenated(path: str, *names: str, widths: Sequence[int] = ()) -> Entry:
    """Vectors one after another in one of ours; equally long, if without widths."""
    ends = np.cumsum(widths)[:-1] if widths else len(names)
    return Entry(path, names, np.concatenate, lambda x: np.split(x, ends))


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The folder's config.json; a key that is null says nothing, and is left out.

    Raises:
      UserError: there is no such folder or file, or it is not a JSON object.
    """
    config = read_json(Path(folder) / "config.json")
    if config is None:
        raise UserError(
            f"There is no model at {folder} (no config.json); name a folder with "
            f"config.json and {WEIGHTS}."
        )
    if not isinstance(config, dict):
        raise UserError(
            f"{Path(folder) / 'config.json'} is no JSON object; copy or download it "
            "again."
        )
    return {key: value for key, value in config.items() if value is not None}


def check_config(
    check: Callable[[Any], None], config: Any, folder: str | os.PathLike
) -> None:
    """Checks the configuration that a folder's config.json gives.

    Raises:
      UserError: what ``check`` says, and of which file.
    """
    try:
        check(config)
    except UserError as error:
        raise UserError(f"The config.json in {folder} does not do: {error}") from error


def read_arrays(folder: str | os.PathLike) -> Arrays:
    """All arrays of a folder's safetensors, float32 but for integers.

    Raises:
      UserError: there are none, or only pickled ones, or a file is damaged.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    if index is not None:
        try:
            files = sorted(set(map(str, index["weight_map"].values())))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder / INDEX} does not say which file holds which array (no "
                "weight_map); copy or download it again."
            ) from error
    elif (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    elif any((folder / name).exists() for name in _PICKLED):
        raise UserError(
            f"{folder} holds its weights as a pickle, which may run any code when it "
            'is read; convert it where you trust it: python -c "from transformers '
            f"import AutoModel; AutoModel.from_pretrained('{folder}')"
            f".save_pretrained('{folder}', safe_serialization=True)\"."
        )
    else:
        raise UserError(
            f"There are no weights in {folder}; it needs {WEIGHTS}, or {INDEX} and "
            "its shards."
        )
    arrays: Arrays = {}
    for name in files:
        arrays.update(_read_file(folder / name))
    return arrays


def _read_file(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    characters.check_file(path)
    try:
        arrays = {}
        # In NumPy there is no bfloat16; JAX's own type reads it.
        with safe_open(path, framework="flax") as file:
            for name in file.keys():  # noqa: SIM118, not a mapping
                x = np.asarray(file.get_tensor(name))
                whole = np.issubdtype(x.dtype, np.integer) or x.dtype == np.bool_
                with np.errstate(over="ignore"):  # what is not finite is told later
                    arrays[name] = x if whole else x.astype(np.float32)
        return arrays
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"The weights {path} cannot be read ({error}); copy or download them again."
        ) from error


def write(
    folder: str | os.PathLike, config: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Path:
    """Writes config.json and model.safetensors; each appears when it is whole.

    Raises:
      UserError: the folder cannot be written.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contiguous = {k: np.ascontiguousarray(x) for k, x in arrays.items()}
        with atomic.replacing(folder / WEIGHTS) as partial:
            save_file(contiguous, partial, metadata={"format": "pt"})
        write_json(folder / "config.json", config)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise UserError(
                f"The model cannot be written to {folder} ({error}); make room there "
                "or choose another folder."
            ) from error
        raise
    return folder


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, which appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, content, indent=2)


def to_params(
    arrays: Mapping[str, np.ndarray],
    entries: Sequence[Entry],
    shapes: Any,
    *,
    ignored: Callable[[str], bool],
    where: str | os.PathLike,
) -> Any:
    """Our parameters, nested dicts of float32, out of published arrays.

    Args:
      arrays: by published name.
      entries: which are which.
      shapes: the tree that the model expects, of anything with a shape.
      ignored: names that may be there and mean nothing to us.
      where: the folder, for messages.

    Raises:
      UserError: an array is missing, has another shape, holds what is not finite, or
        nobody knows it.
    """
    params: dict[str, Any] = {}
    known = {name for entry in entries for name in entry.names}
    for name in sorted(arrays.keys() - known):
        if not ignored(name):
            raise UserError(
                f"The weights in {where} hold {name!r}, which this architecture does "
                "not have; load them as the model they are."
            )
    for entry in entries:
        for name in entry.names:
            if name not in arrays:
                raise UserError(
                    f"The weights in {where} lack {name!r}; its config.json does not "
                    "fit them, or they are of another model."
                )
        x = _joined(entry, [arrays[n] for n in entry.names], where)
        if not np.isfinite(x).all():
            raise _not_finite(arrays, entry.names, where)
        *parents, last = entry.path.split("/")
        wanted, holder = shapes, params
        for parent in parents:
            wanted, holder = wanted[parent], holder.setdefault(parent, {})
        if x.shape != wanted[last].shape:
            raise UserError(
                f"{' and '.join(entry.names)} in {where} give the shape "
                f"{list(x.shape)} where its config.json says "
                f"{list(wanted[last].shape)}; the two do not belong together."
            )
        holder[last] = x
    return params


def _joined(
    entry: Entry, arrays: Sequence[np.ndarray], where: str | os.PathLike
) -> np.ndarray:
    try:
        return np.asarray(entry.join(arrays), np.float32)
    except ValueError as error:  # axes or lengths that do not go together
        shapes = " and ".join(str(list(x.shape)) for x in arrays)
        raise UserError(
            f"{' and '.join(entry.names)} in {where} have the shapes {shapes}, which "
            "its config.json does not say; the two do not belong together."
        ) from error


def _not_finite(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], where: str | os.PathLike
) -> UserError:
    wrong = [name for name in names if not np.isfinite(arrays[name]).all()]
    return UserError(
        f"{wrong[0]} in {where} holds NaN or infinity; copy or download the weights "
        "again, or take those of an earlier step."
    )


def from_params(params: Any, entries: Sequence[Entry]) -> Arrays:
    """Published arrays out of our parameters."""
    arrays: Arrays = {}
    for entry in entries:
        x = params
        for name in entry.path.split("/"):
            x = x[name]
        parts = entry.split(np.asarray(x, np.float32))
        arrays.update(zip(entry.names, parts, strict=True))
    return arrays
