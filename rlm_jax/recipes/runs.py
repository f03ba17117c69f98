"""A run's folder: whose it is, what was done there, and how long that took."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from rlm_jax import characters, configuration, processes
from rlm_jax.data import names
from rlm_jax.errors import UserError
from rlm_jax.report import report
from rlm_jax.storage import atomic, locks, sealed
from rlm_jax.train import beside

Config = TypeVar("Config", contravariant=True)
Group = TypeVar("Group")
Result = TypeVar("Result", covariant=True)

LOCK = ".lock"
CONFIG = "config.json"
PART = "identity.json"  # of one trained part, in its folder
IDENTITY = "identity"  # a field of config.json
TOKENIZER = "tokenizer.json"
"""The run's own tokenizer, so that its model never needs the training text."""

_BEFORE_WORK = {LOCK, CONFIG, TOKENIZER, PART} | {
    *("config_sentence_transformers.json", "sentence_bert_config.json"),
}
"""What a run writes before it does anything that is worth keeping."""

_RUN = {
    "system": str,
    "fingerprint": sealed.Maybe(str),
    IDENTITY: sealed.Maybe(dict[str, str]),
}
_REMEDY = "restore it, or name another workdir"

DRAWS = ("train.seed", "train.accumulate")
"""Fields that decide what a trained run draws, besides those of its system."""


class Run(NamedTuple):
    """What a recipe was asked to do, beside its configuration."""

    system: str
    preset: str
    workdir: pathlib.Path
    dry_run: bool


class Recipe(Protocol[Config, Result]):
    """A system from corpus to report, as a function of a configuration.

    What is whole in the workdir is not done again. ``preset`` is told in the report. A
    dry run builds everything, shows its size, trains nothing and writes nothing.

    Attributes:
      system: its name, which a run's config.json has.

    Raises:
      UserError: input that does not do, before any work is done.
    """

    system: str

    def __call__(
        self,
        config: Config,
        workdir: str | pathlib.Path,
        *,
        preset: str = "custom",
        dry_run: bool = False,
    ) -> Result: ...


def recipe(
    system: str,
) -> Callable[[Callable[[Config, Run], Result]], Recipe[Config, Result]]:
    """Makes a recipe of ``execute(config, run)``, alone in its workdir meanwhile."""

    def make(execute: Callable[[Config, Run], Result]) -> Recipe[Config, Result]:
        def run(config, workdir, *, preset="custom", dry_run=False):
            configuration.check(config)
            here = Run(system, preset, pathlib.Path(workdir), dry_run)
            with contextlib.nullcontext() if dry_run else _alone(here.workdir):
                return execute(config, here)

        run.__doc__, run.__module__ = execute.__doc__, execute.__module__
        made: Any = run
        made.system = system
        return made

    return make


@contextlib.contextmanager
def _alone(workdir: pathlib.Path):
    """Meanwhile no other run may write the workdir.

    Of several processes of a run the first holds the lock, and all learn if it cannot.
    """
    if characters.shown(str(workdir)) != str(workdir):
        raise UserError(
            f"The workdir {characters.shown(str(workdir))} is not named in UTF-8, "
            "which libraries below need; choose another --workdir."
        )
    made = _missing(workdir)
    there = set() if made else set(workdir.rglob("*"))
    held = processes.by_first(functools.partial(_lock, workdir), f"work in {workdir}")
    try:
        yield
    finally:
        if held is not None:
            _leave(workdir, made, there)
            os.close(held)


def _missing(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders that are made for the workdir, innermost first."""
    return [p for p in (workdir, *workdir.parents) if not os.path.isdir(p)]


def _leave(
    workdir: pathlib.Path, made: Sequence[pathlib.Path], there: set[pathlib.Path]
) -> None:
    """Removes what a run has left that did nothing, and the folders made for it.

    A workdir that was there stays, as it was: it may be a link, or what is mounted
    there.
    """
    left = [path for path in workdir.rglob("*") if path not in there]
    files = [path for path in left if not path.is_dir() or path.is_symlink()]
    if {path.name for path in files} <= _BEFORE_WORK:
        for path in files:
            path.unlink(missing_ok=True)
        folders = sorted((p for p in left if p not in files), reverse=True)
        for folder in (*folders, *made):
            # Not empty: something is there that is none of ours.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(workdir: pathlib.Path) -> int:
    """The descriptor of the workdir's lock, which ends with the process that has it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held = locks.try_lock(workdir / LOCK)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    if held is None:
        raise UserError(
            f"Another process is at work in the workdir {workdir}; wait for it, stop "
            "it, or choose another --workdir."
        )
    return held


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(
            f"The workdir {workdir} cannot be a folder, as a file or a link to nothing "
            "stands in its path; choose another --workdir."
        )
    return UserError(
        f"The workdir {workdir} cannot be written ({error.strerror}); choose another "
        "--workdir or make room there."
    )


class Phases:
    """Wall-clock seconds by phase of a run."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def leave_to_first() -> None:
    """After training: the first of several processes scores and reports alone."""
    if processes.several():
        first = processes.is_first()
        processes.leave()
        if not first:
            sys.exit(0)


def finished(run: Run, config: Any, text: str) -> report.Report | None:
    """The report of this configuration and text in the workdir, if there is one."""
    written = run.workdir / "report.json"
    theirs = _completed(run, config) or {}
    theirs.pop(IDENTITY, None)
    if not written.exists() or theirs != _fields(run, config, text):
        return None
    return report.read(written)


def configuration_of(workdir: str | pathlib.Path, text: str) -> dict[str, Any]:
    """The configuration of another run on the same text.

    Raises:
      UserError: there is no run in that workdir, or its text or tokenizer is another.
    """
    stored = _stored(pathlib.Path(workdir))
    if stored is None or "method" not in stored:
        raise UserError(
            f"There is no run in {workdir}; name the workdir of one that was trained."
        )
    if stored.get("fingerprint") != text:
        raise UserError(
            f"The run in {workdir} was trained on another text or tokenizer; give the "
            "--config.data it was trained with."
        )
    return stored


def claim(
    run: Run,
    config: Any,
    text: str,
    *,
    same: tuple[str, ...],
    unused: tuple[str, ...] = (),
    identity: Mapping[str, str] | None = None,
) -> None:
    """Make the workdir this run's, or check that it already is.

    ``config.json`` keeps the configuration, the fingerprint of the text (tokens) and
    those of what else a run depends on: the same names may stand for another text,
    tokenizer or model tomorrow. A rerun may change how long to train and what to
    evaluate, but not the fields named in ``same``; the report of another configuration
    goes. Fields in ``unused``, on which nothing that this run leaves there depends,
    stay as they are stored. Of several processes the first one writes; a dry run writes
    nothing.

    Args:
      text: fingerprint of what the run reads.
      same: fields, nested ones by their path, as ``train.seed``.
      identity: name -> fingerprint, of the tokenizer and of the model it starts from.

    Raises:
      UserError: the workdir holds another run, or cannot be written.
    """
    ours, theirs = _fields(run, config, text), _completed(run, config)
    ours[IDENTITY] = dict(identity or {})
    if theirs is not None:
        ours |= {field: theirs[field] for field in unused if field in theirs}
        # What an older version did not write down cannot be compared.
        ours[IDENTITY] = theirs.get(IDENTITY, {}) | ours[IDENTITY]
        theirs[IDENTITY] = ours[IDENTITY] | theirs.get(IDENTITY, {})
    for field in ("system", *same, "fingerprint", IDENTITY):
        if theirs is None:
            break
        where = _difference(field, _at(theirs, field), _at(ours, field))
        if where:
            raise UserError(
                f"The workdir {run.workdir} belongs to another run: {where}; "
                "choose another --workdir or the same configuration."
            )

    def write() -> None:
        path = run.workdir / CONFIG
        try:
            run.workdir.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as partial:
                characters.write_json(partial, sealed.sealed(ours))
                if ours != theirs:
                    (run.workdir / "report.json").unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(run.workdir, error) from error

    if not run.dry_run:
        processes.by_first(write, f"write {run.workdir}")


def _at(fields: Any, path: str) -> Any:
    for name in path.split("."):
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


def claim_part(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Make a folder of the workdir that of one trained part, or check that it is.

    A run's own configuration may change from rerun to rerun where it says how to
    evaluate; what a part was trained with may not.

    Raises:
      UserError: it was trained with something else, which is named, or cannot be read
        or written.
    """
    path = folder / PART
    ours, theirs = json.loads(json.dumps(identity)), {}
    beside.require(folder)
    if path.exists():
        theirs = sealed.read(path, {}, remedy=_REMEDY, older=True)
        # What an older version did not write down cannot be compared.
        where = _difference("it", ours | theirs, ours)
        if where:
            raise UserError(
                f"What was trained in {folder} is of another configuration: "
                f"{where.removeprefix('it.')}; choose another --workdir."
            )
    if ours != theirs and processes.is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sealed.write(path, ours)
        except OSError as error:
            raise _unwritable(folder, error) from error


def _fields(run: Run, config: Any, text: str) -> dict[str, Any]:
    """What config.json holds."""
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    # Resolved: the run may be opened from another folder.
    resolved = names.resolved_fields(fields)
    return {"system": run.system, "fingerprint": text, **resolved}


def stored(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What the config.json of a folder says; empty where there is none.

    Raises:
      UserError: it is damaged.
    """
    return _stored(pathlib.Path(workdir)) or {}


def require(
    workdir: pathlib.Path, stored: Mapping[str, Any], kinds: Mapping[str, Any]
) -> None:
    """Raises UserError where a run's configuration lacks fields of these kinds."""
    sealed.require(stored, kinds, workdir / CONFIG, _REMEDY)


def group(
    workdir: pathlib.Path,
    stored: Mapping[str, Any],
    name: str,
    kind: Callable[..., Group],
) -> Group:
    """A group of fields of a run's configuration.

    Raises:
      UserError: it is missing, or has other fields, as that of another version.
    """
    require(workdir, stored, {name: dict[str, Any]})
    return sealed.made_of(kind, stored[name], workdir / CONFIG, _REMEDY)


def _stored(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config.json of a workdir; None where there is none yet."""
    try:
        fields = sealed.read(workdir / CONFIG, {}, remedy=_REMEDY, older=True)
    except (FileNotFoundError, NotADirectoryError):
        beside.require(workdir)
        return None
    if "system" in fields:  # else it is a published model's
        require(workdir, fields, _RUN)
    return fields


def _completed(run: Run, config: Any) -> dict[str, Any] | None:
    """The stored configuration; a field it is too old to have is as its default."""
    stored = _stored(run.workdir)
    if stored is None or stored.get("system") != run.system:
        return stored

    def fill(theirs: Any, default: Any) -> Any:
        if not isinstance(theirs, dict) or not isinstance(default, dict):
            return theirs
        return default | {k: fill(v, default.get(k)) for k, v in theirs.items()}

    return fill(names.resolved_fields(stored), _fields(run, type(config)(), ""))


def _difference(name: str, theirs: Any, ours: Any) -> str | None:
    """The first field in which two configurations differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            where = _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
            if where:
                return where
        return None
    return None if theirs == ours else f"{name} is {theirs!r} there and {ours!r} here"
