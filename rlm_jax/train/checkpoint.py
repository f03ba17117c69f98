"""Checkpoints of training: written in the background, whole or absent, checked.

A checkpoint of step s is the folder ``directory/s``. Orbax writes it under another
name. It gets its own when every array has been read back from the disk as it was given,
and only then do older checkpoints go. Parameters lie apart from the rest, so that
another run can start from them without knowing the optimiser. A third item lists every
array's shape, dtype and CRC-32, and a manifest every file: Orbax itself may miss a
flipped byte.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlm_jax import characters, processes
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.storage import atomic
from rlm_jax.storage.checked_files import MANIFEST
from rlm_jax.train import beside, checkpoint_files
from rlm_jax.train.checkpoint_files import Background
from rlm_jax.train.step import State


class Checkpoints:
    """The checkpoints of one run, in one folder.

    With several processes every process makes one, on a shared file system, and calls
    its functions together with the others; the first one writes.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 3):
        """Opens the folder, which is made if absent; the last ``keep`` steps stay.

        What a save that was killed has left goes.

        Raises:
          UserError: If the folder cannot be made or read, or its path is so long that
            a file of a checkpoint could not have its name.
        """
        self.directory = pathlib.Path(directory).absolute()
        if keep < 1:
            raise UserError(f"keep={keep} keeps no checkpoint; choose 1 or more.")
        self._keep = keep
        self._background = Background()

        def tidy() -> None:
            with _writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                checkpoint_files.check_length(self.directory)
                checkpoint_files.remove_unfinished(self.directory)

        processes.by_first(tidy, f"write {self.directory}")

    def latest(self) -> int | None:
        """The last complete step, or None where there is none."""
        return max(steps(self.directory), default=None)

    def save(self, step: int, state: State, log: Mapping[str, int] = {}) -> None:
        """Copies the state to the host, then writes it in the background.

        The copy is what makes it safe that the next step donates the state's buffers. A
        step that is there already is left alone. An earlier save that is still being
        written is waited for.

        ``log`` is `metrics.Writer.written`, for `beside.logged_by`.

        Raises:
          UserError: If this or the earlier save cannot be written (as on a full disk).
        """
        self.wait()

        def begin() -> None:
            if step in steps(self.directory):
                return
            snapshot = jax.tree.map(lambda x: np.array(x), state)
            self._check_room(snapshot)
            self._background.start(lambda: self._write(step, snapshot, log))

        processes.by_first(begin, f"write {self.directory}")

    def restore(self, abstract_state: State, step: int | None = None) -> State:
        """The state of a step (the latest if None), as NumPy arrays.

        Args:
          abstract_state: The shapes and dtypes of the state, from `jax.eval_shape`.
          step: The number of steps done.

        Raises:
          UserError: If there is no such step, it is damaged, or it holds a state of
            other shapes.
        """
        self.wait()
        step = _existing(steps(self.directory), self.directory, step)
        folder = self.directory / str(step)
        with _reading(folder):
            checkpoint_files.verify(folder)
            arrays = _arrays(folder)
        self._check_shapes(step, arrays, _describe(abstract_state))
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_state)
        paths = _by_path(target._replace(params=None))
        with _reading(folder):
            params = _read(folder / "params", target.params)
            found = _read(folder / "rest", paths)
            treedef = jax.tree.structure(target._replace(params=None))
            rest = jax.tree.unflatten(treedef, [found[path] for path in paths])
            state = rest._replace(params=params)
            _check_sums(_by_path(state), arrays)
        return state

    def wait(self) -> None:
        """Returns when everything saved so far is complete on disk.

        Raises:
          UserError: If it could not be written, in all processes.
        """
        processes.by_first(self._background.wait, f"write {self.directory}")

    def close(self) -> None:
        """Waits for what this process is writing.

        Raises:
          UserError: If it could not be written.
        """
        self._background.wait()

    def _write(self, step: int, snapshot: State, log: Mapping[str, int]) -> None:
        """Writes a step, reads it back, gives it its name, and lets older ones go."""
        folder = self.directory / str(step)
        with _writing(self.directory), checkpoint_files.logged(self.directory):
            written = checkpoint_files.unfinished(folder)
            arrays = _describe(snapshot, True)
            _save(written / "params", snapshot.params)
            _save(written / "rest", _by_path(snapshot._replace(params=None)))
            (written / ARRAYS).parent.mkdir()
            listed = {"arrays": arrays, "crc32": zlib.crc32(_canonical(arrays))}
            atomic.write_json(written / ARRAYS, listed | {MANIFEST: True})
            told = beside.fields(self.directory, log)
            checkpoint_files.list_files(written, told)
            try:
                _verify(written, arrays)
            except Exception as error:
                shutil.rmtree(written, ignore_errors=True)
                raise UserError(
                    f"The checkpoint {folder} is not on the disk as it was written "
                    f"({_reason(error)}) and was removed; check the disk and start "
                    "again, which resumes from the last complete step."
                ) from error
            written.rename(folder)
            atomic.sync(self.directory)
            for old in steps(self.directory)[: -self._keep]:
                atomic.remove_folder(self.directory / str(old))

    def _check_room(self, snapshot):
        """A full disk is better found here than by a background thread, half-way."""
        needed = sum(x.nbytes for x in jax.tree.leaves(snapshot))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise UserError(
                f"A checkpoint needs {needed / 2**20:.1f} MiB but only "
                f"{free / 2**20:.1f} MiB are free at {self.directory}; make room there "
                "and start again, which resumes from the last complete step."
            )

    def _check_shapes(self, step, saved, wanted):
        for path in sorted(saved.keys() | wanted.keys()):
            found, needed = saved.get(path), wanted.get(path)
            shapes = [
                f"{x['dtype']} {x['shape']}" if x else "nothing"
                for x in (found, needed)
            ]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"The checkpoint {self.directory / str(step)} is of another "
                    f"configuration: it has {shapes[0]} for {path!r} where this one "
                    f"has {shapes[1]}; choose another workdir or restore the "
                    "configuration that wrote it."
                )


def load_params(directory: str | pathlib.Path, step: int | None = None) -> Params:
    """The parameters of a checkpoint, whatever its optimiser was.

    Args:
      directory: The folder of a run's checkpoints, or the run's workdir around it.
      step: The number of steps done; the latest if None.

    Returns:
      The parameters as nested dicts of NumPy arrays.

    Raises:
      UserError: If there is no checkpoint, or it is damaged.
    """
    folder = _folder_of(pathlib.Path(directory).absolute(), step)
    with _reading(folder):
        checkpoint_files.verify(folder)
        arrays = _arrays(folder)
        return _read_params(folder, arrays)


def copy_latest(
    source: str | pathlib.Path, destination: str | pathlib.Path
) -> pathlib.Path:
    """Copies the last checkpoint of one run into the folder of another's checkpoints.

    The other run then resumes from it: step, parameters, optimiser and all.

    Args:
      source: The folder of a run's checkpoints, or the run's workdir around it.
      destination: The folder of the new run's checkpoints, without any yet.

    Returns:
      The folder of the copied step.

    Raises:
      UserError: If there is no checkpoint at ``source`` or the copy cannot be written.
    """
    folder = _folder_of(pathlib.Path(source).absolute(), None)
    destination = pathlib.Path(destination).absolute()
    partial = destination.with_name(destination.name + ".partial")
    with _writing(destination):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial / folder.name)
        beside.forget(partial / folder.name)
        partial.rename(destination)
    return destination / folder.name


def _folder_of(directory: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of a step, or of the latest, in a run's workdir or its checkpoints."""
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not directory.is_dir():
        raise UserError(
            f"There are no checkpoints at {directory}; name the workdir of a run that "
            "has saved one."
        )
    # No manager: another process may be training there, whose files it would tidy up.
    return directory / str(_existing(steps(directory), directory, step))


def steps(directory: str | pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder; none where it is absent."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def latest_step(directory: str | pathlib.Path) -> int:
    """The step of the last checkpoint in a folder of them; 0 where there is none."""
    return max(steps(directory), default=0)


def _existing(steps: Iterable[int], directory: pathlib.Path, step: int | None) -> int:
    """The step asked for, or the latest, once it is known to be there."""
    steps = sorted(steps)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(
            f"There is no complete {wanted} in {directory}, which has the steps "
            f"{steps}; name one of them or the folder of another run."
        )
    return steps[-1] if step is None else step


ARRAYS = "arrays/metadata"
"""Where the list of arrays is kept."""


def _orbax() -> ocp.Checkpointer:
    """Orbax, which waits for no other process: all that it does here is done alone."""
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(here, {here})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _save(item: pathlib.Path, tree: Any) -> None:
    """Writes an item of a checkpoint."""
    with _orbax() as writer:
        writer.save(item, args=ocp.args.StandardSave(tree))


def _read(item: pathlib.Path, target: Any = None) -> Any:
    """An item of a checkpoint, as NumPy arrays."""
    with _orbax() as reader:
        read = reader.restore(item, args=ocp.args.StandardRestore(target))
    return jax.tree.map(np.asarray, read)


def _read_params(folder: pathlib.Path, arrays: Mapping[str, Any]) -> Params:
    """The parameters, which agree with what is known of the arrays."""
    params, prefix = _read(folder / "params"), "params/"
    saved = {path: x for path, x in arrays.items() if path.startswith(prefix)}
    _check_sums({prefix + path: x for path, x in _by_path(params).items()}, saved)
    return params


def _verify(folder: pathlib.Path, arrays: dict[str, Any]) -> None:
    """What is on the disk is what was to be written."""
    checkpoint_files.verify(folder)
    if _arrays(folder) != arrays:
        raise ValueError("its list of arrays is another")
    _read_params(folder, arrays)
    rest = {path: x for path, x in arrays.items() if not path.startswith("params/")}
    _check_sums(_read(folder / "rest"), rest)


def _by_path(tree: Any) -> dict[str, Any]:
    """Path -> leaf, in the order of the leaves; a path reads "params/dense/bias"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _describe(state: State, checksums: bool = False) -> dict[str, dict[str, Any]]:
    """Path -> {shape, dtype, crc32}, all of JSON's own types."""

    def describe(x):
        about = {"shape": list(x.shape), "dtype": str(x.dtype)}
        return {**about, "crc32": _crc32(x)} if checksums else about

    return {path: describe(x) for path, x in _by_path(state).items()}


def _arrays(folder: pathlib.Path) -> dict[str, Any]:
    """The list of arrays of a checkpoint; raises ValueError where it is damaged."""
    read = characters.read_json(folder / ARRAYS)
    if zlib.crc32(_canonical(read["arrays"])) != read["crc32"]:
        raise ValueError("the checksum of its list of arrays is wrong")
    if MANIFEST in read and not (folder / MANIFEST).exists():
        raise ValueError("its manifest is missing")
    return read["arrays"]


def _canonical(arrays: dict[str, Any]) -> bytes:
    return json.dumps(arrays, sort_keys=True).encode()


def _check_sums(found: Mapping[str, np.ndarray], saved: Mapping[str, Any]) -> None:
    if found.keys() != saved.keys():
        raise ValueError("arrays are missing")
    for path, x in found.items():
        if _crc32(x) != saved[path]["crc32"]:
            raise ValueError(f"the checksum of {path!r} is wrong")


def _crc32(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _reading(folder: pathlib.Path):
    """Whatever Orbax trips over in a complete folder is damage to that folder."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"The checkpoint {folder} is damaged ({_reason(error)}); delete this "
            "folder to fall back on the step before it."
        ) from error


@contextlib.contextmanager
def _writing(folder: pathlib.Path):
    """What the operating system refuses: Orbax's storage says so in a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        raise UserError(
            f"No checkpoint could be written to {folder} ({_reason(error)}); make room "
            "or permit writing there and start again, which resumes from the last "
            "complete step."
        ) from error


def _reason(error: BaseException) -> str:
    """The heart of the message: Orbax's storage nests path in path around it."""
    if number := re.search(r"os_error_code=\W*(\d+)", str(error)):
        return os.strerror(int(number[1]))
    return (characters.lines(str(error).strip()) or [type(error).__name__])[0][:200]
