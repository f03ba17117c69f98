"""The command line of a launcher: flags, a recipe's run, and errors in one line."""

import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import options
from rlm_jax import allocator, processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.failures import one_line


def main(
    presets: Mapping[str, Callable[[], Any]],
    run: Callable[..., object],
) -> None:
    """Parse the command line, run, and turn `UserError` into one line and status 1.

    ``--preset`` chooses the configuration that ``--config.x.y=value`` then changes;
    ``run`` takes it, the workdir, the preset's name and whether it is a dry run.
    """
    if {"--help", "-help", "-h", "--helpfull"} & set(sys.argv[1:]):
        terminal.write(options.help_text(presets))
        return

    def start(argv):
        if len(argv) > 1:
            raise UserError(
                f"Unexpected argument {argv[1]!r}; every option is --name=value."
            )
        if not flags.FLAGS.workdir:
            raise UserError("Where to? Name a folder with --workdir, as runs/first.")
        logging.set_verbosity(logging.WARNING)  # Orbax tells of its every thread
        allocator.keep_freed_memory()
        processes.initialise()
        workdir = pathlib.Path(flags.FLAGS.workdir)
        run(config.value, workdir, preset=preset, dry_run=flags.FLAGS.dry_run)

    with one_line():
        preset = options.preset(sys.argv[1:], presets)
        sys.argv[1:], default = options.with_file(
            sys.argv[1:], presets[preset](), getattr(run, "system", "")
        )
        options.check_fields(sys.argv[1:], default)
        flags.DEFINE_enum("preset", preset, list(presets), "The configuration.")
        flags.DEFINE_string("workdir", None, "Where everything of the run goes.")
        flags.DEFINE_bool("dry_run", False, "Build everything, show it, do not train.")
        config = config_flags.DEFINE_config_dataclass("config", default)
    app.run(
        one_line()(start),
        flags_parser=one_line()(lambda argv: options.parse(argv, default)),
    )
