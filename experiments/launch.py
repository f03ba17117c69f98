"""The command line of a launcher: flags, a recipe's run, and errors in one line."""

import contextlib
import errno
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import options
from rlm_jax import peers, processes, terminal
from rlm_jax.errors import UserError


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


@contextlib.contextmanager
def one_line():
    """What the user can mend is told in one line; all else keeps its traceback."""
    try:
        yield
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            why = "is too long for its file system"
            if error.errno == errno.ELOOP:
                why = "is a link that leads to itself"
            _end(f"The path {error.filename} {why}; name another.")
        if error.errno not in _MENDED_OUTSIDE:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = f"The disk is full{where}; make room"
        else:
            told = f"{error.filename or 'A file'}: {error.strerror}; mend that"
        _end(f"{told} and start again, which goes on from what is whole.")
    except MemoryError:
        _end(
            "There is too little memory; free some, or choose smaller batches, and "
            "start again, which goes on from what is whole."
        )
    except KeyboardInterrupt:
        terminal.say("interrupted; start again to go on from the last checkpoint")
        sys.exit(130)
    except Exception:
        peers.give_way()
        raise


_MENDED_OUTSIDE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM),
)
"""What the system refuses, whatever the program is; all else is a bug."""


def _end(told: str) -> NoReturn:
    """Tells why, and ends with status 1."""
    if peers.peers().several:
        # At once: JAX would wait at its exit for processes that wait for this one.
        peers.peers().fail()
        peers.end(told=told)
    terminal.say(f"error: {told}")
    sys.exit(1)
