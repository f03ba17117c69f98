"""What every launcher shares: flags, the workdir, the corpus, training, the report."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import config_flags

from rlm_jax.errors import UserError
from rlm_jax.train import parallel, progress


class Run(NamedTuple):
    """What a launcher was asked to do, beside its configuration."""

    system: str
    preset: str
    workdir: pathlib.Path
    dry_run: bool


def main(
    system: str,
    presets: Mapping[str, Callable[[], Any]],
    execute: Callable[[Any, Run], object],
) -> None:
    """Parse the command line, run, and turn `UserError` into one line and status 1.

    ``--preset`` chooses the configuration that ``--config.x.y=value`` then changes.
    """
    try:
        preset = _preset(presets)
        flags.DEFINE_enum("preset", preset, list(presets), "The configuration.")
        flags.DEFINE_string("workdir", None, "Where everything of the run goes.")
        flags.DEFINE_bool("dry_run", False, "Build everything, show it, do not train.")
        config = config_flags.DEFINE_config_dataclass("config", presets[preset]())
        flags.mark_flag_as_required("workdir")

        def start(argv):
            if len(argv) > 1:
                raise UserError(
                    f"Unexpected argument {argv[1]!r}; every option is --name=value."
                )
            logging.set_verbosity(logging.WARNING)  # Orbax tells of its every thread
            parallel.initialise()
            run = Run(
                system,
                preset,
                pathlib.Path(flags.FLAGS.workdir),
                flags.FLAGS.dry_run,
            )
            execute(config.value, run)

        app.run(lambda argv: _guarded(start, argv), flags_parser=_parse_flags)
    except UserError as error:
        _fail(error)


def _guarded(start, argv):
    try:
        start(argv)
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: UserError):
    progress.say(f"error: {error}")
    sys.exit(1)


def _preset(presets: Mapping[str, Any]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", "-preset", default="tiny")
    name = parser.parse_known_args()[0].preset
    if name not in presets:
        raise UserError(f"Unknown preset {name!r}; choose one of {', '.join(presets)}.")
    return name


def _parse_flags(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"A --config flag does not fit: {error}") from error


def claim(run: Run, config: Any, *, same: tuple[str, ...]) -> None:
    """Make the workdir this run's, or check that it already is.

    ``config.json`` keeps the configuration. A rerun may change how long to train and
    what to evaluate, but not the fields named in ``same``.

    Raises:
      UserError: the workdir holds another run, or cannot be written.
    """
    path = run.workdir / "config.json"
    ours = {
        "system": run.system,
        **json.loads(json.dumps(dataclasses.asdict(config))),
    }
    try:
        run.workdir.mkdir(parents=True, exist_ok=True)
        theirs = json.loads(path.read_text()) if path.exists() else None
        if theirs is not None:
            for field in ("system", *same):
                where = _difference(field, theirs.get(field), ours.get(field))
                if where:
                    raise UserError(
                        f"The workdir {run.workdir} belongs to another run: {where}; "
                        "choose another --workdir or the same configuration."
                    )
        path.write_text(json.dumps(ours, indent=1) + "\n")
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"The workdir {run.workdir} cannot be used ({error}); choose another "
            "--workdir."
        ) from error


def _difference(name: str, theirs: Any, ours: Any) -> str | None:
    """The first field in which two configurations differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            where = _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
            if where:
                return where
        return None
    return None if theirs == ours else f"{name} is {theirs!r} there and {ours!r} here"
